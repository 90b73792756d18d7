"""Table and plot of what scale-invariant fine-tuning does.

    python -m tools.sift_report

Puts the table into docs/results.md, and writes the plot beside the results.
`tools.sift_study` calls it when a run is through.
"""

import statistics

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from deberta_tf import files
from tools import robustness, studies
from tools.ablation_report import save_figure
from tools.documents import markdown_table, spread
from tools.evaluation_data import DATA_SETS
from tools.stages import minutes
from tools.study_flags import put_report

DATA = ("sentiment", "injections")
TITLES = {"plain": "without SiFT", "sift": "with SiFT"}
# Scores of a record, and what they are called.
CONDITIONS = {
    "dev": "dev",
    **{name: f"test, {name}" for name in robustness.conditions()},
}
HEAD = ["data", "texts", "seeds", *TITLES.values(), "difference", "SiFT better"]


def main(argv=None):
    records, stem = put_report(
        argv, __doc__.splitlines()[0], "sift_study", read_records, table
    )
    draw(records, f"{stem}.png")


def read_records(path):
    """The runs of a file of results, list of dict; none where there is no file.

    Raises:
        UsageError: if a line is no record of a run, or a run is there twice.
    """

    def check(scores, data_set):
        return [scores[name] + 0 for name in CONDITIONS]

    return studies.read_records(path, TITLES, check)


def table(records):
    """Markdown: a line for each data set and kind of texts, and what the runs took."""
    lines = [HEAD]
    for data in DATA:
        for condition, title in CONDITIONS.items():
            values = {
                model: accuracies(records, data, model, condition) for model in TITLES
            }
            if any(values.values()):
                lines.append([DATA_SETS[data].title, title, *_cells(values)])
    times = [
        f"{title} {minutes(statistics.mean(found))}"
        for model, title in TITLES.items()
        if (found := [r["seconds"] for r in records if r["model"] == model])
    ]
    seconds = sum(record["seconds"] for record in records)
    told = (
        f"{len(records)} runs, {minutes(seconds)} (m:ss), each run on one thread. "
        f"A run: {', '.join(times)}."
    )
    return f"{markdown_table(lines)}\n\n{told}"


def _cells(values):
    differences = list(paired(values).values())
    return [
        " / ".join(str(len(found)) for found in values.values()),
        *(spread(list(found.values()), 4) for found in values.values()),
        spread(differences, 4, sign="+"),
        f"{sum(one > 0 for one in differences)} of {len(differences)}",
    ]


def accuracies(records, data, model, condition):
    """{seed: accuracy}."""
    return {
        record["seed"]: record["scores"][condition]
        for record in records
        if (record["data"], record["model"]) == (data, model)
    }


def paired(values):
    """{seed: accuracy with SiFT less that without}, of the seeds that have both."""
    return {
        seed: accuracy - values["plain"][seed]
        for seed, accuracy in values["sift"].items()
        if seed in values["plain"]
    }


def draw(records, path):
    """Differences of the seeds, a dot for each, and their mean."""
    figure, panels = pyplot.subplots(
        1, len(DATA), figsize=(11, 4), sharey=True, layout="constrained"
    )
    for data, axes in zip(DATA, panels, strict=True):
        for place, condition in enumerate(CONDITIONS):
            values = {
                model: accuracies(records, data, model, condition) for model in TITLES
            }
            differences = [100 * one for one in paired(values).values()]
            axes.scatter([place] * len(differences), differences, color="C0", zorder=2)
            if differences:
                mean = statistics.mean(differences)
                axes.hlines(mean, place - 0.3, place + 0.3, color="C0")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(
            range(len(CONDITIONS)), CONDITIONS.values(), rotation=30, ha="right"
        )
        axes.set_title(DATA_SETS[data].title)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("accuracy with SiFT less without, points")
    figure.suptitle("A dot for each seed, a bar at their mean; above 0 SiFT is better")
    save_figure(figure, path)


if __name__ == "__main__":
    files.run_command(main)
