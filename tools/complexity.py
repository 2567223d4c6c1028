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
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

_PROPOSALS = 1000
_MASKS = 100
_DETECTION_SIZE = (800, 1280)
_LARGE = 100_000  # numbers in a tensor, of which nobody reads the values


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
    """Returns zeros of the right shape, one number seen many times, for what is large.

    Small tensors, such as the sizes of levels that a head reads, are computed.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See `TorchDispatchMode`."""
        kwargs = kwargs or {}
        values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func.is_view or all(value.numel() < _LARGE for value in values):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return args[0]  # written to or not, its values are not read
        args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = "meta"
        return tree_map_only(
            Tensor, lambda x: torch.zeros((), dtype=x.dtype).expand(x.shape), func(*args, **kwargs)
        )


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
