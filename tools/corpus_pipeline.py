"""The Apache Beam pipeline from the parts of a corpus to shards of rows."""

import hashlib
import json
import os

import numpy as np
import tensorflow as tf

from deberta_tf import rows, tokenizers
from tools import corpus

try:
    import apache_beam as beam
except ImportError as error:
    raise ImportError(
        "Apache Beam is needed: pip install -r requirements-beam.txt -c constraints.txt"
    ) from error

COUNTS_FILE = "counts.json"
# Text tokenized at once.
_BATCH_CHARACTERS = 2**18
_IDS = np.dtype("<i4")


def make_pipeline(flags):
    """An empty pipeline, of the runner that Beam's flags name, a list of str."""
    return beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(flags))


def build(pipeline, parts, output, settings):
    """Adds to a pipeline all that makes `output`/train and `output`/held_out.

    The shards do not depend on the number of workers, nor on the order in which they
    work: a document goes, by a hash of its text, to a split and a shard, and stands in
    it by that hash. So equal documents meet, and all but one are left out.

    Args:
        pipeline: `beam.Pipeline`.
        parts: list of `corpus.Part`.
        output: str. A folder that all workers reach. `counts.json` in it, the last
            file written, holds {"shards": what `write_shard` gave, with "split",
            "tokens", "documents" and "duplicates"; "read": what `read_part` counted}.
        settings: dict, the arguments of `TokenizeDocuments` and `WriteShard`:
            tokenizer, document, text_column, data_dir, held_out_fraction, num_shards,
            sequence_length.
    """
    tokenized = (
        pipeline
        | "Parts" >> beam.Create(parts)
        | "Spread" >> beam.Reshuffle()
        | "Tokenize"
        >> beam.ParDo(TokenizeDocuments(settings)).with_outputs("counts", main="ids")
    )
    shards = (
        tokenized.ids
        | "Shards" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(WriteShard(output, settings))
    )
    facts = (
        shards | "Shard" >> beam.Map(lambda shard: (output, ("shard", shard))),
        tokenized.counts | "Read" >> beam.Map(lambda read: (output, ("read", read))),
    )
    _ = facts | beam.Flatten() | "Facts" >> beam.GroupByKey() | beam.Map(write_counts)


class TokenizeDocuments(beam.DoFn):
    """From a part to ((split, shard), (SHA-256 of the text, ids as bytes))."""

    def __init__(self, settings):
        self._settings = settings

    def setup(self):
        self._tokenizer = tokenizers.load_tokenizer(self._settings["tokenizer"])
        signature = [tf.TensorSpec([None], tf.string)]
        self._tokenize = tf.function(self._tokenizer.tokenize, signature)

    def process(self, part):
        settings = self._settings
        counts = {}
        documents = corpus.read_part(
            part,
            settings["document"],
            settings["text_column"],
            counts,
            settings["data_dir"],
        )
        for batch in _batches(documents):
            ragged = self._tokenize(tf.constant(batch))
            ids = ragged.values.numpy().astype(_IDS)
            ends = ragged.row_splits.numpy()[1:-1]
            for text, some in zip(batch, np.split(ids, ends), strict=True):
                digest = hashlib.sha256(text.encode("utf-8")).digest()
                yield self._place(digest), (digest, some.tobytes())
        yield beam.pvalue.TaggedOutput("counts", counts)

    def _place(self, digest):
        split = split_of(digest, self._settings["held_out_fraction"])
        number = int.from_bytes(digest[8:16], "big")
        return split, number % num_shards(split, self._settings)


class WriteShard(beam.DoFn):
    """From ((split, shard), documents) to the facts of the shard that it writes."""

    def __init__(self, output, settings):
        self._output = output
        self._settings = settings

    def setup(self):
        self._tokenizer = tokenizers.load_tokenizer(self._settings["tokenizer"])

    def process(self, element):
        (split, number), documents = element
        texts, count = {}, 0
        for digest, ids in documents:
            texts[digest] = ids
            count += 1
        ids = (np.frombuffer(texts[digest], _IDS) for digest in sorted(texts))
        length = self._settings["sequence_length"]
        packed = list(rows.pack_rows(ids, self._tokenizer, length))
        if not packed:
            return
        shard = np.concatenate(packed)
        total = num_shards(split, self._settings)
        name = f"rows-{number:05d}-of-{total:05d}.npy"
        path = os.path.join(self._output, split, name)
        tf.io.gfile.makedirs(os.path.dirname(path))
        yield {
            "split": split,
            "tokens": rows.count_tokens(shard, self._tokenizer),
            "documents": len(texts),
            "duplicates": count - len(texts),
            **rows.write_shard(path, shard, self._tokenizer),
        }


def split_of(digest, held_out_fraction):
    """The split of a document, by the SHA-256 of its text."""
    is_held_out = int.from_bytes(digest[:8], "big") < held_out_fraction * 2**64
    return "held_out" if is_held_out else "train"


def num_shards(split, settings):
    """Shards of a split: as many of them as it has of the text."""
    fraction = settings["held_out_fraction"]
    share = fraction if split == "held_out" else 1 - fraction
    return max(1, round(settings["num_shards"] * share))


def write_counts(element):
    """Writes `counts.json`, from (output, [("shard", facts) or ("read", counts)])."""
    output, facts = element
    facts = list(facts)
    shards = [value for kind, value in facts if kind == "shard"]
    shards.sort(key=lambda shard: (shard["split"], shard["file"]))
    total = {}
    for kind, counts in facts:
        for name, count in counts.items() if kind == "read" else ():
            if name not in total:
                total[name] = count
            elif name == "first_left_out":
                total[name] = min(count, total[name])
            else:
                total[name] += count
    path = os.path.join(output, COUNTS_FILE)
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps({"shards": shards, "read": total}))


def _batches(documents):
    batch, num_characters = [], 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
