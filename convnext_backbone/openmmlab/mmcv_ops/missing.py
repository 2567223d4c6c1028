"""The error of an operation that this package does not have."""


class MissingMmcvOpError(RuntimeError):
    """An operation of compiled mmcv that this package does not have."""

    def __init__(self, op: str) -> None:
        super().__init__(
            f"mmcv's operation {op!r} is not among those that convnext_backbone runs on "
            "torchvision. It needs compiled mmcv: `pip uninstall mmcv-lite`, then build "
            "`MMCV_WITH_OPS=1 pip install --no-build-isolation 'mmcv<2.2'` with a C++ compiler "
            "(and nvcc for CUDA); with the onedl packages the same for onedl-mmcv. A compiled "
            "extension is then used instead of this one."
        )
        self.op = op
