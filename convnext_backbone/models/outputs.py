"""Outputs of the models: named values that also serve as tuples and dicts.

Both kinds are registered as pytree nodes, which torch.export, torch.compile and FSDP flatten and
rebuild. Names and behaviour are transformers' (modeling_outputs.py, utils/generic.py).
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
import torch.utils._pytree as pytree
from torch import Tensor


class ShapeSpec(NamedTuple):
    """The shape of a map, in the fields of detectron2's `ShapeSpec`; None where it varies."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class FeatureMaps(tuple[Tensor, ...]):
    """The maps of a backbone: a tuple of (N, C_i, H_i, W_i), which is also its own `feature_maps`.

    OpenMMLab's necks and heads take a tuple, Hugging Face's users `outputs.feature_maps`.

    Attributes:
        hidden_states: The maps of the stem and of every stage before any output norm, where they
            were asked for. They are not part of the tuple: what rebuilds a tuple from its members
            (FSDP and accelerate in mixed precision, backward hooks) loses them, and so
            DistributedDataParallel does not look for what they need; a `ModelOutput` keeps them.
        attentions: None, as a convolutional network has none.
    """

    attentions: ClassVar[None] = None
    hidden_states: tuple[Tensor, ...] | None

    def __new__(
        cls,
        maps: Iterable[Tensor] | Tensor,
        *more: Tensor,
        hidden_states: tuple[Tensor, ...] | None = None,
    ) -> "FeatureMaps":
        """Hold `maps` in order."""
        # torch's backward hooks rebuild a tuple as `type(output)(*output)`.
        self = super().__new__(cls, (maps, *more) if isinstance(maps, Tensor) else maps)
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


# torch.jit.trace would take a class whose methods are all inherited for a TorchScript class, and
# refuse it, where it takes any other dict.
@torch.jit.ignore
class ModelOutput(OrderedDict[str, Any]):
    """Values by name, by attribute and by position; a value that is None takes no position.

    FSDP rebuilds an OrderedDict by its class, and any other dict as a plain one.

    As in transformers, iterating gives the names, `output[0]` is the first value there is, names
    and attributes are assigned together, and nothing can be removed.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.names = tuple(cls.__annotations__)
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda children, names: cls(zip(names, children, strict=True)),
            serialized_type_name=f"convnext_backbone.{cls.__name__}",
        )

    def __init__(self, *args: Any, **values: Any) -> None:
        given = dict(*args, **values)
        unknown = given.keys() - set(self.names)
        if unknown:
            raise TypeError(f"{type(self).__name__} has {self.names}, got {sorted(unknown)}")
        super().__init__()
        for name in self.names:
            if given.get(name) is not None:
                self[name] = given[name]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.names and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"values of {type(self).__name__} cannot be removed or updated together")

    __delitem__ = pop = setdefault = update = _refuse

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values there are."""
        return tuple(self.values())


class BackboneOutput(ModelOutput):
    """The output of `ConvNextBackbone.forward_with_filtered_kwargs`, for transformers' models.

    `feature_maps` are the maps (N, C_i, H_i, W_i) of the requested stages; `attentions` is None.
    """

    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: None = None


class BaseModelOutput(ModelOutput):
    """The output of `ConvNextModel`.

    `last_hidden_state` is the last map (N, C, H, W), or DINOv3's tokens (N, 1 + H * W, C);
    `pooler_output` is (N, C).
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ImageClassifierOutput(ModelOutput):
    """The output of `ConvNextForImageClassification`.

    `logits` is (N, num_labels), `loss` a scalar.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def _flatten_maps(maps: FeatureMaps) -> tuple[list[Tensor], int]:
    return [*maps, *(maps.hidden_states or ())], len(maps)


def _unflatten_maps(tensors: Iterable[Tensor], num_maps: int) -> FeatureMaps:
    tensors = tuple(tensors)
    return FeatureMaps(tensors[:num_maps], hidden_states=tensors[num_maps:] or None)


pytree.register_pytree_node(
    FeatureMaps,
    _flatten_maps,
    _unflatten_maps,
    serialized_type_name="convnext_backbone.FeatureMaps",
)
