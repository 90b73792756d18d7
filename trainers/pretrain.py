"""Pretrains a DeBERTa, by masked language modelling or replaced-token detection.

    python -m trainers.pretrain --data rows/train --held_out rows/held_out \\
        --tokenizer vocabulary --model_dir runs/small --num_layers 6 \\
        --hidden_dim 384 --num_heads 6 --intermediate_dim 1536 --total_steps 100000

The result is the preset `model_dir/preset`, tokenizer included. The same command goes
on where an interrupted one was.
"""

import dataclasses
import functools
import hashlib

import keras

from deberta_tf import files, updates
from deberta_tf.embeddings import check_absolute_length
from deberta_tf.replaced_token import EMBEDDING_SHARINGS
from deberta_tf.rows import PretrainingRows
from trainers import callbacks, devices, peak, pretraining_data, run
from trainers.config import check_at_least, check_choice, check_share, parse
from trainers.pretraining_tasks import build_task, compile_task

OBJECTIVES = ("masked_lm", "replaced_token", "masked_and_causal")
# Settings of a new model: arguments of DebertaBackbone. The first four have no default.
SIZES = ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
BACKBONE = (
    *SIZES,
    "max_sequence_length",
    "max_relative_distance",
    "bucket_size",
    "position_terms",
    "share_position_projections",
    "key_bias",
    "normalize_relative_embeddings",
    "absolute_position_input",
    "embedding_dim",
    "head_dim",
    "convolution_kernel_size",
)
# How it computes, whatever its weights.
OPTIONS = (
    "attention_form",
    "dropout",
    "attention_dropout",
    "gradient_checkpointing",
    "scan_layers",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(run.RunConfig):
    """Pretrains a DeBERTa, by masked language modelling or replaced-token detection."""

    objective: str = "masked_lm"
    """masked_lm, with the enhanced mask decoder (v1, v2); replaced_token, a generator
    and a discriminator (v3); masked_and_causal, every second row autoregressive,
    scored by the perplexity of those."""
    data: str
    """Folder of rows that tools.build_pretraining_data wrote."""
    held_out: str | None = None
    """Folder of rows that are only scored; none: no evaluation."""
    tokenizer: str | None = None
    """The tokenizer that made the rows: a folder with spm.model, with vocab.json and
    merges.txt, or a preset; none: the preset's."""
    preset: str | None = None
    """Folder of a preset to go on from, or a published size with load_weights false."""
    load_weights: bool = True
    """Take the preset's weights; false: its geometry alone."""
    total_steps: int
    """Steps of the training, warm-up included."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises; none: a tenth, 10,000 at most."""
    eval_every: int = 1000
    """Steps between evaluations on the held-out rows."""
    max_ngram: int | None = None
    """Longest masked span, in words; 1: single tokens; none: 3, or 1 for
    replaced_token."""
    enhanced_mask_decoder: bool | None = None
    """Decode masks with absolute positions; none: unless they are at the input."""
    generator_layers: int | None = None
    """Blocks of the generator of replaced tokens; none: half of num_layers."""
    embedding_sharing: str = "gdes"
    """How generator and discriminator share token embeddings: gdes, es or nes."""
    discriminator_weight: float = 50.0
    """What the discriminator's loss counts beside the generator's."""
    discriminator_learning_rate: float | None = None
    """Peak of the discriminator's own learning rate; none: learning_rate."""
    decoupled: bool | None = None
    """Update the generator, then the discriminator; false: one update by the sum of
    the losses; none: yes, but for es."""
    mask_rate: float = 0.15
    """Share of the tokens to predict."""
    num_layers: int | None = None
    """Blocks of the encoder."""
    hidden_dim: int | None = None
    """Width of the hidden states."""
    num_heads: int | None = None
    """Attention heads; they divide hidden_dim."""
    intermediate_dim: int | None = None
    """Width inside the feed-forward part."""
    max_sequence_length: int | None = None
    """Absolute positions that the model knows, in tokens; none: 512."""
    max_relative_distance: int | None = None
    """Longest distance told apart, in tokens; none: max_sequence_length."""
    bucket_size: int | None = None
    """Distance buckets on each side of 0; 0: plain distances (v1); none: 256."""
    position_terms: tuple[str, ...] | None = None
    """Any of c2p and p2c, or an empty list; none: both."""
    absolute_position_input: bool | None = None
    """Add absolute positions to the embeddings; none: only in the mask decoder."""
    share_position_projections: bool | None = None
    """Project positions by the content's projections; none: yes (v1: false)."""
    key_bias: bool | None = None
    """Bias in the key projection; none: yes (v1: false)."""
    normalize_relative_embeddings: bool | None = None
    """Layer norm over the relative table; none: yes (v1: false)."""
    embedding_dim: int | None = None
    """Width of the token table; none: hidden_dim."""
    head_dim: int | None = None
    """Width of a head; none: hidden_dim / num_heads."""
    convolution_kernel_size: int | None = None
    """Width in tokens of the convolution after the first block; none: no such."""
    dropout: float | None = None
    """Rate on embeddings and outputs; none: 0.1, or the preset's."""
    attention_dropout: float | None = None
    """Rate on attention probabilities; none: 0.1, or the preset's."""
    attention_form: str | None = None
    """Form of the position terms: auto, gather, shift, product, fused; none: auto."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "total_steps", "eval_every", "max_ngram", *SIZES)
        check_at_least(self, 0, "warmup_steps")
        check_share(self, "dropout", "attention_dropout")
        check_at_least(self, 1, "generator_layers")
        check_at_least(self, 0, "discriminator_weight", "discriminator_learning_rate")
        check_choice(self, "objective", OBJECTIVES)
        check_choice(self, "embedding_sharing", EMBEDDING_SHARINGS)
        if not 0 < self.mask_rate <= 1:
            raise files.UsageError(
                f"mask_rate must be in (0, 1]. Received: {self.mask_rate}"
            )
        given = self.sizes().keys() - self.options().keys()
        if self.preset is not None and given:
            listed = " and --".join(name for name in BACKBONE if name in given)
            raise files.UsageError(f"the model is the preset's: leave out --{listed}")
        missing = [name for name in SIZES if name not in given]
        if self.preset is None and missing:
            raise files.UsageError(f"give --preset, or --{' and --'.join(missing)}")

    def sizes(self):
        """The settings of a new model that are set: arguments of DebertaBackbone."""
        values = {name: getattr(self, name) for name in (*BACKBONE, *OPTIONS)}
        return {name: value for name, value in values.items() if value is not None}

    def options(self):
        """Those of them that a preset takes too."""
        return {k: v for k, v in self.sizes().items() if k in OPTIONS}


def main(argv=None):
    config = parse(PretrainConfig, argv)
    if run.begin(config):
        return 0
    rows = PretrainingRows(config.data)
    held_out = PretrainingRows(config.held_out) if config.held_out else None
    strategy = devices.make_strategy(config)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        task = build_task(config, rows.sequence_length)
        for some in filter(None, (rows, held_out)):
            check_rows(some, task)
        schedule = run.make_schedule(config, config.total_steps, warmup_steps(config))
        compile_task(task, config, schedule)
    run.describe(task, len(rows), config.total_steps, config)
    training = functools.partial(pretraining_data.training_batches, config, task, rows)
    evaluation = held_out and held_out_evaluation(config, task, held_out)
    if config.dry_run:
        return run.dry_run(task, config, training, evaluation)
    shards = "".join(shard["sha256"] for shard in rows.manifest["shards"])
    facts = {"rows": hashlib.sha256(shards.encode()).hexdigest()}
    derive = functools.partial(derived_scalars, config, task, rows.sequence_length)
    stopped_by = run.train(task, config, schedule, training, evaluation, facts, derive)
    if stopped_by:
        return run.exit_code(stopped_by)
    preset = run.preset_dir(config)
    if evaluation is None and devices.is_chief():
        with updates.averaged(task.optimizers):
            callbacks.save_preset(task, preset, {"step": config.total_steps})
    scores = callbacks.read_scores(preset)
    run.finish(config, {"held_out": scores, "parameters": task.count_params()})


def warmup_steps(config):
    """Steps of the warm-up: what is set, else a tenth, 10,000 at most (SPEC 6.4)."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return min(config.total_steps // 10, 10_000)


def check_rows(rows, task):
    """Refuses rows of another tokenizer, or longer than the model's positions."""
    rows.check_tokenizer(task.preprocessor.tokenizer.fingerprint())
    check_absolute_length(rows.sequence_length, task.backbone.max_sequence_length)


def held_out_evaluation(config, task, rows):
    """Scores on held-out rows, with masks that are the same in every run.

    `loss`, or `generator_loss`, is the mean cross-entropy of the masked tokens, in
    nats; `perplexity` its exponential; accuracies are shares of tokens that are right.
    """
    strategy = task.distribute_strategy
    make_batches = functools.partial(
        pretraining_data.held_out_batches, config, task, rows
    )

    def evaluate(task, max_batches=None):
        steps = max_batches or pretraining_data.num_batches(config, rows)
        dataset = devices.distribute(strategy, make_batches, config.batch_size)
        scores = task.evaluate(dataset, steps=steps, return_dict=True, verbose=0)
        return {**scores, **perplexity(scores)}

    return run.Evaluation(evaluate, config.eval_every, "loss", False, "held_out")


def derived_scalars(config, task, sequence_length, logs, seconds):
    """Perplexity, speeds and, of a chip that is known, the share of its peak.

    Args:
        config: `PretrainConfig`.
        task: the task of the run.
        sequence_length: int.
        logs: dict, of a step.
        seconds: float, that a step takes.
    """
    speeds = run.speeds(config, logs, seconds)
    tokens = speeds["examples_per_second"] * sequence_length
    joint = config.objective == "masked_and_causal"
    # The loss of two objectives has no perplexity.
    scores = {} if joint else perplexity(logs)
    scalars = {**scores, **speeds, "tokens_per_second": tokens}
    peak_of_one = peak.peak_operations(config)
    if peak_of_one is not None:
        replicas = task.distribute_strategy.num_replicas_in_sync
        used = tokens * peak.operations_per_token(task, sequence_length)
        scalars["share_of_peak"] = used / (replicas * peak_of_one)
    return scalars


def perplexity(scores):
    """{"perplexity": …}, the exponential of the masked tokens' cross-entropy."""
    loss = scores.get("generator_loss", scores["loss"])
    return {"perplexity": callbacks.exponential(loss)}


if __name__ == "__main__":
    files.run_command(main)
