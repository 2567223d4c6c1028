"""The part of transformers' model interface that training scripts call."""

import inspect
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from typing_extensions import Self

from ..weights.export import save_pretrained
from ..weights.load import LOAD_OPTIONS, load_pretrained_
from .block import weight_of_stages
from .config import ConvNextConfig, check_names
from .outputs import FeatureMaps, ModelOutput
from .timm_interface import TimmTrunk

_Output = TypeVar("_Output", bound=FeatureMaps | ModelOutput)


def if_given(argument: Any, default: Any = None) -> Any:
    """Return an optional argument of a call, or `default` where it is not given.

    Symbolic tracing puts a placeholder for every argument, which has no value to decide by. It
    counts as not given, so the traced graph is that of a call with images alone.
    """
    return default if argument is None or isinstance(argument, torch.fx.Proxy) else argument


class PretrainedTrunk(TimmTrunk):
    """A trunk with weights in and out, device and dtype, gradient checkpointing.

    The names are those of transformers' PreTrainedModel.
    """

    config_class = ConvNextConfig
    base_model_prefix = "convnext"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        ignore_mismatched_sizes: bool = False,
        **overrides: Any,
    ) -> Self:
        """Build the model that `source` describes, load it, and set it to evaluation mode.

        Args:
            source: A file, a directory, a URL, a Hugging Face id or an `arch.tag` of
                `list_weights()`. The architecture is read from the tensors.
            revision: The branch, tag or commit of a Hugging Face repository. Nothing else has one;
                "main", which training scripts give with every source, goes with any.
            subfolder: The folder inside a directory or a Hugging Face repository.
            dtype: Of the parameters, also by name ("float16"), or "auto", that of the source; fp32
                when not given.
            torch_dtype: Older releases' name of `dtype`.
            ignore_mismatched_sizes: Newly initialize a head of another number of classes.
            overrides: Any argument of the constructor, and any option of `load_weights`.

        Raises:
            ValueError: The source is not a ConvNeXt or does not fit, with every mismatch listed.
            TypeError: There is no such argument.
            FileNotFoundError: There is no such file.
        """
        _check_names(cls, overrides)
        overrides |= {"revision": revision, "subfolder": subfolder}
        wanted = torch_dtype if dtype is None else dtype
        if ignore_mismatched_sizes:
            overrides.setdefault("fresh", ("head.",))
        chosen = wanted if wanted == "auto" else _floating(wanted)
        return load_pretrained_(cls, source, overrides, chosen).eval()

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, which transformers loads as they are."""
        save_pretrained(self, directory)

    # What a call leaves to the config.

    def _wants_hidden_states(self, asked: bool | None) -> bool:
        return if_given(asked, self.config.output_hidden_states)

    def _format_output(
        self, output: _Output, return_dict: bool | None
    ) -> _Output | tuple[Any, ...]:
        named = if_given(return_dict, self.config.return_dict)
        return output if named else output.to_tuple()

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: there is no text to generate. transformers' pipelines ask."""
        return False

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return weight_of_stages(self).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return weight_of_stages(self).dtype

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.with_cp is not False

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them.

        Args:
            activation_checkpointing_kwargs: For transformers' callers. The non-reentrant variant
                is the only one here; asking for the other warns.
            every_n_layers: 1, as in every block; another number warns.
            offload: False; keeping activations in the host's memory is not done, and warns.
        """
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            warnings.warn(
                "use_reentrant=True is ignored: activations are recomputed without reentrance, "
                "which gives the same gradients",
                stacklevel=2,
            )
        if every_n_layers != 1 or offload:
            warnings.warn(
                f"every_n_layers={every_n_layers} and offload={offload} are ignored: every block "
                "is recomputed; with_cp='selective' saves convolutions and linear layers",
                stacklevel=2,
            )
        self.with_cp = True

    def activation_checkpointing_disable(self) -> None:
        """Keep the activations again."""
        self.with_cp = False

    # transformers' names of the same up to 5.22, which peft reads.

    is_gradient_checkpointing = is_activation_checkpointing

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Do what `activation_checkpointing_enable` does."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    gradient_checkpointing_disable = activation_checkpointing_disable

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters.

        Args:
            only_trainable: Count only those that take a gradient.
            exclude_embeddings: For transformers' callers; a ConvNeXt has no token embeddings.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)


def _check_names(cls: type[PretrainedTrunk], names: Collection[str]) -> None:
    """Refuse what neither the constructor nor `load_weights` knows, with a TypeError."""
    built = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in built.values()):  # a subclass may take any keyword
        check_names(f"{cls.__name__}.from_pretrained", names, (*LOAD_OPTIONS, *built))


def _floating(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point dtype by itself or by its name; ValueError for anything else."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype must be a floating-point dtype, its name or 'auto', got {dtype!r}")
    return found
