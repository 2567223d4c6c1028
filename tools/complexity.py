"""Parameters and FLOPs of a whole detector or segmentor, counted on the meta device.

The FLOPs are multiply-accumulates of convolutions and matrix products, by the convention behind
the figures of the ConvNeXt papers, which is that of mmdet 2 and mmsegmentation 0 `get_flops.py`: a
two-stage detector runs its box heads on 1000 proposals and its mask heads on 100; a segmentor runs
without its auxiliary head. Sizes are 800 x 1280 for COCO, and the crop by four times the crop for
ADE20K. A transformer head runs on a whole image; as in mmdet 3, what its deformable attention
samples is not counted, nor is anything else that is no product.
"""

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_PROPOSALS = 1000
_MASKS = 100
_DETECTION_SIZE = (800, 1280)
_COSTLY = frozenset({*flop_registry, torch.ops.aten.grid_sampler_2d})


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the height and width in pixels at which a config's FLOPs are published."""
    if cfg.default_scope == "mmdet":
        return _DETECTION_SIZE
    crop = cfg.model.data_preprocessor.size[0]
    return crop, 4 * crop


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in all parameters of `model`."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: Any, size: tuple[int, int]) -> int:
    """Count the multiply-accumulates of one image of `size` (height, width) pixels.

    Args:
        model: A model on the meta device, as `config.build_model` returns it.
        size: Height and width in pixels.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        with torch.device("meta"):
            maps = model.extract_feat(torch.empty((1, 3, *size)))
        if hasattr(model, "encoder") or hasattr(
            getattr(model, "decode_head", None), "transformer_decoder"
        ):
            _run_transformer(model, maps, size)
        else:
            with torch.device("meta"):
                _run_heads(model, maps)
    return counter.get_total_flops() // 2  # torch counts the product and the sum


def _run_heads(model: Any, maps: Sequence[Tensor]) -> None:
    if hasattr(model, "roi_head"):
        model.rpn_head(maps)
        _run_roi_head(model.roi_head)
    elif hasattr(model, "decode_head"):
        model.decode_head(maps)
    else:
        model.bbox_head(maps)


class _Uncomputed(TorchDispatchMode):
    """Returns zeros of the right shape for products and for the sampling of deformable heads.

    The rest, such as the sizes of levels that a head reads, is computed.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `TorchDispatchMode`."""
        if func._overloadpacket not in _COSTLY:
            return func(*args, **(kwargs or {}))
        on_meta = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs or {}))
        return torch.zeros_like(func(*on_meta[0], **on_meta[1]), device="cpu")


def _run_transformer(model: Any, maps: Sequence[Tensor], size: tuple[int, int]) -> None:
    """Run a transformer head, which reads values, such as its levels' sizes: not on meta."""
    model = copy.deepcopy(model).to_empty(device="cpu")
    for value in model.state_dict().values():
        value.zero_()
    is_detector = hasattr(model, "encoder")
    structures = importlib.import_module(f"{'mmdet' if is_detector else 'mmseg'}.structures")
    sample = structures.DetDataSample() if is_detector else structures.SegDataSample()
    sample.set_metainfo({"img_shape": size, "batch_input_shape": size, "pad_shape": size})
    features = [torch.zeros(value.shape) for value in maps]
    with _Uncomputed():
        if is_detector:
            model.bbox_head(**model.forward_transformer(features, [sample]))
        else:
            model.decode_head(features, [sample])


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
