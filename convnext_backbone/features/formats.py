"""Files of features, one row an image; a format is a row of `FORMATS`.

- safetensors: the tensors under `FEATURE/IMAGE`, each read alone, by name.
- Parquet: the columns `file`, `width`, `height` and `error`; a vector is a fixed-size list under
  the name of its feature, a map a list with its (C, H, W) in `FEATURE_shape`. bfloat16 is kept as
  float32, which holds it exactly. pandas, DuckDB, polars and others read it without this package;
  by name, the row group that holds an image is read.

What decides about the values is kept as JSON in the metadata `convnext_backbone` of the header or
the schema, in safetensors with the rows.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..images.reading import to_numpy
from ..utils.parquet import import_parquet

SETTINGS = "convnext_backbone"
_MAX_HEADER = 90_000_000  # bytes of rows in the header of safetensors, which reads 100 MB
_ENTRY_BYTES = 128  # of a tensor in the header of safetensors at most, without its name
_GROUP_BYTES = 1 << 19  # of a feature in a row group, which is read as a whole


class Row(NamedTuple):
    """One image of a shard; `error` is why it has no features, the sizes are those of its file."""

    file: str
    width: int | None
    height: int | None
    error: str | None


Rows = Sequence[tuple[Row, Mapping[str, Tensor] | None]]


class FeatureFile(Protocol):
    """An open file of features."""

    @property
    def rows(self) -> list[Row]:
        """The rows, without their features."""

    def load(self, row: int, name: str, feature: str) -> Tensor:
        """Return a feature of the image in a row, whose name is `name`."""


def _encode_safetensors(rows: Rows, settings: Mapping[str, Any]) -> bytes:
    tensors = {
        f"{name}/{row.file}": tensor
        for row, features in rows
        for name, tensor in (features or {}).items()
    }
    header = {"rows": [row for row, _ in rows], "settings": settings}
    # One entry: safetensors writes several in any order, and equal rows must give equal bytes.
    return save(tensors, metadata={SETTINGS: json.dumps(header)})


def _safetensors_share(row: Row, features: Iterable[str]) -> float:
    names = [f"{name}/{row.file}" for name in features]
    size = len(json.dumps(json.dumps(row))) + sum(len(json.dumps(x)) + _ENTRY_BYTES for x in names)
    return size / _MAX_HEADER


class SafetensorsFile:
    """See the module; opening maps the file, a tensor is read when it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = safe_open(path, framework="pt")

    @property
    def rows(self) -> list[Row]:
        """The rows, without their features."""
        header = json.loads(self._file.metadata()[SETTINGS])
        return [Row(*row) for row in header["rows"]]

    def load(self, row: int, name: str, feature: str) -> Tensor:
        """See `FeatureFile`."""
        return self._file.get_tensor(f"{feature}/{name}")


def _encode_parquet(rows: Rows, settings: Mapping[str, Any]) -> bytes:
    pq = import_parquet()
    import pyarrow as pa

    number = pa.float16() if settings["dtype"] == "float16" else pa.float32()
    types = {"file": pa.string(), "width": pa.int32(), "height": pa.int32(), "error": pa.string()}
    columns = {
        name: pa.array([getattr(row, name) for row, _ in rows], kind)
        for name, kind in types.items()
    }
    largest = 1
    for name, about in settings["features"].items():
        tensors = [None if x is None else x[name].contiguous() for _, x in rows]
        largest = max(largest, *(x.nbytes for x in tensors if x is not None), 1)
        kind = pa.list_(number, about["channels"])
        if settings["pool"] is None:
            kind = pa.list_(number)
            shapes = [x if x is None else list(x.shape) for x in tensors]
            columns[f"{name}_shape"] = pa.array(shapes, pa.list_(pa.int32()))
        columns[name] = pa.array([x if x is None else to_numpy(x).ravel() for x in tensors], kind)
    table = pa.table(columns).replace_schema_metadata({SETTINGS: json.dumps(settings)})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, _GROUP_BYTES // largest),
        compression="none",  # floating-point numbers hardly shrink
        use_dictionary=False,
        write_statistics=["file"],
    )
    return sink.getvalue().to_pybytes()


class ParquetFile:
    """See the module; the row group that was read last is kept."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = import_parquet().ParquetFile(path, memory_map=True)
        self._columns = set(self._file.schema_arrow.names)
        settings = json.loads(self._file.schema_arrow.metadata[SETTINGS.encode()])
        self._dtype = getattr(torch, settings["dtype"])
        groups = range(self._file.num_row_groups)
        counts = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._starts = list(accumulate(counts, initial=0))
        self._kept: tuple[Any, Any] = (None, None)

    @property
    def rows(self) -> list[Row]:
        """The rows, without their features."""
        table = self._file.read(columns=list(Row._fields))
        return [Row(*row) for row in zip(*(table[n].to_pylist() for n in Row._fields), strict=True)]

    def load(self, row: int, name: str, feature: str) -> Tensor:
        """See `FeatureFile`."""
        group = bisect_right(self._starts, row) - 1
        if self._kept[0] != (group, feature):
            columns = [c for c in (feature, f"{feature}_shape") if c in self._columns]
            self._kept = (group, feature), self._file.read_row_group(group, columns=columns)
        table, position = self._kept[1], row - self._starts[group]
        values = torch.tensor(table[feature][position].values.to_numpy(), dtype=self._dtype)
        shape = f"{feature}_shape"
        return values.reshape(table[shape][position].as_py()) if shape in self._columns else values


class FileFormat(NamedTuple):
    """A kind of file."""

    suffix: str
    encode: Callable[[Rows, Mapping[str, Any]], bytes]  # of rows and settings
    open: Callable[[str | os.PathLike[str]], FeatureFile]
    # ImportError where a package is missing.
    check_installed: Callable[[], object] = lambda: None
    # Of a row and the names of its features: the part that they take of what one file may hold.
    share: Callable[[Row, Iterable[str]], float] = lambda row, features: 0.0


FORMATS = {
    "safetensors": FileFormat(
        ".safetensors", _encode_safetensors, SafetensorsFile, share=_safetensors_share
    ),
    "parquet": FileFormat(".parquet", _encode_parquet, ParquetFile, import_parquet),
}
