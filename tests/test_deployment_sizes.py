"""What a server is given: memory, threads, time to start, and batches."""

import dataclasses

import pytest
import yaml

from deberta_tf.windows import WINDOW_ROWS
from tests.test_deployment import batching_of, facts, flags_of
from tests.test_warm_up import LENGTHS, TASKS, make_small_task, signatures_of
from tools import deployment, warm_up

GIB = 2**30


def facts_of(kind, proto, **changed):
    """Of a small task, see `TASKS`; 1,000 bytes of weights."""
    task = make_small_task(kind, proto)
    found = deployment.make_deployment(task, signatures_of(task), "name", 1, 2, 1000)
    return dataclasses.replace(found, **changed)


def flags_of_server(one):
    (service,) = yaml.safe_load(deployment.render(one)["compose.yaml"])[
        "services"
    ].values()
    return flags_of(service["command"])


@pytest.mark.parametrize("sequence_length", [16, 100, 512, 5000])
def test_the_queue_holds_the_largest_request(sequence_length):
    one = facts(sequence_length=sequence_length)
    batching = batching_of(deployment.render(one)["batching_parameters.txt"])
    rows = batching.max_execution_batch_size.value
    assert rows * sequence_length <= max(4096, sequence_length)
    assert batching.max_enqueued_batches.value * rows >= batching.max_batch_size.value
    assert batching.max_batch_size.value >= rows


def test_memory_holds_two_versions_and_all_batches():
    # 2 x 736 MB, 4 batches of 8 rows of 150 MB, 1 GiB: 7.35e9 bytes.
    assert facts().memory_mib == 7168
    assert facts(weights_bytes=0, row_bytes=0).memory_mib == 1024


def test_a_batch_of_long_contexts_is_a_chunk_of_windows():
    # As many rows, whatever the batch: 4 times 32 of 150 MB.
    one = facts(has_windows=True, weights_bytes=0)
    assert one.call_bytes == WINDOW_ROWS * one.row_bytes
    assert one.memory_mib * 2**20 == pytest.approx(4 * 32 * 150e6 + GIB, rel=0.02)


def test_every_choice_is_a_row():
    one = facts(choices=4)
    assert one.call_bytes == 4 * facts().call_bytes
    alone = facts(choices=4, batches_requests=False)
    assert alone.call_bytes == 4 * alone.row_bytes


@pytest.mark.parametrize(
    ("kind", "choices", "has_windows", "batches"),
    [
        ("texts", 1, False, True),
        ("words", 1, False, False),
        ("answers", 1, True, True),
        ("choices", warm_up.NUM_CHOICES, False, False),
        ("entities", 1, True, False),
        ("spans", 1, False, True),
    ],
)
def test_each_task_has_rows_of_its_kind(
    kind, choices, has_windows, batches, sentencepiece_proto
):
    one = facts_of(kind, sentencepiece_proto)
    assert (one.choices, one.has_windows) == (choices, has_windows)
    assert one.batches_requests == batches


def test_the_figures_of_batches_tell_of_further_rows(sentencepiece_proto):
    def text(kind):
        one = facts_of(kind, sentencepiece_proto)
        written = deployment.render(one)["batching_parameters.txt"]
        assert batching_of(written).max_execution_batch_size.value
        return " ".join(written.replace("\n#", "").split())

    assert f"runs {WINDOW_ROWS} at a time at most" in text("answers")
    assert "Each choice in a row of a request is a row" in text("choices")
    assert "of the model" not in text("texts")


def test_warm_up_runs_every_choice(sentencepiece_proto):
    task = make_small_task("choices", sentencepiece_proto)
    requests = warm_up.make_requests(task, signatures_of(task), "name", 32)
    tokens = 0
    for request in requests:
        shape = [one.size for one in request.inputs["choices"].tensor_shape.dim]
        if shape:
            tokens += shape[0] * shape[1]
    found = facts_of("choices", sentencepiece_proto).warm_up_tokens
    # Two signatures, each with as many rows, of these lengths.
    assert 2 * tokens * LENGTHS[0] <= found <= 2 * tokens * LENGTHS[-1]


def test_calls_that_are_not_batched_are_what_there_is_memory_for():
    alone = facts(batches_requests=False)
    flags = flags_of_server(alone)
    pools = int(flags["rest_api_num_threads"]), int(flags["grpc_max_threads"])
    assert pools == (16, 16)
    # One thread of gRPC waits for the next call.
    taken = (sum(pools) - 1) * alone.row_bytes
    budget = alone.memory_mib * 2**20 - 2 * alone.weights_bytes - GIB
    assert taken <= budget
    assert taken <= 4 * facts().call_bytes


def test_few_calls_still_find_threads():
    alone = facts(batches_requests=False, has_windows=True, cpus=1)
    flags = flags_of_server(alone)
    assert (flags["grpc_max_threads"], flags["rest_api_num_threads"]) == ("4", "2")
    budget = alone.memory_mib * 2**20 - 2 * alone.weights_bytes - GIB
    assert 5 * WINDOW_ROWS * alone.row_bytes <= budget


def test_calls_that_wait_for_a_batch_have_threads():
    flags = flags_of_server(facts())
    assert flags["grpc_max_threads"] == flags["rest_api_num_threads"] == "64"


def test_startup_time_grows_with_the_model():
    # 2 x 184e6 x 40e3 operations at 4 x 2e10 a second: 184 s, and 120.
    assert facts().startup_s == 360
    assert facts(num_parameters=0).startup_s == 120


def test_requests_of_any_width_are_not_batched(sentencepiece_proto):
    one = facts_of("words", sentencepiece_proto)
    assert not [name for name in flags_of_server(one) if "batching" in name]
    text = deployment.render(one)["batching_parameters.txt"]
    assert "# NOT IN USE" in text
    assert batching_of(text).max_batch_size.value


@pytest.mark.parametrize("kind", TASKS)
def test_a_row_that_fails_a_batch_is_told_of(kind, sentencepiece_proto):
    text = deployment.render(facts_of(kind, sentencepiece_proto))[
        "batching_parameters.txt"
    ]
    assert "A batch has one status" in text
