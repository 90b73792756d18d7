"""What every test stands on: a quiet, seeded, two-threaded TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
# Nothing is downloaded: handles are read from caches that the tests make.
os.environ["HF_HUB_OFFLINE"] = "1"

import contextlib
import pathlib
import random
import subprocess
import sys

# In the environment of the reference tests. Loaded after TensorFlow, PyTorch crashes.
with contextlib.suppress(ImportError):
    from transformers import DebertaV2ForMaskedLM  # noqa: F401

import keras
import pytest
import tensorflow as tf

from tests.small_models import train_sentencepiece

tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(2)
# Four devices, for strategies; what names none runs on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)


def pytest_pyfunc_call(pyfuncitem):
    """Runs a test that is marked `own_process` in one, by pytest."""
    inside = "TEST_IN_OWN_PROCESS"
    if inside in os.environ or not pyfuncitem.get_closest_marker("own_process"):
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", pyfuncitem.nodeid],
        env={**os.environ, inside: "1"},
        cwd=pyfuncitem.config.rootpath,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return True


@pytest.fixture(autouse=True)
def fixed_seeds():
    keras.utils.set_random_seed(20210503)


@pytest.fixture(scope="session")
def golden():
    """Folder of the numbers that other people's code computed."""
    return pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def sentences():
    """400 English-like sentences, the same in every run."""
    return _make_sentences(count=400)


@pytest.fixture(scope="session")
def sentencepiece_proto(sentences):
    """Serialized SentencePiece model of 100 pieces in DeBERTa v3's layout of ids."""
    return train_sentencepiece(sentences, 100)


def _make_sentences(count):
    choose = random.Random(7).choice
    subjects = (
        "the old captain|my sister|a grey cat|nobody|the jury|Doctor Quinn|"
        "our neighbours|every third passenger|the gardener's apprentice"
    ).split("|")
    verbs = (
        "watched|painted|remembers|is mending|never liked|sold|explained|"
        "has forgotten|will exchange|juggles with"
    ).split("|")
    objects = (
        "the harbour|two wooden boats|that song|a letter from Oslo|frozen peas|"
        "the theory of knots|her bicycle|an unusual umbrella|15 violins"
    ).split("|")
    endings = ".| yesterday.| at half past nine.|, they say.|?|!".split("|")
    return [
        f"{choose(subjects)} {choose(verbs)} {choose(objects)}{choose(endings)}"
        for _ in range(count)
    ]
