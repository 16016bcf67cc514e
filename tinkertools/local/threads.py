"""Pieces of work side by side on the processor's cores, each computed by one thread.

torch's own threads share every single operation and wait for each other at its end: little is gained where operations
are small, and where anything else wants a core, each wait is a long one. Pieces that need nothing of each other have
one wait, at the end of all.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
P = TypeVar("P")


def count(device: torch.device) -> int:
    """How many pieces can be computed side by side; within a piece, 1."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def each(compute: Callable[[P], T], pieces: Sequence[P], device: torch.device) -> Iterator[T]:
    """`compute` of each piece, in the order of the pieces."""
    threads = count(device)
    if threads == 1 or len(pieces) == 1:
        yield from map(compute, pieces)
        return
    try:
        # For the whole process: the library that multiplies matrices has one number of threads.
        torch.set_num_threads(1)
        waiting = [_pool(threads).submit(_with_one_thread, compute, piece) for piece in pieces]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()
            # What runs still must not go on beside what comes next.
            for future in waiting:
                if not future.cancelled():
                    future.exception()
    finally:
        torch.set_num_threads(threads)


def _with_one_thread(compute: Callable[[P], T], piece: P) -> T:
    torch.set_num_threads(1)
    return compute(piece)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: each keeps memory for its products."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tinkertools-compute")
