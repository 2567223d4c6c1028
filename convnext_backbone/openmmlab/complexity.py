"""Parameters and FLOPs of a whole detector or segmentor, counted without computing anything.

The FLOPs are multiply-accumulates of convolutions and matrix products, by the convention behind
the figures of the ConvNeXt papers, which is that of mmdet 2 and mmsegmentation 0 `get_flops.py`: a
two-stage detector runs its box heads on 1000 proposals and its mask heads on 100; a segmentor runs
without its auxiliary head. Sizes are 800 x 1280 for COCO, and the crop by four times the crop for
ADE20K.
"""

import importlib
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_PROPOSALS = 1000
_MASKS = 100
_DETECTION_SIZE = (800, 1280)


def build_model(cfg: Config, device: str = "meta") -> Any:
    """Build the model of a config on `device`, by default without any storage.

    Raises:
        KeyError: A type of the config is not registered.
    """
    register_models(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    with torch.device(device):
        return MODELS.build(cfg.model).eval()


def register_models(scope: str) -> None:
    """Import the models of a config's `default_scope`, so that its types are known."""
    if scope not in ("mmdet", "mmseg"):
        raise ValueError(f"default_scope must be 'mmdet' or 'mmseg', got {scope!r}")
    importlib.import_module(f"{scope}.models")


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the height and width in pixels at which a config's FLOPs are published."""
    if cfg.default_scope == "mmdet":
        return _DETECTION_SIZE
    crop = cfg.model.data_preprocessor.size[0]
    return crop, 4 * crop


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters of `model`."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: Any, size: tuple[int, int]) -> int | None:
    """Count the multiply-accumulates of one image of `size` (height, width) pixels.

    Args:
        model: A model on the meta device, as `build_model` returns it.
        size: Height and width in pixels.

    Returns:
        The count; None for a transformer head, which cannot run without data.
    """
    if hasattr(model, "encoder") or hasattr(
        getattr(model, "decode_head", None), "transformer_decoder"
    ):
        return None
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        maps = model.extract_feat(torch.empty((1, 3, *size)))
        if hasattr(model, "roi_head"):
            model.rpn_head(maps)
            _run_roi_head(model.roi_head)
        elif hasattr(model, "decode_head"):
            model.decode_head(maps)
        else:
            model.bbox_head(maps)
    return counter.get_total_flops() // 2  # torch counts the product and the sum


def _run_roi_head(roi_head: Any) -> None:
    parts = [(roi_head.bbox_roi_extractor, roi_head.bbox_head, _PROPOSALS)]
    if roi_head.with_mask:
        parts.append((roi_head.mask_roi_extractor, roi_head.mask_head, _MASKS))
    for extractors, heads, count in parts:
        for extractor, head in zip(_each(extractors), _each(heads), strict=True):
            side = extractor.roi_layers[0].output_size
            head(torch.empty((count, extractor.out_channels, *side)))


def _each(modules: nn.Module) -> list[Any]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
