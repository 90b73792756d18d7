"""What every task has on the playground's page: fields, rows of tokens, notices."""

import math

import tensorflow as tf

from tools.playground_fields import RequestError


class View:
    """A task as the page shows it.

    Args:
        task: `DebertaTask` with a preprocessor.

    Attributes:
        title: str, what the task does.
        fields: list of `Field`; `answer`, `rows` and `notices` take them by name.
        examples: list of dicts, inputs to try.
        attention_note: str, what the attention leaves out; "" for nothing.
    """

    title = ""
    fields = ()
    examples = ()
    attention_note = ""

    def __init__(self, task):
        self.task = task
        self.preprocessor = task.preprocessor
        self.tokenizer = task.preprocessor.tokenizer
        self.limit = task.preprocessor.sequence_length

    def answer(self, **given):
        """What the task says: a dict for JSON, whose `kind` tells how it is shown."""
        raise NotImplementedError

    def pack(self, given, **lengths):
        """Rows of tokens: dict of int32 (r, l), as `pack_segments` gives it.

        Args:
            given: dict, the inputs.
            lengths: `max_length`, as `pack_segments` takes it, or nothing.
        """
        raise NotImplementedError

    def rows(self, **given):
        """(rows that the model reads, as `pack` gives them; their names)."""
        return self.pack(given, max_length=self.limit), [""]

    def notices(self, **given):
        """Sentences on what the model does not read."""
        lengths = tf.reduce_sum(self.pack(given)["padding_mask"], axis=-1)
        total = int(tf.reduce_max(lengths))
        if total <= self.limit:
            return []
        return [
            f"{total} tokens are more than the {self.limit} that the model reads: the "
            "end is left out."
        ]

    def served(self, *inputs, signature="serving_default"):
        """What the exported model would answer: {name: array of the one example}."""
        call, _ = self.task.signatures()[signature]
        found = call(*(tf.constant([one]) for one in inputs))
        return {name: value[0].numpy() for name, value in found.items()}


def number(value):
    """A score as a float.

    Raises:
        FloatingPointError: if it is none, which JSON does not know.
    """
    value = float(value)
    if not math.isfinite(value):
        raise FloatingPointError("The model's scores are not finite numbers.")
    return value


def scored(labels, scores):
    """[{"label", "score"}] of as many labels as scores."""
    return [
        {"label": label, "score": number(score)}
        for label, score in zip(labels, scores, strict=True)
    ]


def token_names(tokenizer, ids):
    """list of str, the tokens of ids (l,); one that begins a word begins with "▁"."""
    texts = tokenizer.detokenize(tf.constant(ids)[:, tf.newaxis]).numpy()
    names = []
    for token_id, text in zip(ids.tolist(), texts, strict=True):
        token = tokenizer.id_to_token(token_id)
        if token_id not in tokenizer.special_token_ids:
            # Tokens of bytes are no text, and mark a space by another character.
            begins = "▁" if token[:1] in ("▁", "Ġ") else ""
            token = begins + text.decode("utf-8", "replace").strip() or token
        names.append(token)
    return names


def window_names(windows):
    """list of str, one for each row that `windows` of a preprocessor gives."""
    count = len(windows["token_ids"])
    return [f"window {i} of {count}" for i in range(1, count + 1)]


def find_all(text, part, where):
    """[(start, end)] of every occurrence of a part, of which there must be one."""
    found, start = [], text.find(part)
    while start >= 0:
        found.append((start, start + len(part)))
        start = text.find(part, start + len(part))
    if not found:
        raise RequestError(f"{where} does not hold {part!r:.60}.")
    return found
