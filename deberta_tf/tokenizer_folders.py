"""Which tokenizer a folder or handle holds, and its files."""

import keras
import keras_hub
from keras_hub.src.utils import preset_utils

from deberta_tf import byte_pair

SENTENCE_PIECE = ("spm.model",)
BYTE_PAIR = ("vocab.json", "merges.txt")
# The vocabulary of v1 before Hugging Face's, of the same kind.
_OFFICIAL = "bpe_encoder.bin"
CONFIG_FILE = "tokenizer.json"
# Registered names of the classes that `save_to_preset` writes -> their files.
_KINDS = {
    "deberta_tf>DebertaSentencePieceTokenizer": SENTENCE_PIECE,
    "deberta_tf>DebertaBytePairTokenizer": BYTE_PAIR,
    # KerasHub's own class keeps its vocabulary as ours does.
    keras.saving.get_registered_name(
        keras_hub.models.DebertaV3Tokenizer
    ): SENTENCE_PIECE,
}


def find_tokenizer(preset, config_file=CONFIG_FILE):
    """Tells which tokenizer a folder or handle holds.

    Args:
        preset: str, as `DebertaTokenizer.from_preset` takes it.
        config_file: str. File of `save_to_preset`, inside `preset`.

    Returns:
        (kind, config): `SENTENCE_PIECE` or `BYTE_PAIR`, and the saved configuration;
        None where the vocabulary is in published files.

    Raises:
        ValueError: if there is none, or that of another model.
    """
    if preset_utils.check_file_exists(preset, config_file):
        config = preset_utils.load_json(preset, config_file)
        # Hugging Face's file of the same name has no such key.
        name = config.get("registered_name")
        if name in _KINDS:
            ours = name.startswith("deberta_tf>")
            return _KINDS[name], config["config"] if ours else {}
        if name is not None:
            raise ValueError(f"{preset} holds a {name}, not a tokenizer of DeBERTa")
    for kind in (SENTENCE_PIECE, BYTE_PAIR):
        if _has_files(preset, kind):
            return kind, None
    if _has_files(preset, (_OFFICIAL,)):
        return BYTE_PAIR, None
    raise ValueError(
        f"{preset} has no tokenizer: neither a {config_file} of save_to_preset, nor "
        f"spm.model, nor vocab.json and merges.txt, nor {_OFFICIAL}"
    )


def has_tokenizer(preset):
    """Whether a folder or handle holds a tokenizer of DeBERTa."""
    try:
        find_tokenizer(preset)
    except ValueError:
        return False
    return True


def published_vocabulary(preset, kind):
    """First arguments of a tokenizer: its paths, or what v1's official file holds."""
    if _has_files(preset, kind):
        return [preset_utils.get_file(preset, name) for name in kind]
    return byte_pair.read_bpe_encoder(preset_utils.get_file(preset, _OFFICIAL))


def _has_files(preset, names):
    return all(preset_utils.check_file_exists(preset, name) for name in names)
