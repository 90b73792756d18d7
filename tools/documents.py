"""Tables in documents that commands keep: between two marks, what a command printed."""

import re
import statistics

from deberta_tf import files


def put_table(path, name, table):
    """Replaces what stands between a document's marks of a name, whole or not at all.

    The marks are the lines `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        UsageError: if the document has not both marks, once each.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    before, after = (f"<!-- {words} -->\n" for words in (name, f"end of {name}"))
    if text.count(before) != 1 or text.count(after) != 1:
        raise files.UsageError(
            f"{path} must have the lines {before.strip()!r} and {after.strip()!r} once "
            "each"
        )
    pattern = re.escape(before) + ".*?" + re.escape(after)
    block = f"{before}{table}\n{after}"
    files.atomic_write(path, re.sub(pattern, lambda _: block, text, flags=re.DOTALL))


def markdown_table(lines):
    """A table of lines of cells, str; the first line is its head."""
    head, *rest = lines
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values, digits, sign=""):
    """Mean ± sample standard deviation, as text; no deviation of a single value.

    Args:
        values: list of float or None, which is left out; of nothing: "".
        digits: int, after the point.
        sign: "+" for one before positive means, too.
    """
    values = [value for value in values if value is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"
