"""What runs the shards of an extraction: this process, or the workers of Ray.

An engine is a generator function of a writer, the shards and a function that is called with numbers
of images that are done. It yields the report of every shard, in any order.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .ray import run as run_ray


def run_local(
    writer: Callable[[Any, Callable[[int], object]], Any],
    shards: Iterable[Any],
    advance: Callable[[int], object],
) -> Iterator[Any]:
    """Write the shards one after another, in this process."""
    for shard in shards:
        yield writer(shard, advance)


# name -> the engine, and the format of the files that it writes by default
ENGINES = {"local": (run_local, "safetensors"), "ray": (run_ray, "parquet")}
