"""PyTorch files: read without executing anything in them, every fault one clear error.

This module alone knows which types a file may hold, what torch raises on a file that is damaged or
asks for more, and under which entries of a checkpoint the weights are; `pickles` knows which calls
may make them.
"""

import argparse
import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..utils.checks import first_line, shorten_list
from .containers import DAMAGED, ZIP_START, CheckpointError, check_zip
from .inert_types import inert_types
from .numpy_types import numpy_types
from .pickles import MAX_ITEM, PickleReader, name_of, raise_damaged

# Entries of a checkpoint that hold its tensors, and those of their moving averages.
WRAPPERS = ("model", "state_dict", "module", "net", "network", "backbone", "train_model")
EMA_WRAPPERS = ("model_ema", "ema_state_dict", "state_dict_ema", "ema")
# mmengine's EMAHook exchanges what these hold before it saves (mmengine/hooks/ema_hook.py), so that
# all who load the first get the average; its averaged model has `steps` besides its `module`.
_EXCHANGED, _COUNTER, _COPY = ("state_dict", "ema_state_dict"), "steps", "module."
# torch names what it refused in one of these forms, followed by advice to load without protection.
_REFUSED = re.compile(
    r"GLOBAL (.+?) (?:was not an allowed global|whose module)"
    r"|class '?([\w.]+)|`(\S+)` of type|unrecognized function (<[^>]+>)"
)
# What torch puts on its list when these are imported: a `DeviceMesh` connects to other processes.
_OF_TORCH = re.compile(r"torch\.(distributed|nested|_dynamo)\.")
# torch's list of types that may be built belongs to all threads of the process.
_LOCK = RLock()
# torch's hints that help nobody who loads a file.
_HINTS = "Detected pickle protocol 3|Validating sparse tensor invariants"
# Zip files of torch that hold a program, by how the name of an entry ends.
_PROGRAMS = {b"/constants.pkl": "TorchScript", b"/archive_format": "torch.export"}


def weight_types() -> list[Any]:
    """List what published checkpoints hold besides tensors; all of it is plain data."""
    return [argparse.Namespace, *inert_types(), *numpy_types()]


@contextmanager
def allow_only(types: Sequence[Any]) -> Iterator[None]:
    """Let torch build these types and the user's alone, then restore its process-wide list.

    Of one name, it is the type in `types`. One load at a time, since the list belongs to all
    threads. `torch.serialization.safe_globals` would add to the user's list instead of replacing
    it, and on leaving take off it even what was there before.
    """
    with _LOCK:
        others = torch.serialization.get_safe_globals()
        named = {name_of(entry): entry for entry in others}
        users = {name: entry for name, entry in named.items() if not _OF_TORCH.match(name)}
        allowed = users | {name_of(entry): entry for entry in types}
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(allowed.values()))
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


@contextmanager
def checkpoint_errors(name: str) -> Iterator[None]:
    """Turn what torch raises while it loads into one line that names the file.

    CheckpointError: the file is damaged, or asks for a type that is not allowed.
    """
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        refused = refused_type(error)
        if refused is None:
            reason = f"the PyTorch file is damaged: {_gist(error)}"
            raise CheckpointError(f"cannot read checkpoint {name}: {reason}") from None
        raise CheckpointError(
            f"refused to read checkpoint {name}: it asks for {refused}, which weights have no need "
            "of; nothing of it was executed. If you trust the file, save its state dict alone, or "
            "allow the type by torch.serialization.add_safe_globals"
        ) from None  # torch's own message advises to load the file without protection
    except DAMAGED as error:
        raise CheckpointError(
            f"cannot read checkpoint {name}: {_gist(error)} "
            "(truncated, damaged, or not a PyTorch file)"
        ) from error


def refused_type(error: pickle.UnpicklingError) -> str | None:
    """Return the name of the type that safe loading refused, or None for a damaged file."""
    found = _REFUSED.search(str(error))
    return next(filter(None, found.groups())) if found else None


def _gist(error: Exception) -> str:
    """Return the part of torch's long messages that names the fault."""
    gist = str(error).partition("WeightsUnpickler error: ")[2]
    return gist.strip().partition("\n")[0] if gist else first_line(error)


def read_torch_file(
    file: Path | BinaryIO,
    name: str | None = None,
    *,
    types: Sequence[Any] | None = None,
    mmap: bool = False,
) -> Any:
    """Read a PyTorch file with `torch.load(weights_only=True)`, whatever the environment asks for.

    Only `types` may be built besides tensors (`weight_types()` when not given), what the user
    added to torch's process-wide list, and what `pickles` lists of torch's own. `name` is the
    file's in errors.
    CheckpointError: the file is damaged, inflates too far, or asks for another type.
    """
    name = str(file) if name is None else name
    with checkpoint_errors(name), allow_only(weight_types() if types is None else types):
        with open(file, "rb") if isinstance(file, Path) else nullcontext(file) as stream:
            mmap = check_torch_file(stream, name) and mmap
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _HINTS, UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def check_torch_file(stream: BinaryIO, name: str) -> bool:
    """Check what a PyTorch file would build, without loading it; return whether it can be mapped.

    That may be what torch's process-wide list holds now, and what `pickles` lists. Errors are those
    of `checkpoint_errors`: it asks for more, for far more memory than is stored, or is damaged.
    """
    start = stream.tell()
    is_zip = stream.read(len(ZIP_START)) == ZIP_START
    stream.seek(start)
    is_mappable = (_check_zip if is_zip else _check_legacy)(stream, name)
    stream.seek(start)
    return is_mappable


def _check_zip(stream: BinaryIO, name: str) -> bool:
    """Check a zip file, its pickles, and that it has the storages that they ask for."""
    entries = check_zip(stream, name)
    for end, kind in _PROGRAMS.items():
        if any(key.endswith(end) for key in entries):
            raise CheckpointError(f"{name}: this is a program of {kind}, not a state dict")
    size = stream.seek(0, os.SEEK_END)
    with zipfile.ZipFile(stream) as archive:
        for key in (key for key in entries if key.endswith(b".pkl")):
            if not entries[key].CRC:  # torch leaves it 0 where the user switched checksums off
                del entries[key].CRC
            reader = PickleReader(io.BytesIO(archive.read(entries[key])), name, size)
            reader.read()
            folder = key.rpartition(b"/")[0]
            for storage in reader.storages.values():
                found = entries.get(folder + b"/data/" + storage.key.encode().lower())
                if found is None or found.file_size < storage.nbytes:
                    raise_damaged(
                        f"it lacks {storage.nbytes:,} bytes of the storage {storage.key!r}"
                    )
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
    data = (entry for key, entry in entries.items() if b"/data/" in key)
    return is_stored and all(_is_aligned(stream, entry) for entry in data)


def _is_aligned(stream: BinaryIO, entry: zipfile.ZipInfo) -> bool:
    """Return whether bytes may be mapped: torch's functions for complex numbers crash on others."""
    stream.seek(entry.header_offset + 26)  # of the lengths of the name and of the extra field
    return (entry.header_offset + 30 + sum(struct.unpack("<2H", stream.read(4)))) % MAX_ITEM == 0


def _check_legacy(stream: BinaryIO, name: str) -> bool:
    """Check a file of torch < 1.6: five pickles, then the storages that the last of them lists.

    torch hands out a storage that is not listed as it was allocated, with what was in that memory.
    """
    start = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(start)
    readers = [PickleReader(stream, name, size, is_legacy=True) for _ in range(5)]
    if readers[0].read() != torch.serialization.MAGIC_NUMBER:
        raise_damaged("it does not begin as torch.save begins a file")
    *_, keys = (reader.read() for reader in readers[1:])
    storages = readers[3].storages
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise_damaged("it does not list the storages that its tensors ask for")
    for key in keys:
        if int.from_bytes(stream.read(8), "little") != storages[key].count:
            raise_damaged(f"the storage {key!r} is of another size than its tensors ask for")
        stream.seek(storages[key].nbytes, os.SEEK_CUR)
    if stream.tell() > size:
        raise_damaged("it was cut off")
    return False


def unwrap(
    loaded: Any, source: str, ema: bool, notes: list[str], depth: int = 8
) -> dict[str, Tensor]:
    """Return the tensors inside what `torch.load` returned, through up to `depth` wrappers.

    Where no wrapper is known, it is the entry with the most tensors. What was chosen is added to
    `notes`. ValueError: there are none, or two entries have as many.
    """
    if not depth:
        raise ValueError(f"{source}: too many dicts inside each other")
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{source}: expected a dict of tensors, got {type(loaded).__name__}")
    tensors = _tensors(loaded)
    known = (*WRAPPERS, *EMA_WRAPPERS)
    wrapped = {k: v for k in known if isinstance(v := loaded.get(k), Mapping) and _has_tensors(v)}
    if not wrapped:
        sizes = {key: len(_tensors(value)) for key, value in loaded.items() if isinstance(key, str)}
        if tensors and len(tensors) >= max(sizes.values()):
            return tensors
        largest = _largest_entry(sizes, source)
        notes.append(f"{largest!r} used, the entry with the most tensors")
        return unwrap(loaded[largest], source, ema, notes, depth - 1)
    plain = next((k for k in WRAPPERS if k in wrapped), None)
    averaged = next((k for k in EMA_WRAPPERS if k in wrapped), None)
    if (plain, averaged) == _EXCHANGED and _is_of_mmengine(wrapped["ema_state_dict"]):
        notes.append(f"the moving average used, which mmengine writes to {plain!r}")
        return unwrap(wrapped["state_dict"], source, ema=False, notes=notes, depth=depth - 1)
    chosen = (averaged or plain) if ema else (plain or averaged)
    assert chosen is not None
    if averaged is not None:
        other = plain if chosen == averaged else averaged
        notes.append(f"{chosen!r} used" + (f"; {other!r} is there too" if other else ""))
    elif ema:
        notes.append(f"there is no moving average in it; {chosen!r} used")
    return unwrap(wrapped[chosen], source, ema, notes if averaged is None else [], depth - 1)


def _largest_entry(sizes: Mapping[str, int], source: str) -> str:
    """Return the entry that holds the most tensors itself: those of optimizers are further down."""
    most = max(sizes.values(), default=0)
    if not most:
        entries = shorten_list(sorted(sizes), 20) or "without names"
        raise ValueError(f"{source}: there are no tensors in it; its entries are {entries}")
    largest = [key for key, size in sizes.items() if size == most]
    if len(largest) > 1:
        entries = shorten_list(largest, 20)
        raise ValueError(
            f"{source}: the entries {entries} hold {most} tensors each; save the wanted one alone"
        )
    return largest[0]


def _tensors(value: Any) -> dict[str, Tensor]:
    """Return the tensors that stand in a dict itself, under texts."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {k: v for k, v in items if isinstance(v, Tensor) and isinstance(k, str)}


def _is_of_mmengine(averaged: Mapping[Any, Any]) -> bool:
    others = {key for key in averaged if not str(key).startswith(_COPY)}
    return others == {_COUNTER} and len(averaged) > 1


def _has_tensors(value: Any) -> bool:
    """Return whether nested dicts hold a tensor; each is visited once, though named repeatedly."""
    level, seen = [value], set[int]()
    for _ in range(4):  # deeper ones are not looked into
        if any(isinstance(item, Tensor) for item in level):
            return True
        dicts = {id(item): item for item in level if isinstance(item, Mapping)}
        level = [item for key, found in dicts.items() if key not in seen for item in found.values()]
        seen |= dicts.keys()
    return False
