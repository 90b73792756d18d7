"""Noisy copies of texts: words with a typo, and words left out.

What a text becomes depends on itself and the seed alone, not on the texts around it.
"""

import random
import re
import string

# A first and a last character that stay, and two between them to swap.
LEAST_LETTERS = 4


def typos(text, share, seed=0):
    """A text with one inner letter wrong in a share of its words.

    The letter is swapped with the next, left out, gets another before it, or is
    replaced. Words of fewer than `LEAST_LETTERS` characters, or without a letter
    inside, stay.

    Args:
        text: str.
        share: float in [0, 1]. Of all words; less of a text that has not as many words
            to change. Where it is no whole number of words, chance rounds.
        seed: int.

    Returns:
        str with as many words, and white space as it was.
    """
    rng = random.Random(f"{seed} {text}")
    words = re.split(r"(\s+)", text)
    count = _count(sum(bool(word.strip()) for word in words), share, rng)
    able = [place for place, word in enumerate(words) if _inner_letters(word)]
    for place in rng.sample(able, min(count, len(able))):
        words[place] = misspelt(words[place], rng)
    return "".join(words)


def dropped_words(text, share, seed=0):
    """A text without a share of its words; one at least stays.

    Args: those of `typos`.
    """
    rng = random.Random(f"{seed} {text}")
    words = re.findall(r"\s*\S+", text)
    count = min(_count(len(words), share, rng), len(words) - 1)
    if count <= 0:
        return text
    gone = set(rng.sample(range(len(words)), count))
    kept = [word for place, word in enumerate(words) if place not in gone]
    return "".join(kept).lstrip()


NOISES = {"typos": typos, "dropped words": dropped_words}


def misspelt(word, rng):
    """A word of `LEAST_LETTERS` characters or more, with an inner letter wrong.

    Args:
        word: str.
        rng: `random.Random`.
    """
    inner = _inner_letters(word)
    # Of equal letters a swap would show nothing.
    swaps = [i for i in inner if i + 1 in inner and word[i] != word[i + 1]]
    kind = rng.choice(("leave out", "insert", "replace", *["swap"] * bool(swaps)))
    place = rng.choice(swaps if kind == "swap" else inner)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    if kind == "leave out":
        return before + after
    if kind == "swap":
        return before + after[0] + letter + after[1:]
    if kind == "insert":
        return before + rng.choice(string.ascii_lowercase) + letter + after
    others = string.ascii_lowercase.replace(letter.lower(), "")
    return before + rng.choice(others) + after


def _inner_letters(word):
    """Places of letters that are neither the first character nor the last."""
    if len(word) < LEAST_LETTERS:
        return []
    return [place for place in range(1, len(word) - 1) if word[place].isalpha()]


def _count(num_words, share, rng):
    return int(num_words * share + rng.random())
