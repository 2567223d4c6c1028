"""Do the files and folders exist that a config names?"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...config_walk import is_local, is_remote, join_root, split_datasets, split_metrics
from ..errors import UsageError
from .images import ImageReader


def check_files(cfg: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that the annotation files and folders of every data set and metric exist.

    Those that are read through a storage backend, or by steps that are not known, are passed over.

    Raises:
        UsageError: One is missing.
    """
    try:
        _check_files(cfg, splits)
    except UsageError as error:
        own = cfg.get("custom_dataset")
        if own is None or own.get("root") or own.get("train_ann"):
            raise
        raise UsageError(f"{error}; custom_dataset names data of your own") from None


def _check_files(cfg: Mapping[str, Any], splits: Sequence[str]) -> None:
    for split in splits:
        for dataset, where in split_datasets(cfg, split):
            if not is_local(dataset):
                continue
            root = dataset.get("data_root")
            ann_file = dataset.get("ann_file") or ""
            if isinstance(ann_file, str) and ann_file:
                _require(join_root(root, ann_file), f"{where}.ann_file", "annotation file")
            # Other loaders may take it for the name of an archive, or for part of a key.
            opens_images = ImageReader(dataset.get("pipeline")).opens_files
            for key, prefix in (dataset.get("data_prefix") or {}).items():
                if isinstance(prefix, str) and (opens_images or not key.startswith("img")):
                    _require(join_root(root, prefix), f"{where}.data_prefix.{key}", "folder")
        for metric, where in split_metrics(cfg, split):
            ann_file = metric.get("ann_file")
            if isinstance(ann_file, str) and is_local(metric):
                _require(ann_file, f"{where}.ann_file", "annotation file")


def _require(path: str, where: str, kind: str) -> None:
    # A folder of annotation files is what data sets of a user's own may read.
    exists = os.path.isdir if kind == "folder" else os.path.exists
    if path and not is_remote(path) and not exists(path):
        raise UsageError(f"{kind} {path!r} not found ({where})")
