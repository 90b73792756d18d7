"""NgramMasker against a sequential, plain Python reading of SPEC 6.2."""

import collections
import random

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import masking
from deberta_tf.masking import NgramMasker, num_mask_positions

PAD, CLS, SEP, UNK, MASK = 0, 1, 2, 3, 59
SPECIAL = (PAD, CLS, SEP, UNK, MASK)
VOCABULARY_SIZE = 60
FIRST_CONTINUATION = 40  # 4..39 start a word, 40..58 continue one
CONTINUES = np.isin(np.arange(VOCABULARY_SIZE), range(FIRST_CONTINUATION, MASK))
# Five standard deviations: fixed seeds, so a bound once met stays met.
SIGMAS = 5


def make_masker(**overrides):
    overrides.setdefault("continues_word", CONTINUES)
    return NgramMasker(VOCABULARY_SIZE, MASK, SPECIAL, **overrides)


def random_rows(num_rows, length, seed=0, continuations=0.4):
    """Rows of [CLS], words with some [SEP] and [UNK] among them, [SEP], padding."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(4, FIRST_CONTINUATION, (num_rows, length))
    pieces = rng.integers(FIRST_CONTINUATION, MASK, (num_rows, length))
    rows = np.where(rng.random((num_rows, length)) < continuations, pieces, starts)
    rows = np.where(rng.random((num_rows, length)) < 0.03, SEP, rows)
    rows = np.where(rng.random((num_rows, length)) < 0.03, UNK, rows)
    rows[:, 0] = CLS
    ends = rng.integers(1, length, num_rows)
    ends[::2] = length - 1
    rows[np.arange(num_rows), ends] = SEP
    padding_mask = np.arange(length) <= ends[:, None]
    return np.where(padding_mask, rows, PAD).astype("int32"), padding_mask


def plain_rows(num_rows, length):
    """Full rows in which every token is a word."""
    rows = np.full((num_rows, length), 7, "int32")
    rows[:, 0], rows[:, -1] = CLS, SEP
    return rows, np.ones_like(rows)


def mask_rows(masker, rows, padding_mask, seed=3, n=None):
    n = np.arange(len(rows)) if n is None else np.asarray(n)
    outputs = tf.function(masker)(rows, padding_mask, seed, n.astype("int64"))
    return {name: value.numpy() for name, value in outputs.items()}


def masked_positions(outputs, row):
    used = outputs["mask_weights"][row] == 1
    return outputs["mask_positions"][row][used].tolist()


def words_of(row, is_real):
    words = []
    for position, token_id in enumerate(row):
        if not is_real[position] or token_id in SPECIAL:
            continue
        if words and token_id >= FIRST_CONTINUATION:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def simulate(words, num_tokens, draw_length, draw_start, rate=0.15, most=None):
    """SPEC 6.2, one word at a time: the masked positions, in order."""
    window = int(1 / rate)
    marked, offset = set(), 0
    while offset < len(words):
        n = draw_length()
        context = min(window * n, len(words) - offset)
        start = offset + draw_start(context)
        end = min(start + n, len(words))
        marked.update(range(start, end))
        offset = max(offset + context, end)
    to_predict = min(most, max(1, round(rate * num_tokens)))
    positions = []
    for number, word in enumerate(words):
        if number in marked and len(positions) + len(word) <= most:
            positions += word
        if len(positions) >= to_predict:
            break
    return positions


def simulate_at_random(rng, words, num_tokens, most):
    return simulate(
        words,
        num_tokens,
        lambda: rng.choices((1, 2, 3), weights=(6, 3, 2))[0],
        rng.randrange,
        most=most,
    )


def simulate_with_draws(words, num_tokens, draws, rate, max_ngram, most):
    """The same with the masker's own draws, in the order in which it uses them."""
    shares = np.cumsum([1 / n for n in range(1, max_ngram + 1)])
    shares /= shares[-1]
    lengths, starts = iter(draws[:, 0].tolist()), iter(draws[:, 1].tolist())
    return simulate(
        words,
        num_tokens,
        lambda: 1 + int(np.searchsorted(shares, next(lengths) / 2**32, side="right")),
        lambda context: next(starts) * context // 2**32,
        rate,
        most,
    )


@pytest.mark.parametrize(
    ("length", "rate", "max_ngram", "num_positions"),
    [
        (3, 0.15, 3, None),
        (17, 0.15, 3, None),
        (64, 0.15, 1, None),
        (64, 0.15, 3, None),
        (64, 0.15, 3, 4),  # words overflow often
        (65, 0.3, 4, None),
        (40, 1.0, 2, None),
        (128, 0.15, 10, None),
    ],
)
def test_the_mask_is_the_sequential_procedure_on_the_same_draws(
    length, rate, max_ngram, num_positions
):
    rows, padding_mask = random_rows(60, length)
    masker = make_masker(
        mask_rate=rate, max_ngram=max_ngram, num_positions=num_positions
    )
    outputs = mask_rows(masker, rows, padding_mask)
    most = outputs["mask_positions"].shape[1]
    draws = masking._draws(3, np.arange(60), length).numpy()
    for row, is_real in enumerate(padding_mask):
        words = words_of(rows[row], is_real)
        if max_ngram == 1:
            words = [[position] for word in words for position in word]
        expected = simulate_with_draws(
            words, is_real.sum(), draws[row], rate, max_ngram, most
        )
        assert masked_positions(outputs, row) == expected


def test_every_position_is_masked_as_often_as_by_the_procedure():
    num_rows, length = 6000, 66
    rows, padding_mask = plain_rows(num_rows, length)
    outputs = mask_rows(make_masker(), rows, padding_mask)
    found = np.bincount(
        outputs["mask_positions"][outputs["mask_weights"] == 1], minlength=length
    )
    rng, expected = random.Random(1), np.zeros(length)
    words = words_of(rows[0], padding_mask[0])
    for _ in range(num_rows):
        expected[simulate_at_random(rng, words, length, 10)] += 1
    # The difference of two binomial counts.
    spread = np.sqrt(2 * expected * (1 - expected / num_rows))
    assert np.all(np.abs(found - expected) <= SIGMAS * spread)


def test_runs_of_masked_words_are_as_long_as_by_the_procedure():
    num_rows, length = 3000, 66
    rows, padding_mask = plain_rows(num_rows, length)
    outputs = mask_rows(make_masker(), rows, padding_mask)
    rng, expected, found = random.Random(2), collections.Counter(), []
    words = words_of(rows[0], padding_mask[0])
    for row in range(num_rows):
        found += run_lengths(masked_positions(outputs, row))
        expected.update(run_lengths(simulate_at_random(rng, words, length, 10)))
    found = collections.Counter(found)
    assert found[1] > found[2] > found[3] > 0
    for run_length in expected | found:
        both = found[run_length], expected[run_length]
        # The difference of two Poisson counts; one more for the rarest.
        assert abs(both[0] - both[1]) <= SIGMAS * np.sqrt(sum(both) + 1)


def run_lengths(positions):
    """Lengths of the runs of neighbours among ascending positions."""
    breaks = 1 + np.flatnonzero(np.diff(positions) > 1)
    return [len(run) for run in np.split(np.array(positions), breaks)]


def test_spans_of_one_two_three_words_come_as_6_to_3_to_2():
    # Six words are one window whatever the length drawn: a span of n words starts
    # at one of six places and is cut at the end. [UNK]s make the budget ample.
    num_rows = 20000
    row = [CLS, *range(4, 10), *[UNK] * 32, SEP]
    outputs = mask_rows(
        make_masker(), np.tile(row, (num_rows, 1)), np.ones((num_rows, 40))
    )
    counts = np.bincount(outputs["mask_weights"].sum(1).astype(int), minlength=4)
    shares = np.array([0, 6 * 6 + 3 * 1 + 2 * 1, 3 * 5 + 2 * 1, 2 * 4]) / (11 * 6)
    spread = np.sqrt(num_rows * shares * (1 - shares))
    assert np.all(np.abs(counts - num_rows * shares) <= SIGMAS * spread)


def test_fifteen_percent_of_the_real_tokens_are_masked():
    # With words of one token nothing overshoots; the sweep marks a sixth of the
    # words, so rows seldom lack the 0.15 x 256 = 38 to predict.
    rows, padding_mask = plain_rows(1000, 256)
    counts = mask_rows(make_masker(), rows, padding_mask)["mask_weights"].sum(1)
    assert counts.max() == 38
    assert 0.145 < counts.mean() / 256 < 0.15


def test_eight_in_ten_become_mask_one_stays_one_is_random():
    rows, padding_mask = plain_rows(4000, 128)
    outputs = mask_rows(make_masker(), rows, padding_mask)
    counts = np.bincount(replacements(outputs), minlength=VOCABULARY_SIZE)
    shares = np.full(VOCABULARY_SIZE, 0.1 / VOCABULARY_SIZE)
    shares[MASK] += 0.8
    shares[7] += 0.1  # the one id in these rows
    spread = np.sqrt(counts.sum() * shares * (1 - shares))
    assert np.all(np.abs(counts - counts.sum() * shares) <= SIGMAS * spread)


def replacements(outputs):
    """The ids that stand at masked positions."""
    after = np.take_along_axis(outputs["token_ids"], outputs["mask_positions"], axis=1)
    return after[outputs["mask_weights"] == 1]


def test_replaced_token_detection_masks_single_tokens_with_mask_only():
    rows, padding_mask = random_rows(200, 64)
    unigrams = {"max_ngram": 1, "keep_rate": 0.0, "random_rate": 0.0}
    singles = mask_rows(
        make_masker(continues_word=None, **unigrams), rows, padding_mask
    )
    assert np.all(
        singles["mask_weights"].sum(1)
        <= np.maximum(1, np.round(0.15 * padding_mask.sum(1)))
    )
    assert set(replacements(singles)) == {MASK}
    # SPEC 6.2 step 2: with unigrams every token is a unit, pieces too.
    whole = mask_rows(make_masker(**unigrams), rows, padding_mask)
    np.testing.assert_array_equal(singles["token_ids"], whole["token_ids"])


def test_words_are_masked_whole_and_special_tokens_and_padding_never():
    rows, padding_mask = random_rows(200, 64)
    outputs = mask_rows(make_masker(), rows, padding_mask)
    for row, is_real in enumerate(padding_mask):
        masked = set(masked_positions(outputs, row))
        for word in words_of(rows[row], is_real):
            assert len(masked & set(word)) in (0, len(word))
            masked -= set(word)
        assert not masked


def test_only_masked_positions_change_and_labels_are_what_stood_there():
    rows, padding_mask = random_rows(200, 64)
    outputs = mask_rows(make_masker(), rows, padding_mask)
    restored = outputs["token_ids"].copy()
    for row in range(len(rows)):
        positions = masked_positions(outputs, row)
        assert positions == sorted(set(positions))
        restored[row, positions] = outputs["mask_ids"][row, : len(positions)]
    np.testing.assert_array_equal(restored, rows)


def test_unused_places_hold_zeros_behind_the_used_ones():
    outputs = mask_rows(make_masker(), *random_rows(200, 64))
    weights = outputs["mask_weights"]
    assert weights.dtype == np.float32
    assert np.all(np.diff(weights, axis=1) <= 0)
    assert not outputs["mask_positions"][weights == 0].any()
    assert not outputs["mask_ids"][weights == 0].any()


def test_the_same_key_gives_the_same_mask_and_another_n_or_seed_another():
    rows, padding_mask = plain_rows(64, 128)
    masker = make_masker()
    first = mask_rows(masker, rows, padding_mask)["token_ids"]
    again = mask_rows(masker, rows, padding_mask)["token_ids"]
    later = mask_rows(masker, rows, padding_mask, n=np.arange(64, 128))["token_ids"]
    reseeded = mask_rows(masker, rows, padding_mask, seed=4)["token_ids"]
    np.testing.assert_array_equal(first, again)
    everything = np.concatenate([first, later, reseeded])
    assert len(np.unique(everything, axis=0)) == 3 * 64


def test_keys_beyond_32_bits_differ_from_those_below():
    rows, padding_mask = plain_rows(2, 128)
    far = mask_rows(make_masker(), rows, padding_mask, n=[5, 5 + 2**40])["token_ids"]
    assert np.any(far[0] != far[1])


def test_a_row_keeps_its_mask_in_any_batch_order_and_longer_padding():
    rows, padding_mask = random_rows(12, 60)
    masker = make_masker()
    together = mask_rows(masker, rows, padding_mask)
    order = np.random.default_rng(0).permutation(12)
    shuffled = mask_rows(masker, rows[order], padding_mask[order], n=order)
    wider = np.pad(rows, ((0, 0), (0, 6))), np.pad(padding_mask, ((0, 0), (0, 6)))
    padded = mask_rows(masker, *wider)
    for name, values in together.items():
        np.testing.assert_array_equal(values[order], shuffled[name])
        np.testing.assert_array_equal(values, padded[name][:, : values.shape[1]])
        alone = mask_rows(masker, rows[4:5], padding_mask[4:5], n=[4])
        np.testing.assert_array_equal(values[4:5], alone[name])


def test_eager_tf_data_and_xla_agree():
    rows, padding_mask = random_rows(10, 64)
    masker = make_masker()
    n = np.arange(10, dtype="int64")
    eager = masker(rows, padding_mask, 3, n)
    compiled = tf.function(masker, jit_compile=True)(rows, padding_mask, 3, n)
    dataset = tf.data.Dataset.from_tensor_slices((rows, padding_mask, n)).batch(4)
    dataset = dataset.map(lambda ids, mask, n: masker(ids, mask, 3, n))
    batches = list(dataset.as_numpy_iterator())
    for name, values in eager.items():
        np.testing.assert_array_equal(values, compiled[name])
        np.testing.assert_array_equal(
            values, np.concatenate([batch[name] for batch in batches])
        )
        assert dataset.element_spec[name].shape[1:] == values.shape[1:]


def test_masks_stay_what_they_were_in_earlier_versions():
    # A run that goes on after an upgrade must see the masks it would have seen.
    rows, padding_mask = plain_rows(1, 40)
    outputs = mask_rows(make_masker(), rows, padding_mask, seed=1, n=[2])
    assert masked_positions(outputs, 0) == [3, 12, 15, 24, 28, 36]


@pytest.mark.parametrize(
    ("row", "num_real"),
    [([CLS, SEP, PAD], 2), ([CLS, UNK, SEP], 3), ([PAD] * 3, 0), ([CLS], 1)],
)
def test_rows_without_a_word_are_left_alone(row, num_real):
    outputs = mask_rows(
        make_masker(), np.array([row]), np.arange(len(row))[None] < num_real
    )
    np.testing.assert_array_equal(outputs["token_ids"], [row])
    assert not outputs["mask_weights"].any()


def test_the_only_word_of_a_row_is_always_masked():
    rows = np.tile([CLS, 9, 45, SEP, PAD], (50, 1))
    outputs = mask_rows(make_masker(), rows, rows != PAD)
    assert all(masked_positions(outputs, row) == [1, 2] for row in range(50))


def test_a_word_longer_than_the_places_stays_unmasked_and_the_walk_goes_on():
    # Words of 4 and 1 tokens; spans of three words reach both at times.
    row = np.array([CLS, 9, 45, 45, 45, 8, SEP])
    outputs = mask_rows(
        make_masker(num_positions=2, mask_rate=0.5),
        np.tile(row, (200, 1)),
        np.ones((200, 7)),
    )
    found = {tuple(masked_positions(outputs, row)) for row in range(200)}
    assert found == {(), (5,)}


@pytest.mark.parametrize(
    ("sequence_length", "expected"), [(1, 10), (64, 10), (128, 20), (512, 80)]
)
def test_the_places_are_15_percent_rounded_up_to_tens(sequence_length, expected):
    assert num_mask_positions(sequence_length) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_rate": 0.0}, "mask_rate=0.0"),
        ({"mask_rate": 1.5}, "mask_rate=1.5"),
        ({"max_ngram": 0}, "max_ngram=0"),
        ({"num_positions": 0}, "num_positions=0"),
        ({"keep_rate": 0.6, "random_rate": 0.5}, "keep_rate=0.6, random_rate=0.5"),
        ({"keep_rate": -0.1}, "keep_rate=-0.1"),
        ({"continues_word": CONTINUES[:-1]}, r"Received shape: \(59,\)"),
    ],
)
def test_wrong_arguments_are_named_with_their_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_masker(**arguments)


def test_a_mask_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary_size=60. Received: 60"):
        NgramMasker(60, 60, SPECIAL)


def test_a_dynamic_sequence_length_is_refused():
    rows = tf.TensorSpec((2, None), tf.int32)
    masked = tf.function(make_masker())
    with pytest.raises(ValueError, match="static sequence length"):
        masked.get_concrete_function(rows, rows, 0, tf.TensorSpec((2,), tf.int64))
