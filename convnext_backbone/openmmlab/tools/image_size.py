"""`custom_dataset.image_size`: another size of the images in every pipeline of a config."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from ..config_walk import is_pair, iter_dicts, iter_named_dicts, split_datasets, type_name
from .errors import UsageError
from .typed import TypedOptions

_RESIZING = ("scale", "scales", "img_scale")
_CROPPING = ("crop_size", "size")
_PIPELINES = ("train_dataloader", "val_dataloader", "test_dataloader", "tta_pipeline")
_MULTIPLE = 32  # crops are a multiple of the last stage's stride
Size = tuple[int, int]  # (width, height) in pixels; what crops is (height, width)


def apply_image_size(cfg: Config, image_size: Any, typed: TypedOptions) -> None:
    """Resize images to another size, and crop in proportion, wherever the config does either.

    `image_size` is the box that images are fitted into, `(width, height)` in pixels, or the side of
    a square one. What the user typed stays.

    Raises:
        UsageError: `image_size` is no size.
    """
    box = _parse_size(image_size)
    # The long side of a published size such as (1333, 800) or (2048, 512) is a limit only.
    factor = min(box) / min(_published_size(cfg, box))
    for step, where in _iter_steps(cfg):
        for key in _RESIZING:
            if key in step:
                whole = where.startswith("tta_pipeline")  # its sizes are factors of the test's
                fit = functools.partial(_fit, factor=factor, box=box, whole=whole)
                typed.fill_in(step, key, _map_sizes(step[key], fit), where=where)
        _crop_all(step, where, _CROPPING, factor, typed)
    for split in ("train", "val", "test"):
        for dataset, where in split_datasets(cfg, split):
            if not typed.covers(f"{where}.pipeline"):
                _add_resize(dataset.get("pipeline"), box, split)
    model = cfg.model
    for part, where in iter_named_dicts(model.get("test_cfg") or {}, "model.test_cfg"):
        _crop_all(part, where, ("crop_size", "stride"), factor, typed)  # of sliding windows
    preprocessor = model.get("data_preprocessor") or {}
    for part, where in iter_named_dicts(preprocessor, "model.data_preprocessor"):
        _crop_all(part, where, ("size", "random_size_range"), factor, typed)  # of whole batches


def _parse_size(value: Any) -> Size:
    sides = (value, value) if isinstance(value, int) else value
    if not is_pair(sides) or min(sides) < _MULTIPLE:
        raise UsageError(
            "custom_dataset.image_size must be a side or (width, height) in pixels, at least "
            f"{_MULTIPLE}, got {value!r}"
        )
    return (int(sides[0]), int(sides[1]))


def _add_resize(pipeline: Any, box: Size, split: str) -> None:
    """Give a pipeline that keeps images at their own size a step that resizes them."""
    steps = list(iter_dicts(pipeline or ()))
    if not isinstance(pipeline, list) or any(key in step for step in steps for key in _RESIZING):
        return
    kept = next((step for step in steps if type_name(step) == "Resize"), None)
    if kept is not None:
        kept.pop("scale_factor", None)
        kept.scale = box
        return
    # Boxes, masks and label maps are resized for training; for evaluation they keep their size.
    loads = "Load" if split == "train" else "LoadImage"
    last = [i for i, step in enumerate(pipeline) if type_name(step).startswith(loads)]
    if last:
        pipeline.insert(last[-1] + 1, ConfigDict(type="Resize", scale=box, keep_ratio=True))


def _published_size(cfg: Config, box: Size) -> Size:
    """Return the size that the config tests at, or else trains at."""
    for place in ("val_dataloader", "test_dataloader", "train_dataloader"):
        sizes = [s["scale"] for s, _ in _iter_steps(cfg, (place,)) if is_pair(s.get("scale"))]
        if sizes:
            return sizes[0]
    return box


def _iter_steps(
    cfg: Config, places: Sequence[str] = _PIPELINES
) -> Iterator[tuple[ConfigDict, str]]:
    for place in (*places, "custom_hooks"):  # a hook may switch to another pipeline
        for part, where in iter_named_dicts(cfg.get(place) or (), place):
            if "pipeline" in where:
                yield part, where


def _map_sizes(value: Any, function: Callable[[Size], Size]) -> Any:
    """Apply `function` to one size, or to each of a list of sizes; an integer is a square."""
    if isinstance(value, int):
        value = (value, value)
    if is_pair(value):
        return function(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return [function(size) if is_pair(size) else size for size in value]


def _fit(size: Size, factor: float, box: Size, whole: bool) -> Size:
    """Scale a published size, `(long, short)` or `(short, long)`.

    A square, or any size where `whole` is set, becomes a multiple of `box`; the long and the short
    side of another size stay within those of `box`.
    """
    if whole or size[0] == size[1]:
        part = min(size) * factor / min(box)
        return (round(part * box[0]), round(part * box[1]))
    long, short = (
        min(round(side * factor), limit)
        for side, limit in zip(sorted(size)[::-1], sorted(box)[::-1], strict=True)
    )
    return (long, short) if size[0] > size[1] else (short, long)


def _crop_all(
    part: ConfigDict, where: str, keys: Sequence[str], factor: float, typed: TypedOptions
) -> None:
    for key in keys:
        if is_pair(part.get(key)):
            typed.fill_in(part, key, _crop(part[key], factor), where=where)


def _crop(size: Sequence[int], factor: float) -> tuple[int, int]:
    height, width = (max(_MULTIPLE, int(side * factor) // _MULTIPLE * _MULTIPLE) for side in size)
    return (height, width)
