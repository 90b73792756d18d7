"""The table of the evaluation's results.

    python -m tools.evaluation_report

Puts it into docs/results.md; `tools.evaluate` calls it when a run is through.
"""

import statistics

from deberta_tf import files
from tools import studies
from tools.documents import markdown_table, spread
from tools.evaluation_data import DATA_SETS, SPLITS
from tools.stages import minutes
from tools.study_flags import put_report

# Of the runs, and what each of them scores.
TITLES = {
    "baselines": {"majority": "most frequent class", "linear": "linear, TF-IDF"},
    "finetuned": {"finetuned": "DeBERTa, fine-tuned"},
}
MEASURES = {"accuracy": "accuracy", "f1": "entity F1"}
HEAD = "data|train / dev / test|model|measure|dev|test|seeds|time|command".split("|")


def main(argv=None):
    put_report(argv, __doc__.splitlines()[0], "evaluation", read_records, table)


def read_records(path):
    """The runs of a file of results, list of dict; none where there is no file.

    Raises:
        UsageError: if a line is no record of a run, or a run is there twice.
    """

    def check(scores, data_set):
        return [
            found[split][data_set.measure] + 0
            for found in scores.values()
            for split in ("dev", "test")
        ]

    return studies.read_records(path, TITLES, check)


def table(records):
    """Markdown: a line for each data set and model, and below it their commands."""
    lines, commands = [HEAD], []
    for data in DATA_SETS:
        for model, titles in TITLES.items():
            own = [r for r in records if (r["data"], r["model"]) == (data, model)]
            if own:
                commands.append(f"{len(commands) + 1}: {_command(own)}")
            for name, title in titles.items():
                if own:
                    lines.append(_line(data, name, title, own, len(commands)))
    seconds = sum(record["seconds"] for record in records)
    told = f"{len(records)} runs, {minutes(seconds)} (m:ss), each run on one thread."
    listed = "\n".join(["```", *commands, "```"])
    return "\n\n".join([markdown_table(lines), listed, told])


def _line(data, name, title, records, command):
    measure = DATA_SETS[data].measure
    facts = records[0]["facts"]["data"]
    found = {
        split: [record["scores"][name][split][measure] for record in records]
        for split in ("dev", "test")
    }
    seeds = [record["seed"] for record in records if record["seed"] is not None]
    return [
        DATA_SETS[data].title,
        " / ".join(f"{facts[split]['rows']:,}" for split in SPLITS),
        title,
        MEASURES[measure],
        spread(found["dev"], 4),
        spread(found["test"], 4),
        str(len(seeds) or "none"),
        minutes(statistics.mean(record["seconds"] for record in records)),
        str(command),
    ]


def _command(records):
    """The command of the first seed; the others differ in seed and folder."""
    first = min(records, key=lambda record: record["seed"] or 0)
    return first["commands"][0]


if __name__ == "__main__":
    files.run_command(main)
