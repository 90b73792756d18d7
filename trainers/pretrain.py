"""Pretrains a DeBERTa by masked language modelling.

    python -m trainers.pretrain --data rows/train --held_out rows/held_out \\
        --tokenizer vocabulary --model_dir runs/small --num_layers 6 \\
        --hidden_dim 384 --num_heads 6 --intermediate_dim 1536 --total_steps 100000

The result is the preset `model_dir/preset`, tokenizer included. The same command goes
on where an interrupted one was.
"""

import dataclasses
import functools
import hashlib

import numpy as np
import tensorflow as tf

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.embeddings import check_absolute_length
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.masking import NgramMasker
from deberta_tf.rows import PretrainingRows
from trainers import batches, callbacks, run
from trainers.config import check_at_least, check_share, parse

# Held-out masks are the same in every run, so that losses of runs compare.
HELD_OUT_SEED = 0
# Settings of a new model: arguments of DebertaBackbone. The first four have no default.
SIZES = ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
BACKBONE = (
    *SIZES,
    "dropout",
    "attention_dropout",
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
    "attention_form",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(run.RunConfig):
    """Pretrains a DeBERTa by masked language modelling."""

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
    max_ngram: int = 3
    """Longest masked span, in words; 1: single tokens."""
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
    """How position terms are placed, auto, shift or gather; none: auto."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "total_steps", "eval_every", "max_ngram", *SIZES)
        check_at_least(self, 0, "warmup_steps")
        check_share(self, "dropout", "attention_dropout")
        if not 0 < self.mask_rate <= 1:
            raise files.UsageError(
                f"mask_rate must be in (0, 1]. Received: {self.mask_rate}"
            )
        if self.preset is not None and _given(self):
            listed = " and --".join(_given(self))
            raise files.UsageError(f"the model is the preset's: leave out --{listed}")
        missing = [name for name in SIZES if name not in _given(self)]
        if self.preset is None and missing:
            raise files.UsageError(f"give --preset, or --{' and --'.join(missing)}")


def main(argv=None):
    config = parse(PretrainConfig, argv)
    if run.begin(config):
        return 0
    rows = PretrainingRows(config.data)
    held_out = PretrainingRows(config.held_out) if config.held_out else None
    task = build_task(config, rows.sequence_length)
    for some in filter(None, (rows, held_out)):
        some.check_tokenizer(task.preprocessor.tokenizer.fingerprint())
        check_absolute_length(some.sequence_length, task.backbone.max_sequence_length)
    schedule = run.compile_task(task, config, config.total_steps, warmup_steps(config))
    run.describe(task, len(rows), config.total_steps, config)
    training = functools.partial(training_batches, config, task, rows)
    evaluation = held_out and held_out_evaluation(config, task, held_out)
    if config.dry_run:
        return run.dry_run(task, training, evaluation)
    shards = "".join(shard["sha256"] for shard in rows.manifest["shards"])
    facts = {"rows": hashlib.sha256(shards.encode()).hexdigest()}
    stopped_by = run.train(task, config, schedule, training, evaluation, facts)
    if stopped_by:
        return 128 + stopped_by
    preset = run.preset_dir(config)
    if evaluation is None:
        callbacks.save_preset(task, preset, {"step": config.total_steps})
    scores = callbacks.read_scores(preset)
    run.finish(config, {"held_out": scores, "parameters": task.count_params()})


def warmup_steps(config):
    """Steps of the warm-up: what is set, else a tenth, 10,000 at most (SPEC 6.4)."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return min(config.total_steps // 10, 10_000)


def build_task(config, sequence_length):
    """The masked-LM task with its preprocessor: of a preset, or new.

    Raises:
        ValueError: if the tokenizer or the preset is missing, or they do not match.
    """
    tokenizer = run.load_tokenizer(config)
    preprocessor = DebertaMaskedLMPreprocessor(
        tokenizer, sequence_length, config.mask_rate, config.max_ngram
    )
    if config.preset is None:
        backbone = DebertaBackbone(
            tokenizer.vocabulary_size(), **_given(config), dtype=config.precision
        )
        return DebertaMaskedLM(backbone, preprocessor)
    if not config.load_weights:
        backbone = DebertaBackbone.from_preset(
            config.preset,
            load_weights=False,
            vocabulary_size=tokenizer.vocabulary_size(),
            dtype=config.precision,
        )
        return DebertaMaskedLM(backbone, preprocessor)
    task = DebertaMaskedLM.from_preset(
        config.preset,
        preprocessor=preprocessor,
        dtype=config.precision,
        compile=False,
    )
    run.check_rows(config, tokenizer, task.backbone)
    return task


def training_batches(config, task, rows, first_step, last_step):
    """Masked batches of the steps, as `fit` takes them; masks keyed by (seed, n)."""
    numbers = batches.training_rows(
        len(rows), config.batch_size, config.seed, first_step, last_step
    )
    return numbers.map(_masking(config, task, rows, config.seed)).prefetch(2)


def held_out_evaluation(config, task, rows):
    """Scores on held-out rows, with masks that are the same in every run.

    `loss` is the mean cross-entropy of the masked tokens, in nats; `perplexity` its
    exponential; `accuracy` the share of them that is predicted right.
    """
    masking = _masking(config, task, rows, HELD_OUT_SEED)

    def masked(n, row):
        inputs, mask_ids, mask_weights = masking(n, row)
        # The last batch is filled up with rows that do not count.
        counts = tf.cast(n < len(rows), tf.float32)
        return inputs, mask_ids, mask_weights * counts[:, tf.newaxis]

    dataset = (
        batches.rows_in_order(len(rows), config.batch_size).map(masked).prefetch(2)
    )
    sums_of_batch = tf.function(masked_lm_sums, jit_compile=config.jit_compile)

    def evaluate(task, max_batches=-1):
        sums = [sums_of_batch(task, *batch) for batch in dataset.take(max_batches)]
        loss, right, count = np.sum(sums, axis=0, dtype=np.float64)
        loss = float(loss / count)
        return {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "accuracy": float(right / count),
        }

    return run.Evaluation(evaluate, config.eval_every, "loss", False, "held_out")


def masked_lm_sums(task, inputs, mask_ids, mask_weights):
    """Sums over the masked tokens of a batch: cross-entropy, right ones, tokens."""
    logits = task(inputs, training=False)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(mask_ids, logits)
    right = tf.argmax(logits, axis=-1, output_type=tf.int32) == mask_ids
    return tf.stack(
        [
            tf.reduce_sum(mask_weights * losses),
            tf.reduce_sum(mask_weights * tf.cast(right, tf.float32)),
            tf.reduce_sum(mask_weights),
        ]
    )


def _masking(config, task, rows, seed):
    """The function from (n, row numbers) to (inputs, mask_ids, mask_weights)."""
    tokenizer = task.preprocessor.tokenizer
    masker = NgramMasker.of_tokenizer(
        tokenizer, mask_rate=config.mask_rate, max_ngram=config.max_ngram
    )

    def masked(n, row):
        token_ids = tf.numpy_function(rows.take, [row], tf.uint32, stateful=False)
        token_ids.set_shape((config.batch_size, rows.sequence_length))
        token_ids = tf.cast(token_ids, tf.int32)
        padding_mask = tf.cast(token_ids != tokenizer.pad_token_id, tf.int32)
        inputs = masker(token_ids, padding_mask, seed, n)
        mask_ids, mask_weights = inputs.pop("mask_ids"), inputs.pop("mask_weights")
        inputs["padding_mask"] = padding_mask
        if "segment_ids" in task.input:
            inputs["segment_ids"] = tf.zeros_like(token_ids)
        return inputs, mask_ids, mask_weights

    return masked


def _given(config):
    """The settings of a new model that are set: arguments of DebertaBackbone."""
    values = {name: getattr(config, name) for name in BACKBONE}
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    files.run_command(main)
