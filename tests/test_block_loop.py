"""Blocks computed twice, or in a loop, are the blocks computed once, one by one."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import block_loop
from deberta_tf.backbone import DebertaBackbone
from tests.small_models import make_backbone, randomize

WAYS = {
    "recomputed": {"gradient_checkpointing": True},
    "scanned": {"scan_layers": True},
    "both": {"gradient_checkpointing": True, "scan_layers": True},
}
VARIANTS = {
    "v3": {"dropout": 0.3, "attention_dropout": 0.3},
    "convolution": {"dropout": 0.3, "convolution_kernel_size": 3},
    "v1": {
        "share_position_projections": False,
        "key_bias": False,
        "bucket_size": 0,
        "attention_dropout": 0.3,
    },
    "gather": {"attention_form": "gather"},
    "bert": {"position_terms": (), "absolute_position_input": True, "dropout": 0.2},
}


def make(**kwargs):
    keras.utils.set_random_seed(3)
    backbone = make_backbone(num_layers=4, **kwargs)
    randomize(backbone)
    return backbone


def inputs_of(length=9):
    rng = np.random.default_rng(0)
    padding_mask = np.ones((3, length), "int32")
    padding_mask[1, length // 2 :] = 0
    token_ids = rng.integers(5, 100, (3, length)).astype("int32")
    return {
        "token_ids": tf.constant(token_ids),
        "padding_mask": tf.constant(padding_mask),
    }


def states_and_gradients(backbone, jit_compile=False, training=True):
    """All hidden states, and the gradients of a sum over some of them."""
    variables = [v.value for v in backbone.trainable_variables]

    def compute(inputs):
        with tf.GradientTape() as tape:
            states = backbone.hidden_states(inputs, training=training)
            # Others than the last: what a head may read.
            loss = sum(tf.reduce_mean(tf.sin(state)) for state in states[1:])
        return states, tape.gradient(loss, variables)

    states, gradients = tf.function(compute, jit_compile=jit_compile)(inputs_of())
    return states, [tf.convert_to_tensor(g) for g in gradients if g is not None]


def check_same(one, other, atol):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


QUICK = {("v3", "recomputed"), ("v3", "both"), ("convolution", "scanned")}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(VARIANTS, WAYS)
]


@pytest.mark.parametrize(("variant", "way"), CASES)
def test_states_and_gradients_are_the_same(variant, way):
    plain = states_and_gradients(make(**VARIANTS[variant]))
    other = states_and_gradients(make(**VARIANTS[variant], **WAYS[way]))
    assert len(plain[0]) == 5
    # The same dropout, drawn from the same seeds.
    check_same(plain[0], other[0], 1e-5)
    check_same(plain[1], other[1], 1e-5)


@pytest.mark.parametrize(
    "way",
    ["both", *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[:2])],
)
def test_they_are_the_same_under_xla(way):
    settings = {"dropout": 0.0, "attention_dropout": 0.0}
    plain = states_and_gradients(make(**settings))
    other = states_and_gradients(make(**settings, **WAYS[way]), jit_compile=True)
    check_same(plain[0], other[0], 1e-5)
    check_same(plain[1], other[1], 1e-5)


def test_a_loop_stacks_weights_as_it_computes_and_gives_the_same():
    settings = {"dtype": "mixed_bfloat16", "dropout": 0.0, "attention_dropout": 0.0}
    plain, other = make(**settings), make(**settings, **WAYS["both"])
    function = tf.function(lambda inputs: other(inputs, training=True))
    graph = function.get_concrete_function(inputs_of()).graph
    stacked = [op for op in graph.get_operations() if op.type == "Pack"]
    stacked = [op.outputs[0] for op in stacked if len(op.inputs) == 4]
    matrices = [one for one in stacked if one.dtype.is_floating and len(one.shape) > 2]
    # Query, key, value, output; feed-forward.
    assert [one.dtype for one in matrices] == [tf.bfloat16] * 6
    # Each weight is rounded once, in either way: not a bit differs.
    check_same(*(states_and_gradients(one)[0] for one in (plain, other)), 0)
    gradients = [states_and_gradients(one)[1] for one in (plain, other)]
    # Sums over tokens and blocks are in another order.
    check_same(*gradients, 0.02 * max(np.abs(one).max() for one in gradients[0]))


@pytest.mark.parametrize("way", WAYS)
def test_they_infer_the_same(way):
    plain, other = make(dropout=0.3), make(dropout=0.3, **WAYS[way])
    np.testing.assert_allclose(plain(inputs_of()), other(inputs_of()), atol=1e-5)


def test_dropout_goes_on_from_step_to_step():
    backbone = make(dropout=0.3, **WAYS["both"])
    first, second = (
        backbone.hidden_states(inputs_of(), training=True)[-1] for _ in range(2)
    )
    assert np.abs(first - second).max() > 1e-2


def test_presets_and_weights_do_not_know_of_it(tmp_path):
    plain = make()
    plain.save_to_preset(str(tmp_path / "preset"))
    again = DebertaBackbone.from_preset(str(tmp_path / "preset"), **WAYS["both"])
    assert again.encoder.scan_layers
    assert again.encoder.gradient_checkpointing
    np.testing.assert_allclose(plain(inputs_of()), again(inputs_of()), atol=1e-5)
    assert [v.path for v in plain.weights] == [v.path for v in again.weights]


def residuals(backbone):
    """Bytes of float tensors that the forward pass keeps for the backward pass."""
    function = tf.function(lambda inputs: backbone(inputs, training=True))
    concrete = function.get_concrete_function(inputs_of(96))
    forward, _ = concrete._delayed_rewrite_functions.forward_backward()
    outputs = forward.function_type.flat_outputs[1:]
    return sum(
        spec.dtype.size * np.prod(spec.shape)
        for spec in outputs
        if spec.dtype.is_floating
    )


def test_less_is_kept_for_the_backward_pass():
    settings = {"hidden_dim": 64, "intermediate_dim": 256, "vocabulary_size": 104}
    plain, other = make(**settings), make(**settings, gradient_checkpointing=True)
    assert residuals(other) < 0.4 * residuals(plain)


@pytest.mark.parametrize("in_graph", [True, False])
@pytest.mark.parametrize("rows", [0, 2])
def test_what_runs_again_may_be_empty_and_has_its_gradients(rows, in_graph):
    x, scale = tf.ones([rows, 3]), tf.constant(2.0)

    def compute(x, scale):
        with tf.GradientTape() as tape:
            tape.watch([x, scale])
            outputs = block_loop._run_again(lambda x, s: tf.sin(x * s), x, scale)
        return tape.gradient(outputs, [x, scale])

    compute = tf.function(compute) if in_graph else compute
    of_x, of_scale = compute(x, scale)
    # (sin(2 x))' at 1.
    np.testing.assert_allclose(of_x, np.full([rows, 3], 2 * np.cos(2)), rtol=1e-6)
    np.testing.assert_allclose(of_scale, 3 * rows * np.cos(2), rtol=1e-6)


def test_a_gradient_that_is_no_number_makes_gradients_that_are_none():
    x = tf.ones([2])

    @tf.function
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = block_loop._run_again(tf.sin, x)
        return tape.gradient(outputs, x, output_gradients=tf.constant([np.nan, 1]))

    assert np.isnan(compute(x)).any()


def num_operations(num_layers, **kwargs):
    backbone = make_backbone(num_layers=num_layers, **kwargs)
    function = tf.function(lambda inputs: backbone(inputs, training=True))
    graph = function.get_concrete_function(inputs_of()).graph.as_graph_def()
    inner = sum(len(one.node_def) for one in graph.library.function)
    return len(graph.node) + inner


def test_a_scanned_program_hardly_grows_with_the_blocks():
    grown = num_operations(12, scan_layers=True) - num_operations(4, scan_layers=True)
    unrolled = num_operations(12) - num_operations(4)
    assert grown < 0.4 * unrolled
