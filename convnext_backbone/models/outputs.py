"""What the models return: named values that pass for the tuples and dicts that callers expect.

Both kinds are registered as pytree nodes, so torch.export, torch.compile and FSDP take them apart
and put them together again. Names are transformers' (modeling_outputs.py).
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch.utils._pytree as pytree
from torch import Tensor


class FeatureMaps(tuple[Tensor, ...]):
    """The maps of a backbone: a tuple, which is also its own `feature_maps`.

    OpenMMLab's necks and heads ask for a tuple, Hugging Face's users for `outputs.feature_maps`.

    Attributes:
        hidden_states: The maps of the stem and of every stage before any output norm, where they
            were asked for. They are no part of the tuple.
        attentions: None, as a convolutional network has none.
    """

    attentions: ClassVar[None] = None
    hidden_states: tuple[Tensor, ...] | None

    def __new__(
        cls, maps: Iterable[Tensor], hidden_states: tuple[Tensor, ...] | None = None
    ) -> "FeatureMaps":
        """Hold `maps` in order."""
        self = super().__new__(cls, maps)
        self.hidden_states = hidden_states
        return self

    @property
    def feature_maps(self) -> tuple[Tensor, ...]:
        """The maps, as a plain tuple."""
        return tuple(self)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return what transformers' backbones return as a plain tuple: the maps, hidden states."""
        hidden = () if self.hidden_states is None else (self.hidden_states,)
        return (self.feature_maps, *hidden)


class ModelOutput(dict[str, Any]):
    """Values by name, by attribute and by position; a value that is None takes no position.

    As in transformers, iterating gives the names, and `output[0]` is the first value there is.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **values: Any) -> None:
        present = {k: v for k, v in dict(*args, **values).items() if v is not None}
        unknown = present.keys() - set(self.names)
        if unknown:
            raise TypeError(f"{type(self).__name__} has {self.names}, got {sorted(unknown)}")
        super().__init__((name, present[name]) for name in self.names if name in present)

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__} has {self.names}, got {name!r}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values there are."""
        return tuple(self.values())


class BackboneOutput(ModelOutput):
    """What `ConvNextBackbone.forward_with_filtered_kwargs` returns, for transformers' models.

    `feature_maps` are the maps of the requested stages; `attentions` is always None.
    """

    names = ("feature_maps", "hidden_states", "attentions")


class BaseModelOutput(ModelOutput):
    """What `ConvNextModel` returns.

    `last_hidden_state` is the last map (N, C, H, W), or DINOv3's tokens (N, 1 + H * W, C);
    `pooler_output` is (N, C).
    """

    names = ("last_hidden_state", "pooler_output", "hidden_states")


class ImageClassifierOutput(ModelOutput):
    """What `ConvNextForImageClassification` returns.

    `logits` is (N, num_labels), `loss` a scalar.
    """

    names = ("loss", "logits", "hidden_states")


def _flatten_maps(maps: FeatureMaps) -> tuple[list[Tensor], int]:
    return [*maps, *(maps.hidden_states or ())], len(maps)


def _unflatten_maps(tensors: Iterable[Tensor], num_maps: int) -> FeatureMaps:
    tensors = tuple(tensors)
    return FeatureMaps(tensors[:num_maps], tensors[num_maps:] or None)


def _register_output(cls: type[ModelOutput]) -> None:
    def flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
        return list(output.values()), list(output)

    def unflatten(children: Iterable[Any], names: list[str]) -> ModelOutput:
        return cls(zip(names, children, strict=True))

    pytree.register_pytree_node(
        cls, flatten, unflatten, serialized_type_name=f"convnext_backbone.{cls.__name__}"
    )


pytree.register_pytree_node(
    FeatureMaps,
    _flatten_maps,
    _unflatten_maps,
    serialized_type_name="convnext_backbone.FeatureMaps",
)
_register_output(BackboneOutput)
_register_output(BaseModelOutput)
_register_output(ImageClassifierOutput)
