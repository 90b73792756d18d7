"""The official vocabulary of v1, `bpe_encoder.bin`."""

import pickle
import shutil

import pytest

from deberta_tf.byte_pair import read_bpe_encoder
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tokenizers import DebertaBytePairTokenizer, DebertaTokenizer
from tests.test_torch_files import as_zip, named


@pytest.fixture
def files(golden):
    return golden / "torch_files"


def test_the_official_vocabulary_gets_the_official_ids(files):
    vocabulary, merges = read_bpe_encoder(str(files / "bpe_encoder.bin"))
    # dict_map begins with GPT-2's ids 10, 6, 1; the one that comes twice counts once.
    assert list(vocabulary)[:7] == [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "Ġthe",
        "e",
        "a",
    ]
    assert list(vocabulary)[-2:] == ["madeupword0000", "[MASK]"]
    assert list(vocabulary.values()) == list(range(18))
    assert merges == ["Ġ t", "h e", "Ġt he"]


def test_a_folder_with_the_official_vocabulary_tokenizes(files, tmp_path):
    shutil.copy(files / "bpe_encoder.bin", tmp_path)
    tokenizer = DebertaTokenizer.from_preset(str(tmp_path))
    assert isinstance(tokenizer, DebertaBytePairTokenizer)
    # t, he, Ġthe, Ġ, c, a, b, !
    assert tokenizer("the the cab!").numpy().tolist() == [7, 11, 4, 12, 14, 6, 13, 8]
    assert tokenizer.mask_token_id == 17


def test_a_task_takes_the_official_vocabulary_along(golden, files, tmp_path):
    source = golden / "golden/D2_off_v1_mlm_emd"
    for path in (source / "config.json", files / "bpe_encoder.bin"):
        shutil.copy(path, tmp_path)
    shutil.copy(source / "pytorch_model.bin", tmp_path)
    masked_lm = DebertaMaskedLM.from_preset(str(tmp_path))
    assert masked_lm.preprocessor.tokenizer.mask_token_id == 17
    masked_lm.save_to_preset(str(tmp_path / "preset"))
    again = DebertaMaskedLM.from_preset(str(tmp_path / "preset"))
    text = "the [MASK] cab!"
    assert again.fill_mask(text) == masked_lm.fill_mask(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a dict as 'encoder'"),
        ({"encoder": {"a": 0}, "vocab": []}, "must hold a list as 'dict_map'"),
        (
            {"encoder": {"a": 0}, "vocab": [], "dict_map": [("7", 1)]},
            "names id 7, which encoder does not have",
        ),
        ({"encoder": {"a": 0}, "vocab": [], "dict_map": ["7"]}, "must hold pairs"),
        ({"encoder": {"a": 0}, "vocab": [], "dict_map": [(7, 1)]}, "must hold pairs"),
        ({"encoder": {"a": 0}, "vocab": [7], "dict_map": []}, "vocab must hold pairs"),
        (
            {"encoder": {"a": 0}, "vocab": [("a", "a", "a")], "dict_map": []},
            "vocab must hold pairs of tokens, the merges. Received: tuple",
        ),
        (
            {"encoder": {"a": 0, "b": 0}, "vocab": [], "dict_map": []},
            "encoder: 'a' and 'b' share id 0",
        ),
        ({"encoder": {7: 0}, "vocab": [], "dict_map": []}, "token of id 0 is no str"),
    ],
)
def test_an_official_vocabulary_without_sense_is_refused(tmp_path, content, message):
    path = as_zip(tmp_path / "bpe_encoder.bin", pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=f"bpe_encoder.bin.*{message}"):
        read_bpe_encoder(path)


def test_merges_of_the_official_vocabulary_may_be_pairs_or_lines(tmp_path):
    content = {
        "encoder": {"a": 0, "aa": 1, "aaa": 2},
        "vocab": ["a a", ["aa", "a"]],
        "dict_map": [("2", 9), ("1", 8), ("0", 7)],
    }
    path = as_zip(tmp_path / "bpe_encoder.bin", pickle.dumps(content, 2))
    vocabulary, merges = read_bpe_encoder(path)
    assert merges == ["a a", "aa a"]
    assert [vocabulary[token] for token in ("aaa", "aa", "a", "[MASK]")] == [4, 5, 6, 7]


def test_an_official_vocabulary_runs_nothing(tmp_path):
    path = as_zip(tmp_path / "bpe_encoder.bin", named("os", "system"))
    with pytest.raises(ValueError, match="names os.system"):
        read_bpe_encoder(path)
