"""DeBERTa v1, v2 and v3 in TensorFlow and Keras: pretrain, fine-tune, serve."""

from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.entity_scorer import (
    DebertaEntityScorer,
    DebertaEntityScorerPreprocessor,
)
from deberta_tf.heads import EnhancedMaskDecoder
from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.masking import NgramMasker
from deberta_tf.multiple_choice import (
    DebertaMultipleChoice,
    DebertaMultipleChoicePreprocessor,
)
from deberta_tf.question_answering import (
    DebertaQuestionAnswering,
    DebertaQuestionAnsweringPreprocessor,
)
from deberta_tf.replaced_token import DebertaReplacedTokenDetection
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.span_classifier import (
    DebertaSpanClassifier,
    DebertaSpanClassifierPreprocessor,
)
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.token_classifier import (
    DebertaTokenClassifier,
    DebertaTokenClassifierPreprocessor,
)
from deberta_tf.tokenizers import (
    DebertaBytePairTokenizer,
    DebertaSentencePieceTokenizer,
)

__all__ = [
    "DebertaBackbone",
    "DebertaBytePairTokenizer",
    "DebertaEntityScorer",
    "DebertaEntityScorerPreprocessor",
    "DebertaMaskedLM",
    "DebertaMaskedLMPreprocessor",
    "DebertaMultipleChoice",
    "DebertaMultipleChoicePreprocessor",
    "DebertaQuestionAnswering",
    "DebertaQuestionAnsweringPreprocessor",
    "DebertaReplacedTokenDetection",
    "DebertaSentencePieceTokenizer",
    "DebertaSpanClassifier",
    "DebertaSpanClassifierPreprocessor",
    "DebertaTextClassifier",
    "DebertaTextClassifierPreprocessor",
    "DebertaTokenClassifier",
    "DebertaTokenClassifierPreprocessor",
    "DisentangledSelfAttention",
    "EnhancedMaskDecoder",
    "NgramMasker",
    "ScaleInvariantFineTuning",
]
