"""Scores what a small model must beat: the most frequent class, and a linear model.

    python -m tools.baselines --data entities --dir build/evaluation/data \\
        --output baselines.json

The linear models read TF-IDF features: of a text, its words and pairs of words
(logistic regression); of a word, the character n-grams of it and of its neighbours
(support vectors, one class against the rest). How strongly they are held back is
chosen on dev, as the weights of a fine-tuning are.
"""

import collections
import functools

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from deberta_tf import files
from deberta_tf.entity_metrics import entity_scores, is_entity_tag
from deberta_tf.metrics import accuracy
from tools.evaluation_data import DATA_SETS, SPLITS, read_conll, split_path
from tools.linear_probe import read_labelled

# Inverse strengths of the regularisation that dev chooses from.
TEXT_STRENGTHS = (1.0, 10.0, 100.0)
WORD_STRENGTHS = (1.0, 3.0)
LONGEST_NGRAM = 5


def main(argv=None):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help=f"of {', '.join(DATA_SETS)}")
    parser.add_argument(
        "--dir", required=True, help="folder that tools.evaluation_data wrote"
    )
    parser.add_argument("--output", required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    if options.data not in DATA_SETS:
        raise files.UsageError(
            f"--data must be one of {', '.join(DATA_SETS)}. Received: {options.data!r}"
        )
    data_set = DATA_SETS[options.data]
    read = read_conll if data_set.is_tagged else read_labelled
    splits = {
        split: read(split_path(options.dir, options.data, split)) for split in SPLITS
    }
    score = score_taggers if data_set.is_tagged else score_classifiers
    scores = score(splits, data_set.measure)
    files.write_json(options.output, scores)
    for name, found in scores.items():
        told = ", ".join(f"{s} {found[s][data_set.measure]:.4f}" for s in SPLITS[1:])
        print(f"{name}: {data_set.measure} {told}")


def score_classifiers(splits, measure):
    """Scores on dev and test of the most frequent class and of the linear model.

    Args:
        splits: {split: (texts, labels)}, lists of str.
        measure: str, of the scores: what dev chooses by.

    Returns:
        {"majority" | "linear": {"dev" | "test": {score: float}}}; the linear model
        has also the `strength` that was chosen.
    """
    texts, labels = (
        {split: columns[i] for split, columns in splits.items()} for i in (0, 1)
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = _features(vectorizer, texts)

    def score(predicted, split):
        return {"accuracy": accuracy(predicted, labels[split])}

    models = [(s, LogisticRegression(C=s, max_iter=1000)) for s in TEXT_STRENGTHS]
    return {
        "majority": _of_splits(lambda split: _majority(labels, split), score),
        "linear": _best(models, features, labels["train"], score, measure),
    }


def score_taggers(splits, measure):
    """As `score_classifiers`, of words: {split: sentences, lists of (word, tag)}.

    The scores are the `accuracy` of words and, where the tags are those of entities,
    what `entity_scores` gives.
    """
    words = {split: word_contexts(sentences) for split, sentences in splits.items()}
    tags = {
        split: [tag for sentence in sentences for _, tag in sentence]
        for split, sentences in splits.items()
    }
    vectorizer = TfidfVectorizer(analyzer=context_ngrams, sublinear_tf=True)
    features = _features(vectorizer, words)

    def score(predicted, split):
        return tag_scores(predicted, splits[split])

    models = [(s, LinearSVC(C=s, random_state=0)) for s in WORD_STRENGTHS]
    return {
        "majority": _of_splits(lambda split: _majority(tags, split), score),
        "linear": _best(models, features, tags["train"], score, measure),
    }


def _features(vectorizer, rows):
    vectorizer.fit(rows["train"])
    return {split: vectorizer.transform(own) for split, own in rows.items()}


def _majority(labels, split):
    return [most_frequent(labels["train"])] * len(labels[split])


def _of_splits(predict, score):
    return {split: score(predict(split), split) for split in ("dev", "test")}


def _best(models, features, labels, score, measure):
    """Scores of the model that does best on dev; the first of equals."""
    found = []
    for strength, model in models:
        model.fit(features["train"], labels)
        scores = _of_splits(lambda split, m=model: m.predict(features[split]), score)
        found.append({**scores, "strength": strength})
    return max(found, key=lambda scores: scores["dev"][measure])


def most_frequent(labels):
    """The most frequent label; of equals, the first."""
    ((label, _),) = collections.Counter(labels).most_common(1)
    return label


def tag_scores(predicted, sentences):
    """Scores of tags.

    Args:
        predicted: sequence of str, the tags of all words, one sentence after another.
        sentences: lists of (word, tag).

    Returns:
        dict of `accuracy` and, where every tag is "O" or begins with B- or I-,
        `precision`, `recall` and `f1` of entities.
    """
    tags = [[tag for _, tag in sentence] for sentence in sentences]
    rest = iter(map(str, predicted))
    said = [[next(rest) for _ in sentence] for sentence in sentences]
    flat = [[tag for own in one for tag in own] for one in (said, tags)]
    scores = {"accuracy": accuracy(*flat)}
    if all(map(is_entity_tag, flat[1])):
        found = entity_scores(said, tags)
        scores |= {name: found[name] for name in ("precision", "recall", "f1")}
    return scores


def word_contexts(sentences):
    """(word before, word, word after) of each word; "" beyond the sentence."""
    return [
        context
        for sentence in sentences
        for context in _neighbours([word for word, _ in sentence])
    ]


def _neighbours(words):
    return zip(["", *words[:-1]], words, [*words[1:], ""], strict=True)


def context_ngrams(context):
    """Character n-grams of the words of a context, each with its place."""
    return [
        f"{place}{ngram}"
        for place, word in enumerate(context)
        for ngram in word_ngrams(word)
    ]


@functools.lru_cache(maxsize=100_000)
def word_ngrams(word):
    """The n-grams of "<word>" of up to `LONGEST_NGRAM` characters, and all of it."""
    marked = f"<{word}>"
    ngrams = [
        marked[start : start + length]
        for length in range(1, LONGEST_NGRAM + 1)
        for start in range(len(marked) - length + 1)
    ]
    return (*ngrams, f"={marked}")


if __name__ == "__main__":
    files.run_command(main)
