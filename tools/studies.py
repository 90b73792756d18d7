"""Studies of many runs on the evaluations' data, from the demo's checkpoint.

A run that is through is a line of a file of results: the same command goes on with what
is missing, on another machine too if its checkpoint and data are there.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import signal
from collections.abc import Callable

from deberta_tf import files
from tools import demo
from tools.evaluation_data import DATA_SETS, split_path
from tools.stages import (
    ONE_THREAD,
    StageError,
    module_stage,
    run_chains,
    run_stages,
)
from tools.study_flags import add_report_flags, parse_with_workers

# Stages of the demo up to its pretrained model.
PRETRAINING_STAGES = 4
TEXTS = {
    "text_columns": "text",
    "label_column": "label",
    "sequence_length": demo.SEQUENCE_LENGTH,
    "batch_size": demo.FINETUNING_BATCH_SIZE,
}
# Rows that no sentence of `evaluation_data.MOST_WORDS` words overflows, and as many
# tokens a batch.
TAGS = {"task": "tags", "sequence_length": 128, "batch_size": 16}
# What fine-tunes the demo's model, but for paths and seed.
SETTINGS = {
    "sentiment": {**TEXTS, "epochs": 3},
    # The demo's own.
    "injections": {**TEXTS, "epochs": demo.FINETUNING_EPOCHS},
    "entities": {**TAGS, "epochs": 10, "best_by": "f1"},
    "parts_of_speech": {**TAGS, "epochs": 4, "best_by": "accuracy"},
}
COMMON = {
    "learning_rate": demo.FINETUNING_LEARNING_RATE,
    "save_every": demo.SAVE_EVERY,
}


@dataclasses.dataclass(frozen=True)
class Run:
    data: str
    """Of `DATA_SETS`, or what `prepare_runs` calls it."""
    model: str
    seed: int | None
    settings: dict
    """Flags that make the run, but for paths and seed."""
    stages: tuple
    read_scores: Callable
    """What the record keeps of what the stages wrote."""

    @property
    def key(self):
        return self.data, self.model, self.seed


def parse(argv, description, name, folder="evaluation"):
    """The flags of a study in `build/FOLDER` whose results are `docs/NAME.jsonl`.

    Raises:
        UsageError: if a flag is unknown or out of its range.
    """
    parser = files.ArgumentParser(description=description)
    parser.add_argument(
        "--dir",
        default=os.path.join("build", folder),
        help="folder of data and runs (%(default)s)",
    )
    parser.add_argument(
        "--demo",
        default=os.path.join("build", "demo"),
        help="folder of the demo, which makes what is missing of it (%(default)s)",
    )
    add_report_flags(parser, name)
    options = parse_with_workers(parser, argv)
    if os.path.realpath(options.dir) == os.path.realpath(options.demo):
        raise files.UsageError(
            f"--dir and --demo must differ; got {options.dir!r} twice"
        )
    return options


def finetuning_stage(options, data, seed, name, **flags):
    """(settings, `Stage`) of a fine-tuning of the demo's model, with the flags."""
    settings = {**SETTINGS[data], **COMMON, **flags}
    model_dir = os.path.join(options.dir, "runs", name)
    splits = {
        split: split_path(os.path.join(options.dir, "data"), data, split)
        for split in ("train", "dev", "test")
    }
    stage = module_stage(
        name,
        f"fine-tuning, {name}",
        model_dir,
        "trainers.finetune",
        resumes=True,
        preset=os.path.join(options.demo, "pretrained", "preset"),
        **splits,
        **settings,
        seed=seed,
        model_dir=model_dir,
    )
    return settings, stage


def finetuning_scores(folder, name):
    """{"dev" | "test": {score: float}} that a run below a study's folder was given."""
    results = files.read_json(os.path.join(folder, "runs", name, "results.json"))
    return {split: results[split] for split in ("dev", "test")}


def read_records(path, titles, check):
    """The runs of a file of results on the evaluations' data; none without a file.

    Args:
        path: str.
        titles: dict, of the models.
        check: callable from the scores of a record and its data set to anything; it
            raises where they lack something.

    Raises:
        UsageError: if a line is no record of a run, or a run is there twice.
    """

    def fields(record):
        return (
            titles[record["model"]],
            record["seed"],
            record["settings"].items(),
            record["facts"]["data"]["train"]["rows"],
            record["facts"]["checkpoint"],
            record["commands"][0],
            record["seconds"] + 0,
            check(record["scores"], DATA_SETS[record["data"]]),
        )

    return read_runs(path, fields)


def read_runs(path, fields):
    """The runs of a file of results, list of dict; none where there is no file.

    Args:
        path: str.
        fields: callable from a record to anything; it raises where it lacks something.

    Raises:
        UsageError: if a line is no record of a run, or a run is there twice.
    """
    records = files.read_json_lines(path, fields, "the record of a run")
    keys = [_key(record) for record in records]
    for key in keys:
        if keys.count(key) > 1:
            data, model, seed = key
            raise files.UsageError(
                f"{path} holds the run of {model!r} on {data!r} with seed {seed} twice"
            )
    return records


def _key(record):
    return record["data"], record["model"], record["seed"]


def run_study(runs, options, read, report, prepare_runs=None):
    """Runs what has no record yet; every run that is through becomes one.

    Args:
        runs: list of `Run`, in the order in which they are begun.
        options: what `parse` returns.
        read: callable from a path to records.
        report: callable without arguments, called when there are new records, and at
            the end.
        prepare_runs: callable that does for the runs what `prepare` does; None: that.

    Raises:
        UsageError: if there are records of other settings, data or another checkpoint,
            or a command fails.
    """
    signal.signal(signal.SIGTERM, demo.end)
    records = read(options.results)
    check_settings(options.results, records, runs)
    done = {_key(record) for record in records}
    missing = [run for run in runs if run.key not in done]
    if missing:
        try:
            _run(missing, records, options, read, report, prepare_runs or prepare)
        except StageError as error:
            raise files.UsageError(str(error)) from None
    else:
        report()


def check_settings(path, records, runs):
    """Refuses to add to records of another study.

    Raises:
        UsageError: if a record is of a run or of settings that this code has not.
    """
    settings = {run.key: run.settings for run in runs}
    for record in records:
        if settings.get(_key(record)) != record["settings"]:
            raise files.UsageError(
                f"{path} holds a run of {record['model']!r} on {record['data']!r} that "
                f"this code has not: seed {record['seed']}, {record['settings']}. Name "
                "another file: --results"
            )


def _run(runs, records, options, read, report, prepare_runs):
    facts, key = prepare_runs(options)
    for record in records:
        if record["facts"] != facts[record["data"]]:
            raise files.UsageError(
                f"{options.results} holds runs on other data, or from another "
                f"checkpoint: {record['facts']}; here {facts[record['data']]}"
            )
    os.makedirs(os.path.join(options.dir, "runs"), exist_ok=True)
    chains = [list(run.stages) for run in runs]
    done = run_chains(chains, options.dir, options.num_workers, key, ONE_THREAD)
    with contextlib.closing(done):
        for index, markers in done:
            run = runs[index]
            record = make_record(run, markers, facts[run.data])
            # Others may have added to them for an hour.
            files.write_json_lines(options.results, [*read(options.results), record])
            report()


def make_record(run, markers, facts):
    """What is kept of a run that is through: a dict of JSON values."""
    return {
        "data": run.data,
        "model": run.model,
        "seed": run.seed,
        "settings": run.settings,
        "facts": facts,
        "commands": [shlex.join(marker["command"]) for marker in markers],
        "seconds": round(sum(marker["seconds"] for marker in markers)),
        "scores": run.read_scores(),
    }


def prepare(options):
    """Makes checkpoint and data where they are missing.

    Returns:
        {data set: what its runs are on, by checksums}, and a key of it for
        `run_chains`: runs on anything else are made anew.
    """
    stages = demo.demo_stages(options.demo)[:PRETRAINING_STAGES]
    run_stages(stages, options.demo)
    folder = os.path.join(options.dir, "data")
    data_stage = module_stage(
        "data",
        "reading the evaluations' data",
        folder,
        "tools.evaluation_data",
        output=folder,
    )
    run_stages([data_stage], options.dir)
    weights = os.path.join(options.demo, "pretrained", "preset", "model.weights.h5")
    with open(weights, "rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    facts = files.read_json(os.path.join(folder, "facts.json"))
    found = {
        name: {"checkpoint": checkpoint, "data": facts[name]} for name in DATA_SETS
    }
    content = json.dumps(found, sort_keys=True)
    return found, hashlib.sha256(content.encode()).hexdigest()
