"""Flags that studies of many runs share, and the commands that report on them."""

import os

from deberta_tf import files


def add_report_flags(parser, name):
    """Flags of a study of many runs, whose results are `docs/NAME.jsonl`."""
    parser.add_argument(
        "--results",
        default=os.path.join("docs", f"{name}.jsonl"),
        help="file of a line for each run that is through (%(default)s)",
    )
    parser.add_argument(
        "--document",
        default=os.path.join("docs", "results.md"),
        help="where tables go (%(default)s)",
    )


def read_report(argv, description, name, read_records):
    """The flags of a command that reports on a study, and its runs.

    Raises:
        UsageError: if a flag is unknown, or there are no runs.
    """
    parser = files.ArgumentParser(description=description)
    add_report_flags(parser, name)
    options = parser.parse_args(argv)
    records = read_records(options.results)
    if not records:
        raise files.UsageError(f"{options.results} holds no runs")
    return options, records


def parse_with_workers(parser, argv):
    """What a parser makes of the flags, `--num_workers` for `run_chains` among them.

    Raises:
        UsageError: if a flag is unknown, or it is below 1.
    """
    parser.add_argument(
        "--num_workers",
        type=int,
        default=os.cpu_count(),
        help="runs at once, of one thread each (default: the cores)",
    )
    options = parser.parse_args(argv)
    if options.num_workers < 1:
        raise files.UsageError(
            f"--num_workers must be at least 1; got {options.num_workers}"
        )
    return options
