"""What the data sets of a config are: their class, their names of classes, their files."""

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_dir_or_file
from mmengine.registry import DATASETS, DefaultScope

from ..config_walk import choose_indices, is_local, is_remote, join_root, type_name
from .coco import images_in_use, read_coco
from .errors import CONFIG_ERRORS, UsageError

# The defaults of mmsegmentation's `BaseSegDataset`.
_LABEL_MAP_DEFAULTS: Mapping[str, Any] = {
    "img_suffix": ".jpg",
    "seg_map_suffix": ".png",
    "reduce_zero_label": False,
}
# Data sets of others whose lengths add up, or are repeated.
_WRAPPERS = ("ConcatDataset", "MultiImageMixDataset", "RepeatDataset")
# What a data set may set in its constructor.
_SETTINGS = ("ann_file", "data_prefix", "metainfo", "filter_cfg", "test_mode", *_LABEL_MAP_DEFAULTS)


class Reads(Enum):
    """What a data set reads, by the class of mmdet or mmsegmentation that reads it."""

    COCO = "CocoDataset"
    LABEL_MAPS = "BaseSegDataset"


def resolve_dataset(dataset: Mapping[str, Any]) -> tuple[Reads, Mapping[str, Any]] | None:
    """Return what a data set reads, and its settings as its class completes them.

    None where that is not known: a class of another kind, one that overrides a method of its base,
    or one that cannot be built.

    Raises:
        UsageError: Its type is not registered.
    """
    type_ = dataset_class(dataset)
    for reads in Reads:
        classes = getattr(type_, "__mro__", ())
        index = next((i for i, c in enumerate(classes) if _is_own(c, reads.value)), None)
        if index == 0:
            return reads, dataset
        if index is not None and not any(_overrides(c, classes[index]) for c in classes[:index]):
            complete = _complete(dataset)
            return None if complete is None else (reads, complete)
    return None


def _is_own(type_: type, name: str) -> bool:
    return type_.__name__ == name and type_.__module__.startswith(("mmdet.", "mmseg."))


def _overrides(type_: type, base: type) -> bool:
    """Return whether a class has other methods than its base, its constructor left aside."""
    names = [name for name in vars(type_) if name != "__init__" and hasattr(base, name)]
    return any(callable(getattr(type_, name)) for name in names)


def _complete(dataset: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the settings of a data set after its constructor, which reads no file of it."""
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": True})
    except CONFIG_ERRORS:  # a constructor of the user's may raise anything
        return None  # the run's own error names the argument
    own = {name: getattr(built, name) for name in _SETTINGS if hasattr(built, name)}
    return {**dataset, **own, "data_root": ""}  # its paths are joined


def dataset_class(dataset: Mapping[str, Any]) -> Any:
    """Return the class of a data set, looked up in the current default scope.

    Raises:
        UsageError: It is not registered.
    """
    type_ = dataset["type"]
    if not isinstance(type_, str):
        return type_
    with DATASETS.switch_scope_and_registry(None) as registry:
        found = registry.get(type_)
    if found is None:
        raise UsageError(f"data set type {type_!r} is not registered")
    return found


def class_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a data set will have: those of its config, or of its type."""
    given = (dataset.get("metainfo") or {}).get("classes")
    own = getattr(dataset_class(dataset), "METAINFO", {})
    classes = given if given is not None else own.get("classes", ())
    if isinstance(classes, str):
        # mmengine takes a file with a name a line, too.
        if os.path.isfile(classes):
            with open(classes, encoding="utf-8") as file:
                return tuple(line.strip() for line in file if line.strip())
        return (classes,)
    return tuple(classes)


def annotation_path(dataset: Mapping[str, Any]) -> str:
    """Return the path of a data set's annotation file; empty where no file is meant."""
    path = dataset.get("ann_file") or ""
    path = join_root(dataset.get("data_root"), path) if path else ""
    return path if is_local(dataset) and not is_remote(path) else ""


def image_folder(dataset: Mapping[str, Any]) -> str:
    """Return the folder that the file names of a COCO data set are relative to."""
    return join_root(dataset.get("data_root"), (dataset.get("data_prefix") or {}).get("img") or "")


def label_map_folders(dataset: Mapping[str, Any]) -> tuple[str, str]:
    """Return the folders of images and of label maps; empty where there is none."""
    prefix = dataset.get("data_prefix") or {}
    root = dataset.get("data_root")
    images, maps = (prefix.get(key) or "" for key in ("img_path", "seg_map_path"))
    return (join_root(root, images) if images else "", join_root(root, maps) if maps else "")


def list_stems(dataset: Mapping[str, Any]) -> Sequence[str] | None:
    """List the images of folders of label maps without their suffix, as mmsegmentation does.

    None where the folder is missing, or no folder is meant.
    """
    images, _ = label_map_folders(dataset)
    suffix = label_map_settings(dataset)["img_suffix"]
    path = annotation_path(dataset)
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return choose_indices([line.strip() for line in file], dataset)
    if not is_local(dataset) or is_remote(images) or not os.path.isdir(images):
        return None
    names = list_dir_or_file(images, list_dir=False, suffix=suffix, recursive=True)
    return choose_indices([name[: -len(suffix)] for name in sorted(names)], dataset)


def label_map_settings(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return suffixes and `reduce_zero_label` of folders of label maps."""
    return {key: dataset.get(key, value) for key, value in _LABEL_MAP_DEFAULTS.items()}


def count_training_images(cfg: Config, *, build: bool = False) -> int | None:
    """Return the number of images of an epoch; None where files are missing or it is not known.

    Args:
        cfg: The config.
        build: Build the data set where its class is not known, and ask it.
    """
    dataset = cfg.train_dataloader.get("dataset")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            count = _count_images(dataset)
        except FileNotFoundError:
            return None
        if count is not None or not build:
            return count
        try:
            return len(DATASETS.build(dataset))
        except CONFIG_ERRORS:  # a class of the user's may raise anything
            return None


def _count_images(dataset: Any) -> int | None:
    if not isinstance(dataset, Mapping):
        return None
    parts: Sequence[Any] = dataset.get("datasets") or [dataset.get("dataset")]
    if parts[0] is not None:
        counts = [_count_images(part) for part in parts]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or type_name(dataset) not in _WRAPPERS:
            return None
        return sum(known) * dataset.get("times", 1)
    resolved = resolve_dataset(dataset)
    if resolved is None or not is_local(dataset):
        return None
    reads, dataset = resolved
    if reads is Reads.COCO:
        path = annotation_path(dataset)
        if not path:  # of a storage
            return None
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        return len(images_in_use(read_coco(path), class_names(dataset), dataset))
    stems = list_stems(dataset)
    if not stems:
        raise FileNotFoundError(label_map_folders(dataset)[0])
    return len(stems)
