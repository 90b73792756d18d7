"""Tables of positions projected once a prediction, of the weights there are then."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import deberta_tf
from deberta_tf.folded_positions import FoldedPositions
from tests.small_models import randomize
from tests.test_inference import LENGTH, TOLERANCE, make_backbone, make_inputs


def make_classifier(**backbone):
    task = deberta_tf.DebertaTextClassifier(make_backbone(**backbone), 3)
    randomize(task)
    return task


@pytest.fixture(scope="module")
def classifier():
    """One that has predicted: what it traced stays in use, whatever its weights are."""
    task = make_classifier(num_layers=2)
    task.predict(make_inputs(), verbose=0)
    return task


def test_positions_are_projected_once_a_call(classifier, monkeypatch):
    lengths, kept = [], FoldedPositions.project

    def project(self, length=None):
        lengths.append(length)
        kept(self, length)

    monkeypatch.setattr(FoldedPositions, "project", project)
    for _ in range(2):
        classifier.predict(make_inputs(), batch_size=1, verbose=0)
    assert lengths == [LENGTH, LENGTH]


def test_batches_take_what_was_projected(monkeypatch):
    monkeypatch.setattr(FoldedPositions, "project", lambda self, length=None: None)
    task, inputs = make_classifier(), make_inputs()
    found = task.predict(inputs, verbose=0)
    # Tables of zeros, as they were made.
    assert np.abs(found - task(inputs)).max() > 1e-2


def test_longer_rows_later_in_a_call_have_their_positions(classifier):
    shuffle(classifier)
    batches = [make_inputs([size] * 2, size) for size in (4, 20)]
    signature = {name: tf.TensorSpec([2, None], tf.int32) for name in batches[0]}
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=signature
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(2))
    found = classifier.predict(dataset, verbose=0)
    expected = np.concatenate([classifier(batch) for batch in batches])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def shuffle(task, path=None):
    """Assigns one variable, the table of positions, as training does."""
    table = task.backbone.encoder.relative_embeddings
    table.assign(tf.random.shuffle(table))


def scale(task, path):
    task.set_weights([1.1 * weight for weight in task.get_weights()])


def load(task, path):
    other = make_classifier(num_layers=2)
    other.save_weights(path / "other.weights.h5")
    task.load_weights(path / "other.weights.h5")


@pytest.mark.parametrize("change", [shuffle, scale, load])
def test_other_weights_are_seen_by_the_next_call(change, classifier, tmp_path):
    inputs, function = make_inputs(), classifier.predict_function
    before = classifier.predict(inputs, verbose=0)
    change(classifier, tmp_path)
    expected = classifier(inputs)
    assert np.abs(expected - before).max() > 1e-3
    found = classifier.predict(inputs, verbose=0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    # What was traced, and nothing new.
    assert classifier.predict_function is function


def test_other_weights_are_seen_by_a_single_batch(classifier):
    inputs = make_inputs()
    before = classifier.predict_on_batch(inputs)
    shuffle(classifier)
    expected = classifier(inputs)
    assert np.abs(expected - before).max() > 1e-3
    found = classifier.predict_on_batch(inputs)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_calls_and_evaluation_read_the_weights_themselves(classifier):
    inputs, labels = make_inputs(), np.array([0, 2, 1, 2])
    shuffle(classifier)
    # Its tables of positions are those of before.
    found = classifier(inputs)
    twin = make_classifier(num_layers=2)
    twin.set_weights(classifier.get_weights())
    np.testing.assert_array_equal(found, twin(inputs))
    loss = classifier.evaluate(inputs, labels, verbose=0)[0]
    expected = classifier.default_loss()(labels, found)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_gradients_reach_the_table_of_positions_after_a_prediction(classifier):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(classifier(make_inputs(), training=True) ** 2)
    table = classifier.backbone.encoder.relative_embeddings
    assert np.abs(tape.gradient(loss, table.value)).max() > 0


def test_predictions_in_callbacks_see_each_step_of_training():
    inputs, labels, task = make_inputs(), np.array([0, 2, 1, 2]), make_classifier()
    found, tables = [], []

    def predict(batch, logs):
        found.append((task.predict(inputs, verbose=0), task(inputs)))
        tables.append(task.backbone.encoder.relative_embeddings.numpy())

    task.compile(keras.optimizers.SGD(0.5))
    each = keras.callbacks.LambdaCallback(on_train_batch_end=predict)
    task.fit(inputs, labels, 2, verbose=0, callbacks=[each])
    (one, other), (of_one, of_other) = zip(*found, strict=True)
    np.testing.assert_allclose(one, of_one, atol=TOLERANCE)
    np.testing.assert_allclose(other, of_other, atol=TOLERANCE)
    assert np.abs(of_other - of_one).max() > 1e-3
    # The second step was of the weights, and not of what the first prediction took.
    assert np.abs(tables[1] - tables[0]).max() > 1e-5


def test_projected_positions_are_no_weights(classifier, tmp_path):
    fresh = make_classifier(num_layers=2)

    def saved(task):
        prefix = tf.train.Checkpoint(task=task).save(str(tmp_path / "checkpoint"))
        return {name for name, _ in tf.train.list_variables(prefix)}

    assert len(classifier.variables) == len(fresh.variables)
    assert classifier.count_params() == fresh.count_params()
    positions = FoldedPositions(fresh.backbone.encoder)
    assert len(positions.variables) == 4
    assert not any("predict" in name or "tables" in name for name in saved(classifier))


def test_another_thread_does_not_see_them():
    task, inputs = make_classifier(), make_inputs()
    encoder = task.backbone.encoder
    expected, found = task(inputs), []
    with FoldedPositions(encoder).in_use():
        thread = threading.Thread(target=lambda: found.append(task(inputs)))
        thread.start()
        thread.join()
        # Tables of zeros: nothing was projected.
        assert np.abs(task(inputs) - expected).max() > 1e-2
    np.testing.assert_array_equal(found[0], expected)
