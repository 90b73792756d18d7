"""The attention of one head over the tokens of a text, as JSON."""

import numpy as np
import tensorflow as tf

from deberta_tf.attention_terms import attention_terms
from tools.playground_fields import RequestError
from tools.playground_views import token_names

# More make no picture, and megabytes of JSON.
MAX_TOKENS = 128
_DECIMALS = 6


def attention_of(view, given, row=0, layer=0, head=0):
    """The terms of one head's scores, and its attention.

    Args:
        view: `View`.
        given: dict, the inputs of its task.
        row, layer, head: ints from 0: which of the rows that the model reads, which
            block, which of its heads.

    Returns:
        dict of `tokens`, list of str, the first `MAX_TOKENS` of the row;
        `num_tokens`, int, how many it has; `rows`, list of str, the names of all rows;
        and `terms`, as `attention_terms` gives them of these tokens, lists of rows, a
        row for each query.

    Raises:
        RequestError: if there is no such row, layer or head.
    """
    backbone = view.task.backbone
    rows, names = view.rows(**given)
    _check(row=(row, len(names)))
    _check(layer=(layer, backbone.num_layers), head=(head, backbone.num_heads))
    inputs = _one_row(backbone, rows, row)
    (terms,) = attention_terms(backbone, inputs, layers=[layer])
    ids = inputs["token_ids"].numpy()[0]
    return {
        "tokens": token_names(view.tokenizer, ids[:MAX_TOKENS]),
        "num_tokens": len(ids),
        "rows": names,
        "terms": {name: _numbers(one[0, head]) for name, one in terms.items()},
    }


def _one_row(backbone, rows, row):
    """Inputs (1, l) of a backbone, of one row without its padding."""
    length = int(np.sum(rows["padding_mask"][row]))
    return {
        name: tf.constant(rows[name][row][:length], tf.int32)[tf.newaxis]
        for name in backbone.input
    }


def _numbers(term):
    term = term.numpy()[:MAX_TOKENS, :MAX_TOKENS]
    if not np.isfinite(term).all():
        raise FloatingPointError("The scores of this head are not finite numbers.")
    return np.round(term.astype("float64"), _DECIMALS).tolist()


def _check(**numbers):
    for name, (value, count) in numbers.items():
        if type(value) is not int or not 0 <= value < count:
            raise RequestError(
                f"{name} must be a whole number from 0 to {count - 1}. "
                f"Received: {value!r:.40}."
            )
