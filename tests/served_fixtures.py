"""Kinds of tasks, each exported once for all the tests that ask for it."""

import functools

import pytest

from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests import served_tasks


@pytest.fixture(scope="session")
def exported(sentencepiece_proto, tmp_path_factory):
    """Gives of a kind its `Served` and the folder of its version, str."""
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    folder = tmp_path_factory.mktemp("served")

    @functools.cache
    def export(kind):
        served = served_tasks.make(kind, tokenizer)
        return served, served.task.export_for_serving(str(folder / kind))

    return export
