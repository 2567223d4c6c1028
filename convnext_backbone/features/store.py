"""Features of many images in a folder: written in shards, safe against a kill, read lazily.

The folder holds

- `plan.json`: the images, how they fall into shards, and all that decides about the values; written
  before the first shard, and compared when a run is taken up again;
- `features-00000.safetensors`, ...: tensors under `FEATURE/IMAGE`;
- `features-00000.json`, ...: for each finished shard its hash, its images and their failures. A
  shard without one, or with another hash, is written again;
- `index.json` (image -> shard) and `manifest.json` (images with their sizes, failures, weights,
  preprocessing, dtype, versions): written last, so their presence says that nothing is missing.

Which images share a batch depends on the plan alone, and on the CPU every batch is computed by one
thread, several batches at a time. A shard therefore comes out the same to the bit on whichever
process and after however many interruptions it is written.
"""

import copy
import hashlib
import json
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..images.sources import find_images, read_size
from ..utils.checks import check_min, shorten_list
from ..utils.files import file_sha256, read_json, write_bytes
from .extractor import FeatureExtractor

FORMAT = "convnext_backbone features 1"
_OPEN_SHARDS = 16  # handles that a reader keeps
_MAX_IMAGES = 4096  # of a shard, however small their features are
_POLL = 0.2  # seconds between two looks for the shards of other processes
_TELL = 10.0  # seconds of waiting for them, after which it is told
_PATIENCE = 1800.0  # seconds without a new one, after which waiting ends; torch.distributed's too
_SHARDS = 4  # times that one of their shards may take what one of this process took


# ------------------------------------------------------------------------------ reading


class FeatureStore(Mapping[str, dict[str, Tensor]]):
    """The features of a folder by image name, each read when it is asked for.

    Attributes:
        directory: The folder.
        manifest: The contents of manifest.json.

    Raises:
        FileNotFoundError: The folder holds no features, or is not finished.
        ValueError: It is of another format.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.manifest: dict[str, Any] = _read_finished(self.directory, "manifest.json")
        if self.manifest.get("format") != FORMAT:
            raise ValueError(
                f"{self.directory} must have format {FORMAT!r}, got {self.manifest.get('format')!r}"
            )
        self._shard_of: dict[str, str] = _read_finished(self.directory, "index.json")["files"]
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # A handle cannot follow into the worker of a data loader; it is opened there anew.
        return {**self.__dict__, "_open": OrderedDict()}

    def __len__(self) -> int:
        return len(self._shard_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return {feature: self.load(name, feature) for feature in self.features}

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features of every image."""
        return tuple(self.manifest["features"])

    @property
    def failures(self) -> dict[str, str]:
        """The images that could not be read, and why."""
        return {failure["file"]: failure["reason"] for failure in self.manifest["failures"]}

    def load(self, name: str, feature: str) -> Tensor:
        """Return one feature of one image.

        Raises:
            KeyError: There is no such image or feature.
        """
        if name not in self._shard_of:
            reason = self.failures.get(name)
            raise KeyError(f"no features of image {name!r}" + (f": {reason}" if reason else ""))
        if feature not in self.features:
            raise KeyError(f"feature must be one of {self.features}, got {feature!r}")
        return self._handle(self._shard_of[name]).get_tensor(f"{feature}/{name}")

    def stack(self, feature: str, names: Sequence[str] | None = None) -> Tensor:
        """Return one feature of several images (all, when not given) as one tensor (N, ...).

        Raises:
            ValueError: The maps differ in size.
        """
        tensors = [self.load(name, feature) for name in (self if names is None else names)]
        shapes = sorted({tuple(t.shape) for t in tensors})
        if len(shapes) != 1:
            raise ValueError(f"features must have one shape to be stacked, got {shapes}")
        return torch.stack(tensors)

    def verify(self) -> None:
        """Compare every shard with its hash.

        Raises:
            ValueError: A shard is missing or damaged.
        """
        bad = [
            shard["file"]
            for shard in self.manifest["shards"]
            if not _is_whole(self.directory / shard["file"], shard["sha256"])
        ]
        if bad:
            raise ValueError(
                f"{self.directory}: shards are missing or damaged: {shorten_list(bad)}"
            )

    def _handle(self, shard: str) -> Any:
        if shard not in self._open:
            # An open safetensors file is a mapping of memory; nothing is read before it is asked.
            self._open[shard] = safe_open(self.directory / shard, framework="pt")
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


def load_features(directory: str | os.PathLike[str]) -> FeatureStore:
    """Open the features that `convnext-backbone extract` wrote; see `FeatureStore`."""
    return FeatureStore(directory)


def _read_finished(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        planned = directory / "plan.json"
        if not planned.is_file():
            raise FileNotFoundError(f"{directory} holds no features: there is no {name}")
        total = len(read_json(planned)["shards"])
        done = sum(1 for _ in directory.glob("features-*.json"))
        raise FileNotFoundError(
            f"{directory} is not finished, {done} of {total} shards are: run the extraction again"
        )
    return read_json(path)


# ------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Extraction:
    """What a run did.

    Attributes:
        images: Images with features, in all shards.
        failures: The images that could not be read, and why.
        kept: Shards that were finished before.
        written: Shards that this process wrote.
        seconds: Time that writing them took, decoding and the network included.
        run: Images that this process worked on.
    """

    images: int
    failures: Mapping[str, str]
    kept: int
    written: int
    seconds: float
    run: int


def name_images(sources: Sequence[str | os.PathLike[str]]) -> tuple[Path, dict[str, Path]]:
    """Return the folder that images have in common, and each image by its path inside it.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder or a glob holds no image, or a name is not Unicode.
    """
    found = {path.absolute() for source in sources for path in find_images(source)}
    roots = [Path(source).absolute() for source in sources]
    single = roots[0] if len(roots) == 1 and roots[0].is_dir() else None
    root = single or Path(os.path.commonpath([path.parent for path in found]))
    names = {path.relative_to(root).as_posix(): path for path in sorted(found)}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"an image's name must be Unicode, got {name!r}") from error
    return root, names


def extract_features(
    extractor: FeatureExtractor,
    images: Mapping[str, Path],
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 256 << 20,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
    timeout: float | None = None,
) -> Extraction:
    """Write the features of images to a folder, or go on where an earlier run stopped.

    Args:
        extractor: What computes them; left as it is.
        images: The images by the name under which their features are kept.
        out: The folder.
        shard_bytes: Size at which a shard is closed.
        rank: Which of the processes that share the work this one is.
        world_size: How many they are. Process 0 waits for the others and finishes the folder.
        progress: Show a bar with the rate and the time left.
        timeout: Seconds that process 0 waits without a new shard of the others before it gives
            up: half an hour, or longer where its own shards took long, when not given.

    Raises:
        ValueError: `rank` is not below `world_size`; the folder holds features of other images or
            settings; or an image cannot be read and the extractor's `on_error` is "raise".
        OSError: The folder cannot be written. Finished shards stay.
        TimeoutError: The shards of other processes do not come. Those that came stay.
    """
    if check_min("rank", rank, 0) >= check_min("world_size", world_size, 1):
        raise ValueError(f"rank must lie below world_size {world_size}, got {rank}")
    out = Path(out)
    plan = _make_plan(extractor, images, shard_bytes)
    _settle_plan(out, plan)
    total = len(plan["shards"])
    mine = range(rank, total, world_size)
    missing = [number for number in mine if not _is_finished(out, number)]
    start = time.perf_counter()
    count = sum(len(plan["shards"][number]) for number in missing)
    # The rounding of a feature must not depend on the number of threads, which torchrun changes.
    own = copy.copy(extractor)
    own.compute_workers = extractor.compute_workers or torch.get_num_threads()
    longest = 0.0
    with tqdm(total=count, unit="image", disable=not progress or rank != 0) as bar:
        for number in missing:
            begun = time.perf_counter()
            _write_shard(own, images, out, number, plan["shards"][number], bar)
            longest = max(longest, time.perf_counter() - begun)
    seconds = time.perf_counter() - start
    if rank == 0:
        patience = max(_PATIENCE, _SHARDS * longest) if timeout is None else timeout
        _wait_for_others(out, total, world_size, patience)
        _finish(out, plan)
    parts = [read_json(out / _part(n)) for n in range(total) if (out / _part(n)).is_file()]
    return Extraction(
        images=sum(len(part["images"]) for part in parts),
        failures={k: v for part in parts for k, v in part["failures"].items()},
        kept=len(mine) - len(missing),
        written=len(missing),
        seconds=seconds,
        run=count,
    )


def _make_plan(
    extractor: FeatureExtractor, images: Mapping[str, Path], shard_bytes: int
) -> dict[str, Any]:
    """Lay images of one size side by side, so that batches are full, and cut them into shards."""
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    sizes: dict[str, tuple[int, int]] = {}
    for name, path in images.items():
        size = read_size(path)
        # What has no readable header fails later, when it is decoded, like any damaged image.
        sizes[name] = (1, 1) if size is None else _prepared(extractor, *size)
    ordered = sorted(images, key=lambda name: (extractor.padded(*sizes[name]), name))
    shards: list[list[str]] = []
    room = 0
    for name in ordered:
        needed = _feature_bytes(extractor, *sizes[name])
        if not shards or needed > room or len(shards[-1]) == _MAX_IMAGES:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= needed
    return {
        "format": FORMAT,
        "settings": extractor.describe(),
        "files": {name: _bytes_of(images[name]) for name in sorted(images)},
        "shards": shards,
    }


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # a link that leads nowhere


def _prepared(extractor: FeatureExtractor, height: int, width: int) -> tuple[int, int]:
    try:
        return extractor.prepared_size(height, width)
    except ValueError:  # an image that cannot be resized: it fails when its turn comes
        return 1, 1


def _feature_bytes(extractor: FeatureExtractor, height: int, width: int) -> int:
    pixels = {
        name: 1 if extractor.pool else _product(extractor.map_size(name, height, width))
        for name in extractor.names
    }
    values = sum(pixels[name] * channels for name, channels in extractor.channels.items())
    return values * extractor.dtype.itemsize


def _product(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _settle_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one that is there."""
    path = out / "plan.json"
    plan = json.loads(json.dumps(plan))
    if not path.is_file():
        if out.is_dir() and any(out.glob("*.safetensors")):
            raise ValueError(f"{out} holds safetensors files that are no features: take another")
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"cannot write into {out}: it is a file, not a folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_json(path, plan)
        return
    before = read_json(path)
    new, old = _values(plan["settings"]), _values(before["settings"])
    changed = [name for name in new if new[name] != old.get(name)]
    if changed:
        raise ValueError(
            f"{out} holds features of other settings ({', '.join(changed)} changed): "
            "take another folder, or remove it"
        )
    if plan["files"] != before["files"]:
        added = sorted(plan["files"].keys() - before["files"].keys())
        gone = sorted(before["files"].keys() - plan["files"].keys())
        other = [k for k, v in before["files"].items() if plan["files"].get(k, v) != v]
        parts = {"added": added, "gone": gone, "of another size": other}
        told = "; ".join(f"{what}: {shorten_list(names)}" for what, names in parts.items() if names)
        raise ValueError(f"{out} holds features of other images ({told}): take another folder")
    if plan["shards"] != before["shards"]:
        raise ValueError(f"{out} was begun with shards of another size: give the same shard size")


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what decides about the values: the weights themselves, not where they lay."""
    return {**settings, "weights": settings["weights"]["sha256"]}


def _shard(number: int) -> str:
    return f"features-{number:05d}.safetensors"


def _part(number: int) -> str:
    return f"features-{number:05d}.json"


def _is_finished(out: Path, number: int) -> bool:
    part = out / _part(number)
    try:
        return part.is_file() and _is_whole(out / _shard(number), read_json(part)["sha256"])
    except (ValueError, KeyError):  # a part that was damaged after it was written
        return False


def _write_shard(
    extractor: FeatureExtractor,
    images: Mapping[str, Path],
    out: Path,
    number: int,
    names: Sequence[str],
    bar: Any,
) -> None:
    for stale in out.glob(f".features-{number:05d}.*.part"):
        stale.unlink()
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, list[int]] = {}
    for features in extractor.stream([images[name] for name in names]):
        name = names[features.index]
        sizes[name] = list(features.image_size)
        tensors.update({f"{feature}/{name}": x for feature, x in features.items()})
        bar.update()
    bar.update(len(extractor.failures))
    data = save(tensors, metadata={"format": "pt"})
    _write(out / _shard(number), data)
    part = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "images": sizes,
        "failures": {names[failure.index]: failure.reason for failure in extractor.failures},
    }
    _write_json(out / _part(number), part)


def _wait_for_others(out: Path, total: int, world_size: int, patience: float) -> None:
    """Wait for the shards of all processes, and tell whose are missing.

    A shard that was damaged after an earlier run counts as missing until it is written anew.

    Raises:
        TimeoutError: None of them came for `patience` seconds.
    """
    left = [number for number in range(total) if number % world_size]
    since, told = time.monotonic(), False
    while missing := [number for number in left if not _is_finished(out, number)]:
        if len(missing) < len(left):
            left, since = missing, time.monotonic()
        waited = time.monotonic() - since
        ranks = ", ".join(str(rank) for rank in sorted({number % world_size for number in left}))
        whom = f"{len(left)} shards of rank {ranks}"
        if waited >= patience:
            raise TimeoutError(
                f"{out} is not finished: none of {whom} came for {patience:g} seconds; finished "
                "shards are kept, the same command goes on from there"
            )
        if waited >= _TELL and not told:
            warnings.warn(f"waiting for {whom}", stacklevel=3)
            told = True
        time.sleep(_POLL)


def _finish(out: Path, plan: dict[str, Any]) -> None:
    """Write the index and the manifest, once all shards are there."""
    total = len(plan["shards"])
    parts = [read_json(out / _part(number)) for number in range(total)]
    shard_of = {name: _shard(n) for n, part in enumerate(parts) for name in part["images"]}
    failures = {name: reason for part in parts for name, reason in part["failures"].items()}
    lost = plan["files"].keys() - shard_of.keys() - failures.keys()
    assert not lost, f"images without features or failure: {lost}"
    sizes = {name: size for part in parts for name, size in part["images"].items()}
    _write_json(out / "index.json", {"files": dict(sorted(shard_of.items()))})
    manifest = {
        "format": FORMAT,
        **plan["settings"],
        "files": {
            name: {"bytes": plan["files"][name], "height": size[0], "width": size[1]}
            for name, size in sorted(sizes.items())
        },
        "failures": [{"file": k, "reason": v} for k, v in sorted(failures.items())],
        "shards": [
            {
                "file": _shard(number),
                "sha256": part["sha256"],
                "bytes": part["bytes"],
                "images": len(part["images"]),
            }
            for number, part in enumerate(parts)
        ],
    }
    _write_json(out / "manifest.json", manifest)


# ------------------------------------------------------------------------------ files


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(values, indent=1) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; finished shards are kept, the same "
            "command goes on from there"
        ) from error


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest
