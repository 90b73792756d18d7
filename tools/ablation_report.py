"""Tables and plots of the ablations' results.

    python -m tools.ablation_report

Puts the tables into docs/results.md, and writes the plots beside the results.
`tools.ablation` calls it when its runs are through.
"""

import collections
import os
import statistics

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from deberta_tf import files
from tools.documents import markdown_table, spread
from tools.study_flags import put_report

BASELINE = "deberta"
# Names of the paper; the order of table and plots.
TITLES = {
    "deberta": "DeBERTa",
    "no_emd": "−EMD",
    "no_c2p": "−C2P",
    "no_p2c": "−P2C",
    "bert": "BERT baseline",
    "rtd_es": "RTD, ES",
    "rtd_nes": "RTD, NES",
    "rtd_gdes": "RTD, GDES",
}


def main(argv=None):
    records, stem = put_report(
        argv, __doc__.splitlines()[0], "ablation", read_records, tables
    )
    draw_losses(records, f"{stem}_loss.png")
    if any(record["probe"] for record in records):
        draw_probes(records, f"{stem}_probe.png")


def read_records(path):
    """The runs of a file of results, list of dict; none where there is no file.

    Raises:
        UsageError: if a line is no record of a run, or a run is there twice.
    """
    records = files.read_json_lines(path, _fields, "the record of a run")
    runs = collections.Counter((one["model"], one["seed"]) for one in records)
    for (model, seed), count in runs.items():
        if count > 1:
            raise files.UsageError(
                f"{path} holds {count} runs of {model!r} with seed {seed}"
            )
    return records


def _fields(record):
    """What tables and plots read; raises where a record lacks it."""
    return (
        TITLES[record["model"]],
        record["seed"],
        record["settings"]["batch_size"],
        record["data"]["sequence_length"],
        record["seconds"] + 0,
        record["held_out"]["step"][-1],
        record["held_out"]["loss"][-1],
        record["probe"] and record["probe"]["accuracy"],
    )


def tables(records):
    """Markdown: losses of the masked LMs, and what was told of replaced tokens."""
    found = [_table(*columns, records) for columns in (_LOSSES, _REPLACED)]
    seconds = sum(record["seconds"] for record in records)
    found.append(
        f"{len(records)} runs, {seconds / 3600:.1f} hours, each run on one thread."
    )
    return "\n\n".join(filter(None, found))


def final(record, name):
    """The last value that the held-out rows gave, or None."""
    values = record["held_out"].get(name)
    return values[-1] if values else None


def masked_lm_loss(record):
    """Nats a masked token; None: replaced tokens have another loss by that name."""
    return None if "generator_loss" in record["held_out"] else final(record, "loss")


def probe_accuracy(record):
    return record["probe"] and record["probe"]["accuracy"]


_LOSSES = (
    "masked LM",
    {
        "held-out loss, nats": (masked_lm_loss, 3),
        "perplexity": (lambda record: final(record, "perplexity"), 1),
        "accuracy": (lambda record: final(record, "accuracy"), 4),
    },
    masked_lm_loss,
)
_REPLACED = (
    "objective",
    {
        "probe accuracy": (probe_accuracy, 4),
        "AUC of replaced tokens": (
            lambda record: final(record, "discriminator_auc"),
            4,
        ),
        "generator's loss, nats": (lambda record: final(record, "generator_loss"), 3),
    },
    probe_accuracy,
)


def _table(kind, columns, key, records):
    """Lines of mean ± standard deviation over seeds; the last column is paired."""
    models = _models_of([record for record in records if key(record) is not None])
    if not models:
        return None
    lines = [[kind, "seeds", *columns, f"difference to {TITLES[BASELINE]}"]]
    digits = next(iter(columns.values()))[1]
    for model in models:
        own = [record for record in records if record["model"] == model]
        cells = [
            spread([read(record) for record in own], count)
            for read, count in columns.values()
        ]
        differences = list(paired(records, model, key).values())
        compared = "" if model == BASELINE else spread(differences, digits, sign="+")
        lines.append([TITLES[model], str(len(own)), *cells, compared])
    return markdown_table(lines)


def paired(records, model, key):
    """{seed: a model's value less that of DeBERTa with the same seed}."""
    values = {
        name: {
            record["seed"]: key(record) for record in records if record["model"] == name
        }
        for name in (model, BASELINE)
    }
    return {
        seed: value - values[BASELINE][seed]
        for seed, value in values[model].items()
        if seed in values[BASELINE]
    }


def draw_losses(records, path):
    """Held-out losses of the masked LMs by tokens read, and their differences."""
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained"
    )
    own = [record for record in records if masked_lm_loss(record) is not None]
    draw_curves(left, own)
    left.set_title("Masked language models: mean and runs")
    # The baseline lies far above.
    parts = {
        model: list(paired(own, model, masked_lm_loss).values())
        for model in _models_of(own)
        if model not in (BASELINE, "bert")
    }
    draw_dots(right, parts)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("difference to DeBERTa, nats")
    right.set_title("At the end, by seed: below 0 is better")
    save_figure(figure, path)


def draw_curves(axes, records):
    """Losses by tokens: a thin line for each run, a thick one for a model's mean."""
    for model in _models_of(records):
        own = [record for record in records if record["model"] == model]
        # Every row is full, but for the last of a shard.
        rows = own[0]["settings"]["batch_size"]
        tokens_a_step = rows * own[0]["data"]["sequence_length"] / 1e6
        xs = [step * tokens_a_step for step in own[0]["held_out"]["step"]]
        curves = [record["held_out"]["loss"] for record in own]
        color = f"C{list(TITLES).index(model)}"
        for curve in curves:
            axes.plot(xs, curve, color=color, linewidth=0.6, alpha=0.6)
        means = [statistics.mean(column) for column in zip(*curves, strict=True)]
        axes.plot(xs, means, color=color, marker="o", label=TITLES[model])
    axes.set_xlabel("tokens read, millions")
    axes.set_ylabel("held-out loss, nats a masked token")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_probes(records, path):
    """Accuracies of the linear probe."""
    own = [record for record in records if record["probe"]]
    values = {
        model: [probe_accuracy(one) for one in own if one["model"] == model]
        for model in _models_of(own)
    }
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    draw_dots(axes, values)
    axes.set_ylabel("test accuracy")
    axes.set_title("Linear classifier on frozen features: runs and mean")
    save_figure(figure, path)


def draw_dots(axes, values):
    """{model: list of float}: a dot for each, a bar at the mean."""
    for place, model in enumerate(values):
        # As in the curves.
        color = f"C{list(TITLES).index(model)}"
        axes.scatter([place] * len(values[model]), values[model], color=color, zorder=2)
        if values[model]:
            mean = statistics.mean(values[model])
            axes.hlines(mean, place - 0.25, place + 0.25, color=color)
    axes.set_xticks(range(len(values)), [TITLES[model] for model in values])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(axis="y", alpha=0.3)


def _models_of(records):
    return [model for model in TITLES if any(r["model"] == model for r in records)]


def save_figure(figure, path):
    """Writes a figure of `pyplot` as PNG, whole or not at all, and closes it."""
    temporary = f"{path}.new"
    figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    os.replace(temporary, path)


if __name__ == "__main__":
    files.run_command(main)
