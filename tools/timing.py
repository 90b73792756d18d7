"""Timing contenders in turn, and the memory of a process."""

import concurrent.futures
import multiprocessing
import re
import statistics
import time

# A turn lasts this long, one call at least.
SECONDS_A_TURN = 0.25


def in_turns(calls, rounds, seconds_a_turn=None):
    """{name: seconds a call, the median of each round}; a round before warms up.

    Args:
        calls: dict of callables without arguments.
        rounds: int.
        seconds_a_turn: float. A call is repeated for so long, once at least; None:
            `SECONDS_A_TURN`.
    """
    medians = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            # Those before it left caches and threads of theirs.
            call()
            found = timed(call, seconds_a_turn)
            if number:
                medians[name].append(found)
    return medians


def timed(call, seconds_a_turn=None):
    """The median of the seconds that calls took, in a turn."""
    if seconds_a_turn is None:
        seconds_a_turn = SECONDS_A_TURN
    seconds = []
    while not seconds or sum(seconds) < seconds_a_turn:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def ratio(seconds, name, other):
    """How many times as long as `other` one takes: the median of the rounds."""
    pairs = zip(seconds[name], seconds[other], strict=True)
    return statistics.median(one / two for one, two in pairs)


def in_own_process(function, *arguments):
    """What a function of a module gives in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def growth(call):
    """Bytes that this process grows by at most in a call."""
    # What was there before and is not any more is forgotten: proc(5).
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = peak_memory()
    call()
    return peak_memory() - before


def peak_memory():
    """Bytes that this process had in memory at once, at most.

    Not `ru_maxrss`, which a process has from the one that started it.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1])
