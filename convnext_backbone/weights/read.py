"""One safe reader for every container that ConvNeXt weights come in.

safetensors (single or sharded), PyTorch files (never more than `weights_only=True` may load), the
h5 files of TensorFlow and Keras, and Keras archives. Everything comes out as a flat dict of tensors
under the file's own keys, either as views of the mapped file or in memory of their own.
"""

import os
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..utils.commandline import printable
from ..utils.files import check_regular, read_json
from .containers import (
    HDF5_START,
    HEAD,
    PICKLE_START,
    SUFFIXES,
    WEIGHT_SUFFIXES,
    ZIP_START,
    check_inflation,
    is_safetensors_start,
)
from .keras_files import is_keras_archive, read_h5, read_keras_archive
from .torch_files import read_torch_file, unwrap

# Parts that a wrapper module adds in the middle of a key.
_INFIXES = re.compile(r"_orig_mod\.|_checkpoint_wrapped_module\.|_fsdp_wrapped_module\.")
INDEX_SUFFIX = ".index.json"  # of an index of shards
# What a directory may hold, the preferred one first.
DIRECTORY_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "tf_model.h5",
    "model.weights.h5",
)

_LFS = b"version https://git-lfs"
_BATCH = 64 << 20  # bytes that are copied before the pages they came from are released


@dataclass
class Checkpoint:
    """The tensors of a file, under the file's own keys; what does not print in them is escaped."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)  # the config.json beside the weights
    notes: list[str] = field(default_factory=list)  # what a user should know about the reading
    stored: int = 0  # bytes of the files

    def check(self, keys: Iterable[str]) -> None:
        """Refuse tensors without values of their own, and views of far more than what is stored.

        That is what is in memory for them, or what the files have.
        """
        size, stored, seen = 0, 0, set[int]()
        for key in keys:
            tensor = self.tensors[key]
            if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested:
                raise ValueError(f"{key} is sparse, nested or without values, must be dense")
            storage = tensor.untyped_storage()
            stored += 0 if storage.data_ptr() in seen else storage.nbytes()
            seen.add(storage.data_ptr())
            size += tensor.nbytes
            check_inflation(key, size, min(stored, self.stored))


def read_checkpoint(
    path: str | os.PathLike[str], *, ema: bool = False, mmap: bool = True
) -> Checkpoint:
    """Read the tensors of a file, of an index of shards, or of a directory that holds one of them.

    They are unchecked: see `Checkpoint.check`.

    The trained weights are taken before their moving average, unless `ema`: ConvNeXt's detectors
    and segmentors start from them (arXiv 2201.03545, appendix A.3). With `mmap`, tensors are views
    of the mapped file where its kind allows that; without, they are in memory of their own, for
    tensors that are kept, since a mapped file must not change under them.
    """
    file = find_weights_file(Path(path))
    notes: list[str] = []
    read = _read_shards if file.name.endswith(INDEX_SUFFIX) else _read_file
    tensors = read(file, ema, mmap, notes)
    if not tensors:
        raise ValueError(f"{file}: there are no tensors in it")
    tensors = _plain_keys(tensors, file)
    # Beside a file that was named and has another name than these, config.json may be foreign.
    config = file.parent / "config.json"
    is_own = file.name in DIRECTORY_FILES or Path(path).is_dir()
    stated = read_json(config) if is_own and config.exists() else {}
    return Checkpoint(tensors, stated, notes, _stored(file))


def _stored(file: Path) -> int:
    """Return the bytes of a file, or of the shards that an index names."""
    is_index = file.name.endswith(INDEX_SUFFIX)
    files = [file.parent / name for name in shard_names(file)] if is_index else [file]
    return sum(part.stat().st_size for part in files)


def _plain_keys(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    before: dict[str, str] = {}
    for key in tensors:
        plain = printable(_INFIXES.sub("", key))
        if plain in before:
            both = f"{printable(before[plain])} and {printable(key)}"
            raise ValueError(f"{file}: {both} both map to {plain}")
        before[plain] = key
    return {plain: tensors[key] for plain, key in before.items()}


def find_weights_file(path: Path) -> Path:
    """Return `path` itself, or the weights file inside the directory `path`.

    ValueError: the directory holds several files and none has a name of `DIRECTORY_FILES`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    if not path.is_dir():
        return path
    for name in DIRECTORY_FILES:
        if (path / name).exists() and not (path / name).is_dir():
            return path / name
    files = sorted(f for f in path.iterdir() if f.suffix in WEIGHT_SUFFIXES and not f.is_dir())
    if not files:
        raise FileNotFoundError(f"{path}: the directory holds none of {', '.join(DIRECTORY_FILES)}")
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise ValueError(f"{path}: the directory holds several weights files, name one: {names}")
    return files[0]


# ------------------------------------------------------------------------------ one file


def _read_file(file: Path, ema: bool, mmap: bool, notes: list[str]) -> dict[str, Tensor]:
    """Read a file of the kind that its first bytes show; its name may be wrong."""
    check_regular(file)
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    size = file.stat().st_size
    if size == 0:
        raise ValueError(f"{file}: the file is empty (0 bytes)")
    if head.startswith(_LFS):
        raise ValueError(f"{file}: this is a Git LFS pointer, not the weights; run `git lfs pull`")
    if head.startswith(HDF5_START):
        return read_h5(file, str(file))
    if head.startswith(ZIP_START) and is_keras_archive(file):
        return read_keras_archive(file)
    if is_safetensors_start(head, size) or file.suffix == ".safetensors":
        return _read_safetensors(file, mmap)
    if file.suffix in SUFFIXES["Keras"]:
        raise ValueError(f"{file}: the file is damaged or not a Keras file")
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        start = head[:40].decode("ascii")
        raise ValueError(f"{file}: this is a text file, not weights; it starts with {start!r}")
    if not head.startswith((ZIP_START, PICKLE_START)):
        raise ValueError(
            f"{file}: this is not a weights file; it starts with {head[:8]!r}, and neither a "
            "safetensors, a PyTorch, a Keras nor an HDF5 file does"
        )
    # The format of torch < 1.6 cannot be mapped.
    loaded = read_torch_file(file, mmap=mmap and head.startswith(ZIP_START))
    return unwrap(loaded, str(file), ema, notes)


def _read_safetensors(file: Path, mmap: bool) -> dict[str, Tensor]:
    try:
        return load_file(str(file)) if mmap else _copy_safetensors(file)
    except SafetensorError as error:
        message = f"{file}: the safetensors file is truncated or damaged: {error}"
        raise ValueError(message) from error


def _copy_safetensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory of its own, without holding the file's pages as well.

    The format's reader maps the file, and its pages count until it is closed: opened anew for
    every batch, it never holds more of them than one batch.
    """
    with safe_open(str(file), framework="pt") as opened:
        keys = deque(opened.keys())
    tensors: dict[str, Tensor] = {}
    while keys:
        copied = 0
        with safe_open(str(file), framework="pt") as opened:
            while keys and copied < _BATCH:
                key = keys.popleft()
                tensors[key] = opened.get_tensor(key).clone()
                copied += tensors[key].nbytes
    return tensors


def shard_names(index: Path) -> list[str]:
    """List the files that an index.json of transformers names, all beside it."""
    try:
        names = sorted(map(str, set(read_json(index)["weight_map"].values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: this is not an index of shards: {error!r}") from error
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index}: a shard must lie beside its index, got {name!r}")
    return names


def _read_shards(index: Path, ema: bool, mmap: bool, notes: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    shard_of: dict[str, str] = {}
    for name in shard_names(index):
        shard = index.parent / name
        if not shard.exists():
            raise FileNotFoundError(f"{index}: the shard {name} is missing")
        found = _read_file(shard, ema, mmap, notes)
        for key in found:
            if key in shard_of:
                raise ValueError(f"{index}: {key} is in both {shard_of[key]} and {name}")
        shard_of |= dict.fromkeys(found, name)
        tensors |= found
    return tensors
