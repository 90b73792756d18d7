"""Settings of a command: a frozen dataclass, filled from YAML and flags.

The string under a field is its `--help`.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import os
import textwrap
import types

import yaml

from deberta_tf.files import ArgumentParser, UsageError

_NOTHING = ("none", "null")
_BOOLEANS = {"true": True, "false": False}


def parse(config_class, argv=None, complete=None):
    """Builds a `config_class` from the defaults, `--config FILE`, then the flags.

    Args:
        config_class: frozen dataclass. Fields are of type int, float, bool, str,
            tuple[str, ...] (in flags: separated by commas), or one of these `| None`.
        argv: list of str; None: the command line's.
        complete: callable from the settings that are given, as they are written, to a
            dict of others, that take the place of defaults.

    Raises:
        UsageError: for an unknown or missing setting, or a value of another type.
    """
    flags = _read_flags(config_class, argv)
    path = flags.pop("config", None)
    given = {**(_read_yaml(path, config_class) if path else {}), **flags}
    if complete is not None:
        given = {**complete(given), **given}
    fields = dataclasses.fields(config_class)
    for field in fields:
        if field.name not in given and _is_required(field):
            raise UsageError(
                f"--{field.name} is missing: {field_help(config_class)[field.name]}"
            )
    return config_class(
        **{
            field.name: _converted(field, given[field.name])
            for field in fields
            if field.name in given
        }
    )


def field_help(config_class):
    """{name of a field: the string under it, on one line}, inherited ones too."""
    found = {}
    for owner in filter(dataclasses.is_dataclass, reversed(config_class.__mro__)):
        source = textwrap.dedent(inspect.getsource(owner))
        body = ast.parse(source).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def as_json(config):
    """The settings as they are printed and saved: a dict of JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def changed_settings(saved, config, may_change):
    """Settings that differ from a saved run's, leaving out those that may.

    Args:
        saved: dict, `as_json` of the run that wrote the checkpoint.
        config: the dataclass of this run.
        may_change: names of fields.

    Returns:
        list of str, "name: then -> now".
    """
    now = as_json(config)
    then = {**_defaults(type(config)), **saved}
    return [
        f"{name}: {then.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if name not in may_change and then.get(name) != value
    ]


def check_at_least(config, minimum, *names):
    """Raises UsageError for a setting below `minimum`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise UsageError(f"{name} must be at least {minimum}. Received: {value}")


def check_above_zero(config, *names):
    """Raises UsageError for a setting that is not above 0; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UsageError(f"{name} must be above 0. Received: {value}")


def check_share(config, *names):
    """Raises UsageError for a setting outside [0, 1); None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"{name} must be in [0, 1). Received: {value}")


def check_choice(config, name, choices):
    """Raises UsageError unless the setting is one of `choices`."""
    value = getattr(config, name)
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise UsageError(f"{name} must be one of {listed}. Received: {value!r}")


def _read_flags(config_class, argv):
    parser = ArgumentParser(
        description=inspect.getdoc(config_class).splitlines()[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="settings, one `name: value` a line; flags overrule them",
    )
    texts = field_help(config_class)
    for field in dataclasses.fields(config_class):
        # A switch may stand without its value: --dry_run.
        switch = {"nargs": "?", "const": True} if field.type is bool else {}
        default = "" if _is_required(field) else f" (default: {field.default})"
        text = (texts[field.name] + default).replace("%", "%%")
        parser.add_argument(f"--{field.name}", metavar="X", help=text, **switch)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        _refuse_unknown(name.lstrip("-"), name, "the command line", config_class)
    return vars(known)


def _read_yaml(path, config_class):
    if not os.path.isfile(path):
        raise UsageError(f"--config: no file {path!r}")
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `name: value` lines. Found: {values!r}")
    names = {field.name for field in dataclasses.fields(config_class)}
    for name in values:
        if name not in names:
            _refuse_unknown(str(name), repr(name), path, config_class)
    return values


def _refuse_unknown(name, written, where, config_class):
    names = [field.name for field in dataclasses.fields(config_class)]
    near = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; see --help"
    raise UsageError(f"{where} has an unknown setting {written}{hint}")


def _converted(field, value):
    """The value in the field's type; strings are read, other types must fit."""
    kind, optional = _kind(field.type)
    if value is None or (isinstance(value, str) and value.lower() in _NOTHING):
        if optional:
            return None
        raise UsageError(f"{field.name} must have a value. Received: {value!r}")
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError, KeyError):
        raise UsageError(
            f"{field.name} must be {_WORDS[kind]}. Received: {value!r}"
        ) from None


def _kind(annotation):
    """(type, whether None is allowed)."""
    if isinstance(annotation, types.UnionType):
        (kind,) = (part for part in annotation.__args__ if part is not type(None))
        return _kind(kind)[0], True
    return getattr(annotation, "__origin__", annotation), False


def _read_bool(value):
    return value if isinstance(value, bool) else _BOOLEANS[value.lower()]


def _read_int(value):
    if isinstance(value, (bool, float)):
        raise TypeError
    return int(value)


def _read_float(value):
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise TypeError
    return float(value)


def _read_str(value):
    # YAML reads names such as 2024 as numbers.
    if isinstance(value, (dict, list)):
        raise TypeError
    return str(value)


def _read_tuple(value):
    if isinstance(value, (dict, bool)):
        raise TypeError
    parts = value if isinstance(value, list) else str(value).split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


_READERS = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    tuple: _read_tuple,
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    tuple: "a list, in flags separated by commas",
}


def _is_required(field):
    return field.default is dataclasses.MISSING


def _defaults(config_class):
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(config_class)
        if not _is_required(field)
    }
    return json.loads(json.dumps(defaults))
