"""All records by their names."""

import difflib

from deberta_tf.files import UsageError
from trainers import sources
from trainers.tasks import conll, glue, race, squad, super_glue, swag, xnli

TASKS = {
    record.name: record
    for module in (glue, super_glue, squad, race, swag, conll, xnli)
    for record in module.RECORDS
}


def find(name):
    """The record of that name.

    Raises:
        UsageError: if there is none; it tells of similar names, or else of all.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS) or TASKS
        raise UsageError(f"no task {name!r}; there are {sources.listed(near)}")
    return TASKS[name]
