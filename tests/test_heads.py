import numpy as np
import tensorflow as tf

from deberta_tf.heads import EnhancedMaskDecoder

STATES = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


class EncoderOfSums:
    """A last block that adds query and memory."""

    def project_memory(self, memory):
        return memory

    def last_block(self, query, memory, mask, query_positions=None, training=None):
        if query_positions is not None:
            memory = tf.gather(memory, query_positions, batch_dims=1)
        return query + memory


class DecoderOfSums(EnhancedMaskDecoder):
    """A decoder over such a block, to check the decoder alone."""

    def call(self, memory, mask_positions=None, training=None):
        return super().call(
            memory,
            None,
            EncoderOfSums(),
            tf.identity,
            mask_positions,
            training=training,
        )


def test_the_decoder_starts_from_position_and_memory():
    layer = DecoderOfSums(6, 8, num_steps=3)
    at = np.array([[4, 0, 0], [2, 3, 1]])
    decoded = layer(STATES, mask_positions=tf.constant(at))
    table = layer.position_embedding.embeddings.numpy()
    rows = np.take_along_axis(STATES, at[..., None], 1)
    np.testing.assert_allclose(decoded, table[at] + 4 * rows, atol=1e-5)


def test_the_decoder_keeps_the_contract():
    layer = DecoderOfSums(5, 8)
    decoded = layer(STATES)
    assert len(layer.weights) == 1
    revived = DecoderOfSums.from_config(layer.get_config())
    revived(STATES)
    revived.set_weights(layer.get_weights())
    np.testing.assert_array_equal(revived(STATES), decoded)
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(compiled(tf.constant(STATES)), decoded, atol=1e-6)
