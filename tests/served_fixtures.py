"""Every kind of task, exported once for all the tests that ask for it."""

import pytest

from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests import served_tasks


@pytest.fixture(scope="session")
def exported(sentencepiece_proto, tmp_path_factory):
    """{kind: (`Served`, str, the folder of its version)}."""
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    folder = tmp_path_factory.mktemp("served")
    found = {}
    for kind in served_tasks.KINDS:
        one = served_tasks.make(kind, tokenizer)
        found[kind] = one, one.task.export_for_serving(str(folder / kind))
    return found
