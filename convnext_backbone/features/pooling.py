"""How a map (C, H, W) is reduced to a vector (C,): a new pooling is one entry of `POOLS`."""

from collections.abc import Callable

from torch import Tensor


def _generalised_mean(x: Tensor, p: float) -> Tensor:
    # Powers overflow in half precision: raise and average in fp32.
    return x.float().clamp(min=1e-6).pow(p).mean(dim=(-2, -1)).pow(1 / p).to(x.dtype)


# name -> function of a map (C, H, W) and the power of "gem", which the others ignore
POOLS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "avg": lambda x, _: x.mean(dim=(-2, -1)),
    "max": lambda x, _: x.amax(dim=(-2, -1)),
    "gem": _generalised_mean,
}
