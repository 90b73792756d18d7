"""Which form of attention is computed, by device and length."""

import tensorflow as tf

from deberta_tf import fused_attention

ATTENTION_FORMS = ("auto", "gather", "shift", "product", "fused")
# Beyond so many queries, in the form "shift", they are taken in blocks, one after the
# other: a block of s queries and k keys has s + k distances, not 2 k, and memory grows
# with the length alone.
UNDIVIDED = 512
BLOCKS = 4
LARGEST_BLOCK = 512


def chosen_form(form):
    """The form that one asked for is on this process's devices."""
    if form not in ("auto", "fused"):
        return form
    by_name = form == "fused"
    if by_name and fused_attention.TARGET is not None:
        return "fused"
    if not tf.config.list_logical_devices("TPU"):
        # What was trained by the kernel is loaded elsewhere, too.
        return "shift"
    return "fused" if by_name or fused_attention.is_at_hand() else "product"


def block_size(length):
    """Queries of a block; None where they are not divided."""
    if length is None or length <= UNDIVIDED:
        return None
    return min(LARGEST_BLOCK, -(-length // BLOCKS))
