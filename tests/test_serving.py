import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer

TEXTS = ["the old captain sold the harbour.", "", "my sister painted that song! " * 9]


@pytest.fixture
def classifier(sentencepiece_proto):
    backbone = DebertaBackbone(
        104, 2, 2, 16, 32, max_sequence_length=24, bucket_size=8, num_segments=2
    )
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    classifier = DebertaTextClassifier(
        backbone,
        3,
        labels=["calm", "loud", "naïve"],
        preprocessor=DebertaTextClassifierPreprocessor(tokenizer, 24),
    )
    rng = np.random.default_rng(0)
    for weight in classifier.weights:
        weight.assign(weight + rng.normal(size=weight.shape) * 0.2)
    return classifier


def softmax(logits):
    return tf.nn.softmax(logits).numpy()


def test_ids_and_pairs_are_answered_at_any_length(classifier, tmp_path):
    path = classifier.export_for_serving(str(tmp_path / "served"))
    served = tf.saved_model.load(path)
    ids = classifier.preprocessor(TEXTS)
    logits = served.signatures["token_ids"](**ids)["logits"]
    np.testing.assert_allclose(logits, classifier(ids), atol=1e-5)
    answers = served.signatures["text_pairs"](
        text=tf.constant(TEXTS), text_pair=tf.constant(TEXTS[::-1])
    )
    expected = softmax(classifier.predict((TEXTS, TEXTS[::-1]), verbose=0))
    np.testing.assert_allclose(answers["scores"], expected, atol=1e-5)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(classifier, tmp_path):
    served = tf.saved_model.load(classifier.export_for_serving(str(tmp_path)))
    answer = served.signatures["serving_default"]
    together = answer(text=tf.constant(TEXTS))["scores"]
    for row, text in enumerate(TEXTS):
        alone = answer(text=tf.constant([text]))["scores"]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_a_regression_gives_a_score(sentencepiece_proto, tmp_path):
    backbone = DebertaBackbone(104, 1, 2, 8, 8, bucket_size=8, max_sequence_length=24)
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    task = DebertaTextClassifier(
        backbone, 1, preprocessor=DebertaTextClassifierPreprocessor(tokenizer, 24)
    )
    served = tf.saved_model.load(task.export_for_serving(str(tmp_path)))
    answers = served.signatures["serving_default"](text=tf.constant(TEXTS))
    assert list(answers) == ["score"]
    np.testing.assert_allclose(
        answers["score"], task.predict(TEXTS, verbose=0)[:, 0], atol=1e-5
    )


def test_a_served_version_is_never_overwritten(classifier, tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match="3' exists"):
        classifier.export_for_serving(str(tmp_path), version=3)


def test_a_task_without_tokenizer_is_refused(tmp_path):
    backbone = DebertaBackbone(104, 1, 2, 8, 8, bucket_size=8, max_sequence_length=24)
    with pytest.raises(ValueError, match="preprocessor"):
        DebertaTextClassifier(backbone, 2).export_for_serving(str(tmp_path))
