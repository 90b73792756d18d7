"""A small real evaluation: four labelled sets that packages hold, within an hour.

    python -m tools.evaluate

Fine-tunes the demo's checkpoint (made if missing) on each set with every seed, one run
a core, and scores a linear model and the most frequent class beside it. A run that is
through is a line of `docs/evaluation.jsonl`, and the table in docs/results.md is made
anew: the same command goes on with what is missing.
"""

import functools
import os

from deberta_tf import files
from tools import evaluation_report, studies
from tools.evaluation_data import DATA_SETS
from tools.stages import module_stage

SEEDS = (1, 2, 3)


def main(argv=None):
    options = studies.parse(argv, __doc__.splitlines()[0], "evaluation")
    report = functools.partial(
        evaluation_report.main,
        ["--results", options.results, "--document", options.document],
    )
    studies.run_study(
        make_runs(options), options, evaluation_report.read_records, report
    )


def make_runs(options):
    """The baselines of each set, then the fine-tunings of each seed."""
    # The one that takes longest first: it does not stay alone at the end.
    names = sorted(DATA_SETS, key=lambda name: name != "parts_of_speech")
    finetunings = [
        finetuning_run(options, name, seed) for seed in SEEDS for name in names
    ]
    return [*(baselines_run(options, name) for name in names), *finetunings]


def baselines_run(options, data):
    output = os.path.join(options.dir, "runs", f"{data}_baselines.json")
    stage = module_stage(
        f"{data}_baselines",
        f"baselines, {data}",
        output,
        "tools.baselines",
        data=data,
        dir=os.path.join(options.dir, "data"),
        output=output,
    )
    read = functools.partial(files.read_json, output)
    return studies.Run(data, "baselines", None, {}, (stage,), read)


def finetuning_run(options, data, seed):
    name = f"{data}_{seed}"
    settings, stage = studies.finetuning_stage(options, data, seed, name)

    def read():
        return {"finetuned": studies.finetuning_scores(options.dir, name)}

    return studies.Run(data, "finetuned", seed, settings, (stage,), read)


if __name__ == "__main__":
    files.run_command(main)
