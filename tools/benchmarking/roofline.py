"""The work of a step, and the ceilings of the machine."""

from collections.abc import Callable

import torch

from .cell import Cell
from .timing import clock_of


def work_of(cell: Cell) -> dict[str, float]:
    """Return the FLOPs of a step and the fewest bytes that it moves, each map once per layer pair.

    The bytes are those of a block in three fused operations: depthwise convolution and norm (read
    x, write C), first pointwise layer and GELU (read C, write 4C), second pointwise layer and
    residual (read 4C and x, write C). A backward pass does twice the work of a forward pass.
    """
    config, size = cell.config, cell.precision.compute.itemsize
    flops = moved = 0.0
    height, width = (side // config.patch_size for side in cell.size)
    before, kernel = config.num_channels, config.patch_size
    shapes = zip(config.hidden_sizes, config.depths, config.kernel_sizes, strict=True)
    for index, (c, depth, side) in enumerate(shapes):
        if index > 0:
            height, width, kernel = height // 2, width // 2, 2
        pixels = cell.batch * height * width
        flops += 2 * pixels * c * before * kernel**2
        moved += size * pixels * (before * kernel**2 + c)
        flops += depth * 2 * pixels * c * (side**2 + 8 * c)
        moved += depth * size * (pixels * c * (2 + 5 + 6) + c * (side**2 + 8 * c))
        before = c
    times = 3 if cell.mode == "training" else 1
    return {"flops": times * flops, "bytes": times * moved}


def measure_ceilings(dtype: torch.dtype, device: str, clock: str) -> dict[str, float]:
    """Measure FLOP/s of a large matrix product and bytes/s of a large copy, read and write counted.

    Random data: a product of zeros can run faster than any real one.
    """
    n, numel = (8192, 1 << 29) if device == "cuda" else (1536, 1 << 25)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source = torch.randn(numel, device=device).to(dtype)
    target = torch.empty_like(source)
    now = clock_of(clock, device)

    def best(run: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            start = now()
            run()
            times.append(now() - start)
        return min(times[2:]) / 1e3

    return {
        "flops": 2 * n**3 / best(lambda: torch.mm(a, b)),
        "bytes": 2 * source.nbytes / best(lambda: target.copy_(source)),
    }
