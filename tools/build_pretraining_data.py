"""Turns text into rows of token ids to pretrain on, in shards with a manifest.

    python -m tools.build_pretraining_data --input 'text/*.txt' --output rows \\
        --tokenizer vocabulary

Writes OUTPUT/train and, where documents are held out, OUTPUT/held_out: an Apache Beam
pipeline, on all cores of this machine, or where the flags of Beam after a "--" say. The
same input and options give the same files, whatever the number of workers. Documents
that occur twice are kept once.
"""

import contextlib
import errno
import json
import math
import os
import time

import tensorflow as tf

from deberta_tf import files, rows, tokenizers
from tools import corpus, corpus_pipeline

SPLITS = ("train", "held_out")


def main(argv=None):
    options = _parse(argv)
    _check(options)
    parts, sources = corpus.parts_of(options.input, options.data_dir)
    tokenizer = tokenizers.load_tokenizer(options.tokenizer)
    settings = {
        "tokenizer": options.tokenizer,
        "document": options.document,
        "text_column": options.text_column,
        "data_dir": options.data_dir,
        "held_out_fraction": options.held_out_fraction,
        "sequence_length": options.sequence_length,
        "num_shards": options.num_shards
        or math.ceil(len(parts) / corpus.PARTS_PER_SHARD),
    }
    began = time.monotonic()
    workers = min(options.num_workers or os.cpu_count(), len(parts))
    workers = None if options.beam else workers
    with _output_folder(options.output) as folder:
        counts = _run(parts, folder, settings, workers, options.beam)
        manifests = _manifests(counts, sources, tokenizer, settings)
        for split, manifest in manifests.items():
            path = os.path.join(folder, split, rows.MANIFEST)
            with tf.io.gfile.GFile(path, "w") as file:
                file.write(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    _report(manifests, counts, sources, time.monotonic() - began, workers)


def _run(parts, folder, settings, workers, flags):
    """Runs the pipeline; returns what it counted."""
    if not flags:
        mode = "multi_processing" if workers > 1 else "in_memory"
        flags = [
            "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={workers}",
            "--default_sdk_harness_log_level=WARNING",
        ]
    try:
        pipeline = corpus_pipeline.make_pipeline(flags)
    except (ValueError, ImportError, AttributeError) as error:
        raise files.UsageError(f"flags of Beam {flags}: {error}") from None
    try:
        with pipeline:
            corpus_pipeline.build(pipeline, parts, folder, settings)
    except Exception as error:
        # Beam tells of an error of a worker in the words of its traceback.
        if files.is_out_of_space(error):
            reason = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, reason, folder) from None
        raise
    path = os.path.join(folder, corpus_pipeline.COUNTS_FILE)
    with tf.io.gfile.GFile(path) as file:
        counts = json.loads(file.read())
    tf.io.gfile.remove(path)
    return counts


@contextlib.contextmanager
def _output_folder(output):
    """The folder to write to; where there are no renames, `output` itself: its
    manifests, written last, make it whole."""
    if "://" in output:
        tf.io.gfile.makedirs(output)
        yield output
        return
    with files.atomic_directory(output) as folder:
        yield folder


def _manifests(counts, sources, tokenizer, settings):
    """{split: its manifest}.

    Raises:
        UsageError: if a split has no text.
    """
    manifests = {}
    for split in SPLITS if settings["held_out_fraction"] else SPLITS[:1]:
        shards = [one for one in counts["shards"] if one["split"] == split]
        if not shards:
            raise files.UsageError(
                f"no text for {split}, with --held_out_fraction "
                f"{settings['held_out_fraction']}, in {len(sources)} source(s), the "
                f"first of them {sources[0]['file']!r}{_left_out(counts['read'])}"
            )
        totals = {
            name: sum(shard[name] for shard in shards)
            for name in ("tokens", "documents", "duplicates")
        }
        names = ("file", "rows", "sha256")
        parameters = {
            "split": split,
            **{
                name: settings[name]
                for name in ("held_out_fraction", "document", "text_column")
            },
            "input": sources,
            "read": counts["read"],
        }
        manifests[split] = rows.make_manifest(
            settings["sequence_length"],
            totals,
            [{name: shard[name] for name in names} for shard in shards],
            tokenizer,
            parameters,
        )
    return manifests


def _left_out(read):
    """In words, what was left out or cut; nothing where nothing was."""
    reasons = {
        "not_utf8": "documents are not UTF-8",
        "no_text": "records have no text in --text_column",
        "cut": "pieces are of texts that were too long",
    }
    told = [
        f"{read[name]:,} {words}" for name, words in reasons.items() if name in read
    ]
    if "first_left_out" in read:
        source, place, _ = read["first_left_out"]
        told.append(f"the first left out: {source} at {place:,}")
    return "".join(f"; {words}" for words in told)


def _parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="UTF-8 text files or patterns such as 'text/**/*.txt', of JSON lines "
        "where they end in .jsonl; or tfds:BUILDER:SPLIT",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="spm.model, or a folder with it, with vocab.json and merges.txt, or "
        "written by save_to_preset",
    )
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument(
        "--sequence_length",
        type=int,
        default=128,
        help="tokens in a row, [CLS] and [SEP] counted in (%(default)s)",
    )
    parser.add_argument(
        "--document",
        choices=("block", "line"),
        default="block",
        help="a document is a block of lines between blank ones, or each line "
        "(%(default)s)",
    )
    parser.add_argument(
        "--held_out_fraction",
        type=float,
        default=0.0,
        help="share of documents, chosen by a hash of their text, that goes to "
        "held_out (%(default)s)",
    )
    parser.add_argument(
        "--text_column",
        default="text",
        help="field of JSON lines, or feature of TFDS, with the text (%(default)s)",
    )
    parser.add_argument("--data_dir", help="where TFDS keeps its data")
    parser.add_argument(
        "--num_shards",
        type=int,
        help="files to write, each of them held in memory once (default: one for 32 "
        "MB of text)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        help="processes on this machine (default: its cores)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what OUTPUT holds"
    )
    parser.add_argument(
        "beam",
        nargs="*",
        metavar="-- BEAM_FLAG",
        help="flags of Beam, after a --, such as --runner=DataflowRunner; paths must "
        "then be those that its workers reach",
    )
    return parser.parse_args(argv)


def _check(options):
    least_of = {
        "sequence_length": rows.SHORTEST_ROW,
        "num_shards": 1,
        "num_workers": 1,
    }
    for name, least in least_of.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise files.UsageError(f"--{name} must be at least {least}; got {value}")
    if not 0 <= options.held_out_fraction < 1:
        raise files.UsageError(
            "--held_out_fraction must be at least 0 and below 1; got "
            f"{options.held_out_fraction}"
        )
    if options.beam and options.num_workers:
        raise files.UsageError(
            "--num_workers is for this machine; give Beam's flags alone: "
            f"{' '.join(options.beam)}"
        )
    if not os.path.exists(options.tokenizer):
        raise files.UsageError(f"--tokenizer: no file or folder {options.tokenizer!r}")
    _check_output(options.output, options.overwrite)


def _check_output(output, overwrite):
    if "://" in output:
        if tf.io.gfile.exists(output) and tf.io.gfile.listdir(output):
            raise files.UsageError(f"{output} holds files; name another folder")
        return
    if os.path.lexists(output) and not overwrite:
        raise files.UsageError(f"{output} exists; --overwrite replaces it")
    files.check_replaceable(
        output, lambda name: os.path.isfile(os.path.join(output, name, rows.MANIFEST))
    )


def _report(manifests, counts, sources, seconds, workers):
    for split, manifest in manifests.items():
        print(
            f"{split}: {manifest['rows']:,} rows of {manifest['sequence_length']} in "
            f"{len(manifest['shards'])} shard(s), {manifest['documents']:,} documents, "
            f"{manifest['tokens']:,} tokens; left out: {manifest['duplicates']:,} "
            "duplicates"
        )
    empty = sum(source.get("bytes") == 0 for source in sources)
    read = counts["read"]
    megabytes = read["bytes"] / 1e6
    tokens = sum(manifest["tokens"] for manifest in manifests.values())
    print(
        f"read {megabytes:,.1f} MB of {len(sources)} source(s), {empty} of them empty"
        f"{_left_out(read)}\n"
        f"{seconds:.1f} s{_speed(megabytes / seconds, tokens / seconds, workers)}"
    )


def _speed(megabytes, tokens, workers):
    # How many workers another runner had is not known here.
    if workers is None:
        return f": {megabytes:,.2f} MB/s and {tokens:,.0f} tokens/s"
    return (
        f" with {workers} worker(s): {megabytes / workers:,.2f} MB/s and "
        f"{tokens / workers:,.0f} tokens/s each"
    )


if __name__ == "__main__":
    files.run_command(main)
