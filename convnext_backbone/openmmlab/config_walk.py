"""Walking through the nested dicts of an OpenMMLab config."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `backbone_config` has an error of its own where mmengine is missing
    from mmengine.config import ConfigDict

SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder")  # mmsegmentation's
# Heads that have classes of their own: objects and background, borders, stuff and things, words.
_OTHER_CLASSES = (
    "RPNHead",
    "STDCHead",
    "FusedSemanticHead",
    "SCNetSemanticHead",
    "GroundingDINOHead",
)


def type_name(part: Mapping[str, Any]) -> str:
    """Return the name of the class that `type` names, by a string or as the class itself.

    Without its module or scope ("mmdet.RPNHead"); empty where there is no type.
    """
    type_ = part.get("type")
    name = type_ if isinstance(type_, str) else getattr(type_, "__name__", "")
    return name.rpartition(".")[2]


def as_list(value: Any) -> list[Any]:
    """Return the items of a setting that may be one value, several or none."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [] if value is None else [value]


def is_pair(value: Any) -> bool:
    """Return whether a setting is two integers, as a size is."""
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    )


def iter_dicts(value: Any) -> Iterator["ConfigDict"]:
    """Yield every dict inside `value`, itself included, outer ones first."""
    return (part for part, _ in iter_named_dicts(value, ""))


def iter_named_dicts(value: Any, where: str) -> Iterator[tuple["ConfigDict", str]]:
    """Yield every dict inside `value` with its dotted name; `where` is the name of `value`."""
    items: Any = ()
    if isinstance(value, Mapping):
        yield value, where
        items = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = enumerate(value)
    for key, item in list(items):
        yield from iter_named_dicts(item, f"{where}.{key}")


def list_named(value: Any, where: str) -> list[tuple["ConfigDict", str]]:
    """List a part of a config that may be one dict, several or none, each with its name."""
    if isinstance(value, Mapping):
        return [(value, where)] if value else []
    return [(part, f"{where}.{index}") for index, part in enumerate(value or ())]


def inner_model(cfg: Any) -> "ConfigDict":
    """Return the model of a config, which --tta wraps."""
    return cfg.model.get("module", cfg.model)


def find_preprocessor(cfg: Any) -> Mapping[str, Any]:
    """Return the settings of the data preprocessor: the model's, or else those of the top level."""
    return inner_model(cfg).get("data_preprocessor") or cfg.get("data_preprocessor") or {}


def iter_heads(cfg: Any) -> Iterator[tuple["ConfigDict", str]]:
    """Yield every part of the model that predicts the classes of the data, with its name."""
    for part, where in iter_named_dicts(inner_model(cfg), "model"):
        own = type_name(part) not in _OTHER_CLASSES and "rpn_head" not in where
        if class_count_key(part) in part and own and not part.get("class_agnostic"):
            yield part, where


def class_count_key(head: Mapping[str, Any]) -> str:
    """Return the name of a head's number of classes; of MaskFormer's, where it has no stuff."""
    has_things_only = head.get("num_stuff_classes") == 0
    return "num_things_classes" if has_things_only else "num_classes"


def iter_datasets(dataset: Any, where: str = "") -> Iterator[tuple["ConfigDict", str]]:
    """Yield the innermost data sets that wrappers such as `RepeatDataset` hold, and their names.

    `where` is the name of `dataset` in the config.
    """
    if not isinstance(dataset, Mapping):
        return
    inner = {key: dataset[key] for key in ("dataset", "datasets") if key in dataset}
    if not inner:
        yield dataset, where
    for key, value in inner.items():
        if isinstance(value, Mapping):
            yield from iter_datasets(value, f"{where}.{key}")
        else:
            for index, item in enumerate(value or ()):
                yield from iter_datasets(item, f"{where}.{key}.{index}")


def choose_indices(items: Sequence[Any], dataset: Mapping[str, Any]) -> Sequence[Any]:
    """Return the items that a data set's `indices` choose, as mmengine's `BaseDataset` does."""
    indices = dataset.get("indices")
    if indices is None:
        return items
    if isinstance(indices, int):
        return items[:indices] if indices >= 0 else items[indices:]
    return [items[index] for index in indices]


def split_datasets(cfg: Mapping[str, Any], *splits: str) -> list[tuple["ConfigDict", str]]:
    """List the data sets of "train", "val", "test" or by default all as `iter_datasets` does."""
    found: list[tuple[ConfigDict, str]] = []
    for name in (f"{split}_dataloader" for split in splits or ("train", "val", "test")):
        for loader, where in list_named(cfg.get(name), name):  # a loop may have several
            found += iter_datasets(loader.get("dataset"), f"{where}.dataset")
    return found


def iter_metrics(evaluator: Any, where: str = "") -> Iterator[tuple["ConfigDict", str]]:
    """Walk through an evaluator's config: one metric or a list of them, each with its name.

    As in mmengine, a dict with `metrics` is an evaluator of its own that holds them.
    """
    if isinstance(evaluator, Mapping) and "metrics" in evaluator:
        evaluator, where = evaluator["metrics"], f"{where}.metrics"
    if isinstance(evaluator, Mapping):
        yield evaluator, where
    elif isinstance(evaluator, Sequence) and not isinstance(evaluator, str):
        for index, metric in enumerate(evaluator):
            yield from iter_metrics(metric, f"{where}.{index}")


def own_evaluator(evaluator: Any) -> str:
    """Return the class of an evaluator that holds metrics, where it is not mmengine's; else ""."""
    name = type_name(evaluator) if isinstance(evaluator, Mapping) and "metrics" in evaluator else ""
    return "" if name == "Evaluator" else name


def split_metrics(cfg: Mapping[str, Any], split: str) -> list[tuple["ConfigDict", str]]:
    """List the metrics of "train", "val" or "test" as `iter_metrics` yields them."""
    return list(iter_metrics(cfg.get(f"{split}_evaluator"), f"{split}_evaluator"))


def join_root(root: str | None, path: str) -> str:
    """Join as mmengine's `BaseDataset` does: an absolute path or a URL stands alone."""
    from mmengine.utils import is_abs

    return path if not root or is_abs(path) else os.path.join(root, path)


def is_local(part: Mapping[str, Any]) -> bool:
    """Return whether a data set, a metric or a loader reads files, and not a storage backend."""
    settings = part.get("backend_args") or part.get("file_client_args") or {}
    return settings.get("backend", "local") in ("local", "disk")


def is_remote(path: str) -> bool:
    """Return whether `path` is a URL or names a storage backend, so that no local file is meant."""
    return "://" in path
