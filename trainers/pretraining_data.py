"""Rows of token ids, masked, batch by batch: what pretraining and its scores read."""

import tensorflow as tf

from deberta_tf.causal import causal_inputs, joined_inputs
from deberta_tf.masking import NgramMasker
from trainers import batches

# Held-out masks are the same in every run, so that losses of runs compare.
HELD_OUT_SEED = 0


def make_masker(config, tokenizer):
    """The masks of an objective: spans of words, or single tokens, always [MASK].

    Source: SPEC 6.2; 4.2 for replaced tokens.
    """
    of_replaced = config.objective == "replaced_token"
    max_ngram = config.max_ngram or (1 if of_replaced else 3)
    rates = {"keep_rate": 0.0, "random_rate": 0.0} if of_replaced else {}
    return NgramMasker.of_tokenizer(
        tokenizer, mask_rate=config.mask_rate, max_ngram=max_ngram, **rates
    )


def training_batches(config, task, rows, first_step, last_step, host=0, num_hosts=1):
    """Masked batches of the steps, as `fit` takes them; masks keyed by (seed, n).

    Args:
        config: `PretrainConfig`.
        task: with its preprocessor.
        rows: `PretrainingRows`.
        first_step, last_step: ints, the last one excluded.
        host, num_hosts: ints. The part of the batches that is this host's.
    """
    numbers = batches.training_rows(
        len(rows),
        config.batch_size,
        config.seed,
        first_step,
        last_step,
        host,
        num_hosts,
    )
    size = batches.host_batch_size(config.batch_size, num_hosts)
    return numbers.map(masking(config, task, rows, config.seed, size)).prefetch(2)


def held_out_batches(config, task, rows, host=0, num_hosts=1):
    """All rows once, masked the same way in every run; of the last batch, some rows
    only fill it up, and weigh nothing. Of the joint objective they are causal ones."""
    size = batches.host_batch_size(config.batch_size, num_hosts)
    masked = masking(config, task, rows, HELD_OUT_SEED, size)
    pad_token_id = task.preprocessor.tokenizer.pad_token_id

    def weighed(n, row):
        counts = n < len(rows)
        if config.objective == "masked_and_causal":
            batch = causal_inputs(*_read(rows, row, size, pad_token_id))
            inputs, labels, weights = batch
            return inputs, labels, weights * tf.cast(counts, tf.float32)[:, None]
        inputs, mask_ids, mask_weights = masked(n, row)
        weights = mask_weights * tf.cast(counts, tf.float32)[:, tf.newaxis]
        # No token of such a row counts for a discriminator either.
        padding_mask = inputs["padding_mask"] * tf.cast(counts, tf.int32)[:, tf.newaxis]
        return {**inputs, "padding_mask": padding_mask}, mask_ids, weights

    numbers = batches.rows_in_order(len(rows), config.batch_size, host, num_hosts)
    return numbers.map(weighed).prefetch(2)


def masking(config, task, rows, seed, size):
    """The function from (n, row numbers) to (inputs, mask_ids, mask_weights).

    Args:
        config, task, rows: as `training_batches` takes them.
        seed: int. Of the masks.
        size: int. Rows a batch.
    """
    tokenizer = task.preprocessor.tokenizer
    masker = make_masker(config, tokenizer)
    names = task.input

    def masked(n, row):
        token_ids, padding_mask = _read(rows, row, size, tokenizer.pad_token_id)
        inputs = masker(token_ids, padding_mask, seed, n)
        mask_ids, mask_weights = inputs.pop("mask_ids"), inputs.pop("mask_weights")
        inputs["padding_mask"] = padding_mask
        if "segment_ids" in names:
            inputs["segment_ids"] = tf.zeros_like(token_ids)
        if config.objective != "masked_and_causal":
            return inputs, mask_ids, mask_weights
        causal = causal_inputs(token_ids, padding_mask)
        # So a row's tokens count about as much, whichever objective it is of.
        return joined_inputs(
            (inputs, mask_ids, mask_weights), causal, n % 2 == 1, config.mask_rate
        )

    return masked


def _read(rows, row, size, pad_token_id):
    """(token_ids, padding_mask), int32 (size, l)."""
    token_ids = tf.numpy_function(rows.take, [row], tf.uint32, stateful=False)
    token_ids.set_shape((size, rows.sequence_length))
    token_ids = tf.cast(token_ids, tf.int32)
    return token_ids, tf.cast(token_ids != pad_token_id, tf.int32)


def num_batches(config, rows):
    """Batches of an evaluation on all rows."""
    return -(-len(rows) // config.batch_size)
