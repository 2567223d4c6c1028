"""Features of many images in a folder: written in shards, safe against a kill, read lazily.

The folder holds

- `plan.json`: the images, which shard each is in, and all that decides about the values; written
  before the first shard, and compared when a run is resumed;
- `features-00000.safetensors`, ...: tensors under `FEATURE/IMAGE`;
- `features-00000.json`, ...: for each finished shard its hash, its images and their failures. A
  shard without one, or with another hash, is written again;
- `index.json` (image -> shard) and `manifest.json` (images with their sizes, failures, weights,
  preprocessing, dtype, versions): written last, so where they are nothing is missing.

Which images share a batch depends on the plan alone, and on the CPU every batch is computed by one
thread, several batches at a time. A shard therefore comes out the same to the bit after however
many interruptions it is written.
"""

import copy
import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..images.sources import read_size
from ..utils.checks import shorten_list
from ..utils.files import file_sha256, read_json, write_bytes
from .extractor import Failure, FeatureExtractor

FORMAT = "convnext_backbone features 1"
_OPEN_SHARDS = 16  # handles that a reader keeps
_MAX_IMAGES = 4096  # of a shard, however small their features are


# ------------------------------------------------------------------------------ reading


class FeatureStore(Mapping[str, dict[str, Tensor]]):
    """The features of a folder by image name, each read when it is accessed.

    See `load_features`; `manifest` holds the contents of manifest.json.
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
        # Handles cannot be pickled; the worker of a data loader opens its own.
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
        """Return one feature of one image; KeyError if there is no such image or feature."""
        if name not in self._shard_of:
            reason = self.failures.get(name)
            raise KeyError(f"no features of image {name!r}" + (f": {reason}" if reason else ""))
        if feature not in self.features:
            raise KeyError(f"feature must be one of {self.features}, got {feature!r}")
        return self._handle(self._shard_of[name]).get_tensor(f"{feature}/{name}")

    def stack(self, feature: str, names: Sequence[str] | None = None) -> Tensor:
        """Return one feature of several images (default: all) as one tensor (N, ...)."""
        tensors = [self.load(name, feature) for name in (self if names is None else names)]
        shapes = sorted({tuple(t.shape) for t in tensors})
        if len(shapes) != 1:
            raise ValueError(f"features must have one shape to be stacked, got {shapes}")
        return torch.stack(tensors)

    def verify(self) -> None:
        """Compare every shard with its hash; ValueError if any is missing or damaged."""
        bad = [
            shard["file"]
            for shard in self.manifest["shards"]
            if not _is_whole(self.directory / shard["file"], shard["sha256"])
        ]
        if bad:
            text = f"shards are missing or damaged: {shorten_list(bad)}"
            raise ValueError(f"{self.directory}: {text}")

    def _handle(self, shard: str) -> Any:
        if shard not in self._open:
            # Opening maps the file; tensors are read when they are accessed.
            self._open[shard] = safe_open(self.directory / shard, framework="pt")
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


def load_features(directory: str | os.PathLike[str]) -> FeatureStore:
    """Open the features that `extract_features` or `convnext-backbone extract` wrote.

    Returns:
        A mapping from image names to their features: maps (C, H, W), or vectors (C,) where they
        were pooled. Its `failures` are the images that could not be read.

    Raises:
        FileNotFoundError: The folder holds no features, or is not finished.
        ValueError: It is of another format.

    Example:
        >>> store = load_features("features")
        >>> store.stack("stage4").shape  # (N, C), of pooled features
        torch.Size([3, 320])
    """
    return FeatureStore(directory)


def _read_finished(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        planned = directory / "plan.json"
        if not planned.is_file():
            raise FileNotFoundError(f"{directory} holds no features: there is no {name}")
        total = len(read_json(planned)["shards"])
        done = sum(1 for _ in directory.glob("features-*.json"))
        text = f"{done} of {total} shards are: run the extraction again"
        raise FileNotFoundError(f"{directory} is not finished, {text}")
    return read_json(path)


# ------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class ExtractionResult:
    """What a run of `extract_features` did."""

    images: int  # with features
    failures: Mapping[str, str]  # name -> why the image could not be read
    kept: int  # shards that were finished before
    written: int  # shards that this run wrote
    seconds: float  # that writing them took, decoding and the network included
    processed: int  # images in the shards that this run wrote


def extract_features(
    extractor: FeatureExtractor,
    images: Mapping[str, Path],
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 256 << 20,
    progress: bool = False,
) -> ExtractionResult:
    """Write the features of images to a folder, or resume an earlier run.

    Example:
        >>> _, images = name_images(["photos/"])
        >>> fx = FeatureExtractor("my-backbone", on_error="skip")
        >>> extract_features(fx, images, "maps").images
        3

    Args:
        extractor: What computes them; left as it is.
        images: The images by the name under which their features are kept.
        out: The folder.
        shard_bytes: Size at which a shard is closed.
        progress: Show a bar with the rate and the time left.

    Raises:
        ValueError: The folder holds features of other images or settings, or an image cannot be
            read and the extractor's `on_error` is "raise".
        OSError: The folder cannot be written. Finished shards stay.
    """
    out = Path(out)
    plan = _make_plan(extractor, images, shard_bytes)
    _write_or_compare_plan(out, plan)
    shards = plan["shards"]
    missing = [number for number in range(len(shards)) if not _is_finished(out, number)]
    start = time.perf_counter()
    count = sum(len(shards[number]) for number in missing)
    # The rounding of a feature must not depend on the number of threads.
    own, run = copy.copy(extractor), extractor.run_options
    workers = run.compute_workers or torch.get_num_threads()
    own.run_options = replace(run, compute_workers=workers)
    with tqdm(total=count, unit="image", disable=not progress) as bar:
        for number in missing:
            _write_shard(own, images, out, number, shards[number], bar)
    seconds = time.perf_counter() - start
    parts = [read_json(out / _part_name(number)) for number in range(len(shards))]
    _finish(out, plan, parts)
    return ExtractionResult(
        images=sum(len(part["images"]) for part in parts),
        failures={k: v for part in parts for k, v in part["failures"].items()},
        kept=len(shards) - len(missing),
        written=len(missing),
        seconds=seconds,
        processed=count,
    )


def _make_plan(
    extractor: FeatureExtractor, images: Mapping[str, Path], shard_bytes: int
) -> dict[str, Any]:
    """Sort the images by size, so that batches are full, and split them into shards."""
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    sizes = {name: _prepared_size(extractor, path) for name, path in images.items()}
    ordered = sorted(images, key=lambda name: (extractor.padded_size(*sizes[name]), name))
    shards: list[list[str]] = []
    free = 0
    for name in ordered:
        needed = _feature_bytes(extractor, *sizes[name])
        if not shards or needed > free or len(shards[-1]) == _MAX_IMAGES:
            shards.append([])
            free = shard_bytes
        shards[-1].append(name)
        free -= needed
    files = sorted(images.items())
    return {
        "format": FORMAT,
        "settings": extractor.describe(),
        # A dangling symlink counts 0 bytes.
        "files": {name: path.stat().st_size if path.exists() else 0 for name, path in files},
        "shards": shards,
    }


def _prepared_size(extractor: FeatureExtractor, path: Path) -> tuple[int, int]:
    """Return the (height, width) of an image, or (1, 1) if it will fail once it is read."""
    size = read_size(path)
    try:
        return (1, 1) if size is None else extractor.prepared_size(*size)
    except ValueError:  # it cannot be resized
        return 1, 1


def _feature_bytes(extractor: FeatureExtractor, height: int, width: int) -> int:
    pooled = extractor.output_options.pool is not None
    values = sum(
        channels * (1 if pooled else math.prod(extractor.map_size(name, height, width)))
        for name, channels in extractor.channels.items()
    )
    return values * extractor.run_options.dtype.itemsize


def _write_or_compare_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one that is there."""
    path = out / "plan.json"
    plan = json.loads(json.dumps(plan))
    if not path.is_file():
        if out.is_dir() and any(out.glob("*.safetensors")):
            raise ValueError(f"{out} holds other safetensors files: choose another folder")
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"cannot write into {out}: it is a file, not a folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_json(path, plan)
        return
    before = read_json(path)
    new, old = _comparable(plan["settings"]), _comparable(before["settings"])
    changed = [name for name in new if new[name] != old.get(name)]
    if changed:
        raise ValueError(
            f"{out} holds features of other settings ({', '.join(changed)} changed): "
            "choose another folder, or remove it"
        )
    if plan["files"] != before["files"]:
        added = sorted(plan["files"].keys() - before["files"].keys())
        gone = sorted(before["files"].keys() - plan["files"].keys())
        other = [k for k, v in before["files"].items() if plan["files"].get(k, v) != v]
        changes = {"added": added, "gone": gone, "of another size": other}
        text = "; ".join(f"{k}: {shorten_list(names)}" for k, names in changes.items() if names)
        raise ValueError(f"{out} holds features of other images ({text}): choose another folder")
    if plan["shards"] != before["shards"]:
        raise ValueError(f"{out} was begun with shards of another size: give the same shard size")


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what decides about the values: the hash of the weights, not their path."""
    return {**settings, "weights": settings["weights"]["sha256"]}


def _shard_name(number: int) -> str:
    return f"features-{number:05d}.safetensors"


def _part_name(number: int) -> str:
    return f"features-{number:05d}.json"


def _is_finished(out: Path, number: int) -> bool:
    part = out / _part_name(number)
    try:
        return part.is_file() and _is_whole(out / _shard_name(number), read_json(part)["sha256"])
    except (ValueError, KeyError):  # a part that was damaged after it was written
        return False


def _write_shard(
    extractor: FeatureExtractor,
    images: Mapping[str, Path],
    out: Path,
    number: int,
    names: Sequence[str],
    bar: "tqdm[NoReturn]",
) -> None:
    for stale in out.glob(f".features-{number:05d}.*.part"):
        stale.unlink()
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, list[int]] = {}
    failures: dict[str, str] = {}
    for result in extractor.stream([images[name] for name in names]):
        name = names[result.index]
        if isinstance(result, Failure):
            failures[name] = result.reason
        else:
            sizes[name] = list(result.image_size)
            tensors.update({f"{feature}/{name}": x for feature, x in result.items()})
        bar.update()
    data = save(tensors, metadata={"format": "pt"})
    _write(out / _shard_name(number), data)
    digest = hashlib.sha256(data).hexdigest()
    part = {"sha256": digest, "bytes": len(data), "images": sizes, "failures": failures}
    _write_json(out / _part_name(number), part)


def _finish(out: Path, plan: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
    """Write the index and the manifest, once all shards (with these parts) are there."""
    shard_of = {name: _shard_name(n) for n, part in enumerate(parts) for name in part["images"]}
    failures = {name: reason for part in parts for name, reason in part["failures"].items()}
    lost = plan["files"].keys() - shard_of.keys() - failures.keys()
    assert not lost, f"images with neither features nor a failure: {lost}"
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
                "file": _shard_name(number),
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
        text = "finished shards are kept, the same command goes on from there"
        raise OSError(f"cannot write {path}: {error.strerror or error}; {text}") from error


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest
