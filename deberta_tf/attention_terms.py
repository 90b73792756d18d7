"""The attention of a model, split into the terms that its scores are sums of."""

import tensorflow as tf

from deberta_tf.attention_masks import full_mask, masked_softmax


def attention_terms(backbone, inputs, layers=None):
    """What each head of each block scores pairs of tokens by, in inference.

    The softmax over the sum of the terms is the attention. A masked LM's enhanced mask
    decoder runs the last block with queries of its own, which are not in it.

    Args:
        backbone: `DebertaBackbone`.
        inputs: dict, as the backbone takes it.
        layers: ints in [0, num_layers), the blocks wanted; None: all.

    Returns:
        For each of the blocks a dict of float32 (b, n, l, l), query by key: "c2c",
        content to content; "c2p", content to position, and "p2c", position to content,
        where the model has them; and "probabilities", of rows that sum to 1. Where
        `padding_mask` keeps a query from a key all are 0.

    Raises:
        ValueError: if there is no such block.
    """
    encoder = backbone.encoder
    layers = range(encoder.num_layers) if layers is None else layers
    for layer in layers:
        if not 0 <= layer < encoder.num_layers:
            raise ValueError(
                f"layers must be in [0, {encoder.num_layers}). Received: {layer}"
            )
    states = backbone.hidden_states(inputs)
    mask = full_mask(inputs["padding_mask"])
    table = encoder.relative_table()
    return [
        _terms_of(encoder.blocks[layer].attention, states[layer], table, mask)
        for layer in layers
    ]


def _terms_of(attention, hidden, table, mask):
    terms = attention.score_terms(hidden, hidden, table)
    probabilities = masked_softmax(tf.add_n([*terms.values()]), mask)
    split = {name: tf.where(mask, term, 0.0) for name, term in terms.items()}
    split["probabilities"] = probabilities
    # (n, b, q, k) --> shape (b, n, q, k)
    return {name: tf.transpose(one, [1, 0, 2, 3]) for name, one in split.items()}
