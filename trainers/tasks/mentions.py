"""Places of words in a text whose data set has them without offsets, or loosely."""

import re


def find_all(text, names):
    """All places of names as whole words; of one that is nowhere so, anywhere.

    Args:
        text: str.
        names: list of str.

    Returns:
        list of (start, end) in characters, in their order; they may overlap.

    Raises:
        ValueError: if a name is not in the text.
    """
    found = set()
    for name in names:
        inside = re.escape(name)
        spans = _spans(rf"(?<!\w){inside}(?!\w)", text) or _spans(inside, text)
        if not name or not spans:
            raise ValueError(f"entity {name!r} is not in its passage")
        found.update(spans)
    return sorted(found)


def _spans(pattern, text, flags=0):
    return [match.span() for match in re.finditer(pattern, text, flags)]


def find_mention(text, mention, word):
    """The place of a mention nearest to where it should begin.

    Case, spaces and punctuation may differ, as they do in WSC, and so may what stands
    between the first word and the last ("Kamenev and Zinoviev").

    Args:
        text: str.
        mention: str.
        word: int. Number of the mention's first word, of those between spaces.

    Returns:
        (start, end) in characters.

    Raises:
        ValueError: if it is not in the text, or the text has no such word.
    """
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    if not 0 <= word < len(starts):
        raise ValueError(f"no word {word} in a text of {len(starts)} words")
    letters = [re.escape(letter) for letter in mention if letter.isalnum()]
    words = [re.escape(part) for part in re.findall(r"\w+", mention)]
    # Letters whose words are split otherwise, and words apart, only where need be.
    for pattern in (r"\W+".join(words), r"\W*".join(letters), r"\b.*?\b".join(words)):
        spans = _spans(rf"\b{pattern}\b", text, re.IGNORECASE | re.DOTALL)
        if letters and spans:
            return min(spans, key=lambda span: abs(span[0] - starts[word]))
    raise ValueError(f"{mention!r} is not in the text {text!r:.60}")
