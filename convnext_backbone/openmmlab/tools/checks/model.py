"""Can the model be built, do its parts fit each other, and does a batch pass its batch norms?"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ...config_walk import SEGMENTORS, find_preprocessor, inner_model, iter_dicts, type_name
from ..channels import check_built_maps, find_backbone
from ..config import build_as_run
from ..datasets import count_training_images
from ..errors import BUILD_ERRORS, UsageError, describe_error
from ..processes import count_processes

# What torch says of batch norm over one value; other errors may be those of the meta device.
_ONE_VALUE = "more than 1 value per channel"


def check_model(cfg: Config, splits: Sequence[str] = ()) -> None:
    """Build the model once, without storage, so that its mistakes show before anything is written.

    The runner builds it again after seeding, which keeps runs comparable with OpenMMLab's tools.

    Raises:
        UsageError: The model cannot be built, expects other strides than its levels have, or cannot
            be trained with the config's batches.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second building warns again
        try:
            try:
                model = build_as_run(cfg, "meta")
            except (NotImplementedError, RuntimeError):
                # Some models compute their rates of stochastic depth with a tensor.
                model = build_as_run(cfg, "cpu")
        except BUILD_ERRORS as error:
            if cfg.launcher != "none" and "process group" in str(error):
                return  # mmcv's MMSyncBN asks for the group that the runner makes
            asked = "'pretrained'" in str(error) and inner_model(cfg).get("pretrained")
            advice = "; set model.pretrained=None, which mmsegmentation hands on" if asked else ""
            raise UsageError(
                f"config {cfg.filename!r}, model: {describe_error(error)}{advice}"
            ) from error
    check_built_maps(cfg, model)
    if "train" in splits:
        _check_single_images(cfg, model)


def _check_single_images(cfg: Config, model: Any) -> None:
    """Follow a batch of one image through backbone, neck and heads, in shape only.

    Raises:
        UsageError: A head pools the image to one pixel, which its batch norm refuses.
    """
    backbone = find_backbone(cfg)
    if type_name(cfg.model) != SEGMENTORS[0] or backbone is None or _smallest_batch(cfg) > 1:
        return
    height, width = find_preprocessor(cfg).get("size") or (64, 64)
    name, model = "backbone", model.to("meta").train()
    with warnings.catch_warnings(), torch.device("meta"), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            image = torch.empty(1, backbone.get("num_channels", 3), height, width)
            maps = model.extract_feat(image)
            for name in ("decode_head", "auxiliary_head"):
                head = getattr(model, name, None)
                for part in head if isinstance(head, nn.ModuleList) else [head]:
                    if part is not None:
                        part(maps)
        except Exception as error:  # a head of the user's may raise anything
            if _ONE_VALUE not in str(error):
                return
            raise UsageError(
                f"model.{name} pools a batch of one image of {width} x {height} to one pixel: "
                f"{describe_error(error)}; set train_dataloader.batch_size=2, and drop_last=True "
                "where the last batch of an epoch has one image"
            ) from error


def _smallest_batch(cfg: Config) -> int:
    """Return the number of images over which batch norm averages, in the last batch of an epoch."""
    loader, processes = cfg.train_dataloader, count_processes(cfg)
    images, number = loader.get("batch_size", 1), count_training_images(cfg)
    if number and type_name(loader.get("sampler") or {}) == "DefaultSampler":
        rest = math.ceil(number / processes) % images
        images = rest if rest and not loader.get("drop_last") else images
    norms = (str(part.get("norm_cfg")) for part in iter_dicts(cfg.model))
    return images * processes if any("SyncBN" in norm for norm in norms) else images
