"""The one call before inference, and the module that it returns."""

import copy
import dis
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from ..models.block import weight_of_stages
from ..models.config import ConvNextConfig
from .fold import fold_block, fold_downsampling, promote
from .pack import PackedBlock, PackedPatchConv, can_pack, can_pack_block
from .unmodified import (
    has_global_hooks,
    is_chain,
    is_downsampling,
    is_patch_conv,
    is_unmodified_block,
    runs_its_parts,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def optimize_for_inference(
    module: nn.Module, *, dtype: torch.dtype | None = None, compile: bool = False
) -> "OptimizedModule":
    """Return a module that computes the same in less time. The argument stays as it is.

    A copy is folded and cast. On the CPU its weights are packed for oneDNN: no compiler is needed,
    and no image size is special. Parts that were altered (hooks, parametrizations, pruned weights,
    subclasses, other layers) stay in the copy as they are, with all that is in them; so does the
    whole of a network whose class has a `forward` or `iter_maps` of the user's.

    Args:
        module: A backbone, model or classifier; one optimized already is returned as it is.
        dtype: What to compute in, one of `DTYPES`; by default, the dtype of the weights.
        compile: Compile the network, and nothing around it, with torch.compile. Four graphs at most
            serve all sizes: square images or others, one image or several. On the CPU each needs a
            C++ compiler and a minute, and compiling replaces the packing.

    Returns:
        A module with the forward method of `module`. It casts its input, has no gradients and
        refuses to train; its weights are folded, so save and load the original.

    Raises:
        ValueError: `dtype` is not one of the choices, the module is optimized already, for
            something else, or a method that was put on a part would run the original's parts.
        TypeError: `module` is no network of this package, or `compile` is not True or False.

    Example:
        >>> backbone = ConvNextBackbone("convnext_atto")
        >>> fast = backbone.optimize_for_inference(dtype=torch.bfloat16)
        >>> [tuple(x.shape) for x in fast(torch.randn(1, 3, 224, 224))]
        [(1, 320, 7, 7)]
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if not isinstance(compile, bool):
        raise TypeError(f"compile must be True or False, got {compile!r}")
    if isinstance(module, OptimizedModule):
        return module.optimize_for_inference(dtype=dtype, compile=compile)
    if not {"downsample_layers", "stages"} <= dict(module.named_children()).keys():
        raise TypeError(
            "module must be a ConvNextBackbone, a ConvNextModel or a "
            f"ConvNextForImageClassification, got {type(module).__name__}"
        )
    own = weight_of_stages(module).dtype
    network = _copy(module).eval().requires_grad_(False)
    if dtype is not None:
        promote(network, torch.promote_types(own, dtype))  # nothing is rounded before folding
    if not has_global_hooks() and runs_its_parts(network):
        _replace_parts(network, dtype, packed=not compile)
    if dtype is not None:
        promote(network, dtype)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)
    if compile:
        network.compile(dynamic=True)
    return OptimizedModule(network, dtype or own, compile)


def fold_network(network: nn.Module) -> None:
    """Fold the unmodified parts of a network where they stand, without packing: for export."""
    _replace_parts(network, None, packed=False)


def _copy(module: nn.Module) -> nn.Module:
    """Return a copy of a network.

    Raises:
        ValueError: A part has a method that would run the original.
    """
    with _CopyOfComputedTensors():
        network = copy.deepcopy(module)
    originals = set(module.modules())
    for name, part in network.named_modules():
        if not originals.isdisjoint(_modules_held_by(vars(part).get("forward"), set())):
            raise ValueError(
                f"{name!r} has a forward method that calls a module of the original, so that a "
                "copy would run it too; give it a class of its own instead, with super().forward()"
            )
    return network


class _CopyOfComputedTensors(TorchFunctionMode):
    """Makes `copy.deepcopy` take computed tensors, such as normed weights, which it refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _modules_held_by(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that a callable may call: what it is bound to, closes over or wraps."""
    if isinstance(value, nn.Module):
        yield value
    elif callable(value) and not isinstance(value, type) and id(value) not in seen:
        seen.add(id(value))
        for inner in _iter_held(value):
            yield from _modules_held_by(inner, seen)


def _iter_held(function: Any) -> Iterator[Any]:
    if inspect.ismethod(function):
        yield from (function.__self__, function.__func__)
    elif isinstance(function, partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif inspect.isfunction(function):
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from inspect.getclosurevars(function).nonlocals.values()
        # Names of attributes are not those of globals.
        steps = dis.get_instructions(function)
        names = (step.argval for step in steps if step.opname == "LOAD_GLOBAL")
        yield from map(function.__globals__.get, names)
    else:  # an object of a class with __call__
        yield from getattr(function, "__dict__", {}).values()


def _replace_parts(network: nn.Module, dtype: torch.dtype | None, packed: bool) -> None:
    """Put folded, cast and, where possible, packed parts in the place of unmodified ones."""
    downsample_layers = network.get_submodule("downsample_layers")
    for index, layers in downsample_layers.named_children():
        if is_downsampling(layers):
            layers = fold_downsampling(layers)
            setattr(downsample_layers, index, layers)
        for name, layer in layers.named_children() if is_chain(layers) else ():
            if packed and is_patch_conv(layer) and can_pack(layer.to(dtype).weight):
                setattr(layers, name, PackedPatchConv(layer))
    for chain in _chains(network.get_submodule("stages")):
        for name, block in chain.named_children():
            if is_unmodified_block(block):
                block = fold_block(block).to(dtype)
                is_packed = packed and can_pack_block(block)
                setattr(chain, name, PackedBlock(block) if is_packed else block)


def _chains(parent: nn.Module) -> Iterator[nn.Module]:
    """Yield the chains in `parent`, and those in them."""
    for child in filter(is_chain, parent.children()):
        yield child
        yield from _chains(child)


def _refusal(what: str) -> Callable[..., NoReturn]:
    """Return a method of `OptimizedModule` that only raises."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise a RuntimeError that names what to do with the original instead."""
        raise RuntimeError(f"an optimized module cannot be {what}")

    return refuse


class OptimizedModule(nn.Module):
    """What `optimize_for_inference` returns: it holds the optimized network and runs it.

    Attributes:
        network: The optimized copy of a backbone, model or classifier.
        dtype: What it computes in.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, compiled: bool) -> None:
        super().__init__()
        self.network: Any = network  # its class lives above this package
        self.dtype = dtype
        self._compiled = compiled
        super().train(False)

    @property
    def _device(self) -> torch.device:
        # Packed weights are no parameters; where they are all, the device is the CPU.
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def config(self) -> ConvNextConfig:
        """The architecture and the outputs."""
        return self.network.config

    @property
    def out_features(self) -> tuple[str, ...]:
        """The names of a backbone's outputs."""
        return self.network.out_features

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each output of a backbone."""
        return self.network.channels

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each output of a backbone, in input pixels."""
        return self.network.strides

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the original returns, without gradients.

        Args:
            pixel_values: Images (N, num_channels, H, W), floating point.
            args: Further arguments of the original's forward method.
            kwargs: The same by name.

        Raises:
            RuntimeError: A gradient of `pixel_values` is asked for.
        """
        # Anything but floating point is left to the original's own check.
        if isinstance(pixel_values, Tensor) and pixel_values.is_floating_point():
            if _takes_gradients(pixel_values):
                raise RuntimeError("an optimized module has no gradients; use the original")
            pixel_values = pixel_values.to(self.dtype)
        # Autocast would have another dtype than this module's for the parts that were kept.
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            return self.network(pixel_values, *args, **kwargs)

    def optimize_for_inference(
        self, *, dtype: torch.dtype | None = None, compile: bool = False
    ) -> "OptimizedModule":
        """Return this module, if that is what is asked for.

        Raises:
            ValueError: It is optimized for something else.
        """
        if (dtype or self.dtype, compile) == (self.dtype, self._compiled):
            return self
        raise ValueError(
            f"this module is optimized for dtype={self.dtype} and compile={self._compiled}, not "
            f"dtype={dtype} and compile={compile}; optimize the original anew"
        )

    def train(self, mode: bool = True) -> "OptimizedModule":
        """Refuse training mode. Returns self.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError("an optimized module cannot train; train the original")
        return self

    # Its weights are folded and packed: whatever reads, writes, moves or casts them is refused.

    save_pretrained = _save_to_state_dict = _refusal("saved; save the original")
    init_weights = _refusal("initialized; initialize the original")
    _load_from_state_dict = _refusal("loaded into; load into the original and optimize that")
    __reduce_ex__ = _refusal("pickled; save the original")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OptimizedModule":
        moved = fn(torch.empty(0, dtype=self.dtype, device=self._device))
        if (moved.device, moved.dtype) != (self._device, self.dtype):
            raise RuntimeError(
                "an optimized module cannot be moved or cast; move the original, or give dtype to "
                "optimize_for_inference"
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptimizedModule":
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied


def _takes_gradients(x: Tensor) -> bool:
    forward_mode = forward_ad.unpack_dual(x).tangent is not None
    return forward_mode or (torch.is_grad_enabled() and x.requires_grad)
