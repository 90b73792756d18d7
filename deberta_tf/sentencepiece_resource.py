"""A SentencePiece model that outlives TensorFlow's kernel cache."""

import hashlib

from tensorflow_text.python.ops import sentencepiece_tokenizer


class SharedModelResource(sentencepiece_tokenizer._SentencepieceModelResource):
    """TF-Text's model, owned by the runtime and not by the op that made it.

    Setting TensorFlow's seed (`keras.utils.set_random_seed` too) discards all op
    kernels, and with them an unnamed model: every tokenizer made before would fail
    with "resource not found".
    """

    def __init__(self, proto):
        self._shared_name = f"sentencepiece_{hashlib.sha256(proto).hexdigest()}"
        super().__init__(proto, None)

    def _create_resource(self):
        ops = sentencepiece_tokenizer.gen_sentencepiece_tokenizer
        return ops.sentencepiece_op(model=self._model, shared_name=self._shared_name)
