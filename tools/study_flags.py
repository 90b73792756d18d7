"""Flags that studies of many runs share, and the commands that report on them."""

import os

from deberta_tf import files
from tools.documents import put_table


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


def put_report(argv, description, name, read_records, table):
    """Prints the table of a study's runs, and puts it into the document.

    Args:
        argv: list of str, the flags; None: the command's.
        description: str, of the command.
        name: str. The study: of its results' file, and of the marks in the document.
        read_records: callable from the file of results to the runs, list of dict.
        table: callable from the runs to the table, str.

    Returns:
        (records, stem): the runs, and the results' path without its ending, by which
        pictures are named.

    Raises:
        UsageError: if a flag is unknown, or there are no runs.
    """
    parser = files.ArgumentParser(description=description)
    add_report_flags(parser, name)
    options = parser.parse_args(argv)
    records = read_records(options.results)
    if not records:
        raise files.UsageError(f"{options.results} holds no runs")
    told = table(records)
    print(told, flush=True)
    put_table(options.document, name, told)
    return records, os.path.splitext(options.results)[0]


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
