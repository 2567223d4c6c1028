"""One safe reader for every container that ConvNeXt weights come in.

safetensors (single or sharded), PyTorch files (never more than `weights_only=True` may load), the
h5 files of TensorFlow and Keras, and Keras archives. Everything comes out as a flat dict of tensors
under the file's own keys, either as views of the mapped file or in memory of their own.
"""

import argparse
import io
import json
import os
import pickle
import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..utils.checks import first_line
from ..utils.files import WEIGHT_SUFFIXES

# Where the tensors stand inside a PyTorch file, the moving averages apart.
WRAPPERS = ("model", "state_dict", "module", "net", "network", "backbone")
EMA_WRAPPERS = ("model_ema", "ema_state_dict", "state_dict_ema", "ema")
# Parts that a wrapper module adds in the middle of a key.
_INFIXES = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
# What a directory may hold, the preferred one first.
DIRECTORY_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "tf_model.h5",
    "model.weights.h5",
)

_ZIP, _HDF5, _LFS = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs"
_PICKLE = b"\x80"  # how PyTorch's files of before version 1.6 begin
_BATCH = 64 << 20  # bytes that are copied before the pages they came from are let go
_H5PY_HINT = "reading Keras and TensorFlow files needs h5py: pip install 'convnext_backbone[keras]'"


@dataclass
class Checkpoint:
    """The tensors of a file, under the file's own keys.

    Attributes:
        tensors: Key -> tensor.
        source: The file or directory that was read.
        config: The config.json that lies beside the weights, or nothing.
        notes: What a user should know about how it was read.
    """

    tensors: dict[str, Tensor]
    source: str
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_checkpoint(
    path: str | os.PathLike[str], *, ema: bool = False, mapped: bool = True
) -> Checkpoint:
    """Read the tensors of a file or a directory.

    Args:
        path: A weights file, an index of shards, or a directory that holds one of them.
        ema: Where a file holds both the trained weights and their moving average, take the average.
            The default is the trained weights, which ConvNeXt's detectors and segmentors start
            from (arXiv 2201.03545, appendix A.3).
        mapped: Return views of the mapped file where its kind allows that, for tensors that are
            looked at or copied. False reads them into memory of their own, once: for tensors that
            are kept, since a mapped file must not change under them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, empty, of no known kind, or holds no tensors; or it asks
            for a class that weights have no need of.
        ImportError: h5py is needed and missing.
    """
    file = find_weights_file(Path(path))
    notes: list[str] = []
    if file.name.endswith(".index.json"):
        tensors = _read_shards(file, ema, mapped, notes)
    else:
        tensors = _read_file(file, ema, mapped, notes)
    tensors = _without_infixes(tensors)
    if not tensors:
        raise ValueError(f"{file}: there are no tensors in it")
    return Checkpoint(tensors, str(path), _config_beside(file), notes)


def find_weights_file(path: Path) -> Path:
    """Return `path` itself, or the weights file inside the directory `path`.

    Raises:
        FileNotFoundError: There is no such file, or no weights file in the directory.
        ValueError: The directory holds several files and none has a usual name.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    if not path.is_dir():
        return path
    for name in DIRECTORY_FILES:
        if (path / name).is_file():
            return path / name
    files = sorted(f for f in path.iterdir() if f.suffix in WEIGHT_SUFFIXES and f.is_file())
    if not files:
        raise FileNotFoundError(f"{path}: the directory holds none of {', '.join(DIRECTORY_FILES)}")
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise ValueError(f"{path}: the directory holds several weights files, name one: {names}")
    return files[0]


def _config_beside(file: Path) -> dict[str, Any]:
    """Read the config.json that belongs to a file of a usual name; others may be strangers."""
    path = file.parent / "config.json"
    if file.name not in DIRECTORY_FILES or not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    return values if isinstance(values, dict) else {}


def _without_infixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pattern = re.compile("|".join(map(re.escape, _INFIXES)))
    return {pattern.sub("", key): tensor for key, tensor in tensors.items()}


# ------------------------------------------------------------------------------ one file


def _read_file(file: Path, ema: bool, mapped: bool, notes: list[str]) -> dict[str, Tensor]:
    """Tell the container by its first bytes, since names lie, and read it."""
    with open(file, "rb") as stream:
        head = stream.read(64)
    size = file.stat().st_size
    if size == 0:
        raise ValueError(f"{file}: the file is empty (0 bytes)")
    if head.startswith(_LFS):
        raise ValueError(f"{file}: this is a Git LFS pointer, not the weights; run `git lfs pull`")
    if head.startswith(_HDF5):
        return _read_h5(file, str(file))
    if head.startswith(_ZIP) and _is_keras_archive(file):
        return _read_keras_archive(file)
    if _looks_like_safetensors(head, size) or file.suffix == ".safetensors":
        return _read_safetensors(file, mapped)
    if file.suffix in (".h5", ".hdf5", ".keras"):
        raise ValueError(f"{file}: the file is damaged or not a Keras file")
    if _is_text(head):
        start = head[:40].decode("ascii")
        raise ValueError(f"{file}: this is a text file, not weights; it starts with {start!r}")
    if not head.startswith((_ZIP, _PICKLE)):
        raise ValueError(
            f"{file}: this is not a weights file; it starts with {head[:8]!r}, and neither a "
            "safetensors, a PyTorch, a Keras nor an HDF5 file does"
        )
    # The format of torch < 1.6 cannot be mapped.
    loaded = _read_torch(file, mapped=mapped and head.startswith(_ZIP))
    return unwrap(loaded, str(file), ema, notes)


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 0 < length < size


def _read_safetensors(file: Path, mapped: bool) -> dict[str, Tensor]:
    try:
        return load_file(str(file)) if mapped else _copy_safetensors(file)
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


def _read_shards(index: Path, ema: bool, mapped: bool, notes: list[str]) -> dict[str, Tensor]:
    """Read the shards of an index.json as transformers writes it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: this is not an index of shards: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(map(str, names)):
        shard = index.parent / name
        if Path(name).name != name:
            raise ValueError(f"{index}: a shard must lie beside its index, got {name!r}")
        if not shard.is_file():
            raise FileNotFoundError(f"{index}: the shard {name} is missing")
        tensors |= _read_file(shard, ema, mapped, notes)
    return tensors


# ------------------------------------------------------------------------------ PyTorch


class _HistoryBuffer:
    """Takes the place of mmengine's log buffer, of which nothing is needed here."""


def _no_attribute(owner: Any, name: str) -> None:
    """Take the place of `getattr`, with which a HistoryBuffer names its methods."""


def numpy_globals() -> list[Any]:
    """List what numpy's arrays and scalars are rebuilt from, all of it plain data.

    numpy names its constructors differently before and after version 2; either reads both.
    """
    array: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSUO"}
    return [
        np.ndarray,
        np.dtype,
        *sorted(dtypes, key=lambda kind: kind.__name__),
        *((array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]


def _allowed_globals() -> list[Any]:
    """List what published checkpoints carry beside tensors; all of it is plain data."""
    return [
        argparse.Namespace,
        (_HistoryBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_no_attribute, "builtins.getattr"),
        *numpy_globals(),
    ]


@contextmanager
def _only_our_types() -> Iterator[None]:
    """Allow what weights are made of and nothing else, then restore torch's global list.

    `torch.serialization.safe_globals` alone would take our types off the list on leaving even
    where somebody else had put them there, mmengine's loaders for one.
    """
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(_allowed_globals())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _read_torch(file: Path, *, mapped: bool) -> Any:
    try:
        with _only_our_types():
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|class (\S+)|`(\S+)` of type", str(error))
        if refused is None:
            # torch's own message advises to load the file without protection.
            raise ValueError(f"{file}: the PyTorch file is damaged") from None
        raise ValueError(
            f"{file}: refused, since it would run {next(filter(None, refused.groups()))}, which "
            "weights have no need of; nothing of it was executed. If you trust the file, save its "
            "state dict anew with nothing but tensors in it"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, AttributeError) as error:
        message = f"{file}: the PyTorch file is truncated or damaged: {first_line(error)}"
        raise ValueError(message) from error
    except (ValueError, TypeError, AssertionError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: this is not a PyTorch file: {first_line(error)}") from error


def unwrap(loaded: Any, source: str, ema: bool, notes: list[str]) -> dict[str, Tensor]:
    """Return the tensors inside what a PyTorch file holds.

    Args:
        loaded: The object that `torch.load` returned.
        source: What to call the file in errors.
        ema: Prefer the moving average.
        notes: Collects what was chosen.

    Raises:
        ValueError: There are no tensors under any known wrapper.
    """
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{source}: expected a dict of tensors, got {type(loaded).__name__}")
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor) and isinstance(k, str)}
    wrapped = {k: v for k, v in loaded.items() if isinstance(v, Mapping) and _has_tensors(v)}
    if tensors and not wrapped:
        return tensors
    plain = next((k for k in WRAPPERS if k in wrapped), None)
    averaged = next((k for k in EMA_WRAPPERS if k in wrapped), None)
    chosen = (averaged or plain) if ema else (plain or averaged)
    if chosen is None:
        if tensors:
            return tensors
        raise ValueError(
            f"{source}: there are no tensors in it, neither at the top nor under one of "
            f"{', '.join((*WRAPPERS, *EMA_WRAPPERS))}; its entries are {sorted(map(str, loaded))}"
        )
    if averaged is not None:
        other = plain if chosen == averaged else averaged
        notes.append(f"{chosen!r} used" + (f"; {other!r} is there too" if other else ""))
    elif ema:
        notes.append(f"there is no moving average in it; {chosen!r} used")
    return unwrap(wrapped[chosen], source, ema, notes if averaged is None else [])


def _has_tensors(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping) and depth:
        return any(_has_tensors(v, depth - 1) for v in value.values())
    return False


# ------------------------------------------------------------------------------ h5


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(_H5PY_HINT) from error
    return h5py


def _read_h5(file: Any, source: str) -> dict[str, Tensor]:
    """Read an h5 file of TensorFlow, of Keras (`.h5`) or of Keras (`.weights.h5`).

    Keys are the variables' paths: `convnext_tiny_stem/convnext_tiny_stem_conv/kernel`, or with a
    number for a name where Keras stores numbers.
    """
    h5py = _import_h5py()
    try:
        with h5py.File(file, "r") as root:
            group = root.get("model_weights", root)
            if "layer_names" in group.attrs:
                return dict(_legacy_variables(group, source))
            container = next((k for k in _KERAS_CONTAINERS if k in group), None)
            if container is None:
                raise ValueError(f"{source}: the h5 file is of neither Keras nor TensorFlow")
            named = dict(_named_variables(group[container], ""))
            return named or _counted_variables(group[container], source)
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{source}: the h5 file is truncated or damaged: {error}") from error


_KERAS_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


def _tensor(dataset: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(dataset[()]))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _legacy_variables(root: Any, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what `save_weights` of Keras 2 and `.h5` of Keras 3 store, layer by layer."""
    for layer in map(_text, root.attrs["layer_names"]):
        if layer not in root:
            raise ValueError(f"{source}: the layer {layer} is missing")
        group = root[layer]
        for name in map(_text, group.attrs["weight_names"]):
            path = re.sub(r":\d+$", "", name)
            # A nested model leaves its own name out of its variables' paths, and so do Keras 2's
            # layers; TensorFlow's paths have it in their middle.
            inside = layer in path.split("/")[:-1]
            yield path if inside else f"{layer}/{path}", _tensor(group[name])


def _named_variables(layers: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what `.weights.h5` of Keras 3 stores, each group of variables under its layer's name.

    The group itself is named by its layer's class and a counter; its attribute has the name.
    """
    for layer in layers.values():
        name = _text(layer["vars"].attrs.get("name", "")) if "vars" in layer else ""
        if not name:
            continue
        for index, dataset in layer["vars"].items():
            yield f"{path}{name}/{index}", _tensor(dataset)
        if "layers" in layer:
            yield from _named_variables(layer["layers"], f"{path}{name}/")


def _counted_variables(layers: Any, source: str) -> dict[str, Tensor]:
    """Name the variables of a `.weights.h5` that has only classes and counters (Keras before 3.7).

    The order within a class is the order of the model, and a block's stage shows in its width.
    """
    nested = _by_counter(layers, "sequential")
    widths = []
    out: dict[str, Tensor] = {}
    for index, group in enumerate(nested):
        inner: Any = next((group[k] for k in _KERAS_CONTAINERS if k in group), {})
        stem = "_stem/n_stem" if index == 0 else f"_downsampling_block_{index - 1}/n_downsampling"
        tail = "" if index == 0 else f"_{index - 1}"
        out |= _variables(inner["conv2d"], f"n{stem}_conv{tail}")
        out |= _variables(inner["layer_normalization"], f"n{stem}_layernorm{tail}")
        widths.append(inner["conv2d"]["vars"]["0"].shape[-1])
    if not widths or len(set(widths)) != len(widths):
        raise ValueError(f"{source}: the h5 file names no layers, and its widths tell no stages")
    convs, denses, norms, scales = (
        _by_counter(layers, kind)
        for kind in ("conv2d", "dense", "layer_normalization", "layer_scale")
    )
    if len(denses) < 2 * len(convs) or len(norms) < len(convs):
        raise ValueError(f"{source}: the h5 file names no layers, and they are no ConvNeXt's")
    blocks: dict[int, int] = dict.fromkeys(range(len(widths)), 0)
    for index, conv in enumerate(convs):
        stage = widths.index(conv["vars"]["0"].shape[-1])
        name = f"n_stage_{stage}_block_{blocks[stage]}"
        blocks[stage] += 1
        out |= _variables(conv, f"{name}_depthwise_conv")
        out |= _variables(norms[index], f"{name}_layernorm")
        out |= _variables(denses[2 * index], f"{name}_pointwise_conv_1")
        out |= _variables(denses[2 * index + 1], f"{name}_pointwise_conv_2")
        if scales:
            out |= _variables(scales[index], f"{name}_layer_scale")
    for group in norms[len(convs) :]:
        out |= _variables(group, "n_head_layernorm")
    for group in denses[2 * len(convs) :]:
        out |= _variables(group, "n_head_dense")
    return out


def _by_counter(layers: Any, kind: str) -> list[Any]:
    names = [n for n in layers if re.fullmatch(rf"{kind}(_\d+)?", n)]
    return [layers[n] for n in sorted(names, key=lambda n: int(n[len(kind) + 1 :] or 0))]


def _variables(group: Any, name: str) -> dict[str, Tensor]:
    return {f"{name}/{index}": _tensor(data) for index, data in group["vars"].items()}


def _is_keras_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return "model.weights.h5" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _read_keras_archive(file: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_h5(io.BytesIO(archive.read("model.weights.h5")), str(file))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file}: the Keras archive is damaged: {error}") from error
