"""Table and plots of the ablations' results.

    python -m tools.ablation_report --results docs/ablation.jsonl

Prints the table in Markdown; writes the plots beside the results. `tools.ablation`
calls it when its runs are through.
"""

import json
import os
import statistics

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from deberta_tf import files

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
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", required=True, help="what tools.ablation wrote")
    path = parser.parse_args(argv).results
    records = read_records(path)
    if not records:
        raise files.UsageError(f"{path} holds no runs")
    print(tables(records))
    stem = os.path.splitext(path)[0]
    draw_curves(records, f"{stem}_loss.png")
    if any(record["probe"] for record in records):
        draw_probes(records, f"{stem}_probe.png")


def read_records(path):
    """The runs of a file of results, list of dict; none where there is no file.

    Raises:
        UsageError: if a line is no record of a run.
    """
    if not os.path.exists(path):
        return []
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                known = record["model"] in TITLES
            except (ValueError, TypeError, KeyError):
                known = False
            if not known:
                raise files.UsageError(
                    f"{path}, line {number}, must be the record of a run. Found: "
                    f"{line.strip():.60}"
                )
            records.append(record)
    return records


def tables(records):
    """Markdown: losses of the masked LMs, and what was told of replaced tokens."""
    found = [_table(*columns, records) for columns in (_LOSSES, _REPLACED)]
    seconds = sum(record["seconds"] for record in records)
    found.append(f"{len(records)} runs, {seconds / 3600:.1f} hours of one core.")
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
    models = [
        model
        for model in TITLES
        if any(r["model"] == model and key(r) is not None for r in records)
    ]
    if not models:
        return None
    lines = [[kind, "seeds", *columns, f"difference to {TITLES[BASELINE]}"]]
    lines.append(["---"] * len(lines[0]))
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
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def spread(values, digits, sign=""):
    """Mean ± sample standard deviation, as text; no deviation of a single value."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def draw_curves(records, path):
    """Held-out loss of the masked LMs by tokens read; a thin line for each run."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (model, title) in enumerate(TITLES.items()):
        own = [r for r in records if r["model"] == model and masked_lm_loss(r)]
        if not own:
            continue
        # Every row is full, but for the last of a shard.
        rows = own[0]["settings"]["batch_size"]
        tokens_a_step = rows * own[0]["data"]["sequence_length"] / 1e6
        xs = [step * tokens_a_step for step in own[0]["held_out"]["step"]]
        curves = [record["held_out"]["loss"] for record in own]
        color = f"C{number}"
        for curve in curves:
            axes.plot(xs, curve, color=color, linewidth=0.6, alpha=0.6)
        means = [statistics.mean(column) for column in zip(*curves, strict=True)]
        axes.plot(xs, means, color=color, marker="o", label=title)
    axes.set_xlabel("tokens read, millions")
    axes.set_ylabel("held-out masked-LM loss, nats")
    axes.set_title("Masked language models, 4 layers of 128: mean and runs")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_probes(records, path):
    """Accuracies of the linear probe: a dot for each run, a bar at the mean."""
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    models = [
        model
        for model in TITLES
        if any(r["model"] == model and r["probe"] for r in records)
    ]
    for place, model in enumerate(models):
        values = [
            probe_accuracy(record) for record in records if record["model"] == model
        ]
        axes.scatter([place] * len(values), values, color=f"C{place}", zorder=2)
        mean = statistics.mean(values)
        axes.hlines(mean, place - 0.25, place + 0.25, color=f"C{place}")
    axes.set_xticks(range(len(models)), [TITLES[model] for model in models])
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_ylabel("test accuracy")
    axes.set_title("Linear classifier on frozen features: runs and mean")
    axes.grid(axis="y", alpha=0.3)
    _save(figure, path)


def _save(figure, path):
    temporary = f"{path}.new"
    figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    os.replace(temporary, path)


if __name__ == "__main__":
    files.run_command(main)
