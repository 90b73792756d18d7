"""The fused kernel, as plain operations on a CPU, against the oracle and the gather.

It is compiled for TPUs by tests/test_tpu_compile.py.
"""

import importlib
import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import fused_attention
from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.attention_forms import chosen_form
from deberta_tf.attention_masks import full_mask
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.optimization import adamw
from deberta_tf.relative_position import RelativePositions
from deberta_tf.tasks import DebertaTextClassifier
from tests.test_attention import make_inputs, oracle, randomize

pytest.importorskip("jax", reason="requirements-fused.txt is not installed")
fused_tiles = importlib.import_module("deberta_tf.fused_tiles")

HIDDEN = 12
BUCKETS, PLAIN = RelativePositions(8, 16), RelativePositions(0, 40)
# Of what is compared, float32: sums of some hundred products of units.
TOLERANCE = 2e-5
BOTH = ("c2p", "p2c")
# TensorFlow's compiler for CPUs leaves frames of code that is gone registered with
# libgcc, and what next throws in C++ (the eager fast path does) reads them: a process
# with some of these modules in it ends by SIGSEGV in `_Unwind_Find_FDE`.
SLOW = (pytest.mark.slow, pytest.mark.own_process)


def slow(test):
    return pytest.mark.slow(pytest.mark.own_process(test))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(fused_attention, "TARGET", "cpu")


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 128: several of queries and of keys, so the softmax goes on."""
    monkeypatch.setattr(fused_tiles, "LARGEST_TILE", 128)
    # What is traced with other tiles is kept.
    fused_attention._converted.cache_clear()
    fused_attention._differentiable.cache_clear()
    yield
    fused_attention._converted.cache_clear()
    fused_attention._differentiable.cache_clear()


def make_layer(form, positions=BUCKETS, heads=1, width=128, terms=BOTH, **kwargs):
    layer = DisentangledSelfAttention(
        heads, width, positions, terms, attention_form=form, **kwargs
    )
    layer.build((None, None, HIDDEN))
    randomize(layer)
    for weight in layer.weights:
        # Scores of some units, with heads so wide.
        weight.assign(weight * 0.3)
    return layer


def inputs_of(length, positions=BUCKETS):
    """What the layer takes; the last tokens of row 0 are padding, and all of row 1."""
    inputs = make_inputs(positions, length, length)
    mask = np.ones((2, length), bool)
    mask[0, length - length // 3 :] = False
    mask[1] = False
    return {**inputs, "memory": None, "attention_mask": tf.constant(mask)}


def results(layer, inputs, training=False):
    """Output, and gradients of weights, hidden states and table."""
    variables = [weight.value for weight in layer.weights]
    watched = [inputs["query"], inputs["relative_embeddings"]]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        output = layer(**inputs, training=training)
        factors = np.sin(np.arange(tf.size(output))).reshape(output.shape)
        loss = tf.reduce_sum(tf.cast(output, "float32") * factors.astype("float32"))
    # Without position terms none goes into the table.
    gradients = tape.gradient(
        loss, [*variables, *watched], unconnected_gradients="zero"
    )
    return [tf.cast(one, "float32").numpy() for one in (output, *gradients)]


def close(found, expected, tolerance=TOLERANCE):
    for number, (one, two) in enumerate(zip(found, expected, strict=True)):
        scale = max(1.0, np.abs(two).max())
        np.testing.assert_allclose(
            one / scale, two / scale, atol=tolerance, err_msg=str(number)
        )


CASES = [
    pytest.param(100, 1, 128, BUCKETS, BOTH, id="padded"),
    *(
        pytest.param(length, *rest, marks=SLOW, id=name)
        for length, *rest, name in [
            (128, 2, 64, BUCKETS, BOTH, "pair of heads"),
            (1, 2, 64, BUCKETS, BOTH, "one token"),
            (130, 4, 32, PLAIN, BOTH, "plain distances"),
            (200, 2, 64, BUCKETS, ("c2p",), "c2p alone"),
            (200, 2, 64, PLAIN, ("p2c",), "p2c alone"),
            (200, 2, 64, BUCKETS, (), "without position terms"),
            (384, 2, 64, RelativePositions(256, 512), BOTH, "three parts"),
            (640, 1, 128, RelativePositions(256, 512), BOTH, "several tiles"),
        ]
    ),
]


@pytest.mark.parametrize(("length", "heads", "width", "positions", "terms"), CASES)
def test_it_computes_what_the_gather_does(length, heads, width, positions, terms):
    inputs = inputs_of(length, positions)
    expected, found = (
        results(make_layer(form, positions, heads, width, terms), inputs)
        for form in ("gather", "fused")
    )
    close(found, expected)


@slow
def test_it_computes_what_the_oracle_does():
    inputs = inputs_of(40)
    layer = make_layer("fused", heads=2, width=64)
    mask = full_mask(inputs["attention_mask"])
    spelt = {**inputs, "memory": inputs["query"], "attention_mask": mask}
    np.testing.assert_allclose(layer(**inputs), oracle(layer, spelt), atol=TOLERANCE)


@slow
def test_tiles_share_a_softmax(small_tiles):
    assert fused_tiles.tile_of(384) == 128
    inputs = inputs_of(300)
    expected, found = (
        results(make_layer(form, heads=2, width=64), inputs)
        for form in ("gather", "fused")
    )
    close(found, expected)


@slow
def test_gradients_in_bfloat16_are_near_those_in_float32():
    inputs = inputs_of(384)
    exact = results(make_layer("gather", heads=2, width=64), inputs)
    plain, fused = (
        results(make_layer(form, heads=2, width=64, dtype="mixed_bfloat16"), inputs)
        for form in ("gather", "fused")
    )
    for one, other, right in zip(fused, plain, exact, strict=True):
        # As near as twice what the gather is off by in bfloat16; of the norm, since
        # single entries cancel.
        bound = 2 * np.linalg.norm(other - right) + 1e-3 * np.linalg.norm(right)
        assert np.linalg.norm(one - right) < bound + 1e-3


@slow
@pytest.mark.parametrize("tiles", [False, True])
def test_dropout_is_that_of_the_factors_told(tiles, request):
    if tiles:
        request.getfixturevalue("small_tiles")
    length, heads, rate = 256, 2, 0.3
    rng = np.random.default_rng(0)
    query, key, value = (
        tf.constant(rng.normal(size=(2, length, 128)), "float32") for _ in range(3)
    )
    table = tf.constant(rng.normal(size=(16, 128)), "float32")
    seed = tf.constant([3, -5], "int32")

    def fused(query, key, value, table):
        return fused_attention.fused_attention(
            query, key, value, {"c2p": table}, None, BUCKETS, heads, 0.1, rate, seed
        )

    factors = np.stack(
        [expected_factors(seed, number, length, rate) for number in range(2 * heads)]
    ).reshape(2, heads, length, length)
    assert abs((factors > 0).mean() - (1 - rate)) < 0.005
    # Neither rows, heads nor examples share theirs.
    assert abs(np.corrcoef(factors.reshape(4, -1)) - np.eye(4)).max() < 0.02
    assert abs(np.corrcoef(factors[0, 0, :64]) - np.eye(64)).max() < 0.3

    def plain(query, key, value, table):
        def split(x):
            return tf.reshape(x, [*x.shape[:-1], heads, 64])

        index = BUCKETS.rows(np.subtract.outer(np.arange(length), np.arange(length)))
        scores = tf.einsum("bqnh,bknh->bnqk", split(query), split(key))
        rows = tf.gather(split(table), index)
        scores += tf.einsum("bqnh,qknh->bnqk", split(query), rows)
        weights = tf.nn.softmax(0.1 * scores) * factors.astype("float32")
        output = tf.einsum("bnqk,bknh->bqnh", weights, split(value))
        return tf.reshape(output, query.shape)

    found, expected = (
        with_gradients(one, query, key, value, table) for one in (fused, plain)
    )
    close(found, expected)


def expected_factors(seed, number, length, rate):
    """Dropout's factors of one head of one example, (l, l)."""
    first = fused_tiles.hashed(np.int32(seed[0].numpy() ^ number))
    second = fused_tiles.hashed(np.int32(seed[1].numpy() + number))
    places = np.arange(length * length, dtype="int32").reshape(length, length)
    return np.asarray(fused_tiles.dropout_factors(places, first, second, rate))


def with_gradients(function, *inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = function(*inputs)
        loss = tf.reduce_sum(output**2)
    gradients = tape.gradient(loss, inputs)
    return [tf.convert_to_tensor(one).numpy() for one in (output, *gradients)]


def test_another_call_drops_out_otherwise_and_inference_does_not():
    layer = make_layer("fused", dropout=0.5)
    inputs = inputs_of(20)
    first, second = (layer(**inputs, training=True).numpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    one, two = (layer(**inputs).numpy() for _ in range(2))
    np.testing.assert_array_equal(one, two)


@slow
@pytest.mark.parametrize("option", ["gradient_checkpointing", "scan_layers", None])
def test_a_model_trains_by_it_as_by_the_gather(option):
    options = {option: True} if option else {}
    rng = np.random.default_rng(0)
    inputs = {
        "token_ids": tf.constant(rng.integers(0, 9, (2, 30)), "int32"),
        "padding_mask": tf.constant(np.arange(30) < [[30], [17]], "int32"),
    }
    losses = []
    for form in ("gather", "fused"):
        keras.utils.set_random_seed(0)
        backbone = DebertaBackbone(
            9, 2, 2, 16, 32, head_dim=64, dropout=0.0, attention_dropout=0.0,
            attention_form=form, **options,
        )  # fmt: skip
        task = DebertaTextClassifier(backbone, num_classes=2)
        task.compile(adamw(1e-2))
        data = tf.data.Dataset.from_tensors((inputs, tf.constant([0, 1])))
        history = task.fit(data, epochs=4, verbose=0)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((12, 64, (8, 512)), None),
        ((6, 64, (1, 100)), None),
        ((3, 64, (8, 128)), "a multiple of 128; found 3 of 64"),
        ((12, 48, (8, 128)), "found 12 of 48"),
        ((12, 64, (8, None)), "known when it is traced"),
        ((12, 64, (None, 128)), "found (None, 128)"),
        ((12, 64, (8, 4096)), "at most 2048"),
        ((12, 64, (8, 128), "float16"), "found float16"),
        ((12, 64, (8, 128), "bfloat16", "somewhere"), "query_positions"),
        ((12, 64, (8, 128), "float32", None, 3), "found rank 3"),
    ],
)
def test_what_does_not_fit_is_told(arguments, reason):
    found = fused_attention.unfit(*arguments)
    assert (found is None) if reason is None else reason in found


@pytest.mark.parametrize("change", ["memory", "return_attention_scores", "mask"])
def test_where_it_does_not_fit_products_take_its_place(change, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the kernel is called")

    monkeypatch.setattr(fused_attention, "fused_attention", never)
    inputs = inputs_of(20)
    if change == "memory":
        inputs["memory"] = inputs["query"][:, :9]
        inputs["attention_mask"] = None
    elif change == "mask":
        inputs["attention_mask"] = full_mask(inputs["attention_mask"])
    else:
        inputs["return_attention_scores"] = True
    found, expected = (make_layer(form)(**inputs) for form in ("fused", "gather"))
    for one, two in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("devices", "kind", "installed", "expected"),
    [
        ([], "v5litepod-8", True, "shift"),
        (["TPU:0"], "v5litepod-8", True, "fused"),
        (["TPU:0"], "v6e-4", True, "fused"),
        (["TPU:0"], "v6e-4", False, "product"),
        (["TPU:0"], "v4-8", True, "product"),
        (["TPU:0"], "", True, "product"),
    ],
)
def test_auto_is_chosen_by_the_device(devices, kind, installed, expected, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: devices)
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", kind)
    monkeypatch.setattr(fused_attention, "is_installed", lambda: installed)
    monkeypatch.setattr(fused_attention, "TARGET", None)
    assert chosen_form("auto") == expected
    for form in ("gather", "shift", "product"):
        assert chosen_form(form) == form
    # A model that was trained by it is loaded elsewhere, too.
    assert chosen_form("fused") == ("fused" if devices else "shift")


def test_without_jax_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(fused_attention, "is_installed", lambda: False)
    fused_attention._kernel.cache_clear()
    with pytest.raises(ImportError, match="requirements-fused.txt"):
        fused_attention._kernel()


def test_the_library_does_not_load_the_kernel():
    # Keras imports jax itself, where it is installed.
    code = "import deberta_tf, sys; print('deberta_tf.fused_kernel' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_tiles_are_the_largest_that_divide():
    lengths = (128, 256, 384, 512, 640, 768, 1024, 1152, 2048)
    tiles = [fused_tiles.tile_of(length) for length in lengths]
    assert tiles == [128, 256, 384, 512, 128, 384, 512, 384, 512]
    for length, tile in itertools.product(lengths, [512, 384, 256]):
        assert length % tile or fused_tiles.tile_of(length) >= tile
