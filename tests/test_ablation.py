"""tools/ablation.py and tools/ablation_report.py: the study and what is told of it."""

import json
import pathlib
import signal

import pytest

from deberta_tf.files import UsageError
from tests.fake_runs import make_run_chains
from tools import ablation, ablation_report
from trainers import pretrain
from trainers.config import parse

ROOT = pathlib.Path(__file__).parents[1]
DATA = {"sequence_length": 128, "train": {"rows": 3}, "held_out": {"rows": 1}}


@pytest.fixture(autouse=True)
def same_signals():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def make_record(model, seed, loss, accuracy=None, **settings):
    held_out = {"step": [1, 2], "loss": [9.0, loss], "perplexity": [9.0, 8.0]}
    held_out["accuracy"] = [0.1, 0.2]
    if model.startswith("rtd"):
        held_out |= {"generator_loss": [3.0, 2.0], "discriminator_auc": [0.5, 0.75]}
    return {
        "model": model,
        "seed": seed,
        "settings": {**ablation.settings_of(model), **settings},
        "data": DATA,
        "seconds": 3600,
        "held_out": held_out,
        "probe": accuracy and {"accuracy": accuracy, "most_frequent_class": 0.5},
    }


def write_records(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_document(folder):
    path = folder / "results.md"
    path.write_text("<!-- ablation -->\n<!-- end of ablation -->\n")
    return str(path)


@pytest.mark.parametrize("model", ablation.MODELS)
def test_the_flags_of_every_model_are_the_trainers(model, tmp_path):
    stage = ablation.run_stages_of(str(tmp_path), model, 1)[0]
    assert stage.arguments[:2] == ("-m", "trainers.pretrain")
    config = parse(pretrain.PretrainConfig, list(stage.arguments[2:]))
    terms = {"no_c2p": ("p2c",), "no_p2c": ("c2p",), "bert": ()}
    assert config.position_terms == terms.get(model)
    assert config.absolute_position_input == (True if model == "bert" else None)
    assert config.enhanced_mask_decoder == (False if model == "no_emd" else None)
    sharing = model.removeprefix("rtd_") if model.startswith("rtd_") else "gdes"
    assert config.embedding_sharing == sharing
    assert (config.objective == "replaced_token") == model.startswith("rtd_")
    assert (config.num_layers, config.hidden_dim, config.seed) == (4, 128, 1)


def test_runs_of_a_seed_come_before_those_of_the_next_and_none_twice():
    runs = ablation.missing_runs([make_record("deberta", 1, 5.0)])
    assert len(runs) == 3 * 8 - 1
    assert ("deberta", 1) not in runs
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)


def test_records_of_other_settings_are_refused(tmp_path):
    record = make_record("deberta", 1, 5.0, total_steps=7)
    results = write_records(tmp_path / "a.jsonl", [record])
    with pytest.raises(UsageError, match="'deberta' with other settings"):
        ablation.main([f"--results={results}", f"--dir={tmp_path}"])


def test_records_on_other_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "run_stages", lambda stages, folder: None)
    for split in ("train", "held_out"):
        folder = tmp_path / "rows" / split
        folder.mkdir(parents=True)
        manifest = {"rows": 2, "tokens": 256, "shards": [{"sha256": "f00"}]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    records = [make_record("deberta", 1, 5.0)]
    results = write_records(tmp_path / "a.jsonl", records)
    with pytest.raises(UsageError, match="on other rows or tokens"):
        ablation.main([f"--results={results}", f"--dir={tmp_path}"])


def test_a_run_that_is_through_becomes_a_line_and_is_not_run_again(
    tmp_path, monkeypatch
):
    """All stages are replaced by what they leave behind; one run fails midway."""
    prepared = [{"key": "the text's"}, {"key": "the rows'"}]
    monkeypatch.setattr(ablation, "run_stages", lambda stages, folder: prepared)
    monkeypatch.setattr(ablation, "data_facts", lambda folder: DATA)
    asked = []

    def leave(chain):
        leave_run(chain)
        return [{"seconds": 2.4} for _ in chain]

    error = ablation.StageError("no_emd_1 ended with exit code 1")
    run_chains = make_run_chains("the rows'", asked, leave, error)
    monkeypatch.setattr(ablation, "run_chains", run_chains)
    flags = [f"--results={tmp_path / 'a.jsonl'}", f"--dir={tmp_path}"]
    flags.append(f"--document={write_document(tmp_path)}")
    with pytest.raises(UsageError, match="no_emd_1 ended with"):
        ablation.main(flags)
    (record,) = ablation_report.read_records(str(tmp_path / "a.jsonl"))
    assert (record["model"], record["seed"], record["seconds"]) == ("deberta", 1, 5)
    assert "| DeBERTa | 1 | 5.000 |" in (tmp_path / "results.md").read_text()
    assert record["held_out"] == {"step": [500, 1000], "loss": [6.0, 5.0]}
    assert record["probe"] == {"accuracy": 0.75}
    ablation.main(flags)
    assert asked[:3] == ["deberta_1", "no_emd_1", "no_emd_1"]
    assert len(asked) == 25
    assert ablation.missing_runs(ablation_report.read_records(flags[0][10:])) == []
    assert (tmp_path / "a_loss.png").read_bytes().startswith(b"\x89PNG")


def leave_run(chain):
    """What the commands of a run leave: scalars, and scores of the probe."""
    folder = pathlib.Path(chain[0].output)
    folder.mkdir(parents=True)
    lines = [
        {"step": 250, "train/loss": 7.0},
        {"step": 500, "train/loss": 6.5},
        {"step": 500, "held_out/loss": 6.0},
        {"step": 1000, "held_out/loss": 5.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    for probe in chain[1:]:
        pathlib.Path(probe.output).write_text(json.dumps({"accuracy": 0.75}))


def test_the_table_has_means_spreads_and_paired_differences():
    records = [
        make_record("deberta", 1, 5.0, accuracy=0.8),
        make_record("deberta", 2, 5.2, accuracy=0.9),
        make_record("no_emd", 1, 5.1),
        make_record("no_emd", 2, 5.5),
        # No run of DeBERTa to pair it with.
        make_record("no_emd", 3, 9.0),
        make_record("rtd_es", 1, 26.0, accuracy=0.7),
    ]
    lines = ablation_report.tables(records).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines}
    # statistics of (5.0, 5.2): mean 5.1, deviation 0.1 * sqrt(2).
    assert lines[2] == (
        "| DeBERTa | 2 | 5.100 ± 0.141 | 8.0 ± 0.0 | 0.2000 ± 0.0000 |  |"
    )
    # Of 5.1, 5.5 and 9.0; the difference, of seeds 1 and 2, is (0.1 + 0.3) / 2.
    assert cells["−EMD"][1:3] == ["3", "6.533 ± 2.146"]
    assert cells["−EMD"][-1] == "+0.200 ± 0.141 |"
    assert cells["RTD, ES"][1:] == ["1", "0.7000", "0.7500", "2.000", "-0.1000 |"]
    assert lines[-1] == "6 runs, 6.0 hours, each run on one thread."


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = json.dumps(make_record("bert", 1, 5.0))
    for broken in (whole[:40], '{"model": "bert", "seed": 1}', "[]"):
        path.write_text(f"{whole}\n{broken}\n")
        with pytest.raises(UsageError, match="a.jsonl, line 2, must be the record"):
            ablation_report.read_records(str(path))
    path.write_text(f"{whole}\n{whole}\n")
    with pytest.raises(UsageError, match="holds 2 runs of 'bert' with seed 1"):
        ablation_report.read_records(str(path))
    with pytest.raises(UsageError, match="holds no runs"):
        ablation_report.main([f"--results={tmp_path / 'none.jsonl'}"])


def test_plots_are_drawn(tmp_path, capsys):
    records = [make_record(m, s, 5.0, 0.8) for m in ablation.MODELS for s in (1, 2)]
    results = write_records(tmp_path / "a.jsonl", records)
    document = write_document(tmp_path)
    ablation_report.main([f"--results={results}", f"--document={document}"])
    told = capsys.readouterr().out
    assert told.startswith("| masked LM | seeds |")
    assert told in (tmp_path / "results.md").read_text()
    for name in ("a_loss.png", "a_probe.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
