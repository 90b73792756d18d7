"""The paper's ablations in miniature: what each part of DeBERTa is worth, on two cores.

    python -m tools.ablation --dir build/ablation

Pretrains 4 layers of 128 on film reviews, the same rows in the same order for every
model of a seed, and scores them on held-out rows; encoders of replaced tokens also by a
linear classifier on their frozen features. A run that is through is a line of the
results, `docs/ablation.jsonl`: the same command goes on with what is missing, on
another machine too. `tools.ablation_report` makes table and plots of the lines.
"""

import contextlib
import itertools
import json
import os
import signal

from deberta_tf import files
from tools import ablation_report
from tools.demo import data_stages, end
from tools.stages import (
    ONE_THREAD,
    StageError,
    module_stage,
    run_chains,
    run_stages,
)
from tools.study_flags import add_report_flags, parse_with_workers

SEQUENCE_LENGTH = 128
HELD_OUT_FRACTION = 0.02
SEEDS = (1, 2, 3)
# Masks are those of the paper's DeBERTa, spans of up to three words, for all masked
# LMs: else their losses would be of other tasks. Dropout serves later epochs; here no
# row comes twice.
SETTINGS = {
    "num_layers": 4,
    "hidden_dim": 128,
    "num_heads": 4,
    "intermediate_dim": 512,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "batch_size": 16,
    "total_steps": 2000,
    "learning_rate": 1e-3,
    "eval_every": 500,
    "save_every": 250,
    "precision": "mixed_bfloat16",
}
MODELS = {
    "deberta": {},
    "no_emd": {"enhanced_mask_decoder": "false"},
    "no_c2p": {"position_terms": "p2c"},
    "no_p2c": {"position_terms": "c2p"},
    "bert": {"position_terms": "", "absolute_position_input": "true"},
    "rtd_es": {"objective": "replaced_token", "embedding_sharing": "es"},
    "rtd_nes": {"objective": "replaced_token", "embedding_sharing": "nes"},
    "rtd_gdes": {"objective": "replaced_token", "embedding_sharing": "gdes"},
}
# What replaced tokens stand beside in the paper's table is the masked LM.
PROBED = ("deberta", "rtd_es", "rtd_nes", "rtd_gdes")
PROBE_SEQUENCE_LENGTH = 64


def main(argv=None):
    options = _parse(argv)
    signal.signal(signal.SIGTERM, end)
    records = ablation_report.read_records(options.results)
    for record in records:
        check_settings(options.results, record)
    missing = missing_runs(records)
    if missing:
        try:
            _run(missing, records, options)
        except StageError as error:
            raise files.UsageError(str(error)) from None
    else:
        _report(options)


def _parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dir", default=os.path.join("build", "ablation"), help="folder of the runs"
    )
    add_report_flags(parser, "ablation")
    return parse_with_workers(parser, argv)


def missing_runs(records):
    """(model, seed) of the runs without a record; one seed of all models, then more."""
    done = {(record["model"], record["seed"]) for record in records}
    runs = [(model, seed) for seed, model in itertools.product(SEEDS, MODELS)]
    return [run for run in runs if run not in done]


def settings_of(model):
    """The flags that make a run of a model, but for seed and paths."""
    return {**SETTINGS, **MODELS[model]}


def check_settings(path, record):
    """Refuses to add to records of another study.

    Raises:
        UsageError: if the record is of a model or settings that this code has not.
    """
    model = record["model"]
    if model not in MODELS or record["settings"] != settings_of(model):
        raise files.UsageError(
            f"{path} holds a run of {model!r} with other settings than this code: "
            f"{record['settings']}. Name another file: --results"
        )


def _run(runs, records, options):
    markers = run_stages(
        data_stages(options.dir, SEQUENCE_LENGTH, HELD_OUT_FRACTION), options.dir
    )
    data = data_facts(options.dir)
    for record in records:
        if record["data"] != data:
            raise files.UsageError(
                f"{options.results} holds runs on other rows or tokens: "
                f"{record['data']}; here {data}"
            )
    chains = [run_stages_of(options.dir, *run) for run in runs]
    done = run_chains(
        chains, options.dir, options.num_workers, markers[-1]["key"], ONE_THREAD
    )
    with contextlib.closing(done):
        for index, markers in done:
            record = make_record(options.dir, *runs[index], markers, data)
            # Others may have added to them for hours.
            records = ablation_report.read_records(options.results)
            files.write_json_lines(options.results, [*records, record])
            _report(options)


def _report(options):
    ablation_report.main(["--results", options.results, "--document", options.document])


def run_stages_of(folder, model, seed):
    """The stages of one run: pretraining, and the probe where there is one."""
    name = f"{model}_{seed}"
    run_folder = os.path.join(folder, "runs", name)
    stages = [
        module_stage(
            name,
            f"pretraining {model}, seed {seed}",
            run_folder,
            "trainers.pretrain",
            resumes=True,
            data=os.path.join(folder, "rows", "train"),
            held_out=os.path.join(folder, "rows", "held_out"),
            tokenizer=os.path.join(folder, "tokenizer"),
            model_dir=run_folder,
            seed=seed,
            **settings_of(model),
        )
    ]
    if model not in PROBED:
        return stages
    output = os.path.join(folder, "runs", f"{name}_probe.json")
    probe = module_stage(
        f"{name}_probe",
        f"probing {model}, seed {seed}",
        output,
        "tools.linear_probe",
        preset=os.path.join(run_folder, "preset"),
        train=os.path.join(folder, "data", "train.csv"),
        test=os.path.join(folder, "data", "test.csv"),
        sequence_length=PROBE_SEQUENCE_LENGTH,
        output=output,
    )
    return [*stages, probe]


def data_facts(folder, sequence_length=SEQUENCE_LENGTH):
    """Checksums of the rows, and their numbers: runs on others do not compare."""
    facts = {"sequence_length": sequence_length}
    for split in ("train", "held_out"):
        path = os.path.join(folder, "rows", split, "manifest.json")
        manifest = files.read_json(path)
        facts[split] = {
            "rows": manifest["rows"],
            "tokens": manifest["tokens"],
            "sha256": [shard["sha256"] for shard in manifest["shards"]],
        }
    return facts


def make_record(folder, model, seed, markers, data):
    """What is kept of a run that is through.

    Returns:
        dict of `model`, `seed`, `settings`, `data`; `seconds` that its commands ran;
        `held_out`, lists of what the trainer told at `step`s; `probe` or None.
    """
    run_folder = os.path.join(folder, "runs", f"{model}_{seed}")
    with open(os.path.join(run_folder, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    prefix = "held_out/"
    told = [line for line in lines if any(name.startswith(prefix) for name in line)]
    held_out = {"step": [line["step"] for line in told]}
    for name in told[-1]:
        if name.startswith(prefix):
            held_out[name.removeprefix(prefix)] = [line[name] for line in told]
    probe = None
    if model in PROBED:
        path = os.path.join(folder, "runs", f"{model}_{seed}_probe.json")
        probe = files.read_json(path)
    return {
        "model": model,
        "seed": seed,
        "settings": settings_of(model),
        "data": data,
        "seconds": round(sum(marker["seconds"] for marker in markers)),
        "held_out": held_out,
        "probe": probe,
    }


if __name__ == "__main__":
    files.run_command(main)
