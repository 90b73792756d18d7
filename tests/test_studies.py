"""tools/studies.py, evaluate.py, sift_study.py: which runs there are, and resuming."""

import json
import pathlib
import signal

import pytest

from deberta_tf.files import UsageError
from tests.fake_runs import make_run_chains
from tools import demo, evaluate, evaluation_report, sift_report, sift_study, studies
from tools.evaluation_data import DATA_SETS
from trainers.config import parse
from trainers.finetune_config import FinetuneConfig

SIZES = {split: {"rows": 3, "sha256": "f00"} for split in ("train", "dev", "test")}
FACTS = {name: {"checkpoint": "c0de", "data": SIZES} for name in DATA_SETS}
STUDIES = {"evaluation": evaluate, "sift_study": sift_study}


@pytest.fixture(autouse=True)
def same_signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def flags_of(folder, name):
    document = folder / "results.md"
    if not document.exists():
        document.write_text(f"<!-- {name} -->\n<!-- end of {name} -->\n")
    results = folder / f"{name}.jsonl"
    return [f"--results={results}", f"--dir={folder}", f"--document={document}"]


def runs_of(folder, name):
    options = studies.parse(flags_of(folder, name), "", name)
    return STUDIES[name].make_runs(options)


@pytest.fixture
def stages(monkeypatch):
    """Stands in for all commands; the second row that is begun fails, once.

    Returns:
        list of the names of the stages that were begun.
    """
    monkeypatch.setattr(studies, "prepare", lambda options: (FACTS, "a key"))
    begun = []

    error = studies.StageError("the second run ended with exit code 1")
    run_chains = make_run_chains(
        "a key", begun, lambda chain: [leave(stage) for stage in chain], error
    )
    monkeypatch.setattr(studies, "run_chains", run_chains)
    return begun


def leave(stage):
    """What a command leaves; returns its marker."""
    output = pathlib.Path(stage.output)
    scores = {"accuracy": 0.75, "f1": 0.5}
    both = {"dev": scores, "test": scores}
    if stage.arguments[1] == "trainers.finetune":
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps({**both, "step": 7}))
    elif stage.arguments[1] == "tools.baselines":
        output.write_text(json.dumps({"majority": both, "linear": both}))
    else:
        names = list(sift_report.CONDITIONS)[1:]
        output.write_text(json.dumps(dict.fromkeys(names, 0.5)))
    return {"seconds": 2.4, "command": ["python", *stage.arguments]}


@pytest.mark.parametrize(
    ("name", "report", "num_runs"),
    [("evaluation", evaluation_report, 16), ("sift_study", sift_report, 20)],
)
def test_a_run_that_is_through_becomes_a_line_and_is_not_run_again(
    name, report, num_runs, stages, tmp_path, monkeypatch
):
    monkeypatch.setattr(sift_report, "draw", lambda records, path: None)
    flags = flags_of(tmp_path, name)
    with pytest.raises(UsageError, match="ended with exit code 1"):
        STUDIES[name].main(flags)
    results = str(tmp_path / f"{name}.jsonl")
    (record,) = report.read_records(results)
    first = runs_of(tmp_path, name)[0]
    assert studies._key(record) == first.key
    assert record["facts"] == FACTS[first.data]
    assert record["seconds"] == round(2.4 * len(first.stages))
    assert len(record["commands"]) == len(first.stages)
    STUDIES[name].main(flags)
    # The one that failed is begun again, the one before it not.
    assert len(stages) == num_runs + 1
    assert stages[1] == stages[2]
    assert stages[0] not in stages[1:]
    assert len(report.read_records(results)) == num_runs
    told = report.table(report.read_records(results))
    assert told in (tmp_path / "results.md").read_text()
    STUDIES[name].main(flags)
    assert len(stages) == num_runs + 1


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"epochs": 9}}, "that this code has not: seed None, {'epochs'"),
        ({"facts": {**FACTS["sentiment"], "checkpoint": "b"}}, "another checkpoint"),
    ],
)
def test_records_of_another_study_are_refused(change, message, tmp_path):
    flags = flags_of(tmp_path, "evaluation")
    with pytest.raises(UsageError, match="exit code 1"):
        evaluate.main(flags)
    path = tmp_path / "evaluation.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    with pytest.raises(UsageError, match=message):
        evaluate.main(flags)


def test_a_broken_line_and_a_run_that_is_there_twice_are_named(tmp_path, stages):
    flags = flags_of(tmp_path, "evaluation")
    with pytest.raises(UsageError, match="exit code 1"):
        evaluate.main(flags)
    path = tmp_path / "evaluation.jsonl"
    whole = path.read_text()
    lacking = json.loads(whole)
    del lacking["scores"]["linear"]["test"]
    for broken in (whole[:40], json.dumps(lacking)):
        path.write_text(f"{whole}{broken}\n")
        with pytest.raises(UsageError, match="evaluation.jsonl, line 2, must be"):
            evaluation_report.read_records(str(path))
    path.write_text(whole * 2)
    with pytest.raises(UsageError, match="run of 'baselines' on '.*' .* None twice"):
        evaluation_report.read_records(str(path))


@pytest.mark.parametrize("name", STUDIES)
def test_every_stage_has_a_name_and_an_output_of_its_own(name, tmp_path):
    found = [stage for run in runs_of(tmp_path, name) for stage in run.stages]
    assert len({stage.name for stage in found}) == len(found)
    assert len({stage.output for stage in found}) == len(found)


def test_flags_of_texts_are_the_trainers(tmp_path):
    runs = [*runs_of(tmp_path, "evaluation"), *runs_of(tmp_path, "sift_study")]
    own = [run for run in runs if run.seed == 2 and not DATA_SETS[run.data].is_tagged]
    assert len(own) == 6
    for run in own:
        module, *flags = run.stages[0].arguments[1:]
        assert module == "trainers.finetune"
        config = parse(FinetuneConfig, flags)
        assert config.preset == "build/demo/pretrained/preset"
        assert config.train.endswith(f"data/{run.data}/train.csv")
        assert config.seed == run.seed
        assert config.learning_rate == demo.FINETUNING_LEARNING_RATE
        assert config.sift == (run.model == "sift")
        assert config.sift_weight == 5.0


def test_tagged_sets_are_fine_tuned_as_tags(tmp_path):
    runs = runs_of(tmp_path, "evaluation")
    (run,) = [run for run in runs if run.key == ("entities", "finetuned", 2)]
    flags = run.stages[0].arguments
    pairs = dict(zip(flags[2::2], flags[3::2], strict=True))
    assert (pairs["--task"], pairs["--best_by"], pairs["--seed"]) == ("tags", "f1", "2")
    assert pairs["--dev"] == str(tmp_path / "data" / "entities" / "dev.conll")


def test_runs_without_sift_are_those_of_the_evaluation(tmp_path):
    own, others = (
        {
            run.key[::2]: run.stages[0]
            for run in runs_of(tmp_path, name)
            if run.model in ("plain", "finetuned")
        }
        for name in ("sift_study", "evaluation")
    )
    shared = own.keys() & others.keys()
    assert len(shared) == 6
    assert all(own[key] == others[key] for key in shared)


def test_runs_with_and_without_sift_differ_by_the_flag_alone(tmp_path):
    runs = {run.key: run for run in runs_of(tmp_path, "sift_study")}
    plain, sift = (runs["sentiment", model, 3] for model in ("plain", "sift"))
    assert sift.settings == {**plain.settings, "sift": "true"}
    words = [word.replace("_sift", "") for word in sift.stages[0].arguments]
    place = words.index("--sift")
    assert words[:place] + words[place + 2 :] == list(plain.stages[0].arguments)


def test_checkpoint_and_data_are_made_and_told_by_their_checksums(
    tmp_path, monkeypatch
):
    done = []

    def run_stages(found, folder):
        done.extend(stage.name for stage in found)

    monkeypatch.setattr(studies, "run_stages", run_stages)
    options = studies.parse(
        [f"--demo={tmp_path / 'demo'}", f"--dir={tmp_path / 'runs'}"], "", "evaluation"
    )
    preset = tmp_path / "demo" / "pretrained" / "preset"
    preset.mkdir(parents=True)
    (preset / "model.weights.h5").write_bytes(b"abc")
    data = tmp_path / "runs" / "data"
    data.mkdir(parents=True)
    facts = {name: {"train": {"rows": 1}} for name in DATA_SETS}
    (data / "facts.json").write_text(json.dumps(facts))
    found, key = studies.prepare(options)
    assert done == ["data", "tokenizer", "rows", "pretrain", "data"]
    # SHA-256 of "abc", as in its standard.
    assert found["entities"]["checkpoint"].startswith("ba7816bf8f01cfea")
    assert found["entities"]["data"] == {"train": {"rows": 1}}
    (preset / "model.weights.h5").write_bytes(b"abd")
    assert studies.prepare(options)[1] != key


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_workers=0"], "--num_workers must be at least 1; got 0"),
        (["--dir=a", "--demo=./a"], "--dir and --demo must differ; got 'a' twice"),
    ],
)
def test_flags_that_can_not_be_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        studies.parse(flags, "", "evaluation")
