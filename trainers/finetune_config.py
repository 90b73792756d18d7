"""Settings of `trainers.finetune`, and the recipes that fill them."""

import dataclasses
import os

from deberta_tf import files
from deberta_tf.checkpoints import folders
from deberta_tf.published import PUBLISHED_SIZES
from trainers import recipe, run
from trainers.config import (
    check_above_zero,
    check_at_least,
    check_share,
    parse,
)
from trainers.tasks import table

# Of what is not said otherwise: by the geometry of the preset.
AUTO = "auto"
OFF = "off"
_OWN_FILES = ("text_columns", "label_column", "regression")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(run.RunConfig):
    """Fine-tunes a DeBERTa for a task of the paper, or to classify or score texts."""

    preset: str
    """Folder of a preset (masked LM, backbone, or another task's) or of a Hugging Face
    or Microsoft checkpoint; or a published size with load_weights false. A head of the
    same task and classes is kept, of other classes its pooler; else it is new."""
    load_weights: bool = True
    """Take the preset's weights; false: its geometry and tokenizer alone."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer, where the preset has none."""
    task: str | None = None
    """Data set, such as mnli, squad2 or conll2003; tags: words with tags in files of
    yours; none: texts with labels in files of yours."""
    data_dir: str | None = None
    """Folder of the task's official files; none: TensorFlow Datasets."""
    recipe: str = AUTO
    """Published size whose settings for the task are taken where no others are given;
    auto: that of the preset's geometry, if it is one; off: the defaults."""
    seeds: int = 1
    """Runs, each with the next seed, in a folder of its own; the results are their mean
    and standard deviation."""
    also: tuple[str, ...] = ()
    """Other tasks of the same classes whose test sets are predicted as well: ax with
    mnli, axb and axg with superglue_rte."""
    train: str | None = None
    """Examples to train on: .csv, .tsv, .jsonl or tfds:BUILDER:SPLIT; of a task: a file
    of its layout, in place of its own."""
    dev: str | None = None
    """Examples that decide which weights are kept."""
    test: str | None = None
    """Examples that the kept weights are scored on; without labels: predicted only."""
    text_columns: tuple[str, ...] = ("sentence",)
    """Columns of the text, or of the two texts of a pair, separated by a comma."""
    label_column: str = "label"
    """Column of the label."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in order; none: the labels of train, sorted."""
    regression: bool = False
    """Labels are numbers to predict, not classes."""
    sequence_length: int = 128
    """Tokens of a row, special ones included. Longer texts are cut; contexts and
    passages go on in further rows."""
    window_overlap: int | None = None
    """Tokens that two rows of a context share; none: 128, of ReCoRD 256."""
    max_answer_length: int = 30
    """Tokens of an answer that is a span, at most."""
    no_answer_threshold: float = 0.0
    """A question of SQuAD 2.0 has no answer where that scores so much more."""
    epochs: float = 3.0
    """Passes over the training examples; 0.5: half of one."""
    learning_rate: float = 5e-5
    """Peak of the learning rate, reached after the warm-up; it then falls to 0."""
    warmup_fraction: float = 0.1
    """Share of the steps over which the learning rate rises."""
    warmup_steps: int | None = None
    """Steps over which it rises; none: warmup_fraction decides."""
    layer_decay: float | None = None
    """What a block's learning rate is of that of the block above it, the last one's of
    the head's; the embeddings come below the first. None: all have one rate."""
    frozen_layers: int | None = None
    """Blocks from below that stay as they are, the embeddings with them; 0: these
    alone. None: everything is trained."""
    classifier_dropout: float | None = None
    """Rate before the logits; none: the backbone's."""
    eval_every: int | None = None
    """Steps between evaluations on dev; none: an epoch."""
    best_by: str | None = None
    """Dev score that decides, or mean, of all; none: the task's own, accuracy for
    classes, pearson for a regression."""
    sift: bool = False
    """Scale-invariant fine-tuning: what small changes of the embeddings do to the
    outputs counts as a loss of its own. A step runs the model three times."""
    sift_weight: float = 5.0
    """What that loss counts beside the task's."""
    sift_step_size: float = 1e-4
    """Length of the step of ascent to where the outputs change most."""
    sift_initial_scale: float = 1e-2
    """Standard deviation of the change that the ascent begins at."""
    sift_recompute: bool = False
    """Run the clean pass once more instead of keeping it: less memory."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "eval_every", "seeds", "max_answer_length")
        check_at_least(self, 0, "frozen_layers", "window_overlap")
        check_above_zero(self, "epochs", "layer_decay")
        if self.layer_decay is not None and self.layer_decay > 1:
            raise files.UsageError(
                f"layer_decay must be at most 1. Received: {self.layer_decay}"
            )
        check_share(self, "warmup_fraction", "classifier_dropout")
        self._check_data()
        check_above_zero(self, "sift_weight", "sift_step_size", "sift_initial_scale")
        self._refuse_changed(
            [name for name in _names(self) if name.startswith("sift_")],
            self.sift,
            "is nothing without --sift",
        )

    def _check_data(self):
        own = self.task is None
        if own:
            for name in ("train", "dev"):
                if getattr(self, name) is None:
                    raise files.UsageError(
                        f"--{name} is missing: name a file, or a --task"
                    )
        else:
            table.find(self.task)
        for name in self.also:
            table.find(name)
        self._refuse_changed(_OWN_FILES, own, "is for texts of yours, without --task")
        of_task = ("data_dir", "also", "recipe")
        self._refuse_changed(of_task, not own, "is nothing without --task")
        self._refuse_changed(
            ("labels",),
            own or table.find(self.task).has_own_classes,
            f"can't be declared: {self.task} has its own",
        )
        if not own and table.find(self.task).kind in ("spans", "entities"):
            # A token of each text, and the special ones.
            check_at_least(self, 5, "sequence_length")
        if len(self.text_columns) not in (1, 2):
            raise files.UsageError(
                "text_columns must be one name, or two for pairs. "
                f"Received: {', '.join(self.text_columns) or 'none'}"
            )
        # A token of each text, and the special ones.
        check_at_least(self, 1 + 2 * len(self.text_columns), "sequence_length")
        if self.regression and self.labels is not None:
            raise files.UsageError("a regression has no classes: leave out --labels")
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise files.UsageError(
                "labels must be two or more different names. "
                f"Received: {', '.join(self.labels) or 'none'}"
            )

    def _refuse_changed(self, names, allowed, why):
        for field in dataclasses.fields(self):
            is_set = getattr(self, field.name) != field.default
            if field.name in names and is_set and not allowed:
                raise files.UsageError(f"{field.name} {why}")


def _names(config):
    return [field.name for field in dataclasses.fields(config)]


def parse_config(argv=None):
    """The settings of the flags and of `--config`; what these leave out, of the recipe.

    Prints which recipe that is, and whose values it has.
    """
    return parse(FinetuneConfig, argv, complete=_recipe_settings)


def _recipe_settings(given):
    """Settings of the recipe for the task and the preset that are given."""
    task, size = given.get("task"), given.get("recipe", AUTO)
    if task is None or size == OFF:
        return {}
    table.find(task)
    # Parts of RACE and languages of XNLI have the recipes of the whole.
    like = task if task in recipe.tasks() else task.partition("_")[0]
    if like not in recipe.tasks():
        print(f"recipe: none for {task}", flush=True)
        return {}
    if size == AUTO:
        size = _size_of(given)
        if size is None:
            print(
                f"recipe: none; {given.get('preset')} is of no published size",
                flush=True,
            )
            return {}
    sift = str(given.get("sift", False)).lower() == "true"
    settings = recipe.recipe(like, size, sift)
    if "warmup_fraction" in given:
        settings.pop("warmup_steps", None)
    whose = recipe.source(like, size, sift)
    print(f"recipe: {like} of {size}, values {whose}: {settings}", flush=True)
    return settings


def _size_of(given):
    preset = given.get("preset")
    if preset is None or preset in PUBLISHED_SIZES:
        return preset if preset in recipe.SIZES else None
    path = folders.find_file(preset, "config.json")
    if path is None:
        return None
    content = files.read_json(path)
    if "registered_name" in content:
        return recipe.size_of(content["config"])
    return recipe.size_of(folders.open_checkpoint(preset).arguments)


def seed_config(config, number):
    """The settings of one of several runs: its seed, in a folder of its own."""
    seed = config.seed + number
    folder = os.path.join(config.model_dir, f"seed-{seed}")
    return dataclasses.replace(config, seed=seed, seeds=1, model_dir=folder)
