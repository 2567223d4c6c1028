"""Features of many images into a folder, by an engine: safe against a kill.

The images are split into shards of a fixed number, in their order, as they are listed. A shard is
there once its JSON file is; `store` describes the files. A run leaves the shards that are there,
whose files and images are unchanged and of whose failed images none can be read now, and writes the
others. Of runs that begin a folder at the same time one decides about its settings.

Which images share a batch depends on the shard alone, and on the CPU every batch is computed by one
thread, several batches at a time. A shard therefore comes out the same to the bit on whichever
process and after however many interruptions it is written.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, starmap
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..images.files import ImageEntry
from ..images.reading import image_size_of
from ..utils.checks import check_choice, check_min, shorten_list
from ..utils.files import encode_json, errors_naming, expand_path, read_json, write_bytes
from .engines import ENGINES
from .extractor import Failure, FeatureExtractor
from .formats import FORMATS, Row
from .store import FORMAT, MANIFEST, PLAN, is_whole, open_file, read_shard, shard_name

_SHARD_IMAGES = 512
_SHARD_BYTES = 256 << 20
_MAX_FAILURES = 1000  # that a result names
_PARTIAL = (".features-*.part", f".*{PLAN}.*.part", f".{MANIFEST}.*.part")  # temporary files
_OLD = 24 * 3600  # seconds


class Shard(NamedTuple):
    """The images that are written, and kept, together."""

    number: int
    entries: list[ImageEntry]


class ShardReport(NamedTuple):
    """What became of a shard."""

    images: int  # with features
    failures: Mapping[str, str]  # name -> why the image could not be read
    kept: bool  # it was finished before


@dataclass
class ExtractionResult:
    """What a run of `extract_features` did."""

    images: int = 0  # with features
    failed: int = 0  # images that could not be read
    failures: dict[str, str] = field(default_factory=dict)  # the first of them, and why
    kept: int = 0  # shards that were finished before
    written: int = 0  # shards that this run wrote
    processed: int = 0  # images in the shards that this run wrote
    seconds: float = 0.0  # that it took

    def add(self, report: ShardReport) -> None:
        """Count a shard."""
        self.images += report.images
        self.failed += len(report.failures)
        self.failures.update(islice(report.failures.items(), _MAX_FAILURES - len(self.failures)))
        self.kept += report.kept
        self.written += not report.kept
        self.processed += 0 if report.kept else report.images + len(report.failures)


def extract_features(
    extractor: FeatureExtractor,
    images: Iterable[ImageEntry],
    out: str | os.PathLike[str],
    *,
    engine: str = "local",
    format: str | None = None,
    shard_images: int | None = None,
    shard_bytes: int | None = None,
    progress: bool = False,
    **engine_options: Any,
) -> ExtractionResult:
    """Write the features of images to a folder, or resume an earlier run.

    Example:
        >>> fx = FeatureExtractor("my-backbone", on_error="skip")
        >>> extract_features(fx, ImageList(["photos/"]), "maps").images
        3

    Args:
        extractor: What computes them; left as it is.
        images: The images, such as an `ImageList`; their names must differ.
        out: The folder; for Ray, one that every machine has.
        engine: "local", this process, or "ray".
        format: Of the files, "safetensors" or "parquet"; by default that of an earlier run, else
            safetensors in one process and Parquet with Ray.
        shard_images: Images in a shard, 512 when not given here or in an earlier run.
        shard_bytes: Size at which a shard goes on in another file, 256 MiB when not given.
        progress: Show a bar with the rate.
        engine_options: Of Ray: `address` of a cluster ("auto" finds one; without, Ray is started on
            this machine and ended), `workers` (one a CPU or a GPU share) and `gpus_per_worker` (0).

    Raises:
        ValueError: The folder holds features of other images or settings, or an image cannot be
            read and the extractor's `on_error` is "raise".
        OSError: The folder cannot be written, or a worker was lost again and again over one shard.
            Finished shards stay.
        ImportError: pyarrow or Ray is needed and missing.
    """
    check_choice("engine", engine, ENGINES)
    check_choice("format", format, (None, *FORMATS))
    out, start = Path(expand_path(out, "out")), time.perf_counter()
    entries = iter(images)
    # Errors of the sources come before anything is written.
    entries = chain(list(islice(entries, 1)), entries)
    chosen = ENGINES[engine]
    if not engine_options.keys() <= {*chosen.options}:
        raise ValueError(
            f"engine {engine!r} has the options {chosen.options}, got {tuple(engine_options)}"
        )
    own = copy.copy(extractor)
    own.run_options = chosen.configure(extractor.run_options, engine_options)
    plan: dict[str, Any] = {
        "format": FORMAT,
        "files": chosen.format,
        "shard_images": _SHARD_IMAGES,
        "shard_bytes": _SHARD_BYTES,
        "settings": _settings(own),
    }
    given = {"files": format, "shard_images": shard_images, "shard_bytes": shard_bytes}
    plan = _write_or_compare_plan(out, plan, {k: v for k, v in given.items() if v is not None})
    _remove_partial(out)  # of a run that was killed
    result, writer = ExtractionResult(), ShardWriter(own, out, plan)
    chunks = iter(lambda: list(islice(entries, plan["shard_images"])), [])
    shards = starmap(Shard, enumerate(chunks))
    with tqdm(unit="image", disable=not progress) as bar:
        for report in chosen.run(writer, shards, bar.update, **engine_options):
            result.add(report)
    _remove_partial(out)  # of workers that were killed, whose shards others wrote
    count = result.kept + result.written
    if (out / f"{shard_name(count)}.json").exists():
        raise _unusable(f"{out} was written from a different image list (it has more shards)")
    counts = {"shards": count, "images": result.images, "failures": result.failed}
    _write(out / MANIFEST, encode_json({"format": FORMAT, **plan["settings"], **counts}))
    result.seconds = time.perf_counter() - start
    return result


def _remove_partial(out: Path) -> None:
    """Remove files that a killed process had begun to write, and none that another run writes."""
    for partial in (path for kind in _PARTIAL for path in out.glob(kind)):
        with suppress(FileNotFoundError):  # it has its own name by now
            if not _is_being_written(partial):
                partial.unlink()


def _is_being_written(partial: Path) -> bool:
    """Return whether the process in a temporary file's name is alive; counts of tries name none.

    A process that has not written for a day is another one of the same number.
    """
    pid = partial.name.split(".")[-2]
    if not pid.isdecimal() or time.time() - partial.stat().st_mtime > _OLD:
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


# ------------------------------------------------------------------------------ the plan


def _write_or_compare_plan(
    out: Path, plan: dict[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the plan, or compare it with the one that is there; return the one that holds."""
    for name in ("shard_images", "shard_bytes"):
        check_min(name, given.get(name, 1), 1)
    path = out / PLAN
    # Looked for before the plan, which a run writes before its files.
    others = [k for k in FORMATS.values() if out.is_dir() and any(out.glob(f"*{k.suffix}"))]
    if not path.is_file():
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"cannot write into {out}: it is a file, not a folder")
        if others:
            text = f"{out} holds other {others[0].suffix[1:]} files: use another folder"
            raise ValueError(text)
        plan = {**plan, **given}
        FORMATS[plan["files"]].check_installed()  # an error comes before anything is written
        out.mkdir(parents=True, exist_ok=True)
        _write_first(path, plan)
    before = read_json(path)
    if before.get("format") != FORMAT:
        raise _unusable(f"{path} is damaged, or of another version of this package")
    damaged = [k for k, v in plan.items() if not isinstance(before.get(k), type(v))]
    if damaged:
        raise _unusable(f"{path} is damaged, it lacks {', '.join(damaged)}")
    for name, value in given.items():
        if before[name] != value:
            raise _unusable(f"{out} was begun with {name} {before[name]}, got {value}")
    new, old = _comparable(plan["settings"]), _comparable(before["settings"])
    changed = [name for name in new if new[name] != old.get(name)]
    if changed:
        raise _unusable(f"{out} was written with other settings ({', '.join(changed)} changed)")
    return before


def _settings(extractor: FeatureExtractor) -> dict[str, Any]:
    """Return what decides about the values, as a file gives it back."""
    return json.loads(json.dumps(extractor.describe()))


def _unusable(folder: str) -> ValueError:
    return ValueError(f"{folder}; use another folder or delete it")


def _write_first(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one step unless it is there."""
    partial = path.with_name(f".{path.name}.{get_ident()}.{os.getpid()}.part")
    with errors_naming(path):
        write_bytes(partial, encode_json(values))
        try:
            os.link(partial, path)
        except OSError:  # it is there, or the drive has no hard links
            if not path.exists():
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what decides about the values: the hash of the weights, not their path."""
    weights = settings.get("weights")
    return {**settings, "weights": weights.get("sha256") if isinstance(weights, dict) else None}


def _hash(plan: Mapping[str, Any]) -> str:
    """Return the hash of what a plan decides, which its shards carry."""
    plan = {**plan, "settings": _comparable(plan["settings"])}
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------ one shard


class ShardWriter:
    """Brings shards into the folder; one runs in every process of an engine."""

    def __init__(self, extractor: FeatureExtractor, out: Path, plan: Mapping[str, Any]) -> None:
        self.extractor = extractor
        self.out = out.absolute()
        self.plan = plan
        self.plan_hash = _hash(plan)
        self.format = FORMATS[plan["files"]]
        self.max_pixels = Image.MAX_IMAGE_PIXELS  # of this process, and so of every worker

    def start(self) -> None:
        """Prepare to run in a process of another machine than the one that made the plan.

        Raises:
            ValueError: It has other versions of what decides about the values.
            OSError: It does not have the folder.
        """
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        run = self.extractor.run_options
        self.extractor.model = run.prepare_model(self.extractor.model)
        path = self.out / PLAN
        if not path.is_file() or read_json(path) != self.plan:
            raise OSError(f"{self.out} must be a folder that all machines share, {path} is not")
        here = _settings(self.extractor)
        if here != self.plan["settings"]:
            wanted = self.plan["settings"]["versions"]
            raise ValueError(f"a worker must have the driver's {wanted}, got {here['versions']}")

    def __call__(self, shard: Shard, advance: Callable[[int], object]) -> ShardReport:
        """Write a shard unless it is there; call `advance` with numbers of images that are done."""
        versions = _digest(entry.version() for entry in shard.entries)
        before = self._read_before(shard)
        if (
            before is not None
            and before["images"] == versions
            and all(is_whole(self.out / file["file"], file["sha256"]) for file in before["files"])
            and not self._can_be_read(shard, before["failures"])
        ):
            advance(len(shard.entries))
            return _report(before, kept=True)
        record = {
            "names": _names(shard),
            "images": versions,
            "plan": self.plan_hash,
            **self._write(shard, advance),
        }
        _write(self.out / f"{shard_name(shard.number)}.json", encode_json(record))
        return _report(record, kept=False)

    def _read_before(self, shard: Shard) -> dict[str, Any] | None:
        """Return what is known of a shard that is there; None where it is not.

        ValueError if it is of other settings or images, which are not replaced.
        """
        try:
            before = read_shard(self.out, shard.number)
        except (OSError, ValueError):  # not written, or damaged since
            return None
        if before["plan"] != self.plan_hash:
            raise _unusable(f"{self.out} was written with other settings (shard {shard.number})")
        self._check_names(shard, before)
        return before

    def _can_be_read(self, shard: Shard, failures: Mapping[str, str]) -> bool:
        """Return whether an image that failed before does not now, as with a higher limit."""
        failed = [entry for entry in shard.entries if entry.name in failures]
        return any(self.extractor.stream(failed))

    def _check_names(self, shard: Shard, before: Mapping[str, Any]) -> None:
        if before["names"] == _names(shard):
            return
        wanted, found = {entry.name for entry in shard.entries}, set()
        for file in before["files"]:
            try:
                found |= {row.file for row in open_file(self.out / file["file"]).rows}
            except (OSError, ValueError):
                continue
        changes = {"added": sorted(wanted - found), "gone": sorted(found - wanted)}
        text = "; ".join(f"{k}: {shorten_list(v)}" for k, v in changes.items() if v)
        text = text or "in another order"
        raise _unusable(f"{self.out} was written from a different image list ({text})")

    def _write(self, shard: Shard, advance: Callable[[int], object]) -> dict[str, Any]:
        """Write the files of a shard; return what is to be known of them."""
        (self.out / MANIFEST).unlink(missing_ok=True)  # the folder is not finished, or no longer
        entries = self._by_size(shard.entries)
        files: list[dict[str, Any]] = []
        rows: list[tuple[Row, Mapping[str, Tensor] | None]] = []
        failures: dict[str, str] = {}
        size, share = 0, 0.0
        for result in self.extractor.stream(entries):
            entry = entries[result.index]
            if isinstance(result, Failure):
                failures[entry.name] = result.reason
                rows.append((Row(entry.name, None, None, result.reason), None))
            else:
                height, width = result.original_size
                rows.append((Row(entry.name, width, height, None), result))
                size += sum(x.nbytes for x in result.values())
            row, features = rows[-1]
            share += self.format.share(row, features or ())
            advance(1)
            if size >= self.plan["shard_bytes"] or share >= 1:
                files.append(self._write_file(shard, len(files), rows))
                rows, size, share = [], 0, 0.0
        if rows:
            files.append(self._write_file(shard, len(files), rows))
        self._remove_from(shard.number, len(files))
        return {"rows": len(entries), "failures": failures, "files": files}

    def _by_size(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Sort images by the size of their batches."""
        if self.extractor.has_one_size:
            return list(entries)

        def padded(entry: ImageEntry) -> tuple[int, int]:
            size = None
            with suppress(OSError, ValueError):  # it will fail once it is read
                size = image_size_of(entry.open())
            return self.extractor.padded_size(*(size or (1, 1)))

        return sorted(entries, key=padded)

    def _file(self, number: int, index: int) -> Path:
        return self.out / f"{shard_name(number)}-{index:02d}{self.format.suffix}"

    def _write_file(
        self, shard: Shard, index: int, rows: Sequence[tuple[Row, Mapping[str, Tensor] | None]]
    ) -> dict[str, Any]:
        path = self._file(shard.number, index)
        data = self.format.encode(rows, self.plan["settings"])
        self._read_before(shard)  # another run may have finished it meanwhile, of other images
        _write(path, data)
        digest = hashlib.sha256(data).hexdigest()
        return {"file": path.name, "sha256": digest, "bytes": len(data)}

    def _remove_from(self, number: int, index: int) -> None:
        """Remove the files that a shard of larger images had before."""
        while self._file(number, index).exists():
            self._file(number, index).unlink()
            index += 1


def _report(record: Mapping[str, Any], kept: bool) -> ShardReport:
    failures = record["failures"]
    return ShardReport(record["rows"] - len(failures), failures, kept)


def _names(shard: Shard) -> str:
    return _digest(entry.name for entry in shard.entries)


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data)
    except OSError as error:
        text = "finished shards are kept; rerun the same command to continue"
        raise OSError(f"cannot write {path}: {error.strerror or error}; {text}") from error
