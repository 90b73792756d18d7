import keras
import pytest
import tensorflow as tf

from deberta_tf.masked_lm import DebertaMaskedLM
from tests.small_models import make_backbone
from tools import benchmark, benchmark_masked_lm, timing
from tools.tpu_step import BERT


def graph_of(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    return tf.function(function, autograph=False).get_concrete_function(*specs).graph


def test_products_count_two_for_each_pair_of_numbers():
    graph = graph_of(tf.matmul, [3, 5], [5, 7])
    assert benchmark_masked_lm.products(graph) == 2 * 3 * 5 * 7
    graph = graph_of(
        lambda one, other: tf.matmul(one, other, transpose_a=True), [4, 5, 3], [4, 5, 7]
    )
    assert benchmark_masked_lm.products(graph) == 2 * 4 * 3 * 5 * 7


def test_products_of_functions_count_each_time_they_are_called():
    inner = tf.function(tf.matmul, autograph=False)
    graph = graph_of(lambda one, other: inner(inner(one, other), other), [3, 5], [5, 5])
    assert benchmark_masked_lm.products(graph) == 2 * 2 * 3 * 5 * 5


def test_what_can_not_be_counted_is_refused():
    def loop(x):
        return tf.while_loop(lambda x: True, lambda x: (x,), (x,), maximum_iterations=9)

    with pytest.raises(ValueError, match="an unknown number of times"):
        benchmark_masked_lm.products(graph_of(loop, [3]))
    with pytest.raises(ValueError, match="is of an unknown size"):
        benchmark_masked_lm.products(graph_of(tf.matmul, [None, 5], [5, 7]))
    einsum = graph_of(lambda x: tf.einsum("ab,ab->a", x, x), [2, 3])
    with pytest.raises(ValueError, match="Einsum is not counted"):
        benchmark_masked_lm.products(einsum)


def test_a_step_with_position_terms_multiplies_more():
    counts = []
    for own in ({"position_terms": ()}, {}):
        masked_lm = DebertaMaskedLM(make_backbone(num_layers=1, **own))
        masked_lm.compile(keras.optimizers.SGD(0.1))
        batch = benchmark_masked_lm.make_batch(2, 12)
        counts.append(benchmark_masked_lm.step_products(masked_lm, batch))
    assert counts[0] < counts[1]


@pytest.mark.slow
def test_the_masked_lm_step_is_timed_beside_berts(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)
    document = tmp_path / "document.md"
    document.write_text("<!-- masked_lm -->\n<!-- end of masked_lm -->\n")
    small = ["--preset=deberta_v3_xsmall", "--num_layers=1", "--rounds=1"]
    where = ["--lengths", "64", "--tokens=64", f"--document={document}"]
    benchmark.main(["masked_lm", *small, *where])
    line = document.read_text().splitlines()[3]
    length, rows, time, products, *seconds = line.strip("| ").split(" | ")
    assert (length, rows) == ("64", "1")
    assert 0.5 < float(products) < 2
    assert float(time) > 0
    assert all(float(one) > 0 for one in seconds)


def test_the_baseline_has_no_positions_but_at_its_input(monkeypatch):
    made = []
    monkeypatch.setattr(
        benchmark_masked_lm.DebertaBackbone,
        "from_preset",
        lambda preset, load_weights, **kwargs: (
            made.append(kwargs) or make_backbone(num_layers=1, **(kwargs))
        ),
    )
    arguments = type("", (), {"preset": "any", "num_layers": None})
    tasks = benchmark_masked_lm.make_tasks(arguments)
    assert made[1] == {**made[0], **BERT}
    heads = {name: task.head.decoder is not None for name, task in tasks.items()}
    assert heads == {
        benchmark_masked_lm.OURS: True,
        benchmark_masked_lm.BASELINE: False,
    }
