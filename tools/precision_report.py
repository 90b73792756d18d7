"""Table and plot of mixed precision beside float32.

    python -m tools.precision_report

Puts the table into docs/results.md, and writes the plot beside the results.
`tools.precision_study` calls it when a run is through.
"""

import statistics

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from deberta_tf import files
from tools import studies
from tools.ablation_report import save_figure
from tools.documents import markdown_table
from tools.stages import minutes
from tools.study_flags import put_report

# Steps that a loss is the mean of.
WINDOW = 25
# How far a policy's losses may be from those of float32, in nats: the stated distance.
BOUND = 0.02
EXACT = "float32"
TITLES = {EXACT: "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
HEAD = [
    "run",
    "beside",
    "largest distance",
    "mean distance",
    "held-out loss",
    "difference",
    "updates left out",
    "time",
]


def main(argv=None):
    records, stem = put_report(
        argv, __doc__.splitlines()[0], "precision", read_records, table
    )
    draw(records, f"{stem}.png")


def read_records(path):
    """The runs of a file of results, list of dict; none where there is no file.

    Raises:
        UsageError: if a line is no record of a run, or a run is there twice.
    """

    def fields(record):
        scores = record["scores"]
        return (
            TITLES[record["model"]],
            record["seed"],
            record["settings"].items(),
            record["seconds"] + 0,
            record["facts"]["train"]["rows"],
            *zip(
                scores["step"], scores["loss"], scores["skipped_updates"], strict=True
            ),
            scores["held_out"] + 0,
        )

    order = list(TITLES)
    records = studies.read_runs(path, fields)
    return sorted(records, key=lambda one: (order.index(one["model"]), one["seed"]))


def pairs(records):
    """(run, what it stands beside): float32 of its seed, or of the first seed."""
    exact = {one["seed"]: one for one in records if one["model"] == EXACT}
    found = []
    for record in records:
        seed = min(exact, default=None) if record["model"] == EXACT else record["seed"]
        if seed in exact and record is not exact[seed]:
            found.append((record, exact[seed]))
    return found


def distances(record, other):
    """|loss - the other's loss| of each window, in nats."""
    losses = record["scores"]["loss"], other["scores"]["loss"]
    return [abs(one - two) for one, two in zip(*losses, strict=True)]


def table(records):
    """Markdown: a line for each run beside float32, and what the runs took."""
    lines = [HEAD]
    for record, other in pairs(records):
        found, held_out = distances(record, other), record["scores"]["held_out"]
        lines.append(
            [
                _name(record),
                _name(other),
                f"{max(found):.4f}",
                f"{statistics.mean(found):.4f}",
                f"{held_out:.4f}",
                f"{held_out - other['scores']['held_out']:+.4f}",
                f"{sum(record['scores']['skipped_updates']):.0f}",
                minutes(record["seconds"]),
            ]
        )
    told = [
        f"{_name(one)} {one['scores']['held_out']:.4f} ({minutes(one['seconds'])})"
        for one in records
        if one["model"] == EXACT
    ]
    seconds = sum(record["seconds"] for record in records)
    return (
        f"{markdown_table(lines)}\n\nHeld-out losses of float32: {', '.join(told)}. "
        f"{len(records)} runs, {minutes(seconds)} (m:ss), each run on one thread."
    )


def _name(record):
    return f"{TITLES[record['model']]}, seed {record['seed']}"


def draw(records, path):
    """The curves, and how far each is from float32."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for record in records:
        scores = record["scores"]
        left.plot(scores["step"], scores["loss"], label=_name(record), **_style(record))
    left.set_ylabel("loss, nats a masked token")
    left.set_title(f"Means of {WINDOW} steps")
    bound = right.axhline(BOUND, color="black", linewidth=0.8)
    right.set_yscale("log")
    for record, other in pairs(records):
        steps = record["scores"]["step"]
        right.plot(steps, distances(record, other), **_style(record))
    right.legend([bound], [f"stated distance, {BOUND}"], fontsize=8, loc="lower right")
    right.set_ylim(bottom=1e-5)  # A distance may be 0.
    right.set_ylabel("|difference|, nats")
    right.set_title("Distance from float32 of the seed (float32: of seed 1)")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _style(record):
    color = f"C{list(TITLES).index(record['model'])}"
    return {"color": color, "linestyle": "-" if record["seed"] == 1 else "--"}


if __name__ == "__main__":
    files.run_command(main)
