"""Mixed precision beside float32: loss curves that nothing else tells apart.

    python -m tools.precision_study

Pretrains 2 layers of 128 for 500 steps on the demo's film reviews (rows of token ids,
made if missing) under each policy: of a seed, weights, rows, masks and dropout are the
same. A run that is through is a line of `docs/precision.jsonl`, and table and plot are
made anew: the same command goes on with what is missing.
"""

import functools
import json
import os

from deberta_tf import files
from tools import ablation, demo, precision_report, studies
from tools.stages import module_stage, run_stages

# Stages of the demo up to its rows.
ROWS_STAGES = 3
SEEDS = (1, 2)
# Dropout is the default's, 0.1: it must be the same under all policies, too.
SETTINGS = {
    "num_layers": 2,
    "hidden_dim": 128,
    "num_heads": 4,
    "intermediate_dim": 512,
    "batch_size": 32,
    "total_steps": 500,
    "learning_rate": 1e-3,
    "log_every": precision_report.WINDOW,
    "eval_every": 500,
    "save_every": 250,
}


def main(argv=None):
    options = studies.parse(argv, __doc__.splitlines()[0], "precision", "precision")
    report = functools.partial(
        precision_report.main,
        ["--results", options.results, "--document", options.document],
    )
    studies.run_study(
        make_runs(options), options, precision_report.read_records, report, prepare
    )


def make_runs(options):
    """Every policy, a seed after the other."""
    return [
        make_run(options, policy, seed)
        for seed in SEEDS
        for policy in precision_report.TITLES
    ]


def make_run(options, policy, seed):
    name = f"{policy}_{seed}"
    folder = os.path.join(options.dir, "runs", name)
    settings = {**SETTINGS, "precision": policy}
    stage = module_stage(
        name,
        f"pretraining, {policy}, seed {seed}",
        folder,
        "trainers.pretrain",
        resumes=True,
        data=os.path.join(options.demo, "rows", "train"),
        held_out=os.path.join(options.demo, "rows", "held_out"),
        tokenizer=os.path.join(options.demo, "tokenizer"),
        model_dir=folder,
        seed=seed,
        **settings,
    )
    read = functools.partial(read_scores, os.path.join(folder, "metrics.jsonl"))
    return studies.Run("reviews", policy, seed, settings, (stage,), read)


def read_scores(path):
    """What a record keeps of the scalars of a run.

    Returns:
        dict of lists: `loss`, means of the steps up to each of `step`, nats a masked
        token; `skipped_updates` among them; and `held_out`, the loss at the end.
    """
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    told = [line for line in lines if "train/loss" in line]
    return {
        "step": [line["step"] for line in told],
        "loss": [line["train/loss"] for line in told],
        "skipped_updates": [line["train/skipped_updates"] for line in told],
        "held_out": [line for line in lines if "held_out/loss" in line][-1][
            "held_out/loss"
        ],
    }


def prepare(options):
    """Makes the demo's rows where they are missing; returns as `studies.prepare`."""
    stages = demo.demo_stages(options.demo)[:ROWS_STAGES]
    markers = run_stages(stages, options.demo)
    facts = ablation.data_facts(options.demo, demo.SEQUENCE_LENGTH)
    return {"reviews": facts}, markers[-1]["key"]


if __name__ == "__main__":
    files.run_command(main)
