"""Answers strings from an exported folder: TensorFlow, TF-Text, nothing else.

python tools/answer.py EXPORTED_FOLDER TEXT [TEXT ...]
"""

import sys

import tensorflow as tf
import tensorflow_text  # noqa: F401 (its ops tokenise in the graph)


def main(argv):
    if len(argv) < 2:
        sys.exit(__doc__)
    folder, *texts = argv
    answer = tf.saved_model.load(folder).signatures["serving_default"]
    result = answer(tf.constant(texts))
    for text, label, score in zip(
        texts, result["label"].numpy(), result["score"].numpy(), strict=True
    ):
        print(f"{label.decode()}\t{score:.3f}\t{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
