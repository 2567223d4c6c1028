"""ConvNextModel and ConvNextForImageClassification: pooled features and logits.

Outputs and argument names are those of transformers (models/convnext/modeling_convnext.py,
models/dinov3_convnext/modeling_dinov3_convnext.py); the loss is its `ForSequenceClassificationLoss`
(loss/loss_utils.py).
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ..archs import FAMILIES
from ..utils.checks import check_choice
from .config import ConfigFields, ConvNextConfig, resolve_config, show_config_fields
from .layers import build_norm, build_norm2d
from .outputs import BaseModelOutput, ImageClassifierOutput
from .pretrained import PretrainedTrunk, if_given


class _PooledTrunk(PretrainedTrunk):
    """The trunk, the norm of its pooled last map, and what a subclass builds after it."""

    @show_config_fields
    def __init__(
        self,
        config: ConvNextConfig | str | None = None,
        *,
        arch: str | None = None,
        with_cp: bool | str = False,
        **fields: Unpack[ConfigFields],
    ) -> None:
        super().__init__(resolve_config(type(self), config, arch, **fields), with_cp=with_cp)
        c, width = self.config, self.config.hidden_sizes[-1]
        if c.head_norm_first:
            self.norm_pre = build_norm2d(c.norm_layer, width, c.layer_norm_eps)
        else:
            self.norm = build_norm(c.norm_layer, width, c.layer_norm_eps)
        self._build_head()
        self.reset_parameters()

    def _build_head(self) -> None:
        """Add the layers after the norm."""

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """Return the last map (N, C, H, W), normed only where `head_norm_first`; timm's name."""
        x = self.forward_intermediates(pixel_values, indices=1, intermediates_only=True)[0]
        return self.norm_pre(x) if self.config.head_norm_first else x

    def _pool(self, x: Tensor) -> Tensor:
        """Return the pooled and normed features (N, C) of what `forward_features` returns."""
        average = x.mean(dim=(-2, -1))
        return average if self.config.head_norm_first else self.norm(average)

    def _run(self, pixel_values: Tensor, output_hidden_states: bool | None) -> BaseModelOutput:
        maps = list(self.iter_maps(pixel_values, last=len(self.config.depths)))
        if not self._returns_tokens:
            maps[-1] = maps[-1].contiguous()
        last, pooled = self._summarize(maps[-1])
        hidden = None
        if self._wants_hidden_states(output_hidden_states):
            # Not copies: what is computed from a map must send its gradient through it.
            hidden = (pixel_values if self._returns_tokens else maps[0], *maps[1:])
        return BaseModelOutput(last_hidden_state=last, pooler_output=pooled, hidden_states=hidden)

    @property
    def _returns_tokens(self) -> bool:
        return FAMILIES[self.config.model_type].returns_tokens

    def _summarize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `last_hidden_state` and `pooler_output` of the last map (N, C, H, W)."""
        if self.config.head_norm_first:
            return x, self._pool(self.norm_pre(x))
        if not self._returns_tokens:
            return x, self._pool(x)
        average = x.mean(dim=(-2, -1))  # (N, C)
        pixels = x.flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, H * W, C)
        tokens = self.norm(torch.cat([average[:, None], pixels], dim=1))
        return tokens, tokens[:, 0]


class ConvNextModel(_PooledTrunk):
    """A ConvNeXt that returns its last map and the normed average of it.

    Args:
        config: A `ConvNextConfig`, or the name of an architecture (as `arch`).
        arch: The name of an architecture, one of `list_archs()`.
        with_cp: What the blocks hold for the backward pass: False, all activations; "selective",
            the outputs of convolutions and linear layers; True, the inputs of blocks and
            downsampling layers.
        fields: Fields of `ConvNextConfig` that replace those of `config` or `arch`.

    Raises:
        ValueError: A field is out of its range.
        TypeError: An argument is of the wrong type or unknown.

    Example:
        >>> model = ConvNextModel.from_pretrained("facebook/convnextv2-atto-1k-224")
        >>> model(torch.randn(1, 3, 224, 224)).pooler_output.shape
        torch.Size([1, 320])
    """

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Return the last map and the pooled features.

        Args:
            pixel_values: Images (N, num_channels, H, W), floating point.
            output_hidden_states: Return the map of the stem and of every stage as well. For
                DINOv3 the first of them is the image, as in transformers. None leaves it to the
                config.
            return_dict: False gives the values as a plain tuple. None leaves it to the config.

        Returns:
            `last_hidden_state`, `pooler_output` (N, C) and, where asked for, `hidden_states`. The
            last hidden state is the map (N, C, H, W) before any norm. For DINOv3 it is the normed
            tokens (N, 1 + H * W, C): the average of the map, then its pixels row by row.

        Raises:
            ValueError: The shape does not fit, or the image is smaller than the last stride.
            TypeError: The input is not a floating-point tensor.
        """
        return self._format_output(self._run(pixel_values, output_hidden_states), return_dict)


class ConvNextForImageClassification(_PooledTrunk):
    """A ConvNeXt with a linear layer, or `head_hidden_size` and two, over its pooled features.

    The number of classes and their names are the fields `num_labels`, `id2label` and `label2id` of
    the config. Zero classes give the pooled features as logits. Arguments: `ConvNextModel`'s.

    Example:
        >>> model = ConvNextForImageClassification.from_pretrained("convnext_atto.d2_in1k")
        >>> model(torch.randn(1, 3, 224, 224)).logits.shape
        torch.Size([1, 1000])
    """

    def _build_head(self) -> None:
        hidden = self.config.head_hidden_size
        if hidden:
            layers = {"fc": nn.Linear(self.num_features, hidden), "act": nn.GELU()}
            self.pre_logits = nn.Sequential(OrderedDict(layers))
        self._build_classifier()

    def _build_classifier(self) -> None:
        channels = self.config.head_hidden_size or self.num_features
        self.head = nn.Linear(channels, self.num_labels) if self.num_labels else nn.Identity()

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return self.config.num_labels

    # timm's names of the parts of a classifier.

    @property
    def num_features(self) -> int:
        """The channels of the pooled features."""
        return self.config.hidden_sizes[-1]

    @property
    def num_classes(self) -> int:
        """`num_labels`."""
        return self.num_labels

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an identity for zero classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a newly initialized head of another number of classes, 0 for none.

        Raises:
            ValueError: `global_pool` is not "avg", the only pooling, or None, which keeps it.
        """
        check_choice("global_pool", global_pool, (None, "avg"))
        self.config.num_labels = num_classes
        self._build_classifier()
        self.head.to(self.device, self.dtype).train(self.training).apply(self._reset)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of what `forward_features` returns, or what the last layer takes."""
        features = self._before_classifier(self._pool(x))
        return features if pre_logits else self.head(features)

    def _before_classifier(self, pooled: Any) -> Tensor:
        return self.pre_logits(pooled) if self.config.head_hidden_size else pooled

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Return the logits, and the loss where labels are given.

        Args:
            pixel_values: Images (N, num_channels, H, W), floating point.
            labels: Class indices (N,); with one label, targets (N,) of a regression; floating
                point (N, num_labels) for several labels an image, or for a regression where
                `config.problem_type` says so.
            output_hidden_states: Return the map of the stem and of every stage as well. None leaves
                it to the config.
            return_dict: False gives the values as a plain tuple. None leaves it to the config.

        Returns:
            `logits` (N, num_labels), and where asked for `loss` and `hidden_states`.

        Raises:
            ValueError: A shape does not fit, or the labels do not fit the problem type.
            TypeError: The images are not a floating-point tensor.
        """
        base = self._run(pixel_values, output_hidden_states)
        logits = self.head(self._before_classifier(base.pooler_output))
        labels = if_given(labels)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=base.hidden_states)
        return self._format_output(output, return_dict)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type or _guess_problem(self.num_labels, labels)
        one_each = problem == "single_label_classification" or self.num_labels == 1
        expected = logits.shape[:1] if one_each else logits.shape
        if labels.shape != expected and not (one_each and labels.numel() == expected.numel()):
            raise ValueError(
                f"labels must have shape {tuple(expected)} for {problem}, got {tuple(labels.shape)}"
            )
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.reshape(-1).long())
        loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return loss(logits, labels.reshape(logits.shape).to(logits.dtype))


def _guess_problem(num_labels: int, labels: Tensor) -> str:
    if num_labels == 1:
        return "regression"
    whole = not labels.is_floating_point()
    return "single_label_classification" if whole else "multi_label_classification"
