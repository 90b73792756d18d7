"""Scores a classifier on a file of labelled texts, and on noisy copies of them.

    python -m tools.robustness --preset classifier/preset --test test.csv \\
        --output robustness.json

The copies have a typo in a share of the words, or lack that share: `tools/noise.py`.
They are the same for every classifier.
"""

import functools

import numpy as np

from deberta_tf import files
from deberta_tf.metrics import accuracy
from deberta_tf.tasks import DebertaTextClassifier
from tools.linear_probe import read_labelled
from tools.noise import NOISES

SHARES = (0.1, 0.3)


def conditions():
    """{name: callable from a text to its copy}; "clean" are the texts themselves."""
    found = {"clean": lambda text: text}
    for name, noise in NOISES.items():
        for share in SHARES:
            name_of_copy = f"{100 * share:.0f} % {name}"
            found[name_of_copy] = functools.partial(noise, share=share)
    return found


def main(argv=None):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True, help="folder of a classifier")
    parser.add_argument(
        "--test", required=True, help="CSV file with columns text and label"
    )
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument(
        "--batch_size", type=int, default=64, help="texts at once (%(default)s)"
    )
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        raise files.UsageError(
            f"--batch_size must be at least 1; got {options.batch_size}"
        )
    texts, labels = read_labelled(options.test)
    classifier = DebertaTextClassifier.from_preset(options.preset)
    unknown = sorted(set(labels) - set(classifier.labels or ()))
    if unknown:
        raise files.UsageError(
            f"{options.test} has the label {unknown[0]!r}; the classes of "
            f"{options.preset}: {classifier.labels}"
        )

    def predict(texts):
        logits = classifier.predict(texts, batch_size=options.batch_size, verbose=0)
        return [classifier.labels[best] for best in np.argmax(logits, axis=-1)]

    scores = accuracies(predict, texts, labels)
    files.write_json(options.output, scores)
    for name, score in scores.items():
        print(f"{name}: {score:.4f}")


def accuracies(predict, texts, labels):
    """{condition: share of the texts whose label is predicted from their copies}.

    Args:
        predict: callable from a list of str to as many labels.
        texts, labels: lists of str.
    """
    return {
        name: accuracy(predict([copy(text) for text in texts]), labels)
        for name, copy in conditions().items()
    }


if __name__ == "__main__":
    files.run_command(main)
