"""Which tokenizer a folder or handle holds, and its files."""

import warnings

import keras
import keras_hub
from keras_hub.src.utils import preset_utils

from deberta_tf import byte_pair

SENTENCE_PIECE = ("spm.model",)
BYTE_PAIR = ("vocab.json", "merges.txt")
# The vocabulary of v1 before Hugging Face's, of the same kind.
_OFFICIAL = "bpe_encoder.bin"
CONFIG_FILE = "tokenizer.json"
_OTHERS = ("tokenizer_config.json", CONFIG_FILE)
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
    if _has_files(preset, (_OFFICIAL,)) or _fast_byte_pair(preset) is not None:
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


def warn_of_unread_tokenizer(preset):
    """Warns where a folder without a tokenizer of ours holds another one."""
    others = [name for name in _OTHERS if _has_files(preset, (name,))]
    if others:
        warnings.warn(
            f"{preset!r} holds {', '.join(others)}, but no vocabulary that can be "
            "read: the task takes ids alone. Put spm.model (v2, v3) or vocab.json and "
            "merges.txt (v1) beside, or pass preprocessor=",
            stacklevel=6,
        )


def published_vocabulary(preset, kind):
    """First arguments of a tokenizer: paths, or the vocabulary and its merges.

    Raises:
        ValueError: if the folder asks for what the tokenizers do not do.
    """
    _check_settings(preset, kind)
    if _has_files(preset, kind):
        return [preset_utils.get_file(preset, name) for name in kind]
    if _has_files(preset, (_OFFICIAL,)):
        return byte_pair.read_bpe_encoder(preset_utils.get_file(preset, _OFFICIAL))
    return _fast_byte_pair(preset)


def _fast_byte_pair(preset):
    """(vocabulary, merges) of the one file that transformers 5 writes for v1."""
    if not _has_files(preset, (CONFIG_FILE,)):
        return None
    content = preset_utils.load_json(preset, CONFIG_FILE)
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        return None
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {**model["vocab"], **added}, merges


def _check_settings(preset, kind):
    """Refuses settings of Hugging Face's under which our ids would be others."""
    if not _has_files(preset, (_OTHERS[0],)):
        return
    settings = preset_utils.load_json(preset, _OTHERS[0])
    names = ("do_lower_case", "split_by_punct")
    if kind == BYTE_PAIR:
        names = ("add_prefix_space",)
    asked = [name for name in names if settings.get(name)]
    if asked:
        raise ValueError(
            f"{preset}: {_OTHERS[0]} asks for {', '.join(asked)}, which the tokenizers "
            "do not do"
        )


def _has_files(preset, names):
    return all(preset_utils.check_file_exists(preset, name) for name in names)
