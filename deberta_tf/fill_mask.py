"""Texts with [MASK] in them: what a masked LM puts there."""

import numpy as np
import tensorflow as tf

MASK = "[MASK]"


def fill_masks(masked_lm, texts, top_k):
    """See `DebertaMaskedLM.fill_mask`."""
    if masked_lm.preprocessor is None:
        raise ValueError("A masked LM without a preprocessor can't read texts")
    tokenizer = masked_lm.preprocessor.tokenizer
    for text in texts:
        if MASK not in text:
            raise ValueError(f"Every text must hold a {MASK}. Received: {text!r}")
    if not texts:
        return []
    rows = [masked_ids(tokenizer, text) for text in texts]
    inputs, counts = _pack(rows, tokenizer)
    if masked_lm.backbone.num_segments:
        inputs["segment_ids"] = np.zeros_like(inputs["token_ids"])
    probabilities = tf.nn.softmax(masked_lm(inputs, training=False))
    # The last rows of the table may stand for no token.
    size = tokenizer.vocabulary_size()
    scores, ids = tf.math.top_k(probabilities[..., :size], top_k)
    return [
        [_named(tokenizer, ids[row, mask], scores[row, mask]) for mask in range(count)]
        for row, count in enumerate(counts)
    ]


def masked_ids(tokenizer, text):
    """Ids of one text with [MASK] in it, list of int, [CLS] and [SEP] included."""
    # A masked word brings the space before it along.
    first, *others = (part.rstrip() for part in text.split(MASK))
    ids = [tokenizer.cls_token_id, *_ids(tokenizer, first)]
    for part in others:
        read = _ids if part[:1].isspace() else _continuation
        ids += [tokenizer.mask_token_id, *read(tokenizer, part)]
    return [*ids, tokenizer.sep_token_id]


def _ids(tokenizer, text):
    return tokenizer(text).numpy().tolist()


def _continuation(tokenizer, text):
    """Ids of a text that follows without a space, which SentencePiece would add."""
    before, both = _ids(tokenizer, ","), _ids(tokenizer, f",{text}")
    if both[: len(before)] == before:
        return both[len(before) :]
    return _ids(tokenizer, text)


def _pack(rows, tokenizer):
    """(inputs of the model, number of masks of each row)."""
    lengths = [len(row) for row in rows]
    token_ids = np.full([len(rows), max(lengths)], tokenizer.pad_token_id, np.int32)
    for target, row in zip(token_ids, rows, strict=True):
        target[: len(row)] = row
    padding_mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    masks = [np.nonzero(row == tokenizer.mask_token_id)[0] for row in token_ids]
    positions = np.zeros([len(rows), max(map(len, masks))], np.int32)
    for target, found in zip(positions, masks, strict=True):
        target[: len(found)] = found
    inputs = {
        "token_ids": token_ids,
        "padding_mask": padding_mask.astype(np.int32),
        "mask_positions": positions,
    }
    return inputs, [len(found) for found in masks]


def _named(tokenizer, ids, scores):
    texts = tokenizer.detokenize(ids[:, None]).numpy()
    return [
        (text.decode("utf-8", "replace"), float(score))
        for text, score in zip(texts, scores.numpy(), strict=True)
    ]
