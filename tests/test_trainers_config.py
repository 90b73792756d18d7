"""Settings from defaults, YAML and flags; what is refused, and in which words."""

import dataclasses
import pathlib

import pytest

from deberta_tf.files import UsageError
from trainers import config
from trainers.finetune_config import FinetuneConfig
from trainers.pretrain import PretrainConfig

# Without finetune.yaml, the table of all tasks: tests/test_recipe.py.
RECIPES = sorted((pathlib.Path(config.__file__).parent / "recipes").glob("*_*.yaml"))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains something."""

    data: str
    """Folder of rows,
    in shards."""
    batch_size: int = 32
    """Rows a step."""
    learning_rate: float = 1e-4
    """Peak; 100% of it after the warm-up."""
    dry_run: bool = False
    """One step only."""
    labels: tuple[str, ...] | None = None
    """Names of the classes."""
    seed: int | None = 7
    """Of everything random."""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_overrule_yaml_and_yaml_overrules_defaults(tmp_path):
    path = write(tmp_path / "x.yaml", "data: rows\nbatch_size: 8\nseed: 1\n")
    settings = config.parse(Settings, ["--config", path, "--batch_size", "4"])
    assert settings == Settings(data="rows", batch_size=4, seed=1)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = write(tmp_path / "x.yaml", "data: rows\nlearning_rate: 2e-5\n")
    assert config.parse(Settings, ["--config", path]).learning_rate == 2e-5


def test_a_switch_stands_alone_or_with_its_value():
    parse = lambda *flags: config.parse(Settings, ["--data", "x", *flags]).dry_run  # noqa: E731
    assert parse("--dry_run") is True
    assert parse("--dry_run", "false") is False
    assert parse("--dry_run=true") is True


def test_lists_and_nothing_are_read(tmp_path):
    flags = ["--data=x", "--labels", "no, yes", "--seed", "none"]
    settings = config.parse(Settings, flags)
    assert (settings.labels, settings.seed) == (("no", "yes"), None)
    path = write(tmp_path / "x.yaml", "data: x\nlabels: [0, 1]\nseed:\n")
    settings = config.parse(Settings, ["--config", path])
    assert (settings.labels, settings.seed) == (("0", "1"), None)


def test_the_string_under_a_field_is_its_help(capsys):
    assert config.field_help(Settings)["data"] == "Folder of rows, in shards."
    with pytest.raises(SystemExit):
        config.parse(Settings, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Trains something." in shown
    assert "--batch_size X Rows a step. (default: 32)" in shown
    assert "100% of it" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data is missing: Folder of rows, in shards."),
        (["--data=x", "--batchsize", "3"], "--batchsize; did you mean 'batch_size'?"),
        (["--data=x", "--batch-size=3"], "--batch-size; did you mean 'batch_size'?"),
        (["--data=x", "--zebra", "3"], "unknown setting --zebra; see --help"),
        (["--data=x", "--batch_size", "3.5"], "batch_size must be a whole number"),
        (["--data=x", "--batch_size", "none"], "batch_size must have a value"),
        (["--data=x", "--learning_rate", "nan"], "learning_rate must be a finite"),
        (["--data=x", "--dry_run=yes"], "dry_run must be true or false. .* 'yes'"),
        (["--data=x", "--config", "no.yaml"], "--config: no file 'no.yaml'"),
        (["--data"], "argument --data: expected one argument"),
    ],
)
def test_mistakes_in_flags_are_named(flags, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        config.parse(Settings, flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: x\nbatch_sizes: 3\n", "'batch_sizes'; did you mean 'batch_size'"),
        ("data: x\nbatch_size: 3.0\n", "batch_size must be a whole number"),
        ("data: x\nbatch_size: true\n", "batch_size must be a whole number"),
        ("data: [x]\n", "data must be a text"),
        ("- data\n", "must hold `name: value` lines"),
        ("", "must hold `name: value` lines"),
        ("data: {x\n", "is not YAML"),
    ],
)
def test_mistakes_in_yaml_are_named(tmp_path, text, message):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(UsageError, match=message):
        config.parse(Settings, ["--config", path])


def test_changed_settings_are_told_except_those_that_may():
    saved = config.as_json(Settings("x", batch_size=8, labels=("a", "b")))
    now = Settings("x", batch_size=4, labels=("a", "b"), dry_run=True)
    assert config.changed_settings(saved, now, {"dry_run"}) == ["batch_size: 8 -> 4"]


def test_a_setting_younger_than_the_saved_run_had_its_default_then():
    saved = config.as_json(Settings("x"))
    del saved["seed"]
    assert config.changed_settings(saved, Settings("x"), ()) == []
    assert config.changed_settings(saved, Settings("x", seed=1), ()) == ["seed: 7 -> 1"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_settings_of_their_trainer(path):
    name = path.stem.split("_")[0]
    paths = {
        "pretrain": ["--data=x", "--tokenizer=x", "--model_dir=x"],
        "finetune": ["--preset=x", "--model_dir=x"],
    }[name]
    config_class = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[name]
    settings = config.parse(config_class, ["--config", str(path), *paths])
    assert settings.precision == "mixed_bfloat16"
    # On top: the command that runs it.
    assert (
        f"python -m trainers.{name} --config trainers/recipes/{path.name}"
        in (path.read_text("utf-8").partition("\n\n")[0])
    )
