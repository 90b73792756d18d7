"""What a task is asked on the playground's page, and the check of what came."""

import dataclasses

# Of a field, or of a line of one; many times what a model reads.
MAX_CHARACTERS = 20_000
MAX_LINES = 32


class RequestError(ValueError):
    """A mistake of a request: told in one sentence."""


@dataclasses.dataclass(frozen=True)
class Field:
    """An input of a task.

    Args:
        name: str, as requests name it.
        label: str, as the page names it.
        hint: str, below the label.
        required: bool. Else it may be missing or blank.
        min_lines: int. The value is a list of so many strings or more; 0: a string.
        height: int, lines of text that the page has room for.
    """

    name: str
    label: str
    hint: str = ""
    required: bool = True
    min_lines: int = 0
    height: int = 3


def read_inputs(fields, given):
    """The inputs of a request: {name: str or list of str}, without blank ones.

    Args:
        fields: list of `Field`.
        given: what a request holds.

    Raises:
        RequestError: if that is no dict of the fields' names, or a value is missing,
            blank, of another type or too long.
    """
    if not isinstance(given, dict):
        raise RequestError(f"inputs must be an object. Received: {given!r:.40}")
    unknown = given.keys() - {field.name for field in fields}
    if unknown:
        raise RequestError(f"inputs have no {min(unknown)!r:.40} here.")
    read = {field.name: _read(field, given.get(field.name)) for field in fields}
    return {name: value for name, value in read.items() if value}


def _read(field, value):
    what = f"{field.label!r}"
    if value is None or value in ("", []):
        if field.required:
            raise RequestError(f"{what} is missing.")
        return None
    if not field.min_lines:
        _check_text(what, value)
        if field.required and not value.strip():
            raise RequestError(f"{what} is blank.")
        return value if value.strip() else None
    if not isinstance(value, list):
        raise RequestError(f"{what} must be a list of strings.")
    if not field.min_lines <= len(value) <= MAX_LINES:
        raise RequestError(
            f"{what} must be {field.min_lines} to {MAX_LINES} lines. "
            f"Received: {len(value)}."
        )
    for number, line in enumerate(value, start=1):
        _check_text(f"{what}, line {number},", line)
        if not line.strip():
            raise RequestError(f"{what}, line {number}, is blank.")
    return value


def _check_text(what, value):
    if not isinstance(value, str):
        raise RequestError(f"{what} must be a string.")
    if len(value) > MAX_CHARACTERS:
        raise RequestError(
            f"{what} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are "
            "read."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can hold half of a surrogate pair, UTF-8 can't.
        raise RequestError(f"{what} holds half of a character.") from None
