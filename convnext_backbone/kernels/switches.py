"""The switch of the fused operations."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import TracebackType


@dataclass
class Switches:
    """Which fused operations may run.

    Attributes:
        cpu: The tiled operations and the depthwise gradient of the CPU.
        triton: The Triton kernels on a CUDA device. Off until they are measured on one: turn them
            on to measure or to try them.
    """

    cpu: bool = True
    triton: bool = False


switches = Switches()


class use_kernels:  # noqa: N801 - reads as a statement, like torch.no_grad
    """Turn fused operations on or off, for good or, as a context manager, for a while.

    Args:
        cpu: True, False, or None to leave as it is.
        triton: True, False, or None to leave as it is.

    Raises:
        TypeError: A value is none of these.
        ImportError: Triton is asked for and not installed.
    """

    def __init__(self, *, cpu: bool | None = None, triton: bool | None = None) -> None:
        self._before = replace(switches)
        for name, value in (("cpu", cpu), ("triton", triton)):
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name} must be True, False or None, got {value!r}")
            if name == "triton" and value and find_spec("triton") is None:
                raise ImportError("the Triton kernels need Triton: pip install triton")
            if value is not None:
                setattr(switches, name, value)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        switches.cpu, switches.triton = self._before.cpu, self._before.triton
