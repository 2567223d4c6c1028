"""Engines of an extraction: this process, or the workers of Ray, on one machine or many.

An engine is a row of `ENGINES`, from which `extract_features` and the command line take it.

Each worker of Ray is an actor that holds the network and takes one shard at a time, a fast one more
of them. The driver lists the images and holds the shards that are being worked on. Ray starts an
actor again that was lost, elsewhere if need be, and gives it its shard again.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..utils.checks import check_min
from .options import RunOptions
from .store import shard_name

_MAX_TRIES = 4  # of a shard: one that kills every worker must not go round for ever


class Engine(NamedTuple):
    """A way to run an extraction."""

    format: str  # of the files that it writes by default
    # How each of its processes runs the network, out of how the caller's would and of its options.
    configure: Callable[[RunOptions, Mapping[str, Any]], RunOptions]
    # Of a `ShardWriter`, the shards and `advance`, with its options: yields the shards' reports.
    run: Callable[..., Iterator[Any]]
    options: tuple[str, ...] = ()

    @property
    def has_workers(self) -> bool:
        """Whether it runs in processes of its own, which choose their device themselves."""
        return "workers" in self.options


def _configure_local(run: RunOptions, _: Mapping[str, Any]) -> RunOptions:
    # The rounding of a feature must not depend on the number of threads.
    return replace(run, compute_workers=run.compute_workers or torch.get_num_threads())


def _configure_ray(run: RunOptions, options: Mapping[str, Any]) -> RunOptions:
    if run.device.type != "cpu":
        raise ValueError(
            f"with engine='ray', device must be 'cpu' and gpus_per_worker decides, got {run.device}"
        )
    kind = "cuda" if options.get("gpus_per_worker") else "cpu"
    return replace(run, device=torch.device(kind), compute_workers=1)


def _run_ray(
    writer: Any,
    shards: Iterable[Any],
    advance: Callable[[int], object],
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0,
) -> Iterator[Any]:
    """Yield the report of every shard; see `extract_features` for the options and errors."""
    if workers is not None:
        check_min("workers", workers, 1)
    with _connected(address, workers) as ray:
        count = _count_workers(ray, workers, gpus_per_worker)
        worker = ray.remote(
            num_cpus=1,
            num_gpus=gpus_per_worker,
            max_restarts=-1,
            max_task_retries=-1,  # Ray also counts calls to a machine not yet known to be lost
        )(_Worker)
        shared = ray.put(writer)  # sent once to a machine
        idle = [worker.remote() for _ in range(count)]
        running: dict[Any, tuple[Any, Any]] = {}

        def next_report() -> Any:
            (done, *_), _ = ray.wait(list(running))
            actor, shard = running.pop(done)
            idle.append(actor)
            try:
                report = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            advance(len(shard.entries))
            return report

        for shard in shards:
            if not idle:
                yield next_report()
            actor = idle.pop()
            # In a list the reference comes as it is, and is followed once.
            running[actor.write.remote([shared], shard)] = actor, shard
        while running:
            # Idle workers make way for those that start again after their machine was lost.
            while idle:
                ray.kill(idle.pop())
            yield next_report()


class _Worker:
    """A process with the network; Ray makes an actor of it."""

    def __init__(self) -> None:
        self._writer: Any = None

    def write(self, shared: list[Any], shard: Any) -> Any:
        """Bring a shard into the folder."""
        if self._writer is None:  # here, where an error is the shard's and not the actor's
            import ray

            writer = ray.get(shared[0])
            writer.start()
            self._writer = writer
        tries = self._writer.out / f".{shard_name(shard.number)}.tries.part"
        with open(tries, "ab") as file:
            file.write(b".")
            begun = file.tell()
        if begun > _MAX_TRIES:
            names = f"{shard.entries[0].name} to {shard.entries[-1].name}"
            raise ChildProcessError(
                f"shard {shard.number} ({names}) crashed its worker {_MAX_TRIES} times; "
                "finished shards are kept"
            )
        report = self._writer(shard, lambda _: None)
        tries.unlink(missing_ok=True)
        return report


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Give Ray, connected to a cluster or started here, and end what was started."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        text = "engine 'ray' needs Ray: pip install 'convnext_backbone[ray]'"
        raise ImportError(text) from error
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _count_workers(ray: Any, workers: int | None, gpus_per_worker: float) -> int:
    """Return the number of workers, by default as many as fit into the cluster."""
    found = ray.cluster_resources()
    most = int(found.get("CPU", 0))
    if gpus_per_worker:
        most = min(most, int(found.get("GPU", 0) / gpus_per_worker))
    if most < (workers or 1):
        raise ValueError(
            f"{workers or 1} workers with {gpus_per_worker:g} GPUs each need more than the cluster "
            f"has: {found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"
        )
    return workers or most


ENGINES = {
    "local": Engine(
        "safetensors",
        _configure_local,
        lambda writer, shards, advance: (writer(shard, advance) for shard in shards),
    ),
    "ray": Engine("parquet", _configure_ray, _run_ray, ("address", "workers", "gpus_per_worker")),
}
