"""What the tasks of marked spans, and of replaced tokens, say of a text."""

import re

import tensorflow as tf

from deberta_tf.entity_scorer import PLACEHOLDER
from deberta_tf.packing import pack_strings
from deberta_tf.span_classifier import pack_spans
from tools.playground_fields import Field, RequestError
from tools.playground_views import (
    View,
    find_all,
    scored,
    token_names,
    window_names,
)

_MARKED = re.compile(r"\[([^\[\]]+)\]")


class EntityScorerView(View):
    """The probability of each entity to fill the gap of a query."""

    title = "Entities as answers"
    fields = (
        Field("passage", "Passage", height=6),
        Field("query", "Query", f"With {PLACEHOLDER} for the entity.", height=2),
        Field("entities", "Entities", "Parts of the passage, one a line.", min_lines=1),
    )
    examples = (
        {
            "passage": "Ada Lovelace met Charles Babbage in London in 1833.",
            "query": f"{PLACEHOLDER} designed the analytical engine.",
            "entities": ["Ada Lovelace", "Charles Babbage", "London"],
        },
    )

    def answer(self, passage, query, entities):
        x = self._inputs(passage, query, entities)
        scores = self.served(*x.values())["scores"].tolist()
        best = []
        for entity in entities:
            count = len(find_all(passage, entity, "The passage"))
            best.append(max(scores[:count]))
            scores = scores[count:]
        return {"kind": "scores", "items": scored(entities, best)}

    def rows(self, **given):
        x = {name: [one] for name, one in self._inputs(**given).items()}
        windows = self.preprocessor.windows(x, dynamic=True)
        return windows, window_names(windows)

    def notices(self, **given):
        found = []
        mentions = len(self._inputs(**given)["entity_starts"])
        if mentions > self.preprocessor.max_entities:
            found.append(
                f"The entities stand at {mentions} places, of which the first "
                f"{self.preprocessor.max_entities} are scored."
            )
        count = len(self.rows(**given)[1])
        if count > 1:
            found.append(f"The passage is read in {count} overlapping windows.")
        return found

    def _inputs(self, passage, query, entities):
        if PLACEHOLDER not in query:
            raise RequestError(f"The query holds no {PLACEHOLDER}.")
        spans = [
            span for one in entities for span in find_all(passage, one, "The passage")
        ]
        starts, ends = zip(*spans, strict=True)
        return {
            "passage": passage,
            "query": query,
            "entity_starts": starts,
            "entity_ends": ends,
        }


class SpanClassifierView(View):
    """A score of each class of two marked spans."""

    title = "Two spans in context"
    fields = (
        Field("text", "Text", "Mark a span with [brackets].", height=3),
        Field(
            "text_pair",
            "Second text",
            "With the second span, if the first text has but one.",
            required=False,
        ),
    )
    examples = (
        {
            "text": "She sat on the [bank] of the river.",
            "text_pair": "The [bank] lends money.",
        },
        {"text": "The [captain] sold the boat because [he] was old."},
    )

    def answer(self, **given):
        x = self._inputs(**given)
        signature = "text_pairs" if "text_pair" in x else "serving_default"
        found = self.served(*x.values(), signature=signature)
        items = scored(self.task.class_names, found["scores"])
        return {"kind": "scores", "items": items}

    def pack(self, given, **lengths):
        x = {name: [one] for name, one in self._inputs(**given).items()}
        return pack_spans(self.tokenizer, x, **lengths)

    def _inputs(self, **given):
        wanted = 1 if "text_pair" in given else 2
        texts, spans = {}, []
        for name, text in given.items():
            texts[name], found = _read_marks(text)
            if len(found) != wanted:
                raise RequestError(
                    f"{'Each text' if wanted == 1 else 'The text'} must hold {wanted} "
                    f"[marked] span{'s' * (wanted > 1)}. Received: {len(found)}."
                )
            spans += found
        starts, ends = zip(*spans, strict=True)
        return {**texts, "span_starts": starts, "span_ends": ends}


def _read_marks(text):
    """(text without the brackets of its marks, [(start, end)] of what was in them)."""
    spans, removed = [], 0
    for match in _MARKED.finditer(text):
        start = match.start() - removed
        spans.append((start, start + len(match[1])))
        removed += 2
    return _MARKED.sub(r"\1", text), spans


class ReplacedTokenView(View):
    """How sure a discriminator is of each token that it was replaced."""

    title = "Replaced-token detection"
    fields = (Field("text", "Text", height=5),)
    examples = (
        {"text": "The capital of France is umbrella."},
        {"text": "This film was a waste of frozen time."},
    )

    def __init__(self, task):
        super().__init__(task)
        # Of the backbone alone the attention is read.
        task.materialize()

    def answer(self, text):
        rows, _ = self.rows(text=text)
        logits = self.task.discriminate(rows, training=False)
        length = int(tf.reduce_sum(rows["padding_mask"]))
        shares = tf.sigmoid(logits)[0, :length].numpy()
        names = token_names(self.tokenizer, rows["token_ids"].numpy()[0, :length])
        # Between [CLS] and [SEP].
        return {"kind": "tokens", "tokens": scored(names, shares)[1:-1]}

    def pack(self, given, **lengths):
        return pack_strings(self.tokenizer, ([given["text"]],), **lengths)
