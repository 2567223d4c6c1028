"""PyTorch files: read without executing anything in them, every fault one clear error.

This module alone knows which types a file may hold besides tensors, how its containers are built,
and under which entries of a checkpoint the weights are; `pickles` reads the pickles in them.
"""

import argparse
import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.storage import UntypedStorage

from ..utils.checks import first_line, shorten_list
from .containers import (
    DAMAGED,
    ZIP_START,
    CheckpointError,
    RefusedError,
    check_zip,
    raise_damaged,
)
from .inert_types import INERT_TYPES
from .pickles import MAX_ITEM, PickleReader, StorageFinder, users_types

# Entries of a checkpoint that hold its tensors, and those of their moving averages.
WRAPPERS = ("model", "state_dict", "module", "net", "network", "backbone", "train_model")
EMA_WRAPPERS = ("model_ema", "ema_state_dict", "state_dict_ema", "ema")
# mmengine's EMAHook exchanges what these hold before it saves (mmengine/hooks/ema_hook.py), so that
# all who load the first get the average; its averaged model has `steps` besides its `module`.
_EXCHANGED, _COUNTER, _COPY = ("state_dict", "ema_state_dict"), "steps", "module."
# Zip files of torch that hold a program, by how the name of an entry ends.
_PROGRAMS = {
    "/constants.pkl": "TorchScript",
    "/archive_format": "torch.export",
    "serialized_exported_program.json": "torch.export",  # before torch 2.7
}
_PICKLE = "/data.pkl"
# What published checkpoints hold besides tensors, all of it plain data, by its name in pickles.
WEIGHT_TYPES: dict[str, Any] = {"argparse.Namespace": argparse.Namespace, **INERT_TYPES}
# Returns a storage where it shall be, given it and the device that it was saved from.
Place = Callable[[UntypedStorage, str], UntypedStorage]


@contextmanager
def checkpoint_errors(name: str) -> Iterator[None]:
    """Turn what is raised while a file is read into one line that names it.

    CheckpointError: the file is damaged, or asks for a type that is not allowed.
    """
    try:
        yield
    except CheckpointError:
        raise
    except RefusedError as error:
        raise CheckpointError(
            f"refused to read checkpoint {name}: it asks for {error}, which weights have no need "
            "of; nothing of it was executed. If you trust the file, save its state dict alone, or "
            "allow the type by torch.serialization.add_safe_globals"
        ) from None
    except DAMAGED as error:
        raise CheckpointError(
            f"cannot read checkpoint {name}: {first_line(error)} "
            "(truncated, damaged, or not a PyTorch file)"
        ) from error


def read_torch_file(
    file: Path | BinaryIO,
    name: str | None = None,
    *,
    types: Mapping[str, Any] = WEIGHT_TYPES,
    mmap: bool = False,
    place: Place | None = None,
) -> Any:
    """Read what `torch.save` wrote; whatever the environment asks for, nothing in it is executed.

    Args:
        file: The file, or a stream of its bytes.
        name: The file's in errors; its path when not given.
        types: What may be called besides what weights need, by its name in pickles. What the user
            added by `torch.serialization.add_safe_globals` may be called as well.
        mmap: Map the storages of a file instead of copying them.
        place: Moves each storage to a device; they stay on the CPU when not given.

    Raises:
        CheckpointError: The file is damaged, inflates too far, or asks for another type.
    """
    name = str(file) if name is None else name
    types = {**users_types(), **types}
    place = place or (lambda storage, _: storage)
    with (
        checkpoint_errors(name),
        open(file, "rb") if isinstance(file, Path) else nullcontext(file) as stream,
    ):
        is_zip = stream.read(len(ZIP_START)) == ZIP_START
        stream.seek(0)
        if not is_zip:
            return _read_legacy(stream, name, types, place)
        mapped = str(file) if isinstance(file, Path) and mmap else None
        return _read_zip(stream, name, types, place, mapped)


def _read_zip(
    stream: BinaryIO, name: str, types: Mapping[str, Any], place: Place, path: str | None
) -> Any:
    """Read a zip file: a pickle, and an entry for each of its storages, mapped where `path` is."""
    entries = check_zip(stream, name)
    for end, kind in _PROGRAMS.items():
        if any(key.endswith(end) for key in entries):
            raise CheckpointError(f"{name}: this is a program of {kind}, not a state dict")
    size = stream.seek(0, os.SEEK_END)
    pickled = next((key for key in entries if key.endswith(_PICKLE)), None)
    if pickled is None:
        raise_damaged("torch.save did not write this zip file")
    folder = pickled.removesuffix(_PICKLE)
    mapped: Any = UntypedStorage.from_file(path, False, size) if path else None
    with zipfile.ZipFile(stream) as archive:
        for entry in entries.values():
            if not entry.CRC:  # torch leaves it 0 where the user switched checksums off
                del entry.CRC
        order = entries.get(f"{folder}/byteorder")
        if order and archive.read(order) != sys.byteorder.encode():
            raise_damaged("it is of a machine with another order of bytes")

        def fetch(key: str, nbytes: int, location: str) -> UntypedStorage:
            entry = entries.get(f"{folder}/data/{key}")
            if entry is None or entry.file_size < nbytes:
                raise_damaged(f"it lacks {nbytes:,} bytes of the storage {key!r}")
            begin = _begin(stream, entry)
            is_mapped = mapped is not None and entry.compress_type == zipfile.ZIP_STORED
            # torch's functions for complex numbers crash on memory that is not aligned.
            if is_mapped and begin % MAX_ITEM == 0 and begin + nbytes <= size:
                return place(mapped[begin : begin + nbytes], location)
            with archive.open(entry) as data:
                return place(_read_storage(data, nbytes), location)

        return PickleReader(
            io.BytesIO(archive.read(entries[pickled])), name, size, types, fetch
        ).read()


def _begin(stream: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of an entry begin."""
    stream.seek(entry.header_offset + 26)  # of the lengths of the name and of the extra field
    return entry.header_offset + 30 + sum(struct.unpack("<2H", stream.read(4)))


def _read_storage(stream: Any, nbytes: int) -> UntypedStorage:
    storage = UntypedStorage(nbytes)
    memory = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
    done = 0
    while done < nbytes:
        count = stream.readinto(memory[done:])
        if not count:
            raise_damaged("it was cut off")
        done += count
    return storage


def _read_legacy(stream: BinaryIO, name: str, types: Mapping[str, Any], place: Place) -> Any:
    """Read a file of torch < 1.6: five pickles, then the storages that the last of them lists.

    The fourth is the content. It is read twice, since where a storage lies is known only from the
    sizes of those before it.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)

    def nothing(*_: object) -> UntypedStorage:
        return UntypedStorage(0)

    def read() -> Any:
        return PickleReader(stream, name, size, {}, nothing).read()

    if read() != torch.serialization.MAGIC_NUMBER:
        raise_damaged("it does not begin as torch.save begins a file")
    for _ in range(2):
        read()
    content = stream.tell()
    finder = StorageFinder(stream, name, size, {}, nothing)
    finder.read()
    keys = read()
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(finder.storages):
        raise_damaged("it does not list the storages that its tensors ask for")
    places: dict[str, int] = {}
    for key in keys:
        kind, count = finder.storages[key]
        if int.from_bytes(stream.read(8), "little") != count:
            raise_damaged(f"the storage {key!r} is of another size than its tensors ask for")
        places[key] = stream.tell()
        stream.seek(kind.nbytes(count), os.SEEK_CUR)
    if stream.tell() > size:
        raise_damaged("it was cut off")

    def fetch(key: str, nbytes: int, location: str) -> UntypedStorage:
        here = stream.tell()
        stream.seek(places[key])
        storage = _read_storage(stream, nbytes)
        stream.seek(here)
        return place(storage, location)

    stream.seek(content)
    return PickleReader(stream, name, size, types, fetch).read()


def unwrap(
    loaded: Any, source: str, ema: bool, notes: list[str], depth: int = 8
) -> dict[str, Tensor]:
    """Return the tensors inside what a PyTorch file holds, through up to `depth` wrappers.

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
