"""Names of this package for `optim_wrapper` in a config, imported only when a config uses them.

mmengine.optim takes about a second to import, which `import convnext_backbone` must not cost.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mmengine.optim import OptimWrapper

    from .layer_decay import ConvNextLayerDecayOptimWrapperConstructor

# bfloat16 has float32's range, so there is nothing to scale; mmengine would scale all the same.
_LOSS_SCALE: dict[str, Any] = {"bfloat16": {"enabled": False}, "float16": "dynamic"}


def layer_decay_constructor(
    *args: Any, **kwargs: Any
) -> "ConvNextLayerDecayOptimWrapperConstructor":
    """Build the constructor that `layer_decay.py` describes."""
    from .layer_decay import ConvNextLayerDecayOptimWrapperConstructor

    return ConvNextLayerDecayOptimWrapperConstructor(*args, **kwargs)


def auto_amp_optim_wrapper(
    *, dtype: str | None = None, use_fsdp: bool = False, **kwargs: Any
) -> "OptimWrapper":
    """Build the optimizer wrapper with the best mixed precision that this machine has.

    bfloat16 where the GPU computes in it; else float16 with dynamic loss scaling; on a CPU plain
    float32, or bfloat16 where `dtype` asks for it, which pays where the CPU has AMX. The choice
    goes to the log.

    Args:
        dtype: "bfloat16" or "float16" instead of the machine's best.
        use_fsdp: float16 takes the loss scaler for sharded models.
        **kwargs: Of mmengine's `OptimWrapper`.

    Raises:
        ValueError: An unknown `dtype`, or float16 on a CPU.
    """
    from mmengine.logging import print_log
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    from .amp import CpuAmpOptimWrapper, Float16OptimWrapper

    gpu = torch.cuda.is_available()
    known = tuple(_LOSS_SCALE) if gpu else ("bfloat16",)
    if dtype is not None and dtype not in known:
        machine = "a GPU" if gpu else "a CPU"
        raise ValueError(f"optim_wrapper.dtype: on {machine} one of {known}, got {dtype!r}")
    if dtype is None and gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if native else "float16"
    if dtype is None:
        print_log("No GPU: training in float32, without mixed precision.", logger="current")
        return OptimWrapper(**kwargs)
    print_log(f"Mixed precision in {dtype}{'' if gpu else ' on the CPU'}.", logger="current")
    if not gpu:
        return CpuAmpOptimWrapper(**kwargs)
    wrapper = Float16OptimWrapper if dtype == "float16" else AmpOptimWrapper
    return wrapper(dtype=dtype, loss_scale=_LOSS_SCALE[dtype], use_fsdp=use_fsdp, **kwargs)


def register_optim() -> None:
    """Register the names of this module in mmengine's root registries; calling twice is fine."""
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(
        "ConvNextLayerDecayOptimWrapperConstructor", module=layer_decay_constructor, force=True
    )
    OPTIM_WRAPPERS.register_module("AutoAmpOptimWrapper", module=auto_amp_optim_wrapper, force=True)
