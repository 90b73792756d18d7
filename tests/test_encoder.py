import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.attention_masks import full_mask
from deberta_tf.convolution import NgramConvolution
from deberta_tf.embeddings import DebertaEmbeddings, token_mask
from deberta_tf.encoder import (
    DebertaEncoder,
    DebertaEncoderBlock,
)
from deberta_tf.relative_position import RelativePositions
from tests.layer_checks import run_layer_checks

ATTENTION = {
    "num_heads": 2,
    "head_dim": 4,
    "relative_positions": RelativePositions(4, 8),
}
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(2, 5, 8)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], "int32")


def test_a_block_keeps_the_contract():
    run_layer_checks(
        DebertaEncoderBlock,
        # Without c2p the bias of keys matters, so that every weight has a gradient.
        {
            "attention": {**ATTENTION, "position_terms": ("p2c",)},
            "intermediate_dim": 6,
        },
        {
            "query": STATES,
            "relative_embeddings": RNG.normal(size=(8, 8)).astype("float32"),
            "attention_mask": full_mask(MASK).numpy(),
        },
        expected_output_shape=(2, 5, 8),
        expected_num_weights=16,
    )


def test_the_convolution_keeps_the_contract():
    run_layer_checks(
        NgramConvolution,
        {"kernel_size": 3, "activation": "tanh"},
        {"embeddings": STATES, "output": STATES[::-1].copy(), "padding_mask": MASK > 0},
        expected_output_shape=(2, 5, 8),
        expected_num_weights=4,
    )


@pytest.mark.parametrize(("normalize", "num_weights"), [(True, 39), (False, 37)])
def test_the_encoder_keeps_the_contract(normalize, num_weights):
    run_layer_checks(
        DebertaEncoder,
        {
            "num_layers": 2,
            "block": {"attention": ATTENTION, "intermediate_dim": 6},
            "normalize_relative_embeddings": normalize,
            "convolution_kernel_size": 3,
        },
        {"x": STATES, "padding_mask": MASK},
        expected_output_shape=(2, 5, 8),
        expected_num_weights=num_weights,
    )


def test_the_embeddings_keep_the_contract():
    ids = np.array([[4, 9, 2, 7, 5], [3, 3, 8, 0, 0]], "int32")
    run_layer_checks(
        DebertaEmbeddings,
        {
            "vocabulary_size": 10,
            "hidden_dim": 8,
            "embedding_dim": 6,
            "num_positions": 5,
            "num_segments": 2,
        },
        {"inputs": {"token_ids": ids, "padding_mask": MASK, "segment_ids": MASK}},
        expected_output_shape=(2, 5, 8),
        expected_num_weights=6,
    )


def test_skipping_the_last_block_leaves_one_state_less():
    encoder = DebertaEncoder(2, {"attention": ATTENTION, "intermediate_dim": 6})
    states = encoder(STATES, MASK, states=True)
    fewer = encoder(STATES, MASK, states=True, skip_last_block=True)
    assert (len(states), len(fewer)) == (3, 2)
    np.testing.assert_array_equal(fewer[1], states[1])


def test_a_skipped_block_is_not_in_the_program():
    encoder = DebertaEncoder(2, {"attention": ATTENTION, "intermediate_dim": 6})
    encoder(STATES, MASK)

    def products(skip):
        call = tf.function(lambda x: encoder(x, MASK, skip_last_block=skip))
        operations = call.get_concrete_function(STATES).graph.get_operations()
        return sum("MatMul" in operation.type for operation in operations)

    assert products(skip=True) == products(skip=False) / 2


def test_a_convolution_reads_neighbours_but_no_padding():
    layer = NgramConvolution(3)
    output = layer(STATES, STATES, MASK > 0).numpy()
    moved = STATES.copy()
    moved[:, 0] += 1.0
    changed = np.abs(layer(moved, STATES, MASK > 0) - output).max(-1) > 1e-6
    assert changed.tolist() == [[True, True, False, False, False]] * 2
    assert not output[1, 3:].any()


def test_blocks_draw_their_own_dropout_on_the_table():
    block = {"attention": {**ATTENTION, "table_dropout": 0.5}, "intermediate_dim": 6}
    encoder = DebertaEncoder(2, block)
    encoder(STATES, MASK)
    drawn = [
        b.attention.table_dropout(tf.ones([8, 8]), training=True).numpy()
        for b in encoder.blocks
    ]
    assert (drawn[0] != drawn[1]).any()


def test_masks_of_both_ranks_say_which_positions_hold_tokens():
    pairs = full_mask(MASK)
    np.testing.assert_array_equal(token_mask(pairs), MASK > 0)
    np.testing.assert_array_equal(token_mask(MASK), MASK > 0)
    np.testing.assert_array_equal(pairs[1], np.outer(MASK[1], MASK[1]) > 0)


@pytest.mark.parametrize("rank", [2, 3])
def test_rows_of_padding_send_no_gradient_however_deep(rank):
    """In a new model each layer norm multiplies what reaches their zeros by 3,162."""
    block = {"attention": ATTENTION, "intermediate_dim": 6}
    encoder = DebertaEncoder(num_layers=6, block=block)
    mask = tf.constant([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]) > 0
    x = tf.Variable(STATES * [[[1]], [[0]]])
    factors = RNG.normal(size=x.shape)

    def gradients(rows):
        with tf.GradientTape() as tape:
            padding_mask = mask if rank == 2 else full_mask(mask)
            states = encoder(x[:rows], padding_mask[:rows], training=True)
            loss = tf.reduce_sum(states * factors[:rows])
        variables = [weight.value for weight in encoder.trainable_weights]
        return tape.gradient(loss, [x, *variables])

    encoder.build(x.shape)
    with_padding, without = gradients(2), gradients(1)
    assert not np.any(with_padding[0][1])
    for one, other in zip(with_padding, without, strict=True):
        one, other = map(tf.convert_to_tensor, (one, other))
        # Sums in another order.
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_looks_at_others_but_is_not_looked_at_sends_a_gradient():
    block = {"attention": ATTENTION, "intermediate_dim": 6}
    encoder = DebertaEncoder(num_layers=1, block=block)
    mask = np.ones([2, 5, 5], bool)
    mask[:, :, 3] = False
    x = tf.Variable(STATES)
    with tf.GradientTape() as tape:
        states = encoder(x, mask, training=True)
        loss = tf.reduce_sum(states[:, 3] * RNG.normal(size=8))
    assert np.all(np.any(tape.gradient(loss, x) != 0, axis=-1)[:, 3])
