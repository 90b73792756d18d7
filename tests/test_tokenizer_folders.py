"""Tokenizers in folders of Hugging Face: what is read, refused, or warned of."""

import json

import pytest

from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tokenizers import DebertaBytePairTokenizer, DebertaTokenizer
from tests.small_models import make_backbone

VOCABULARY = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "b": 5, "ab": 6}
MERGES = ["a b"]


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content), "utf-8")


def write_byte_pair(folder):
    write(folder, "vocab.json", {**VOCABULARY, "[MASK]": 7})
    (folder / "merges.txt").write_text("\n".join(MERGES), "utf-8")


@pytest.mark.parametrize("as_pairs", [True, False])
def test_the_one_file_of_transformers_5_is_read_for_v1(tmp_path, as_pairs):
    merges = [merge.split(" ") for merge in MERGES] if as_pairs else MERGES
    content = {
        "added_tokens": [{"id": 7, "content": "[MASK]"}],
        "model": {"type": "BPE", "vocab": VOCABULARY, "merges": merges},
    }
    write(tmp_path, "tokenizer.json", content)
    tokenizer = DebertaTokenizer.from_preset(str(tmp_path))
    assert isinstance(tokenizer, DebertaBytePairTokenizer)
    assert tokenizer("aab").numpy().tolist() == [4, 6]
    assert tokenizer.mask_token_id == 7


def test_a_unigram_model_of_tokenizers_alone_is_warned_of(tmp_path):
    make_backbone().save_to_huggingface(str(tmp_path))
    content = {"added_tokens": [], "model": {"type": "Unigram", "vocab": []}}
    write(tmp_path, "tokenizer.json", content)
    with (
        pytest.warns(
            UserWarning, match="tokenizer.json, but no vocabulary .* spm.model"
        ),
        pytest.warns(UserWarning, match="are fresh"),
    ):
        masked_lm = DebertaMaskedLM.from_preset(str(tmp_path))
    assert masked_lm.preprocessor is None


@pytest.mark.parametrize("setting", ["do_lower_case", "split_by_punct"])
def test_settings_of_sentencepiece_that_change_ids_are_refused(
    tmp_path, sentencepiece_proto, setting
):
    (tmp_path / "spm.model").write_bytes(sentencepiece_proto)
    write(tmp_path, "tokenizer_config.json", {setting: False, "add_prefix_space": True})
    assert DebertaTokenizer.from_preset(str(tmp_path)).mask_token_id == 100
    write(tmp_path, "tokenizer_config.json", {setting: True})
    with pytest.raises(ValueError, match=f"asks for {setting}"):
        DebertaTokenizer.from_preset(str(tmp_path))


def test_settings_of_byte_pairs_that_change_ids_are_refused(tmp_path):
    write_byte_pair(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"add_prefix_space": False})
    assert DebertaTokenizer.from_preset(str(tmp_path)).mask_token_id == 7
    write(tmp_path, "tokenizer_config.json", {"add_prefix_space": True})
    with pytest.raises(ValueError, match="asks for add_prefix_space"):
        DebertaTokenizer.from_preset(str(tmp_path))
