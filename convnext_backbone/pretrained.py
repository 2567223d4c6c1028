"""The part of transformers' model interface that training scripts lean on."""

import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from .trunk import ConvNextTrunk
from .weights import load_pretrained_, save_pretrained

_Self = TypeVar("_Self", bound="PretrainedTrunk")


class PretrainedTrunk(ConvNextTrunk):
    """A trunk with weights in and out, device and dtype, gradient checkpointing.

    The names are those of transformers' PreTrainedModel.
    """

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(
        cls: type[_Self], source: str | os.PathLike[str], **overrides: Any
    ) -> _Self:
        """Build the model that `source` describes and load it.

        Args:
            source: A file, a directory, a URL, a Hugging Face id or an `arch.tag` of
                `list_weights()`. The architecture is read from the tensors.
            overrides: Any argument of the constructor, and any option of `load_weights`.

        Raises:
            ValueError: The source is not a ConvNeXt or does not fit, with every misfit listed.
            FileNotFoundError: There is no such file.
        """
        return load_pretrained_(cls, source, overrides)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, which transformers loads as they are."""
        save_pretrained(self, directory)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.parameters()).dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.with_cp is not False

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them.

        Args:
            gradient_checkpointing_kwargs: For transformers' callers. The non-reentrant variant is
                the only one here; asking for the other warns.
        """
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            warnings.warn(
                "use_reentrant=True is ignored: activations are recomputed without reentrance, "
                "which gives the same gradients",
                stacklevel=2,
            )
        self.with_cp = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations again."""
        self.with_cp = False

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Count the parameters, or those that take a gradient."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)
