import h5py
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import every_policy, make_backbone, randomize

TEXTS = ["the old captain sold the harbour.", "my sister painted that song!"]


@pytest.fixture
def preprocessor(sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    return DebertaTextClassifierPreprocessor(tokenizer, sequence_length=40)


def make_ids(count=4, length=12, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "token_ids": rng.integers(5, 100, (count, length)).astype("int32"),
        "padding_mask": np.ones((count, length), "int32"),
    }


def marked(sentences):
    """Class 1: the sentence tells of a question."""
    return np.array([sentence.endswith("?") for sentence in sentences], "int32")


def test_it_learns_classes_but_not_shuffled_ones(sentences, preprocessor):
    train, dev = sentences[:300], sentences[300:]

    def dev_accuracy(labels):
        keras.utils.set_random_seed(1)
        classifier = DebertaTextClassifier(
            make_backbone(), 2, preprocessor=preprocessor
        )
        classifier.compile(keras.optimizers.Adam(1e-2), global_clipnorm=1.0)
        classifier.fit(train, labels, batch_size=50, epochs=20, verbose=0)
        return classifier.evaluate(dev, marked(dev), verbose=0)[1]

    labels = marked(train)
    assert dev_accuracy(labels) > 0.97
    # Shuffled labels teach the majority class at best.
    majority = 1 - marked(dev).mean()
    shuffled = np.random.default_rng(0).permutation(labels)
    assert dev_accuracy(shuffled) < majority + 0.05


@pytest.mark.slow
def test_it_learns_a_regression(preprocessor, sentences):
    classifier = DebertaTextClassifier(make_backbone(), 1, preprocessor=preprocessor)
    classifier.compile(keras.optimizers.Adam(3e-3))
    scores = np.array([len(sentence) / 20 for sentence in sentences], "float32")
    classifier.fit(sentences, scores, batch_size=50, epochs=15, verbose=0)
    predicted = classifier.predict(sentences, verbose=0)[:, 0]
    assert np.corrcoef(predicted, scores)[0, 1] > 0.9


@every_policy
def test_it_fits_under_every_policy_compiled_or_not(policy, jit_compile):
    classifier = DebertaTextClassifier(make_backbone(num_layers=1, dtype=policy), 3)
    classifier.compile(keras.optimizers.Adam(1e-2), jit_compile=jit_compile)
    labels = np.array([0, 2, 1, 2])
    history = classifier.fit(make_ids(), labels, 4, epochs=15, verbose=0)
    losses = history.history["loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.5 * losses[0]
    assert classifier(make_ids()).dtype == "float32"


def test_the_last_examples_are_held_out_and_the_others_shuffled():
    classifier = DebertaTextClassifier(make_backbone(num_layers=1), 2)
    classifier.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    inputs, seen = make_ids(count=12), []
    inputs["token_ids"][:, 0] = np.arange(12)
    step = classifier.train_step

    def train_step(data):
        seen.append(data[0]["token_ids"][:, 0].numpy().tolist())
        return step(data)

    classifier.train_step = train_step
    labels = np.arange(12) % 2
    history = classifier.fit(
        inputs, labels, batch_size=3, validation_split=0.25, verbose=0
    )
    order = sum(seen, [])
    assert [len(batch) for batch in seen] == [3, 3, 3]
    assert sorted(order) == list(range(9))
    assert order != list(range(9))
    last = {name: value[9:] for name, value in inputs.items()}
    expected = classifier.evaluate(last, labels[9:], verbose=0)[0]
    assert history.history["val_loss"] == [pytest.approx(expected)]


def test_a_dataset_is_not_split():
    classifier = DebertaTextClassifier(make_backbone(num_layers=1), 2)
    dataset = tf.data.Dataset.from_tensor_slices((make_ids(), [0, 1, 0, 1])).batch(2)
    with pytest.raises(ValueError, match="validation_split"):
        classifier.fit(dataset, validation_split=0.5, verbose=0)


def test_strings_pairs_and_ids_are_predicted_alike(preprocessor):
    classifier = DebertaTextClassifier(
        make_backbone(num_segments=2), 3, preprocessor=preprocessor
    )
    randomize(classifier)
    ids = preprocessor(TEXTS)
    by_ids = classifier.predict(dict(ids), verbose=0)
    np.testing.assert_allclose(classifier.predict(TEXTS, verbose=0), by_ids, atol=1e-5)
    pairs = (TEXTS, TEXTS[::-1])
    by_pairs = classifier.predict(pairs, verbose=0)
    np.testing.assert_allclose(
        by_pairs, classifier.predict(preprocessor(pairs), verbose=0), atol=1e-5
    )
    assert np.abs(by_pairs - by_ids).max() > 1e-3


def test_one_string_is_packed_without_a_batch_axis(preprocessor):
    one, batch = preprocessor(TEXTS[0]), preprocessor(TEXTS)
    np.testing.assert_array_equal(one["token_ids"], batch["token_ids"][0])


def test_a_preset_comes_back_with_weights_labels_and_tokenizer(tmp_path, preprocessor):
    classifier = DebertaTextClassifier(
        make_backbone(), 2, labels=["calm", "loud"], preprocessor=preprocessor
    )
    randomize(classifier)
    classifier.save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.TextClassifier.from_preset(str(tmp_path / "preset"))
    assert type(loaded) is DebertaTextClassifier
    assert loaded.labels == ["calm", "loud"]
    np.testing.assert_array_equal(
        loaded.predict(TEXTS, verbose=0), classifier.predict(TEXTS, verbose=0)
    )


def test_a_keras_file_comes_back_whole(tmp_path, preprocessor):
    classifier = DebertaTextClassifier(make_backbone(), 2, preprocessor=preprocessor)
    randomize(classifier)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(TEXTS, verbose=0), classifier.predict(TEXTS, verbose=0)
    )


def test_a_pretrained_backbone_gets_a_fresh_head(tmp_path, preprocessor):
    pretrained = DebertaMaskedLM(
        make_backbone(), DebertaMaskedLMPreprocessor(preprocessor.tokenizer, 24)
    )
    randomize(pretrained)
    pretrained.save_to_preset(str(tmp_path / "preset"))
    with pytest.warns(UserWarning, match="no head for DebertaTextClassifier"):
        classifier = DebertaTextClassifier.from_preset(
            str(tmp_path / "preset"), num_classes=4
        )
    inputs = make_ids()
    np.testing.assert_array_equal(
        classifier.backbone(inputs), pretrained.backbone(inputs)
    )
    assert classifier.predict(TEXTS, verbose=0).shape == (2, 4)


def test_a_half_written_preset_is_never_seen(tmp_path, preprocessor, monkeypatch):
    path = tmp_path / "preset"
    classifier = DebertaTextClassifier(make_backbone(), 2, preprocessor=preprocessor)
    classifier.save_to_preset(str(path))
    before = sorted(file.name for file in path.rglob("*"))
    monkeypatch.setattr(
        type(preprocessor.tokenizer),
        "save_assets",
        lambda *_: (_ for _ in ()).throw(OSError("disk full")),
    )
    with pytest.raises(OSError, match="disk full"):
        classifier.save_to_preset(str(path))
    assert sorted(file.name for file in path.rglob("*")) == before
    assert [file.name for file in tmp_path.iterdir()] == ["preset"]


def test_a_tokenizer_larger_than_the_table_is_refused(preprocessor):
    with pytest.raises(ValueError, match="a tokenizer of 101, vocabulary_size=50"):
        DebertaTextClassifier(
            make_backbone(vocabulary_size=50), 2, preprocessor=preprocessor
        )


def test_labels_must_name_every_class():
    with pytest.raises(ValueError, match="num_classes=3, 2 labels"):
        DebertaTextClassifier(make_backbone(), 3, labels=["a", "b"])


def test_an_optimizer_that_clips_is_refused():
    classifier = DebertaTextClassifier(make_backbone(), 2)
    with pytest.raises(ValueError, match="clipnorm=1.0"):
        classifier.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0))


@pytest.mark.parametrize(
    "policy", [pytest.param("float32", marks=pytest.mark.slow), "mixed_float16"]
)
def test_clipping_bounds_the_step_of_gradient_descent(policy):
    def step_length(global_clipnorm):
        keras.utils.set_random_seed(3)
        classifier = DebertaTextClassifier(make_backbone(num_layers=1, dtype=policy), 3)
        optimizer = keras.optimizers.SGD(1.0)
        classifier.compile(optimizer, global_clipnorm=global_clipnorm)
        before = [w.numpy() for w in classifier.trainable_variables]
        classifier.train_on_batch(make_ids(), np.array([0, 2, 1, 2]))
        after = [w.numpy() for w in classifier.trainable_variables]
        squares = [np.sum((a - b) ** 2) for a, b in zip(after, before, strict=True)]
        return np.sqrt(np.sum(squares))

    free, clipped = step_length(None), step_length(0.01)
    assert free > 0.02
    # float16 gradients carry 11 bits.
    assert clipped == pytest.approx(0.01, rel=1e-2)


def test_lora_trains_its_own_weights_only():
    backbone = make_backbone()
    backbone.enable_lora(rank=2)
    classifier = DebertaTextClassifier(backbone, 2)
    layers = {weight.path.split("/")[-2] for weight in backbone.trainable_weights}
    assert layers == {"query", "value"}
    classifier.fit(make_ids(), np.array([0, 1, 1, 0]), 4, verbose=0)


def test_a_folder_with_other_files_is_not_replaced(tmp_path, preprocessor):
    (tmp_path / "notes.txt").write_text("mine")
    classifier = DebertaTextClassifier(make_backbone(), 2, preprocessor=preprocessor)
    with pytest.raises(ValueError, match="notes.txt"):
        classifier.save_to_preset(str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match="models"):
        classifier.save_to_preset(str(tmp_path))


def test_a_fitted_task_is_saved_without_its_optimizer(tmp_path, preprocessor):
    classifier = DebertaTextClassifier(
        make_backbone(num_layers=1), 2, preprocessor=preprocessor
    )
    classifier.fit(TEXTS, [0, 1], verbose=0)
    classifier.save_to_preset(str(tmp_path / "preset"))
    with h5py.File(tmp_path / "preset" / "task.weights.h5") as file:
        assert "optimizer" not in file
    loaded = DebertaTextClassifier.from_preset(str(tmp_path / "preset"))
    np.testing.assert_array_equal(
        loaded.predict(TEXTS, verbose=0), classifier.predict(TEXTS, verbose=0)
    )
    loaded.fit(TEXTS, [0, 1], verbose=0)


def test_an_encoder_of_hugging_face_gets_a_fresh_head_and_says_so(golden):
    folder = golden / "golden/C2_hf_v3_unshared"
    with pytest.warns(UserWarning, match="no head for DebertaTextClassifier"):
        classifier = DebertaTextClassifier.from_preset(folder, num_classes=2)
    backbone = DebertaBackbone.from_preset(folder)
    inputs = make_ids()
    inputs["token_ids"] %= 90
    np.testing.assert_array_equal(classifier.backbone(inputs), backbone(inputs))


def test_a_preset_without_classes_asks_for_their_number(tmp_path):
    make_backbone().save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(ValueError, match="num_classes must be given"):
        DebertaTextClassifier.from_preset(str(tmp_path / "preset"), preprocessor=None)


def test_a_wrapped_optimizer_that_clips_is_refused():
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-3, global_clipnorm=2.0)
    )
    with pytest.raises(ValueError, match="global_clipnorm=2.0"):
        DebertaTextClassifier(make_backbone(num_layers=1), 2).compile(optimizer)


def test_missing_segments_are_named():
    backbone = make_backbone(num_segments=2, num_layers=1)
    with pytest.raises(ValueError, match="segment_ids. Received: padding_mask"):
        DebertaTextClassifier(backbone, 2)(make_ids())
