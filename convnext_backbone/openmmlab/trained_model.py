"""A trained model of a config and a checkpoint, how its images are prepared, and its predictions.

What `deploy` needs of mmdet and mmsegmentation. Images are RGB, (3, H, W) uint8.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from ..utils.files import IMAGE_SUFFIXES
from .config_walk import split_datasets
from .tools.checks.checkpoint import check_checkpoint
from .tools.config import load_config
from .tools.errors import UsageError, naming_config
from .tools.loading import load_model

DETECTION, SEGMENTATION = "detection", "segmentation"
_TASKS = {"mmdet": DETECTION, "mmseg": SEGMENTATION}


@dataclass(frozen=True)
class TrainedModel:
    """A detector of mmdet or a segmentor of mmsegmentation, in evaluation mode on the CPU.

    Attributes:
        model: The model.
        config: Its config.
        task: `DETECTION` or `SEGMENTATION`.
        meta: What the checkpoint or else the data set says of its classes: `classes`, `palette`.
        trained_from: The weights that the backbone began with, None for random ones.
    """

    model: Any
    config: Config
    task: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    trained_from: str | None = None

    def image_steps(self) -> list[dict[str, Any]]:
        """Return the steps of the test pipeline, in order, with the defaults left out."""
        datasets = split_datasets(self.config, "test")
        pipeline = datasets[0][0].get("pipeline") if datasets else None
        pipeline = pipeline or self.config.get("test_pipeline") or []
        return [dict(step) for step in pipeline]

    def test_images(self, count: int) -> list[str]:
        """Return the paths of the first images of the test set, of those that are there."""
        datasets = split_datasets(self.config, "test")
        if not datasets:
            return []
        cfg = dict(datasets[0][0])
        folder = dict(cfg.get("data_prefix") or {})
        path = Path(cfg.get("data_root") or "", folder.get("img") or folder.get("img_path") or "")
        found = sorted(p for p in path.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        return [str(p) for p in found[:count]]


def load_trained_model(
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """Build the model of a config and load its checkpoint, every key of it.

    Args:
        config: The config file.
        checkpoint: The checkpoint file.
        options: `--cfg-options`, by dotted names.

    Raises:
        ValueError: The config or the checkpoint is missing or broken, or they do not fit.
    """
    config, checkpoint = os.fspath(config), os.fspath(checkpoint)
    try:
        cfg = load_config(config, options, ("model", "test_dataloader"))
        if cfg.default_scope not in _TASKS:
            raise UsageError(f"default_scope must be one of {tuple(_TASKS)}: {cfg.default_scope!r}")
        check_checkpoint(checkpoint, "checkpoint")
        with naming_config(config, options), warnings.catch_warnings():
            # The libraries warn about their own future and about losses, which play no part.
            warnings.simplefilter("ignore")
            init = cfg.model.get("backbone", {}).get("init_cfg") or {}
            model, meta = load_model(cfg, checkpoint, "cpu")
    except UsageError as error:
        raise ValueError(str(error)) from error
    model.requires_grad_(False)
    trained_from = init.get("checkpoint") if isinstance(init, Mapping) else None
    return TrainedModel(model, cfg, _TASKS[cfg.default_scope], meta, trained_from)


# ------------------------------------------------------------------------------ predictions


def predict(
    trained: TrainedModel, images: Sequence[Tensor], *, whole: bool = True
) -> list[dict[str, Tensor]]:
    """Return what the library's own `predict` gives for images of one size, each at its size.

    Args:
        trained: The model.
        images: The images.
        whole: Give a segmentor the whole images, also where its config slides a window over them.

    Returns:
        Of a detector `boxes` (R, 4), `scores`, `labels` (R,) and, if it has a mask head, `masks`
        (R, S, S), the probabilities within each box before they are pasted. Of a segmentor
        `logits` (C, H, W) and `label_map` (H, W).
    """
    # Images are loaded as BGR, and each sample is changed on the way.
    inputs = [image.flip(0) for image in images]
    shape = tuple(images[0].shape[1:])
    meta = {"img_shape": shape, "ori_shape": shape, "pad_shape": shape, "scale_factor": (1.0, 1.0)}
    samples = [_sample(trained.task, meta) for _ in images]
    with (
        torch.inference_mode(),
        warnings.catch_warnings(),
        _mode(trained, whole),
        _keep_masks(trained.model) as masks,
    ):
        warnings.simplefilter("ignore", UserWarning)  # about the libraries' own code
        results = trained.model.test_step({"inputs": inputs, "data_samples": samples})
    if trained.task == SEGMENTATION:
        return [
            {"logits": result.seg_logits.data, "label_map": result.pred_sem_seg.data[0].long()}
            for result in results
        ]
    predictions = []
    for index, result in enumerate(results):
        found = result.pred_instances
        prediction = {"boxes": found.bboxes, "scores": found.scores, "labels": found.labels}
        if "masks" in found:
            size = (0, 28, 28)
            prediction["masks"] = masks[index] if masks else found.bboxes.new_zeros(size)
        predictions.append(prediction)
    return predictions


@contextmanager
def _mode(trained: TrainedModel, whole: bool) -> Iterator[None]:
    testing = trained.model.test_cfg
    if trained.task == DETECTION or not whole:
        yield
        return
    before = testing.get("mode", "whole")
    testing["mode"] = "whole"
    try:
        yield
    finally:
        testing["mode"] = before


def _sample(task: str, meta: Mapping[str, Any]) -> Any:
    if task == DETECTION:
        from mmdet.structures import DetDataSample

        return DetDataSample(metainfo=dict(meta))
    from mmseg.structures import SegDataSample

    return SegDataSample(metainfo=dict(meta))


@contextmanager
def _keep_masks(model: Any) -> Iterator[list[Tensor]]:
    """Record the probabilities that a mask head pastes into the image, (R, S, S) of each image."""
    kept: list[Tensor] = []
    head: Any = getattr(getattr(model, "roi_head", None), "mask_head", None)
    if head is None:
        yield kept
        return
    head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    paste = head.predict_by_feat

    def record(mask_preds: Any, results_list: Any, *args: Any, **kwargs: Any) -> Any:
        activated = kwargs.get("activate_map", False)
        for masks, found in zip(mask_preds, results_list, strict=True):
            masks = masks if activated else masks.sigmoid()
            masks = torch.as_tensor(masks)
            rows = torch.arange(len(masks))
            kept.append(masks[rows, 0 if head.class_agnostic else found.labels])
        return paste(mask_preds, results_list, *args, **kwargs)

    head.predict_by_feat = record
    try:
        yield kept
    finally:
        del head.predict_by_feat
