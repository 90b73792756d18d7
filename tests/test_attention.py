import keras
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import attention_forms
from deberta_tf import position_terms as position_terms_module
from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.position_terms import position_terms
from deberta_tf.relative_position import RelativePositions
from tests import reference
from tests.layer_checks import run_layer_checks

HIDDEN, HEADS, WIDTH = 12, 3, 5
# Float32 against float64 at scores of a few units: some roundings of 6e-8 each.
TOLERANCE = 1e-5
FORMS = ("gather", "shift", "product")


def make_layer(positions, **kwargs):
    return DisentangledSelfAttention(HEADS, WIDTH, positions, **kwargs)


def make_inputs(positions, query_length, key_length, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), "float32")

    inputs = {
        "query": normal(2, query_length, HIDDEN),
        "memory": normal(2, key_length, HIDDEN),
        "relative_embeddings": normal(positions.num_rows, HIDDEN),
        "attention_mask": tf.constant(rng.random((2, query_length, key_length)) > 0.3),
    }
    return inputs


def randomize(layer, seed=1):
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)


def oracle(layer, inputs, query_positions=None):
    """The layer's output by the NumPy loops of `reference`."""
    dense = {
        "query": layer.query_dense,
        "key": layer.key_dense,
        "value": layer.value_dense,
        "position_key": layer.position_key_dense,
        "position_query": layer.position_query_dense,
        "attention_output": layer.output_dense,
    }
    weights = {
        name: (
            projection.kernel.numpy().astype("float64"),
            projection.bias.numpy().astype("float64") if projection.use_bias else 0.0,
        )
        for name, projection in dense.items()
    }
    positions = layer.relative_positions

    def row(distance):
        return reference.table_row(
            distance,
            positions.bucket_size,
            positions.max_distance,
            positions.clamp_distances,
        )

    inputs = {name: value.numpy().astype("float64") for name, value in inputs.items()}
    examples = []
    for b in range(len(inputs["query"])):
        at = np.arange(inputs["query"].shape[1])
        if query_positions is not None:
            at = query_positions[b]
        examples.append(
            reference.attention(
                inputs["query"][b],
                inputs["memory"][b],
                inputs["relative_embeddings"],
                inputs["attention_mask"][b] > 0,
                weights,
                layer.num_heads,
                layer.position_terms,
                row,
                at,
            )
        )
    return np.stack(examples)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("bucket_size", "max_distance"), [(0, 3), (0, 40), (4, 8), (5, 12), (8, 32)]
)
@pytest.mark.parametrize("lengths", [(1, 1), (9, 9), (17, 17), (4, 11), (11, 4)])
def test_attention_agrees_with_loops_over_pairs(
    form, bucket_size, max_distance, lengths
):
    positions = RelativePositions(bucket_size, max_distance)
    layer = make_layer(positions, attention_form=form)
    inputs = make_inputs(positions, *lengths)
    layer(**inputs)
    randomize(layer)
    np.testing.assert_allclose(
        layer(**inputs), oracle(layer, inputs), atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",), ()])
def test_each_ablation_agrees_with_loops(form, share, key_bias, terms):
    positions = RelativePositions(4, 8)
    layer = make_layer(
        positions,
        position_terms=terms,
        share_position_projections=share,
        key_bias=key_bias,
        attention_form=form,
    )
    inputs = make_inputs(positions, 10, 10)
    layer(**inputs)
    randomize(layer)
    np.testing.assert_allclose(
        layer(**inputs), oracle(layer, inputs), atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize("form", FORMS)
def test_queries_stand_where_they_are_told(form):
    positions = RelativePositions(4, 8)
    layer = make_layer(positions, attention_form=form)
    inputs = make_inputs(positions, 5, 13)
    # Twice the same position in one row, and the first and last of all.
    at = np.array([[0, 12, 3, 3, 7], [1, 1, 0, 11, 12]])
    layer(**inputs)
    randomize(layer)
    np.testing.assert_allclose(
        layer(**inputs, query_positions=tf.constant(at)),
        oracle(layer, inputs, at),
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",)])
@pytest.mark.parametrize("chosen", [False, True])
def test_forms_agree_in_value_and_gradient(terms, chosen):
    positions = RelativePositions(8, 16)
    inputs = make_inputs(positions, 6 if chosen else 21, 21)
    at = tf.constant([[20, 0, 4, 4, 9, 13], [1, 2, 3, 5, 8, 13]]) if chosen else None
    results = []
    for form in FORMS:
        layer = make_layer(positions, position_terms=terms, attention_form=form)
        layer.build(inputs["query"].shape)
        randomize(layer)
        table = tf.Variable(inputs["relative_embeddings"])
        with tf.GradientTape() as tape:
            values = {**inputs, "relative_embeddings": table}
            output = layer(**values, query_positions=at)
            factors = np.sin(np.arange(tf.size(output))).reshape(output.shape)
            loss = tf.reduce_sum(output * factors.astype("float32"))
        variables = [w.value for w in layer.weights] + [table]
        results.append([output, *tape.gradient(loss, variables)])
    first, *others = results
    for other in others:
        for number, (one, two) in enumerate(zip(first, other, strict=True)):
            np.testing.assert_allclose(
                one, two, atol=1e-5, rtol=1e-5, err_msg=str(number)
            )


def test_the_worked_example_of_integers():
    """SPEC 1.1: one head, no scale, no buckets, k = 2, three tokens."""

    def column(*values):
        return tf.constant(values, "float32")[:, None]

    query, key = column(1, 10, 100)[None, None], column(1, 2, 3)[None, None]
    position_key, position_query = column(1, 2, 3, 4), column(10, 20, 30, 40)
    for form in FORMS:
        terms = position_terms(
            query,
            key,
            position_key[None],
            position_query[None],
            RelativePositions(0, 2),
            form,
        )
        total = tf.matmul(query, key, transpose_b=True) + terms["c2p"] + terms["p2c"]
        expected = [[34, 44, 34], [90, 110, 110], [540, 680, 690]]
        np.testing.assert_array_equal(total[0, 0], expected)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_shift_gathers_table_rows_only(chosen):
    positions = RelativePositions(8, 16)
    gathers = {}
    for form in FORMS:
        layer = make_layer(positions, attention_form=form)
        inputs = make_inputs(positions, 6 if chosen else 20, 20)
        if chosen:
            inputs["query_positions"] = tf.constant([[0, 3, 3, 9, 18, 19]] * 2)
        layer(**inputs)

        @tf.function
        def loss_gradient(values, layer=layer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(**values) ** 2)
            return tape.gradient(loss, [w.value for w in layer.weights])

        graph = loss_gradient.get_concrete_function(inputs).graph
        gathers[form] = [
            op
            for op in graph.get_operations()
            if op.type in ("GatherV2", "GatherNd", "ScatterNd")
            and op.inputs[0].shape.rank > 3
        ]
    assert gathers["gather"]
    assert not gathers["shift"]
    assert not gathers["product"]


def test_the_table_is_projected_once_whatever_the_batch():
    positions = RelativePositions(8, 16)
    layer = make_layer(positions, attention_form="shift")
    inputs = make_inputs(positions, 20, 20)
    layer(**inputs)

    @tf.function
    def gradients(values):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(**values) ** 2)
        return tape.gradient(loss, [w.value for w in layer.weights])

    spec = {
        name: tf.TensorSpec(
            value.shape if name == "relative_embeddings" else [37, *value.shape[1:]],
            value.dtype,
        )
        for name, value in inputs.items()
    }
    graph = gradients.get_concrete_function(spec).graph
    width = positions.num_rows, 40  # rows of the table, and of its diagonals
    repeated = [
        op
        for op in graph.get_operations()
        for output in op.outputs
        if output.shape.rank == 4
        and output.shape[:2].as_list() in ([37, HEADS], [HEADS, 37])
        and output.shape[2] in width
        and output.shape[3] == WIDTH
    ]
    assert not repeated


@pytest.mark.parametrize("form", FORMS)
def test_a_dynamic_length_computes_what_a_static_one_does(form):
    positions = RelativePositions(4, 8)
    layer = make_layer(positions, attention_form=form)
    inputs = make_inputs(positions, 11, 11)
    expected = layer(**inputs)
    spec = {
        name: tf.TensorSpec(
            value.shape if value.shape.rank == 2 else [None] * 2 + value.shape[2:],
            value.dtype,
        )
        for name, value in inputs.items()
    }
    spec["attention_mask"] = tf.TensorSpec([None] * 3, tf.bool)
    dynamic = tf.function(lambda values: layer(**values), input_signature=[spec])
    np.testing.assert_allclose(dynamic(inputs), expected, atol=1e-6)


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",)])
@pytest.mark.parametrize("lengths", [(21, 21), (16, 16), (3, 18), (18, 3), (1, 1)])
def test_products_shift_blocks_as_one(terms, lengths, monkeypatch):
    monkeypatch.setattr(position_terms_module, "BLOCK", 4)
    check_against_gather("product", terms, lengths)


@pytest.mark.parametrize("lengths", [(128, 128), (96, 140), (64, 130)])
def test_queries_multiply_the_table_block_by_block(lengths, monkeypatch):
    shapes, shift = [], position_terms_module.relative_shift

    def relative_shift(scores, length):
        shapes.append(scores.shape)
        return shift(scores, length)

    monkeypatch.setattr(position_terms_module, "relative_shift", relative_shift)
    monkeypatch.setattr(position_terms_module, "LEAST_QUERIES", 32)
    check_against_gather("shift", ("c2p",), lengths)
    queries, keys = lengths
    assert shapes == [(HEADS, 2, queries // 32, 32, 32 + keys)]


def check_against_gather(form, terms, lengths):
    """The output and all gradients are those of the gather."""
    positions = RelativePositions(4, 8)
    inputs = make_inputs(positions, *lengths)
    results = []
    for name in ("gather", form):
        layer = make_layer(positions, position_terms=terms, attention_form=name)
        layer.build(inputs["query"].shape)
        randomize(layer)
        table = tf.Variable(inputs["relative_embeddings"])
        with tf.GradientTape() as tape:
            output = layer(**{**inputs, "relative_embeddings": table})
            loss = tf.reduce_sum(output**2)
        variables = [w.value for w in layer.weights] + [table]
        results.append([output, *tape.gradient(loss, variables)])
    # Of the largest: some gradients are 0 but for rounding.
    scale = max(np.abs(one).max() for one in results[0])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(two / scale, one / scale, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [21, 140])
def test_half_precision_is_near_float32(form, length):
    positions = RelativePositions(8, 16)
    inputs = make_inputs(positions, length, length)
    outputs = []
    for dtype, one in (("float32", "gather"), ("mixed_bfloat16", form)):
        layer = make_layer(positions, attention_form=one, dtype=dtype)
        layer.build(inputs["query"].shape)
        randomize(layer)
        outputs.append(tf.cast(layer(**inputs), "float32").numpy())
    exact, half = outputs
    # Some roundings of 2^-9 in a row, of scores of some units.
    assert np.linalg.norm(half - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_read_often_gets_all_of_its_gradient_in_bfloat16(form):
    """One number at a time, in bfloat16, a sum of ones ends at 256."""
    positions = RelativePositions(0, 1)  # Two rows: of i - j < 0, and the others.
    table = tf.Variable(tf.ones([1, 2, 4]))
    content = tf.ones([1, 1, 128, 4], "bfloat16" if form == "product" else "float32")
    with tf.GradientTape() as tape:
        terms = position_terms(content, content, table, table, positions, form)
        loss = tf.add_n([tf.reduce_sum(tf.cast(x, "float32")) for x in terms.values()])
    gradient = tf.convert_to_tensor(tape.gradient(loss, table))[0]
    # Each pair of positions, in both terms; bfloat16 rounds sums over the queries.
    pairs = np.array([128 * 127, 128 * 129])[:, None] * np.ones(4)
    np.testing.assert_allclose(gradient, pairs, rtol=2**-8)


@pytest.mark.parametrize("length", [21, 64, 70, 254])
def test_long_queries_are_taken_in_blocks(length, monkeypatch):
    # Of the longest rows each block is divided again, to be multiplied by the table.
    monkeypatch.setattr(position_terms_module, "LEAST_QUERIES", 32)
    positions = RelativePositions(8, 16)
    inputs = make_inputs(positions, length, length)
    results = []
    for undivided in (1000, 8):
        monkeypatch.setattr(attention_forms, "UNDIVIDED", undivided)
        layer = make_layer(positions, attention_form="shift")
        layer.build(inputs["query"].shape)
        randomize(layer)
        with tf.GradientTape() as tape:
            output, scores = layer(**inputs, return_attention_scores=True)
            loss = tf.reduce_sum(output**2) + tf.reduce_sum(scores**2)
        gradients = tape.gradient(loss, [w.value for w in layer.weights])
        results.append([output, scores, *gradients])
    assert attention_forms.block_size(length) == -(-length // 4)
    for whole, divided in zip(*results, strict=True):
        # Sums in another order, of terms as large as the largest.
        scale = np.abs(whole).max()
        np.testing.assert_allclose(divided / scale, whole / scale, atol=1e-6)


def test_blocks_of_a_recomputed_layer_drop_out_each_in_its_own_way(monkeypatch):
    monkeypatch.setattr(attention_forms, "UNDIVIDED", 8)
    positions = RelativePositions(4, 8)
    layer = make_layer(positions, dropout=0.5, attention_form="shift")
    inputs = make_inputs(positions, 16, 16)
    # Every query alike: what differs between blocks is the dropout.
    inputs["query"] = inputs["memory"] = tf.repeat(inputs["query"][:, :1], 16, axis=1)
    inputs["attention_mask"] = tf.ones([2, 16, 16], tf.bool)
    inputs["relative_embeddings"] = tf.zeros_like(inputs["relative_embeddings"])
    layer(**inputs)
    generator = layer.probability_dropout.seed_generator
    with generator.giving(generator.next()):
        output = layer(**inputs, training=True).numpy()
    blocks = output.reshape(2, 4, 4, -1)
    assert np.abs(blocks[:, 1:] - blocks[:, :1]).max(axis=(0, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_memory_is_projected_once_for_many_queries(form):
    positions = RelativePositions(8, 16)
    inputs = make_inputs(positions, 5, 9)
    layer = make_layer(positions, attention_form=form)
    expected = layer(**inputs)
    projected = layer.project_memory(inputs["memory"])
    assert projected["keys"].shape == (HEADS, 2, 9, WIDTH)
    given = {**inputs, "memory": projected}
    np.testing.assert_array_equal(layer(**given), expected)
    symbols = {
        name: keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape), value)
        for name, value in given.items()
    }
    _, scores = layer.compute_output_spec(**symbols, return_attention_scores=True)
    assert scores.shape == (2, HEADS, 5, 9)


def test_a_query_without_keys_gets_the_output_bias_alone():
    positions = RelativePositions(4, 8)
    layer = make_layer(positions)
    inputs = make_inputs(positions, 6, 6)
    inputs["attention_mask"] = tf.zeros([2, 6, 6], tf.bool)
    layer(**inputs)
    randomize(layer)
    output = layer(**inputs).numpy()
    bias = np.broadcast_to(layer.output_dense.bias.numpy(), output.shape)
    np.testing.assert_array_equal(output, bias)


def test_returned_scores_are_probabilities():
    positions = RelativePositions(4, 8)
    layer = make_layer(positions)
    inputs = make_inputs(positions, 6, 9)
    _, scores = layer(**inputs, return_attention_scores=True)
    assert scores.shape == (2, HEADS, 6, 9)
    np.testing.assert_allclose(tf.reduce_sum(scores, -1), 1.0, atol=1e-6)


def test_table_dropout_is_the_same_for_all_examples():
    positions = RelativePositions(4, 8)
    layer = make_layer(positions, table_dropout=0.5, position_terms=("c2p",))
    inputs = make_inputs(positions, 8, 8)
    one = {
        name: value
        if name == "relative_embeddings"
        else tf.repeat(value[:1], 3, axis=0)
        for name, value in inputs.items()
    }
    first, second = (layer(**one, training=True).numpy() for _ in range(2))
    np.testing.assert_allclose(first[0], first[2], atol=1e-6)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_layer_keeps_the_contract(form):
    positions = RelativePositions(4, 8)
    inputs = make_inputs(positions, 7, 7)
    run_layer_checks(
        DisentangledSelfAttention,
        {
            "num_heads": HEADS,
            "head_dim": WIDTH,
            "relative_positions": positions,
            "share_position_projections": False,
            # A bias on the keys of positions has no gradient: it adds the same to
            # the scores of all keys of a query.
            "key_bias": False,
            "attention_form": form,
        },
        {name: value.numpy() for name, value in inputs.items()},
        expected_output_shape=(2, 7, HIDDEN),
        expected_num_weights=10,
    )


@pytest.mark.parametrize(
    ("argument", "value"),
    [("attention_form", "diagonal"), ("position_terms", ("c2p", "p2p"))],
)
def test_unknown_choices_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=argument):
        make_layer(RelativePositions(4, 8), **{argument: value})


def test_projections_start_from_different_numbers():
    layer = make_layer(
        RelativePositions(4, 8), kernel_initializer=keras.initializers.RandomNormal()
    )
    layer.build((None, None, HIDDEN))
    query, key = layer.query_dense.kernel.numpy(), layer.key_dense.kernel.numpy()
    assert not np.allclose(query, key)
