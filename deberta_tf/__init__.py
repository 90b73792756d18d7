"""DeBERTa v1, v2 and v3 in TensorFlow and Keras: pretrain, fine-tune, serve."""

from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.heads import EnhancedMaskDecoder
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.masking import NgramMasker
from deberta_tf.replaced_token import DebertaReplacedTokenDetection
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.token_tasks import (
    DebertaEntityScorer,
    DebertaMultipleChoice,
    DebertaQuestionAnswering,
    DebertaTokenClassifier,
)
from deberta_tf.tokenizers import (
    DebertaBytePairTokenizer,
    DebertaSentencePieceTokenizer,
)

__all__ = [
    "DebertaBackbone",
    "DebertaBytePairTokenizer",
    "DebertaEntityScorer",
    "DebertaMaskedLM",
    "DebertaMaskedLMPreprocessor",
    "DebertaMultipleChoice",
    "DebertaQuestionAnswering",
    "DebertaReplacedTokenDetection",
    "DebertaSentencePieceTokenizer",
    "DebertaTextClassifier",
    "DebertaTextClassifierPreprocessor",
    "DebertaTokenClassifier",
    "DisentangledSelfAttention",
    "EnhancedMaskDecoder",
    "NgramMasker",
    "ScaleInvariantFineTuning",
]
