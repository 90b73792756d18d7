import random

import pytest

from tools import noise

# Thirty words that can have a typo and ten that can't: too short, or no letter inside.
TEXT = " ".join(["wonderful", "story", "1999", "a", "film's", "acting", "(1945)"] * 10)


def words_changed(text, copy):
    return sum(a != b for a, b in zip(text.split(), copy.split(), strict=True))


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_typo_is_in_the_share_of_the_words_that_was_asked_for(share):
    assert words_changed(TEXT, noise.typos(TEXT, share)) == round(70 * share)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_share_of_the_words_that_was_asked_for_is_dropped(share):
    left = noise.dropped_words(TEXT, share).split()
    assert len(left) == 70 - round(70 * share)
    rest = iter(TEXT.split())
    assert all(word in rest for word in left)  # In their order.


@pytest.mark.parametrize("change", noise.NOISES.values())
def test_short_texts_have_the_share_on_average(change):
    texts = [f"number {i} remains undecided" for i in range(2000)]
    copies = [change(text, 0.1) for text in texts]
    changed = sum(text != copy for text, copy in zip(texts, copies, strict=True))
    # 0.4 words of a text. Five standard deviations of 2,000 draws: 0.055.
    assert changed / 2000 == pytest.approx(0.4, abs=0.055)


@pytest.mark.parametrize("change", noise.NOISES.values())
def test_a_copy_depends_on_text_and_seed_alone(change):
    first = change(TEXT, 0.3, seed=1)
    change("another text in between", 0.3, seed=1)
    assert change(TEXT, 0.3, seed=1) == first
    assert change(TEXT, 0.3, seed=2) != first


def test_a_typo_changes_one_inner_letter_of_a_word():
    rng = random.Random(0)
    kinds = set()
    for _ in range(300):
        wrong = noise.misspelt("Alphabet!", rng)
        assert wrong != "Alphabet!"
        assert (wrong[0], wrong[-1]) == ("A", "!")
        kinds.add(len(wrong) - len("Alphabet!"))
        same_letters = sorted(wrong) == sorted("Alphabet!")
        kinds.add("swap" if same_letters else "other")
    assert kinds == {-1, 0, 1, "swap", "other"}


def test_words_without_an_inner_letter_and_white_space_stay():
    text = " it\tis  a 1945\n(7) --- war "
    assert noise.typos(text, 1.0) == text


def test_all_words_that_can_have_a_typo_get_one_where_fewer_are_there():
    text = "\tit was lovely\n\nand touching "
    copy = noise.typos(text, 0.9)
    assert words_changed(text, copy) == 2
    assert copy.startswith("\tit was l")
    assert copy.endswith("g ")
    assert "\n\nand " in copy


def test_a_swap_is_of_letters_that_differ():
    # Inside is "oo" alone: left out, inserted or replaced, but not swapped.
    rng = random.Random(0)
    assert "boot" not in {noise.misspelt("boot", rng) for _ in range(200)}


@pytest.mark.parametrize("text", ["", " ", "alone", "two words"])
def test_one_word_at_least_stays(text):
    assert len(noise.dropped_words(text, 1.0).split()) == min(1, len(text.split()))


@pytest.mark.parametrize("change", noise.NOISES.values())
def test_nothing_changes_at_a_share_of_0(change):
    assert change(TEXT, 0.0) == TEXT
