"""Batches of one size out of images of many, prepared ahead by threads and computed by others.

Axes: N batch, C channels, H height, W width, in pixels.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

# Maps a function over batches, like `map`.
Compute = Callable[..., Iterable[Any]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prepare_ahead(
    prepare: Callable[[_Item], _Result], items: Iterator[_Item], length: int, workers: int
) -> Generator[list[_Result]]:
    """Yield lists of `length` results of `prepare`, in order; the last may be shorter.

    Threads prepare the next list while one is in use; with 0 `workers` the caller's own prepares in
    between. An error of `prepare` is raised when its turn comes.
    """
    if workers == 0:
        while window := [prepare(item) for item in islice(items, length)]:
            yield window
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting = deque(pool.submit(prepare, item) for item in islice(items, 2 * length))
        while waiting:
            window = [waiting.popleft().result() for _ in range(min(length, len(waiting)))]
            waiting.extend(pool.submit(prepare, item) for item in islice(items, length))
            yield window
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def compute_with(workers: int) -> Iterator[Compute]:
    """Give the function that maps batches to results: `map`, or that of a pool of threads.

    Each thread computes one batch at a time, so the rounding does not depend on their number; with
    0 `workers` all threads of torch compute one batch.
    """
    if workers == 0:
        yield map
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "compute", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)  # a part of that setting belongs to the whole process


def batched_by(
    keys: Sequence[tuple[int, ...]], batch_size: int
) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Yield batches of positions that share a key, keys in the order in which they first come."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    for key, positions in groups.items():
        for start in range(0, len(positions), batch_size):
            yield key, positions[start : start + batch_size]


def stack_padded(images: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Stack images (C, h, w) at the top left of zeros (N, C, height, width)."""
    batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch
