"""Checks of folders of images and label maps, as mmsegmentation's `BaseSegDataset` reads them."""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from mmengine.fileio import list_dir_or_file
from mmengine.registry import TRANSFORMS
from PIL import Image

from ....utils.files import IMAGE_SUFFIXES
from ...config_walk import (
    as_list,
    find_preprocessor,
    is_local,
    is_remote,
    iter_dicts,
    iter_heads,
    split_metrics,
    type_name,
)
from ..datasets import DataSource, find_class, is_published
from ..errors import UsageError
from .classes import check_losses, check_num_classes
from .images import MAX_IMAGES, ImageReader, check_exist, show_progress, spread
from .metrics import iter_iou_metrics
from .report import Report, count_table, list_quoted

_MAX_LABEL_MAPS = 1000  # each is decoded
_IGNORED_LABEL = 255  # mmsegmentation's default of `ignore_index`
_DIVISOR = 32  # the last stage's stride
_VALUES = 256  # mmsegmentation reads labels as uint8


def check_label_maps(source: DataSource, report: Report) -> np.ndarray | None:
    """Check one data set: files, sizes, labels, classes, heads.

    Returns:
        The pixels of each value of its label maps; None where they are not read.

    Raises:
        UsageError: Something does not fit or cannot be read.
    """
    images, maps = source.folder("img_path"), source.folder("seg_map_path")
    stems, suffix = source.stems(), source.built.img_suffix
    steps = list(iter_dicts(source.pipeline))
    loads = [step for step in steps if type_name(step) == "LoadAnnotations"]
    # A step of the user's may name the files.
    known = all(is_published(find_class(step.get("type"), TRANSFORMS)) for step in source.pipeline)
    if loads and known and source.built.data_prefix.get("seg_map_path") is None:
        raise UsageError(
            f"{source.where}.data_prefix has no seg_map_path, the folder of the label maps that "
            "LoadAnnotations reads"
        )
    _check_names(source, report)
    if stems is None or not maps or is_remote(maps):
        return None
    listed = os.path.isfile(source.ann_file)
    if listed and not stems:
        raise UsageError(f"{source.where}.ann_file {source.ann_file!r} lists no image")
    if not listed:
        _check_suffixes(source, bool(stems), report)
    listed_in = source.ann_file if listed else images
    if ImageReader(source.pipeline).opens_files:
        check_exist(images, [stem + suffix for stem in stems], listed_in)
    # mmsegmentation's own step reads them from files; others may read anything, or change labels.
    reads = all(is_local(s) and s.get("imdecode_backend") != "tifffile" for s in loads)
    if loads and known and reads:
        check_exist(maps, [stem + source.built.seg_map_suffix for stem in stems], listed_in)
        # Of another resolution, they are resized to the size of their images; an evaluation is not.
        resizes = report.split == "train" and any("Resize" in type_name(step) for step in steps)
        backend = loads[0].get("imdecode_backend", "pillow")
        if source.classes:
            return _check_contents(source, stems, resizes, backend, report)
    return None


def _check_names(source: DataSource, report: Report) -> None:
    """Check the names of the classes; without them mmsegmentation trains, but does not evaluate."""
    if source.classes:
        check_losses(source.classes, source.where, report)
        check_num_classes(report.cfg, len(source.classes))
    elif report.split != "train" and any(iter_iou_metrics(report.cfg, report.split)):
        given = ", ".join(source.config.get("metainfo") or ())
        raise UsageError(
            f"{source.where}.metainfo.classes is missing{f' (it has {given})' if given else ''}: "
            "IoUMetric counts by the names of the classes"
        )


def _check_contents(
    source: DataSource,
    stems: Sequence[str],
    resizes: bool,
    backend: str | None,
    report: Report,
) -> np.ndarray:
    """Open images and label maps, check each pair and what all hold together."""
    where, built, reader = source.where, source.built, ImageReader(source.pipeline)
    images, maps = source.folder("img_path"), source.folder("seg_map_path")
    values = _Values(source, _void_labels(report))
    option = report.option(where, "reduce_zero_label", "reduce_zero_label")
    counts = np.zeros(_VALUES, np.int64)  # the pixels of each value
    sizes: Counter[tuple[int, ...]] = Counter()
    void, scaled = [], []  # without a pixel of a class; of another size than their image
    sample = spread(stems, None if report.everything else _MAX_LABEL_MAPS)
    for stem in show_progress(sample, f"checking the label maps of {maps}"):
        path = os.path.join(maps, stem + built.seg_map_suffix)
        labels = _read_labels(path, backend)
        size = reader.check(os.path.join(images, stem + built.img_suffix))
        if size is not None and size != labels.shape[::-1]:
            _check_proportions(labels, path, size, resizes)
            scaled.append(path)
        sizes[labels.shape[::-1]] += 1
        own = np.bincount(labels.ravel(), minlength=_VALUES)
        values.check(own, path, option)
        counts += own
        if not values.per_class(own).any():
            void.append(path)
    others = set(stems).difference(sample)
    for stem in spread(sorted(others), MAX_IMAGES):
        reader.check(os.path.join(images, stem + built.img_suffix))
    values.check_all(counts, where, report, len(sample), len(stems))
    if scaled:
        report.warn(
            f"{where}: {len(scaled)} label maps have another resolution than their images, "
            f"such as {scaled[0]!r}; they can be trained on, not evaluated"
        )
    if void:
        report.warn(f"{where}: {len(void)} label maps are void throughout, such as {void[0]!r}")
    _check_batch(report, len(sizes))
    per_class = values.per_class(counts)
    num_void = counts.sum() - per_class.sum()
    read = f", {len(sample):,} of them read" if others else ""
    (common, _), *_ = sizes.most_common(1)
    lines = [
        f"{where}: {images}, {len(stems):,} images{read}",
        f"  image sizes: {len(sizes)}, most often {common[0]} x {common[1]}",
        count_table([*zip(source.classes, per_class, strict=True), ("(void)", num_void)], "pixels"),
    ]
    report.summaries.append("\n".join(lines))
    return counts


def check_zero_labels(read: Sequence[tuple[DataSource, np.ndarray | None]], report: Report) -> None:
    """Check that all data sets read the value 0 alike, as void or as the first class.

    Raises:
        UsageError: They do not, though the label maps have the same values: every evaluation would
            be off by one class.
    """
    found = [(source, counts) for source, counts in read if counts is not None]
    for other, others in found[1:]:
        first, firsts = found[0]
        if first.built.reduce_zero_label == other.built.reduce_zero_label:
            continue
        reduced, counts = (first, firsts) if first.built.reduce_zero_label else (other, others)
        text = " and ".join(
            f"{source.where}.reduce_zero_label={source.built.reduce_zero_label}"
            for source in (first, other)
        )
        # Where 0 is void, the last class has their number for its value.
        if counts[0] and not counts[len(_Values(reduced, set()).names)]:
            raise UsageError(
                f"{text} read the value 0 differently, but the labels of both start from 0: set "
                "one value for all splits"
            )
        report.warn(f"{text}: the value 0 is void in one, the first class in the other")


def _check_batch(report: Report, num_sizes: int) -> None:
    """Report an evaluation in batches whose images mmsegmentation does not pad to one size."""
    loader, *_ = as_list(report.cfg.get(f"{report.split}_dataloader")) or [{}]
    batch, pads = loader.get("batch_size", 1), find_preprocessor(report.cfg).get("test_cfg")
    if report.split != "train" and batch > 1 and num_sizes > 1 and not pads:
        report.warn(
            f"{report.split}_dataloader.batch_size={batch}: images of {num_sizes} sizes only stack "
            "where the pipeline gives them one; else set batch_size=1 or "
            f"model.data_preprocessor.test_cfg.size_divisor={_DIVISOR}"
        )


def _check_proportions(labels: np.ndarray, path: str, size: tuple[int, int], resizes: bool) -> None:
    height, width = labels.shape
    if not resizes or width * size[1] != height * size[0]:
        turned = "; its EXIF orientation turns it, or they are swapped"
        raise UsageError(
            f"label map {path!r} is {width} x {height} pixels, but its image is "
            f"{size[0]} x {size[1]}{turned if size == (height, width) else ''}"
        )


def _check_suffixes(source: DataSource, found: bool, report: Report) -> None:
    images, suffix, where = source.folder("img_path"), source.built.img_suffix, source.where
    if not os.path.isdir(images):
        return
    # Label maps may lie beside the images, or in a folder inside theirs.
    inside = os.path.relpath(source.folder("seg_map_path"), images)
    beside = inside == os.curdir

    def is_map(name: str) -> bool:
        suffix = source.built.seg_map_suffix
        return name.endswith(suffix) if beside else name.startswith(inside + os.sep)

    others = Counter(
        os.path.splitext(name)[1]
        for name in list_dir_or_file(images, list_dir=False, recursive=True)
        if not name.endswith(suffix) and not is_map(name)
    )
    option = report.option(where, "img_suffix", "img_suffix")
    if not found:
        kinds = ", ".join(sorted(kind for kind in others)) or "no file at all"
        raise UsageError(
            f"folder {images!r} has no image named *{suffix} (it has {kinds}); set {option}"
        )
    left_out = {k: n for k, n in others.items() if k.lower() in IMAGE_SUFFIXES}
    if left_out:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(left_out.items()))
        report.warn(
            f"folder {images!r}: only files named *{suffix} are read, {kinds} are left out; "
            f"{option} is one suffix for all: convert the others"
        )


def _read_labels(path: str, backend: str | None) -> np.ndarray:
    """Read a label map as `(H, W)` of uint8.

    Pillow finds what is damaged. A palette, and more pixels than it opens, are read by the backend.
    """
    try:
        with Image.open(path) as image:
            labels, differs = np.asarray(image), image.mode == "P"
    except Image.DecompressionBombError as error:
        if backend == "pillow":
            raise UsageError(f"label map {path!r} cannot be read: {error}") from error
        differs = True
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"label map {path!r} cannot be read: {error}") from error
    reader = ""
    if differs and backend != "pillow":
        import mmcv

        labels = mmcv.imread(path, flag="unchanged", backend=backend).squeeze()
        reader = f" with imdecode_backend={backend!r}, and one with 'pillow'"
    if labels.ndim != 2:
        raise UsageError(
            f"label map {path!r} has {labels.shape[2]} channels{reader}; a label map has one, "
            "whose values are the classes"
        )
    read, beyond = labels.astype(np.uint8), (labels < 0) | (labels >= _VALUES)
    if (read[beyond] != _IGNORED_LABEL).any():  # 65535 and -1 are void as well
        raise UsageError(
            f"label map {path!r} holds values from {labels.min()} to {labels.max()}; "
            f"mmsegmentation reads them modulo {_VALUES}"
        )
    return read


def _void_labels(report: Report) -> set[int]:
    """Return the labels that all losses of a training, or all metrics of an evaluation, ignore."""
    metrics = [metric for metric, _ in split_metrics(report.cfg, report.split)]
    parts = [metric for metric in metrics if type_name(metric) == "IoUMetric"]
    parts = parts or [head for head, _ in iter_heads(report.cfg)]
    given = {part.get("ignore_index") for part in parts} or {None}
    labels = {_IGNORED_LABEL if label is None else label for label in given}
    return labels if len(labels) == 1 else set()


class _Values:
    """The values of label maps and the classes that they stand for.

    Args:
        source: The data set. With `reduce_zero_label` 0 is void and class k has the value k + 1.
        void: The labels that are ignored.
    """

    def __init__(self, source: DataSource, void: set[int]) -> None:
        self.classes, self.reduced = source.classes, source.built.reduce_zero_label
        # Reducing turns 0 into 255, and leaves 255 as it is.
        self.void = {k + self.reduced if k < _IGNORED_LABEL - self.reduced else k for k in void}
        # Of a type's own classes some may be chosen; the others become void.
        own = source.built.METAINFO.get("classes")
        self.names = tuple(own) if own is not None else self.classes

    def per_class(self, counts: np.ndarray) -> np.ndarray:
        """Return the numbers of pixels of each class, from those of each value."""
        first = int(self.reduced)
        return np.array([counts[first + self.names.index(name)] for name in self.classes])

    def check(self, counts: np.ndarray, path: str, option: str) -> None:
        """Refuse values beyond the classes.

        Raises:
            UsageError: There are some; training would fail on them.
        """
        highest = len(self.names) + self.reduced - 1
        wrong = [v for v in np.flatnonzero(counts) if v > highest and v not in self.void]
        if wrong:
            offset = (
                "1 to the number of classes, 0 being void" if self.reduced else "0 to one below it"
            )
            raise UsageError(
                f"label map {path!r} holds the value {wrong[0]}, but there are {len(self.names)} "
                f"classes: with reduce_zero_label={self.reduced} its values go from {offset} "
                f"({option}), and {self._name_void()} is void (ignore_index)"
            )

    def _name_void(self) -> str:
        return ", ".join(map(str, self.void)) or "no value that all ignore"

    def check_all(
        self, counts: np.ndarray, where: str, report: Report, read: int, number: int
    ) -> None:
        """Check what the label maps hold together.

        Raises:
            UsageError: Nothing can be learnt from them, or their classes seem to start from 0.
        """
        option = report.option(where, "reduce_zero_label", "reduce_zero_label")
        per_class = self.per_class(counts)
        absent = [name for name, n in zip(self.classes, per_class, strict=True) if not n]
        what = "the label maps" if read == number else f"{read} of the {number} label maps"
        found = ", ".join(str(value) for value in np.flatnonzero(counts)[:12])
        text = f"{where}: {what} hold no pixel of {list_quoted(absent)}; their values are {found}"
        all_read = read == number
        trains = report.split == "train"
        if trains and all_read and len(self.classes) - len(absent) < min(2, len(self.classes)):
            raise UsageError(f"{text}, of which {self._name_void()} is void: nothing can be learnt")
        typed = (report.cfg.get("custom_dataset") or {}).get("reduce_zero_label") is not None
        from_zero = self.reduced and counts[0] and self.classes[-1] in absent
        if from_zero and all_read and trains and not typed and option.startswith("custom_"):
            raise UsageError(
                f"{text}. Do the classes start from 0? Then set {option}=False; if 0 is void, as "
                f"it is by default, {option}=True"
            )
        if absent:
            report.warn(text)
