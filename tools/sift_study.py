"""What scale-invariant fine-tuning does: accuracy, and robustness to noisy words.

    python -m tools.sift_study

Fine-tunes the demo's checkpoint (made if missing) with and without `--sift`, with the
same seeds, one run a core, and scores the classifiers on noisy copies of the test
texts. A run that is through is a line of `docs/sift_study.jsonl`, and table and plot
are made anew: the same command goes on with what is missing.
"""

import functools
import os

from deberta_tf import files
from tools import sift_report, studies
from tools.evaluation_data import split_path
from tools.stages import module_stage

SEEDS = (1, 2, 3, 4, 5)
# The trainer's defaults are the published settings.
MODELS = {"plain": {}, "sift": {"sift": "true"}}


def main(argv=None):
    options = studies.parse(argv, __doc__.splitlines()[0], "sift_study")
    report = functools.partial(
        sift_report.main, ["--results", options.results, "--document", options.document]
    )
    studies.run_study(make_runs(options), options, sift_report.read_records, report)


def make_runs(options):
    """Both models on both data sets, a seed after the other."""
    return [
        make_run(options, data, model, seed)
        for seed in SEEDS
        for data in sift_report.DATA
        for model in MODELS
    ]


def make_run(options, data, model, seed):
    # Without SiFT it is the evaluation's own: what is done there is not done again.
    name = f"{data}_{seed}" if model == "plain" else f"{data}_{model}_{seed}"
    settings, stage = studies.finetuning_stage(
        options, data, seed, name, **MODELS[model]
    )
    output = os.path.join(options.dir, "runs", f"{name}_robustness.json")
    robustness = module_stage(
        f"{name}_robustness",
        f"noisy copies, {name}",
        output,
        "tools.robustness",
        preset=os.path.join(stage.output, "preset"),
        test=split_path(os.path.join(options.dir, "data"), data, "test"),
        output=output,
    )

    def read():
        dev = studies.finetuning_scores(options.dir, name)["dev"]
        return {"dev": dev["accuracy"], **files.read_json(output)}

    return studies.Run(data, model, seed, settings, (stage, robustness), read)


if __name__ == "__main__":
    files.run_command(main)
