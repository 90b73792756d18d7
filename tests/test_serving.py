"""What is refused before an export; tests/test_served_tasks.py has what is answered."""

import pytest

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer


@pytest.fixture
def classifier(sentencepiece_proto):
    backbone = DebertaBackbone(
        104, 2, 2, 16, 32, max_sequence_length=24, bucket_size=8, num_segments=2
    )
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    return DebertaTextClassifier(
        backbone,
        3,
        labels=["calm", "loud", "naïve"],
        preprocessor=DebertaTextClassifierPreprocessor(tokenizer, 24),
    )


def test_a_served_version_is_never_overwritten(classifier, tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match="3' exists"):
        classifier.export_for_serving(str(tmp_path), version=3)


def test_a_task_without_tokenizer_is_refused(tmp_path):
    backbone = DebertaBackbone(104, 1, 2, 8, 8, bucket_size=8, max_sequence_length=24)
    with pytest.raises(ValueError, match="preprocessor"):
        DebertaTextClassifier(backbone, 2).export_for_serving(str(tmp_path))
