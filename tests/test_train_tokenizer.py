"""The command that trains vocabularies: what it writes, and what it refuses."""

import json
import os
import random
import subprocess
import sys

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from deberta_tf.files import UsageError
from deberta_tf.tokenizers import DebertaTokenizer
from tools import train_tokenizer

KINDS = ["sentencepiece", "bpe"]
SIZES = {"sentencepiece": 350, "bpe": 330}


@pytest.fixture
def corpus(tmp_path, sentences):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    return path


def train(kind, inputs, output, *more, size=None):
    flags = ["--kind", kind, "--vocabulary_size", str(size or SIZES[kind])]
    inputs = [str(path) for path in inputs]
    train_tokenizer.main([*flags, "--output", str(output), "--input", *inputs, *more])
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_a_tokenizer_of_the_size_asked_for(kind, corpus, tmp_path):
    train(kind, [corpus], tmp_path / "out")
    tokenizer = DebertaTokenizer.from_preset(str(tmp_path / "out"))
    added_mask = kind == "sentencepiece"
    assert tokenizer.vocabulary_size() == SIZES[kind] + added_mask
    special = [tokenizer.token_to_id(f"[{name}]") for name in ("PAD", "CLS", "SEP")]
    assert special == [0, 1, 2]
    assert tokenizer.unk_token_id == 3
    assert tokenizer.mask_token_id == tokenizer.vocabulary_size() - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_another_script_has_no_unknown_tokens(kind, corpus, tmp_path):
    train(kind, [corpus], tmp_path / "out")
    tokenizer = DebertaTokenizer.from_preset(str(tmp_path / "out"))
    ids = tokenizer("Ζωή 生活 👾")
    assert tokenizer.unk_token_id not in ids.numpy()
    assert tokenizer.detokenize(ids).numpy().decode() == "Ζωή 生活 👾"


def test_words_of_the_text_become_single_tokens(corpus, tmp_path):
    train("bpe", [corpus], tmp_path / "out", size=470)
    tokenizer = DebertaTokenizer.from_preset(str(tmp_path / "out"))
    assert tokenizer(" neighbours bicycle").shape == (2,)


def test_the_sentencepiece_model_has_the_settings_of_v3(corpus, tmp_path):
    proto = train("sentencepiece", [corpus], tmp_path / "out")["spm.model"]
    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    assert model.trainer_spec.model_type == model.trainer_spec.UNIGRAM
    assert model.trainer_spec.byte_fallback
    assert model.normalizer_spec.name == "nmt_nfkc"
    pieces = [piece.piece for piece in model.pieces]
    assert pieces[:5] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<0x00>"]
    assert "[MASK]" not in pieces


def test_the_merges_of_bpe_make_its_tokens_in_order(corpus, tmp_path):
    contents = train("bpe", [corpus], tmp_path / "out")
    vocabulary = json.loads(contents["vocab.json"])
    merges = contents["merges.txt"].decode().rstrip("\n").split("\n")[1:]
    made = [vocabulary[merge.replace(" ", "")] for merge in merges]
    assert made == list(range(4 + 256, 330 - 1))


@pytest.mark.parametrize(
    "kind", ["sentencepiece", pytest.param("bpe", marks=pytest.mark.slow)]
)
def test_the_same_text_gives_the_same_files_on_one_core(kind, corpus, tmp_path):
    first = train(kind, [corpus], tmp_path / "first")
    flags = f"--kind {kind} --vocabulary_size {SIZES[kind]} --output second --input"
    command = [sys.executable, "-m", "tools.train_tokenizer", *flags.split(), corpus]
    root = os.path.dirname(os.path.dirname(train_tokenizer.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "RAYON_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    second = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert second == first


@pytest.mark.parametrize("kind", KINDS)
def test_several_files_and_patterns_are_one_text(kind, corpus, sentences, tmp_path):
    whole = train(kind, [corpus], tmp_path / "whole")
    for name, part in (("a.part", sentences[:150]), ("b.part", sentences[150:])):
        (tmp_path / name).write_text("\n".join(part), encoding="utf-8")
    files = [tmp_path / "a.part", tmp_path / "b.part"]
    assert train(kind, files, tmp_path / "listed") == whole
    assert train(kind, [tmp_path / "*.part"], tmp_path / "matched") == whole


def test_a_draw_of_lines_follows_its_seed(corpus, tmp_path):
    def trained(name, seed):
        more = ("--max_sentences", "60", "--seed", seed)
        return train("bpe", [corpus], tmp_path / name, *more)

    assert trained("a", "1") == trained("b", "1")
    assert trained("c", "2") != trained("a", "1")


def test_every_line_is_as_likely_to_be_drawn():
    generator, counts = random.Random(0), [0] * 10
    for _ in range(4000):
        drawn = train_tokenizer._sample(iter(range(10)), 3, generator)
        assert len(set(drawn)) == 3
        for line in drawn:
            counts[line] += 1
    # 1,200 expected, standard deviation 29: five of them on either side.
    assert all(abs(count - 1200) < 145 for count in counts)


def test_a_line_with_a_tab_or_of_any_length_is_read(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("zebra\t" + "quagga okapi " * 2000 + "\n", encoding="utf-8")
    proto = train("sentencepiece", [path], tmp_path / "out", size=270)["spm.model"]
    library = sentencepiece.SentencePieceProcessor(model_proto=proto)
    assert "▁okapi" in library.encode("okapi", out_type=str)


def test_the_size_and_the_time_are_printed_in_one_line(corpus, tmp_path, capsys):
    train("bpe", [corpus], tmp_path / "out")
    output = capsys.readouterr().out
    assert output.startswith("bpe: 330 tokens from 400 lines in ")
    assert output.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_the_text_does_not_support_tells_the_largest(
    kind, corpus, tmp_path
):
    with pytest.raises(UsageError, match="90000 is more .* at most [0-9]+;") as error:
        train(kind, [corpus], tmp_path / "out", size=90_000)
    assert not (tmp_path / "out").exists()
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    train(kind, [corpus], tmp_path / "out", size=largest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_without_room_for_the_bytes_tells_the_smallest(kind, corpus, tmp_path):
    with pytest.raises(UsageError, match="100 has no room .* at least [0-9]+") as error:
        train(kind, [corpus], tmp_path / "out", size=100)
    smallest = int(str(error.value).split("at least ")[1])
    train(kind, [corpus], tmp_path / "out", size=smallest)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty.txt holds no text"),
        ("blank.txt", b" \n\n\t\n", "blank.txt holds no text"),
        ("latin1.txt", b"caf\xe9\n", "latin1.txt is not UTF-8 text: .*position 3"),
    ],
)
def test_a_file_without_text_is_named(name, content, message, corpus, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        train("bpe", [corpus, tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        train("bpe", [tmp_path / "none.txt"], tmp_path / "out")


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no file matches '.*\*\.none'"):
        train("bpe", [tmp_path / "*.none"], tmp_path / "out")


def test_an_unknown_kind_is_named(corpus, tmp_path):
    with pytest.raises(UsageError, match="'wordpiece'.*'sentencepiece', 'bpe'"):
        train("wordpiece", [corpus], tmp_path / "out", size=300)


def test_an_earlier_result_is_replaced_and_nothing_else_is(corpus, tmp_path):
    train("bpe", [corpus], tmp_path / "out")
    contents = train("sentencepiece", [corpus], tmp_path / "out")
    assert set(contents) == {"spm.model"}
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="would be replaced, and holds 'notes.txt'"):
        train("bpe", [corpus], tmp_path / "out")
