"""Reading of the features that `extract_features` wrote to a folder, each when it is accessed.

The folder holds

- `plan.json`: all that decides about the values, and how the images are split into shards;
- `features-0000000-00.safetensors` or `.parquet`, ...: the rows of a shard, in one file or several;
- `features-0000000.json`, ...: for each finished shard its files with their hashes, the hashes of
  the plan and of its images' names and versions, and its failures;
- `manifest.json`: what plan.json says of the values, and the number of shards and images; written
  last, so where it is nothing is missing.

None of them but the rows themselves grows with the number of images.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.checks import check_choice, shorten_list
from ..utils.files import expand_path, file_sha256, read_json
from .formats import FORMATS, FeatureFile

FORMAT = "convnext_backbone features 2"
PLAN, MANIFEST = "plan.json", "manifest.json"
_SHARD_FIELDS = {
    **{"plan": str, "names": str, "images": str},
    **{"rows": int, "failures": dict, "files": list},
}
_OPEN_FILES = 16  # handles that a reader keeps


class FeatureStore(Mapping[str, dict[str, Tensor]]):
    """The features of a folder by image name, each read when it is accessed.

    See `load_features`; `manifest` holds the contents of manifest.json, `failures` the images that
    could not be read, and why. Names and their places are held in memory, the features are not.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(expand_path(directory, "directory"))
        self.manifest = _read_manifest(self.directory)
        self.failures: dict[str, str] = {}
        self._hashes: dict[str, str] = {}  # file -> SHA-256
        self._places: dict[str, tuple[str, int]] = {}  # image -> file, row
        self._open: OrderedDict[str, FeatureFile] = OrderedDict()
        for number in range(self.manifest["shards"]):
            shard = read_shard(self.directory, number)
            for file in shard["files"]:
                self._hashes[file["file"]] = file["sha256"]
                for row, image in enumerate(self._file(file["file"]).rows):
                    if image.error is None:
                        self._places[image.file] = (file["file"], row)
                    else:
                        self.failures[image.file] = image.error

    def __getstate__(self) -> dict[str, Any]:
        # Handles cannot be pickled; the worker of a data loader opens its own.
        return {**self.__dict__, "_open": OrderedDict()}

    def __repr__(self) -> str:
        features = ", ".join(
            f"{name} ({about['channels']}{'' if self.manifest.get('pool') else ', H, W'})"
            for name, about in self.manifest["features"].items()
        )
        return (
            f"FeatureStore({str(self.directory)!r}: {len(self)} images, {len(self.failures)} "
            f"unreadable; {features}; {self.manifest['dtype']}, "
            f"weights {self.manifest['weights']['source']})"
        )

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return {feature: self.load(name, feature) for feature in self.features}

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features of every image."""
        return tuple(self.manifest["features"])

    def load(self, name: str, feature: str) -> Tensor:
        """Return one feature of one image; KeyError if there is no such image or feature."""
        if name not in self._places:
            reason = self.failures.get(name)
            raise KeyError(f"no features of image {name!r}" + (f": {reason}" if reason else ""))
        if feature not in self.features:
            raise KeyError(f"feature must be one of {self.features}, got {feature!r}")
        file, row = self._places[name]
        return self._file(file).load(row, name, feature)

    def stack(self, feature: str, names: Sequence[str] | None = None) -> Tensor:
        """Return one feature of several images (default: all) as one tensor (N, ...)."""
        tensors = [self.load(name, feature) for name in (self if names is None else names)]
        shapes = sorted({tuple(t.shape) for t in tensors})
        if len(shapes) != 1:
            raise ValueError(f"features must have one shape to be stacked, got {shapes}")
        return torch.stack(tensors)

    def verify(self) -> None:
        """Compare every shard with its hash; ValueError if any is missing or damaged."""
        files = self._hashes.items()
        bad = [name for name, digest in files if not is_whole(self.directory / name, digest)]
        if bad:
            text = f"shards are missing or damaged: {shorten_list(bad)}"
            raise ValueError(f"{self.directory}: {text}")

    def _file(self, name: str) -> FeatureFile:
        if name not in self._open:
            self._open[name] = open_file(self.directory / name)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]


def load_features(directory: str | os.PathLike[str]) -> FeatureStore:
    """Open the features that `extract_features` or `convnext-backbone extract` wrote.

    Returns:
        A mapping from image names to their features: maps (C, H, W), or vectors (C,) where they
        were pooled. Its `failures` are the images that could not be read.

    Raises:
        FileNotFoundError: The folder holds no features, or is not finished.
        ValueError: It is of another format, or damaged.
        ImportError: It holds Parquet files and pyarrow is missing.

    Example:
        >>> store = load_features("features")
        >>> store.stack("stage4").shape  # (N, C), of pooled features
        torch.Size([3, 320])
    """
    return FeatureStore(directory)


# ------------------------------------------------------------------------------ files


def shard_name(number: int) -> str:
    """Return the name, without its suffix, of a shard."""
    return f"features-{number:07d}"


def read_shard(directory: Path, number: int) -> dict[str, Any]:
    """Read what is known of a finished shard; ValueError or OSError where it is not."""
    path = directory / f"{shard_name(number)}.json"
    shard = read_json(path)
    _check_fields(path, shard, _SHARD_FIELDS)
    for file in shard["files"]:
        if not isinstance(file, dict):
            raise ValueError(f"{path} is damaged: 'files' must hold objects")
        _check_fields(path, file, {"file": str, "sha256": str})
    return shard


def open_file(path: Path) -> FeatureFile:
    """Open a file of features; ValueError where it is damaged."""
    kind = next((kind for kind in FORMATS.values() if kind.suffix == path.suffix), None)
    if kind is None:
        raise ValueError(f"{path} is no file of features")
    try:
        return kind.open(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"a shard is missing: {path}") from error
    except ImportError:
        raise
    except Exception as error:  # safetensors, pyarrow and json have errors of their own
        raise ValueError(f"{path} is damaged: {error}") from error


def is_whole(path: Path, digest: str) -> bool:
    """Return whether a file is there and has this hash."""
    return path.is_file() and file_sha256(path) == digest


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        if not (directory / PLAN).is_file():
            raise FileNotFoundError(f"{directory} holds no features: there is no {MANIFEST}")
        done = sum(1 for _ in directory.glob("features-*.json"))
        raise FileNotFoundError(
            f"{directory} is not finished, {done} shards are: run the extraction again"
        )
    manifest = read_json(path)
    check_choice(f"the format in {path}", manifest.get("format"), (FORMAT,))
    _check_fields(path, manifest, {"features": dict, "weights": dict, "dtype": str, "shards": int})
    return manifest


def _check_fields(path: Path, values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Refuse a JSON file in which a field is not there or of another type."""
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(f"{path} is damaged: {name!r} must be {kind.__name__}")
