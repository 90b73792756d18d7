"""Whole-word n-gram masking: stateless TensorFlow ops, a mask per (seed, n)."""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

# Random draws are 32 bits wide and compared or scaled as integers, so a mask does
# not hang on how a device rounds.
DRAW_RANGE = 2**32


def num_mask_positions(sequence_length, mask_rate=0.15):
    """P, the places for masked tokens in a row: a multiple of ten (SPEC 6.2)."""
    return 10 * math.ceil(mask_rate * sequence_length / 10)


@dataclasses.dataclass(frozen=True, eq=False)
class NgramMasker:
    """Masks whole words in spans of 1 to `max_ngram` words, as DeBERTa does.

    A sweep over the words of a row draws a span length n with probability
    proportional to 1/n and places the span at random in a window of
    `int(1 / mask_rate) * n` words, then does the same behind it. The marked words
    are walked from the left, each with all its tokens, until `mask_rate` of the
    row's real tokens are masked; the last word may overshoot. Of the masked
    tokens `keep_rate` stay as they are, `random_rate` become any vocabulary entry
    (special ones included), the others [MASK]. With `max_ngram=1` every token is
    a word of its own, whatever `continues_word` says.

    One deviation from the official code, for the sake of static shapes: a word
    that would take the row over P masked tokens stays unmasked, and the walk goes
    on behind it.

    Args:
        vocabulary_size: int. Random replacements are drawn from
            `[0, vocabulary_size)`; no token id reaches it.
        mask_token_id: int. The id of [MASK].
        special_token_ids: ints. Ids that are never masked.
        continues_word: bool array `(vocabulary_size,)`, True for a piece that
            continues the word before it, special tokens between them or not;
            `None`: none does.
        mask_rate: float in (0, 1]. Share of a row's real tokens, [CLS] and [SEP]
            counted in, to predict.
        max_ngram: int. Longest span, in words.
        keep_rate, random_rate: floats. Shares of the masked tokens.
        num_positions: int. P; `None`: `num_mask_positions(L, mask_rate)`.

    Call arguments:
        token_ids: int `(B, L)`, L static.
        padding_mask: `(B, L)`, nonzero at real tokens.
        seed: int, or a scalar int tensor.
        n: int64 `(B,)`. A row's mask is a function of its tokens, `seed` and its
            `n`, not of the other rows. Training takes
            `n = step * global_batch_size + row`, so that none comes twice.

    Returns:
        A dict of `token_ids`, int32 `(B, L)`, corrupted; `mask_positions`, int32
        `(B, P)`, ascending; `mask_ids`, int32 `(B, P)`, what stood there;
        `mask_weights`, float32 `(B, P)`, 1 at masked tokens. Unused places hold
        position 0, id 0, weight 0.

    Source: SPEC 6.2; DeBERTa paper, A.3.
    """

    vocabulary_size: int
    mask_token_id: int
    special_token_ids: tuple
    continues_word: np.ndarray = None
    mask_rate: float = 0.15
    max_ngram: int = 3
    keep_rate: float = 0.1
    random_rate: float = 0.1
    num_positions: int = None

    @classmethod
    def of_tokenizer(cls, tokenizer, **settings):
        """A masker for the ids of a tokenizer; `settings` are the other arguments."""
        return cls(
            tokenizer.vocabulary_size(),
            tokenizer.mask_token_id,
            tokenizer.special_token_ids,
            tokenizer.continues_word(),
            **settings,
        )

    def __post_init__(self):
        self._check_rates()
        if self.max_ngram < 1:
            raise ValueError(
                f"max_ngram must be at least 1. Received: max_ngram={self.max_ngram}"
            )
        if self.num_positions is not None and self.num_positions < 1:
            raise ValueError(
                "num_positions must be at least 1. "
                f"Received: num_positions={self.num_positions}"
            )
        for token_id in (self.mask_token_id, *self.special_token_ids):
            if not 0 <= token_id < self.vocabulary_size:
                raise ValueError(
                    "mask_token_id and special_token_ids must be below "
                    f"vocabulary_size={self.vocabulary_size}. Received: {token_id}"
                )
        expected = (self.vocabulary_size,)
        if self.continues_word is not None and (
            np.shape(self.continues_word) != expected
        ):
            raise ValueError(
                f"continues_word must have shape {expected}, one entry per token "
                f"id. Received shape: {np.shape(self.continues_word)}"
            )

    def _check_rates(self):
        if not 0 < self.mask_rate <= 1:
            raise ValueError(
                f"mask_rate must be in (0, 1]. Received: mask_rate={self.mask_rate}"
            )
        if (
            min(self.keep_rate, self.random_rate) < 0
            or self.keep_rate + self.random_rate > 1
        ):
            raise ValueError(
                "keep_rate and random_rate must be shares that sum to 1 at most. "
                f"Received: keep_rate={self.keep_rate}, "
                f"random_rate={self.random_rate}"
            )

    def __call__(self, token_ids, padding_mask, seed, n):
        token_ids = tf.cast(token_ids, tf.int32)
        is_real = tf.cast(padding_mask, tf.bool)
        length = token_ids.shape[1]
        if length is None:
            raise ValueError(
                "token_ids must have a static sequence length. "
                f"Received shape: {token_ids.shape}"
            )
        num_positions = self.num_positions or num_mask_positions(length, self.mask_rate)
        num_spans = math.ceil(length / self._window)
        draws = _draws(seed, n, max(num_spans, num_positions))
        is_masked = self._choose_tokens(
            token_ids, is_real, draws[:, :num_spans], num_positions
        )
        slots = _running_count(is_masked) - 1
        positions = tf.broadcast_to(tf.range(length), tf.shape(token_ids))
        mask_ids, mask_positions, mask_weights = (
            _sum_by_slot(values, tf.where(is_masked, slots, -1), num_positions)
            for values in (token_ids, positions, tf.ones_like(token_ids))
        )
        corrupted = self._corrupt(mask_ids, draws[:, :num_positions])
        at_tokens = tf.gather(
            corrupted, tf.clip_by_value(slots, 0, num_positions - 1), batch_dims=1
        )
        return {
            "token_ids": tf.where(is_masked, at_tokens, token_ids),
            "mask_positions": mask_positions,
            "mask_ids": mask_ids,
            "mask_weights": tf.cast(mask_weights, tf.float32),
        }

    @property
    def _window(self):
        return int(1 / self.mask_rate)

    @functools.cached_property
    def _is_special(self):
        table = np.zeros(self.vocabulary_size, bool)
        table[list(self.special_token_ids)] = True
        return table

    def _choose_tokens(self, token_ids, is_real, draws, num_positions):
        """Which tokens are masked: bool (B, L)."""
        words = self._word_numbers(token_ids, is_real)
        word_lengths = _sum_by_slot(tf.ones_like(words), words, token_ids.shape[1])
        marked = self._mark_words(draws[..., 0], draws[..., 1], word_lengths)
        to_predict = tf.minimum(num_positions, self._num_to_predict(is_real))
        chosen = _walk_words(marked, word_lengths, to_predict, num_positions)
        return (words >= 0) & tf.gather(chosen, tf.maximum(words, 0), batch_dims=1)

    def _word_numbers(self, token_ids, is_real):
        """The word of each token, counted from 0, -1 outside words: (B, L)."""
        in_word = is_real & ~tf.gather(self._is_special, token_ids)
        starts = in_word
        if self.max_ngram > 1 and self.continues_word is not None:
            continues = tf.gather(np.asarray(self.continues_word, bool), token_ids)
            # The first candidate starts a word even if its own start was cut off.
            starts &= ~continues | (_running_count(in_word) == 1)
        return tf.where(in_word, _running_count(starts) - 1, -1)

    def _num_to_predict(self, is_real):
        num_tokens = tf.reduce_sum(tf.cast(is_real, tf.float64), axis=1)
        # Half to even and in double precision, like Python's round().
        return tf.maximum(1, tf.cast(tf.round(self.mask_rate * num_tokens), tf.int32))

    def _mark_words(self, length_draws, start_draws, word_lengths):
        """Which words the sweep marks: bool (B, L), by word number.

        The sweep has a closed form: until a window meets the end of the row, the
        step from one window to the next hangs on that window's draws alone, and
        behind a window that meets it no word is left.
        """
        limits = np.cumsum(1 / np.arange(1, self.max_ngram + 1))
        limits = np.int64(np.round(limits / limits[-1] * DRAW_RANGE))[:-1]
        lengths = 1 + tf.reduce_sum(
            tf.cast(length_draws[..., None] >= limits, tf.int64), axis=-1
        )
        windows = self._window * lengths
        steps = tf.maximum(windows, _draws_below(windows, start_draws) + lengths)
        offsets = tf.cumsum(steps, axis=1, exclusive=True)  # (B, num_spans)

        num_words = tf.math.count_nonzero(word_lengths, axis=1, keepdims=True)
        windows = tf.clip_by_value(num_words - offsets, 0, windows)
        starts = tf.minimum(offsets + _draws_below(windows, start_draws), num_words)
        ends = tf.minimum(starts + lengths, num_words)
        edges = tf.concat([starts, ends], axis=1)
        signs = tf.concat([tf.ones_like(starts), -tf.ones_like(ends)], axis=1)
        max_words = word_lengths.shape[1]
        changes = _sum_by_slot(signs, edges, max_words + 1)
        return tf.cumsum(changes, axis=1)[:, :max_words] > 0

    def _corrupt(self, mask_ids, draws):
        """What stands at the masked places from now on: int32 (B, P)."""
        kinds = draws[..., 2]
        vocabulary_size = tf.constant(self.vocabulary_size, tf.int64)
        random_ids = tf.cast(_draws_below(vocabulary_size, draws[..., 3]), tf.int32)
        keep_below = round(self.keep_rate * DRAW_RANGE)
        random_below = keep_below + round(self.random_rate * DRAW_RANGE)
        replaced = tf.where(kinds < random_below, random_ids, self.mask_token_id)
        return tf.where(kinds < keep_below, mask_ids, replaced)


def _draws(seed, n, count):
    """Integers in [0, DRAW_RANGE), a function of seed and n: int64 (B, count, 4)."""
    seed = tf.cast(tf.convert_to_tensor(seed, dtype_hint=tf.int64), tf.int64)

    def draw(row):
        return tf.random.stateless_uniform(
            (count, 4), [seed, row], None, None, tf.uint32, alg="philox"
        )

    # Row by row: one draw for the batch would tie a row's mask to its batch.
    rows = tf.map_fn(
        draw,
        tf.cast(n, tf.int64),
        fn_output_signature=tf.TensorSpec((count, 4), tf.uint32),
    )
    return tf.cast(rows, tf.int64)


def _draws_below(bound, draws):
    """Scales draws to integers in [0, bound); 0 where the bound is 0."""
    return tf.bitwise.right_shift(draws * bound, tf.constant(32, tf.int64))


def _walk_words(marked, word_lengths, to_predict, num_positions):
    """The marked words that get masked: bool (B, L), by word number."""

    def reached_and_overflowing(marked):
        before = tf.cumsum(tf.where(marked, word_lengths, 0), axis=1, exclusive=True)
        reached = marked & (before < to_predict[:, None])
        return reached, reached & (before + word_lengths > num_positions)

    def any_overflow(marked):
        return tf.reduce_any(reached_and_overflowing(marked)[1])

    def without_first_overflow(marked):
        overflowing = reached_and_overflowing(marked)[1]
        return (marked & ~(overflowing & (_running_count(overflowing) == 1)),)

    (marked,) = tf.while_loop(any_overflow, without_first_overflow, (marked,))
    return reached_and_overflowing(marked)[0]


def _running_count(flags):
    return tf.cumsum(tf.cast(flags, tf.int32), axis=1)


def _sum_by_slot(values, slots, num_slots):
    """Sums (B, K) values into (B, num_slots), dropping those of slot -1."""
    batch_size = values.shape[0] or tf.shape(values)[0]
    slots = tf.cast(slots, tf.int32)
    flat = slots + num_slots * tf.range(batch_size)[:, None]
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(values, [-1]),
        tf.reshape(tf.where(slots < 0, -1, flat), [-1]),
        batch_size * num_slots,
    )
    return tf.reshape(sums, (batch_size, num_slots))
