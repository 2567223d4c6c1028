"""Whether a part of a network is as its constructor made it, so that it may be replaced.

Whatever has a hook, a parametrization, a pruned or a computed weight, a method of its own, or is of
another class, is not: it stays in the optimized network and runs as it is. So does all that is in
it, since a hook and a class of the user's may read the parts.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..models.block import Block, Stage
from ..models.layers import Conv2d, DepthwiseConv2d, DropPath, GlobalResponseNorm, LayerNorm2d

_PACKAGE = __name__.partition(".")[0] + "."
# The methods that may be put in another's place, on a class or on a module.
_METHODS = ("forward", "_conv_forward")
_CLASSES = (
    Block, Stage, nn.Sequential, DepthwiseConv2d, Conv2d, nn.Conv2d, LayerNorm2d, nn.LayerNorm,
    nn.Linear, nn.GELU, GlobalResponseNorm, DropPath, nn.Identity,
)  # fmt: skip


def _method_as_built(cls: type, name: str) -> Any:
    method = vars(cls).get(name)
    module = getattr(method, "__module__", _PACKAGE)
    return method if module.startswith((_PACKAGE, "torch.")) else object()  # equals no method


# What they are by class, when this module is imported: a class that is patched later is altered.
_AS_BUILT = {
    base: [_method_as_built(base, name) for name in _METHODS]
    for cls in _CLASSES
    for base in cls.__mro__
}
# torch's hooks on all modules of the process.
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def has_global_hooks() -> bool:
    """Whether hooks on all modules are registered, which would miss the parts replaced."""
    return any(getattr(torch_module, name) for name in _GLOBAL_HOOKS)


def is_unmodified(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether `module` is exactly of one of the classes, without hooks or computed weights.

    Its children are not looked at. A parametrized module is of a class of its own, and a pruned
    one has a hook.
    """
    return (
        module is not None
        and type(module) in classes
        and _has_its_methods(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._buffers
        and not any(isinstance(value, Tensor) for value in vars(module).values())
        and all(type(p) in (nn.Parameter, type(None)) for p in module._parameters.values())
    )


def _has_its_methods(module: nn.Module) -> bool:
    return not any(name in vars(module) for name in _METHODS) and all(
        [vars(base).get(name) for name in _METHODS] == _AS_BUILT[base]
        for base in type(module).__mro__
    )


def runs_its_parts(network: nn.Module) -> bool:
    """Whether a network runs its parts as this package's classes do; other classes may read them.

    Its parts may be altered all the same.
    """
    names, classes = ("forward", "iter_maps"), type(network).__mro__
    owners = (next((cls for cls in classes if name in vars(cls)), object) for name in names)
    is_ours = all(cls.__module__.startswith(_PACKAGE) for cls in owners)
    return is_ours and not any(name in vars(network) for name in names)


def is_unmodified_norm(norm: nn.Module, cls: type[nn.LayerNorm]) -> bool:
    """Whether `norm` is a layer norm over the channels, affine or not."""
    return is_unmodified(norm, cls) and isinstance(norm, cls) and len(norm.normalized_shape) == 1


def is_patch_conv(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `conv` is a dense convolution of patches that do not overlap: stem, downsampling."""
    return (
        is_unmodified(conv, Conv2d, nn.Conv2d)
        and isinstance(conv, nn.Conv2d)
        and conv.stride == conv.kernel_size
        and (conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
        and conv.stride[0] == conv.stride[1]
    )


def is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether `module` does nothing but call its children in turn."""
    return is_unmodified(module, nn.Sequential, Stage)


def is_downsampling(layers: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether `layers` is the norm and convolution between two stages, nothing else."""
    if not is_chain(layers) or len(layers) != 2:
        return False
    norm, conv = layers
    return is_unmodified_norm(norm, LayerNorm2d) and is_patch_conv(conv) and _has_one_dtype(layers)


def _is_depthwise(conv: nn.Module) -> bool:
    return (
        is_unmodified(conv, DepthwiseConv2d)
        and isinstance(conv, nn.Conv2d)
        and conv.padding_mode == "zeros"
        # torch takes integers and words as well, oneDNN tuples only.
        and all(isinstance(v, tuple) for v in (conv.padding, conv.stride, conv.dilation))
    )


# The parts of a block, and whether one is as built.
_PARTS: Mapping[str, Callable[[nn.Module], bool]] = {
    "dwconv": _is_depthwise,
    "norm": lambda norm: is_unmodified_norm(norm, nn.LayerNorm),
    "pwconv1": lambda linear: is_unmodified(linear, nn.Linear),
    "act": lambda act: True,  # it stays as it is
    "grn": lambda grn: is_unmodified(grn, nn.Identity, GlobalResponseNorm),
    "pwconv2": lambda linear: is_unmodified(linear, nn.Linear),
    "drop_path": lambda drop: is_unmodified(drop, DropPath, nn.Identity),
}


def is_unmodified_block(block: nn.Module) -> TypeGuard[Block]:
    """Whether a block and all its parts are as built; its activation may be another."""
    return (
        isinstance(block, Block)
        and is_unmodified(block, Block)
        and block._modules.keys() == _PARTS.keys()
        and _has_one_dtype(block)
        and all(is_as_built(block.get_submodule(name)) for name, is_as_built in _PARTS.items())
        and _have_width(block.pwconv2.out_features, block.gamma)
        and _have_width(block.pwconv1.out_features, *block.grn.parameters())
    )


def _has_one_dtype(part: nn.Module) -> bool:
    return len({p.dtype for p in part.parameters()}) == 1


def _have_width(width: int, *scales: Any) -> bool:
    """Whether these are vectors; other shapes that broadcast act as well, but cannot be folded."""
    return all(s is None or (isinstance(s, Tensor) and s.shape == (width,)) for s in scales)
