"""The part of timm's model interface that feature pyramids, probes and optimizers call.

Names and arguments are those of timm (models/_features.py, models/convnext.py). Features are
numbered as in `stage_names`: the stem is 0, where timm's ConvNeXts call the first stage 0.

Axes: N batch, C channels, H height, W width.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..utils.checks import check_choice
from .trunk import BLOCK, DOWNSAMPLING, STAGE, STEM, ConvNextTrunk

_WITH_PREVIOUS = (99999,)  # timm's mark of parameters that are of the layer before them

Entry = dict[str, Any]


class FeatureInfo:
    """Channels, stride and module of every feature, as timm's `feature_info` gives them.

    Each accessor gives a list for the outputs; with `idx`, the value of one feature (an int) or of
    several (a list), whether they are outputs or not.

    Attributes:
        info: One dict a feature: `num_chs`, `reduction` (its stride, in pixels), `module` (the name
            of the module that computes it) and `index`.
        out_indices: The features that are outputs.
    """

    def __init__(self, info: Sequence[Mapping[str, Any]], out_indices: Sequence[int]) -> None:
        self.info: list[Entry] = [{**entry, "index": i} for i, entry in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return the entries of features, or some keys of them."""
        if isinstance(idx, int):
            entry = self.info[idx]
            return {key: entry[key] for key in (entry if keys is None else keys)}
        chosen = self.out_indices if idx is None else idx
        return [self.get_dicts(keys, i) for i in chosen]

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return one key of the entries of features."""
        found = self.get_dicts([key], idx)
        return found[key] if isinstance(idx, int) else [entry[key] for entry in found]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels of features."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the strides of features, in input pixels."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the names of the modules that compute features."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> Entry:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class TimmTrunk(ConvNextTrunk):
    """A trunk with timm's interface."""

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of the stem and of every stage."""
        config, norms = self.config, getattr(self, "norms", {})
        widths = (config.hidden_sizes[0], *config.hidden_sizes)
        info = []
        for i, name in enumerate(config.stage_names):
            computed = f"stages.{i - 1}" if i else "downsample_layers.0"
            module = f"norms.{name}" if name in norms else computed
            entry = {"num_chs": widths[i], "reduction": config.strides[i], "module": module}
            info.append(entry)
        return FeatureInfo(info, getattr(self, "out_indices", range(len(info))))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map and the maps of chosen stages, all contiguous.

        Args:
            x: Images (N, num_channels, H, W), floating point.
            indices: Positions in `stage_names`, the stem being 0; an int takes the last ones, None
                all. Negative positions count from the end.
            norm: Pass the chosen maps through the norm of their output, where there is one.
            stop_early: Do not run the stages after the last chosen one, whose map is then the last.
            output_fmt: "NCHW", the only one.
            intermediates_only: Return the list of chosen maps alone.

        Raises:
            ValueError: An index is out of range, or an argument is none of its choices.
        """
        check_choice("output_fmt", output_fmt, ("NCHW",))
        names = self.config.stage_names
        taken = _take_indices(indices, len(names))
        last = max(taken) if stop_early or intermediates_only else len(names) - 1
        norms = getattr(self, "norms", {}) if norm else {}
        maps = []
        for i, x in enumerate(self.iter_maps(x, last)):  # noqa: B020 - in the end, the last map
            if i in taken:
                maps.append((norms[names[i]](x) if names[i] in norms else x).contiguous())
        return maps if intermediates_only else (x.contiguous(), maps)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass, or keep them."""
        self.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameter names: the stem, then one layer a block (coarse: a stage).

        A downsampling is of the layer of the block behind it. Norms of outputs and heads match
        none, so that timm's optimizers count them as the last layer.
        """
        blocks = [(DOWNSAMPLING, (0,)), (BLOCK, None), (STAGE, _WITH_PREVIOUS)]
        stages = [(DOWNSAMPLING, None), (STAGE, None)]
        return {"stem": STEM, "blocks": stages if coarse else blocks}


def _take_indices(indices: int | Sequence[int] | None, num: int) -> list[int]:
    """Return positions from 0 to `num` - 1: the last `indices`, the ones in a list, or all.

    Raises:
        ValueError: One of them is out of range.
        TypeError: One of them is no integer.
    """
    if indices is None:
        return list(range(num))
    if isinstance(indices, int):
        if not 1 <= indices <= num:
            raise ValueError(f"indices must take the last 1 to {num} features, got {indices}")
        return list(range(num - indices, num))
    indices = [operator.index(i) for i in indices]
    if not indices or any(not -num <= i < num for i in indices):
        raise ValueError(f"indices must lie from {-num} to {num - 1}, got {indices!r}")
    return [i % num for i in indices]
