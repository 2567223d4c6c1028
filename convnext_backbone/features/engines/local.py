"""The shards of an extraction one after another, in this process."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def run(
    writer: Callable[[Any, Callable[[int], object]], Any],
    shards: Iterable[Any],
    advance: Callable[[int], object],
) -> Iterator[Any]:
    """Yield the report of every shard."""
    for shard in shards:
        yield writer(shard, advance)
