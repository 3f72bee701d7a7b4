"""Times by medians of interleaved repetitions, because a shared machine drifts; and memory by allocations."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def interleaved(works: Mapping[str, Work], repetitions: int, budget: float = 20.0) -> dict[str, float]:
    """Median seconds of each work, in turns of one run each.

    Args:
        works: what to time, by name.
        repetitions: turns, after one to warm up.
        budget: seconds after which a work sits out the turns that remain, with one run as the least.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-1, repetitions):
        for name, work in works.items():
            if turn > 0 and sum(times[name]) > budget:
                continue
            _synchronize()
            start = time.perf_counter()
            work()
            _synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_bytes(work: Work) -> int:
    """The most bytes allocated at once during a work, over those before it; on the CPU."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
