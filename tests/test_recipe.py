"""trainers/recipe.py and recipes/finetune.yaml: settings for every task and size."""

import math

import pytest

from deberta_tf.files import UsageError
from deberta_tf.published import PUBLISHED_SIZES
from tests.small_models import make_backbone
from trainers.finetune_config import FinetuneConfig
from trainers.recipe import PATH, SIZES, read_recipes, recipe, size_of, source, start
from trainers.recipe import tasks as recipe_tasks

TASKS = (
    "mnli ax cola sst2 qqp qnli mrpc rte stsb wnli boolq cb copa multirc record "
    "superglue_rte axb axg wic wsc squad1 squad2 race swag conll2003 xnli"
).split()
REQUIRED = {"train": "train", "dev": "dev", "preset": "preset", "model_dir": "run"}
# Table 9 of the first paper, by the kind of size; the two xlarge are in two of them.
BASE = ((1.5e-5, 2e-5, 3e-5, 4e-5), (0, 0.1, 0.15), (16, 32, 48, 64))
LARGE = ((5e-6, 8e-6, 9e-6, 1e-5), (0, 0.1, 0.15), (16, 32, 48, 64))
XXLARGE = ((1e-6, 3e-6, 5e-6), (0, 0.15, 0.3), (16, 32, 64))
SPACES = {
    "deberta_base": [BASE],
    "deberta_large": [LARGE],
    "deberta_xlarge": [LARGE, XXLARGE],
    "deberta_v2_xlarge": [LARGE, XXLARGE],
    "deberta_v2_xxlarge": [XXLARGE],
    "deberta_v3_xsmall": [BASE],
    "deberta_v3_small": [BASE],
    "deberta_v3_base": [BASE],
    "deberta_v3_large": [LARGE],
    "mdeberta_v3_base": [BASE],
}
# Training examples of the smaller tasks.
EXAMPLES = {
    "cola": 8551,
    "mrpc": 3668,
    "rte": 2490,
    "stsb": 5749,
    "wnli": 635,
    "boolq": 9427,
    "cb": 250,
    "copa": 400,
    "multirc": 27243,
    "superglue_rte": 2490,
    "wic": 5428,
    "wsc": 554,
}


def test_there_is_a_recipe_for_every_task():
    assert sorted(recipe_tasks()) == sorted(TASKS)


@pytest.mark.parametrize("sift", [False, True], ids=["plain", "sift"])
@pytest.mark.parametrize("task", TASKS)
def test_every_recipe_is_one_of_settings_that_the_trainer_takes(task, sift):
    for size in SIZES:
        settings = recipe(task, size, sift)
        config = FinetuneConfig(**REQUIRED, **settings)
        assert config.sift == sift
        assert config.official_schedule
        assert ("warmup_steps" in settings) != ("warmup_fraction" in settings)
        assert {
            "sequence_length",
            "epochs",
            "learning_rate",
            "batch_size",
            "classifier_dropout",
        } < set(settings)


# Read off the official scripts: length, epochs, warm-up, rate, batch, dropout.
@pytest.mark.parametrize(
    ("task", "size", "published"),
    [
        ("mnli", "deberta_v3_large", (256, 2, 500, 7e-6, 64, 0.3)),
        ("mnli", "deberta_v3_small", (256, 3, 1500, 4.5e-5, 64, 0.2)),
        ("ax", "deberta_v3_base", (256, 3, 1000, 1.5e-5, 64, 0.1)),
        ("cola", "deberta_base", (64, 6, 100, 2e-5, 32, 0.15)),
        ("sst2", "deberta_v2_xlarge", (128, 4, 500, 4e-6, 32, 0.2)),
        ("qqp", "deberta_v2_xxlarge", (320, 10, 1000, 3e-6, 64, 0.2)),
        ("qnli", "deberta_v3_large", (512, 6, 200, 7e-6, 64, 0.2)),
        ("mrpc", "deberta_xlarge", (128, 8, 50, 7e-6, 32, 0.3)),
        ("superglue_rte", "deberta_large", (320, 6, 50, 1e-5, 32, 0.2)),
        ("stsb", "deberta_v3_large", (128, 4, 50, 7e-6, 32, 0.1)),
        # 12 questions: 24 pairs in SPEC.
        ("copa", "deberta_v2_xxlarge", (136, 8, 30, 1e-6, 12, 0.1)),
        ("record", "deberta_base", (512, 3, 1000, 2e-5, 64, 0.3)),
        ("race", "deberta_xlarge", (320, 6, 100, 7e-6, 48, 0.2)),
        ("conll2003", "deberta_v3_large", (512, 10, 10, 9e-6, 16, 0)),
    ],
)
def test_published_values_stand_as_published(task, size, published):
    names = (
        "sequence_length",
        "epochs",
        "warmup_steps",
        "learning_rate",
        "batch_size",
        "classifier_dropout",
    )
    values = dict(zip(names, published, strict=True))
    assert recipe(task, size) == {**values, "official_schedule": True}
    assert source(task, size).startswith("published")


def test_the_warm_up_of_entity_recognition_is_a_share_of_the_steps():
    settings = recipe("conll2003", "deberta_large")
    assert settings["warmup_fraction"] == 0.1
    assert settings["epochs"] == 15


def test_scale_invariant_fine_tuning_on_mnli_has_rows_of_its_own():
    settings = recipe("mnli", "deberta_v3_xsmall", sift=True)
    assert settings == {
        "sequence_length": 256,
        "epochs": 10,
        "warmup_steps": 1500,
        "learning_rate": 5e-5,
        "batch_size": 64,
        "classifier_dropout": 0.1,
        "sift": True,
        "sift_weight": 3,
        "sift_step_size": 1e-4,
        "sift_initial_scale": 1e-2,
        "official_schedule": True,
    }
    assert source("mnli", "deberta_v3_xsmall", sift=True) == "published"


def test_elsewhere_it_adds_its_own_settings_to_the_recipe_and_is_ours():
    plain = recipe("cola", "deberta_large")
    settings = recipe("cola", "deberta_large", sift=True)
    assert plain.items() < settings.items()
    assert settings["sift_weight"] == 5
    assert source("cola", "deberta_large") == "published"
    assert source("cola", "deberta_large", sift=True) == "ours"


@pytest.mark.parametrize(
    ("task", "size", "whose"),
    [
        ("cola", "deberta_v3_large", "published"),
        ("cola", "deberta_v3_base", "ours"),
        ("mnli", "mdeberta_v3_base", "ours"),
        ("race", "deberta_v3_large", "ours"),
        ("squad2", "deberta_large", "ours"),
        ("axg", "deberta_base", "published for rte"),
        ("axb", "deberta_v3_small", "ours for rte"),
        ("ax", "deberta_v3_small", "published for mnli"),
    ],
)
def test_whose_values_they_are_is_told(task, size, whose):
    assert source(task, size) == whose


@pytest.mark.parametrize("size", SIZES)
def test_what_is_ours_is_from_the_space_that_the_paper_searched(size):
    own = [task for task in TASKS if source(task, size).startswith("ours")]
    assert "squad1" in own
    for task in own:
        settings = recipe(task, size)
        assert settings["warmup_steps"] in (50, 100, 500, 1000)
        assert settings["epochs"] <= 10
        for rates, dropouts, batch_sizes in SPACES[size]:
            assert settings["learning_rate"] in rates
            assert settings["classifier_dropout"] in dropouts
            assert settings["batch_size"] in batch_sizes


@pytest.mark.parametrize("task", EXAMPLES)
def test_the_warm_up_ends_before_the_training(task):
    for size in SIZES:
        settings = recipe(task, size)
        steps = math.ceil(settings["epochs"] * EXAMPLES[task] / settings["batch_size"])
        assert settings["warmup_steps"] < steps


@pytest.mark.parametrize(
    ("task", "size", "handle"),
    [
        ("rte", "deberta_base", "hf://microsoft/deberta-base-mnli"),
        ("copa", "deberta_v2_xxlarge", "hf://microsoft/deberta-v2-xxlarge-mnli"),
        ("rte", "deberta_v3_large", "hf://microsoft/deberta-v3-large"),
        ("cola", "deberta_base", "hf://microsoft/deberta-base"),
    ],
)
def test_small_tasks_start_from_mnli_where_it_was_published(task, size, handle):
    assert start(task, size) == handle


@pytest.mark.parametrize(
    ("task", "size", "message"),
    [
        ("mnlii", "deberta_base", "no recipe for the task 'mnlii'; tasks are mnli, ax"),
        ("mnli", "bert_base", "no recipe for the size 'bert_base'; sizes are deberta"),
    ],
)
def test_unknown_tasks_and_sizes_are_refused(task, size, message):
    for function in (recipe, source):
        with pytest.raises(UsageError, match=message):
            function(task, size)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate: 5.5e-6",
            "lr: 5.5e-6",
            "cola, published, deberta_v3_large has an unknown name 'lr'",
        ),
        ("9.0e-6", "9e-6", "learning_rate must be a number, such as 1.0e-5.*'9e-6'"),
        ("deberta_v3_small: ", "v3_small: ", "unknown name 'v3_small'; known are deb"),
        ("like: rte", "like: rtee", "superglue_rte has an unknown name 'rtee'"),
        ("starts_from_mnli", "from_mnli", "mrpc has an unknown name 'from_mnli'"),
        ("    sequence_length: 136\n", "", "copa needs a sequence_length"),
        (
            "ours: {epochs: 10, warmup_steps: 50, batch",
            "ours: {epochs: 10, batch",
            "cb has no warmup_steps for deberta_base",
        ),
        ("ours_by_size:", "by_size:", "must hold mnli_checkpoints, sift, ours_by_size"),
        ("tasks:", "tasks: {", "is not YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, old, new, message):
    with open(PATH, encoding="utf-8") as file:
        text = file.read()
    assert old in text
    path = tmp_path / "recipes.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_recipes(path)


@pytest.fixture(scope="module")
def small_config():
    """What a backbone writes, of a size that none was published in."""
    return make_backbone(bucket_size=256, max_sequence_length=512).get_config()


@pytest.mark.parametrize("size", SIZES)
def test_a_backbone_of_a_published_size_is_told_by_its_config(small_config, size):
    assert size_of({**small_config, **PUBLISHED_SIZES[size]}) == size


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 4},
        {"vocabulary_size": 32000},
        {"convolution_kernel_size": 3},
        {"position_terms": ["c2p"]},
        {"intermediate_dim": 1024},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_backbone_of_another_geometry_is_of_no_size(small_config, change):
    config = {**small_config, **PUBLISHED_SIZES["deberta_v3_base"]}
    assert size_of({**config, **change}) is None


def test_the_baseline_of_the_ablation_has_no_recipes(small_config):
    assert size_of({**small_config, **PUBLISHED_SIZES["bert_base"]}) is None
