"""The tokenizer of a run, and whether it is the one that weights were trained with."""

import os

from deberta_tf import files, tokenizers
from deberta_tf.published import PUBLISHED_SIZES


def load_tokenizer(config):
    """The tokenizer of `config.tokenizer`, else that of `config.preset`.

    Raises:
        UsageError: if there is none, or the weights are of another one.
    """
    own = _tokenizer_of_preset(config.preset, config.load_weights)
    if config.tokenizer is None:
        if own is None:
            raise files.UsageError(
                f"preset {config.preset!r} has no tokenizer: give --tokenizer"
            )
        return own
    given = tokenizers.load_tokenizer(config.tokenizer)
    if own and config.load_weights and own.fingerprint() != given.fingerprint():
        raise files.UsageError(
            f"{config.tokenizer} is not the tokenizer that preset {config.preset} was "
            "trained with: leave out --tokenizer"
        )
    return given


def check_rows(config, tokenizer, backbone):
    """Refuses loaded weights whose table has many more rows than the tokenizer ids.

    Published tables have up to about 900 rows without an id (mDeBERTa; SPEC 6.3).

    Raises:
        UsageError: if they can't be of one vocabulary.
    """
    size, num_rows = tokenizer.vocabulary_size(), backbone.vocabulary_size
    if config.load_weights and num_rows - size > 1024:
        raise files.UsageError(
            f"the tokenizer has {size:,} tokens, the weights of {config.preset} have "
            f"{num_rows:,} rows: they are not of one vocabulary"
        )


def _tokenizer_of_preset(preset, load_weights):
    if preset in PUBLISHED_SIZES:
        # Without its weights it is a geometry, for any tokenizer.
        return tokenizers.load_tokenizer(preset) if load_weights else None
    if preset is None or not (os.path.isdir(preset) or "://" in preset):
        return None
    try:
        return tokenizers.DebertaTokenizer.from_preset(preset)
    except ValueError:
        return None
