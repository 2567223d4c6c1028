"""The two tools of the layout tables: key patterns that read and write, and ways to store a tensor.

Placeholders of a pattern: `{s}` stage, `{b}` block, `{t}` transition into stage t >= 1 (each with
arithmetic, `{2s+1}`), `{i}` 0 to 3, `{j}` 1 or 2, `{p}` weight or bias, `{g}` gamma or beta, `{n}`
a model name that is the same in the whole file, `{top}` a layer after the stages, `{v}` any one
name, `{*}` anything. `{kernel}`, `{gamma}`, `{number}` and `{weight}` are other names of a weight
and bias, or of a gamma and beta.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

Shape = tuple[int, ...]

# ------------------------------------------------------------------------------ patterns

_SYMBOLS: Mapping[str, str] = {
    "i": "[0-3]",
    "j": "[12]",
    "p": "weight|bias",
    "g": "gamma|beta",
    "n": r"[^/.]+?",
    "top": "norm|norm_pre|head",
    "v": r"[^/.]+",
    "*": ".+",
}
# Placeholder -> the native one that it stands for, and the native value of each of its own.
_TRANSLATED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "kernel": ("p", {"kernel": "weight", "bias": "bias"}),
    "gamma": ("p", {"gamma": "weight", "beta": "bias"}),
    "number": ("p", {"0": "weight", "1": "bias"}),
    "weight": ("g", {"weight": "gamma", "bias": "beta"}),
}
_SYMBOLS = {**_SYMBOLS, **{name: "|".join(own) for name, (_, own) in _TRANSLATED.items()}}
_NUMBER = re.compile(r"(?P<factor>\d*)(?P<name>[stb])(?P<shift>[+-]\d+)?")
_PLACEHOLDER = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class Pattern:
    """A key pattern that reads its placeholders out of a key and writes them into one."""

    text: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The placeholders, in order."""
        return tuple(_PLACEHOLDER.findall(self.text))

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The regular expression of all keys that fit, up to the arithmetic of placeholders."""
        parts = []
        seen: set[str] = set()
        for index, part in enumerate(_PLACEHOLDER.split(self.text)):
            if index % 2 == 0:
                parts.append(re.escape(part))
                continue
            group = f"_{self.names.index(part)}"
            body = r"\d{1,9}" if _NUMBER.fullmatch(part) else _SYMBOLS[part]
            parts.append(f"(?P={group})" if part in seen else f"(?P<{group}>{body})")
            seen.add(part)
        return re.compile("".join(parts))

    def read(self, key: str) -> dict[str, str] | None:
        """Return the values of the placeholders, or None where `key` does not fit."""
        match = self.regex.fullmatch(key)
        if match is None:
            return None
        values: dict[str, str] = {}
        for name in dict.fromkeys(self.names):
            found = match[f"_{self.names.index(name)}"]
            number = _NUMBER.fullmatch(name)
            if number is not None:
                factor, shift = int(number["factor"] or 1), int(number["shift"] or 0)
                base, rest = divmod(int(found) - shift, factor)
                if rest or base < (number["name"] == "t"):
                    return None
                name, found = number["name"], str(base)
            elif name in _TRANSLATED:
                name, native = _TRANSLATED[name]
                found = native[found]
            values[name] = found
        return values

    def write(self, values: Mapping[str, str]) -> str:
        """Return the key with the placeholders filled in."""

        def fill(match: re.Match[str]) -> str:
            number = _NUMBER.fullmatch(match[1])
            if match[1] in _TRANSLATED:
                name, native = _TRANSLATED[match[1]]
                return next(own for own, value in native.items() if value == values[name])
            if number is None:
                return values[match[1]]
            factor, shift = int(number["factor"] or 1), int(number["shift"] or 0)
            return str(factor * int(values[number["name"]]) + shift)

        return _PLACEHOLDER.sub(fill, self.text)


# ------------------------------------------------------------------------------ tensors


@dataclass(frozen=True)
class Storage:
    """One way to store a tensor: when a shape is that, how to the native form and back."""

    fits: Callable[[Shape], bool]
    to_native: Callable[[Tensor], Tensor]
    from_native: Callable[[Tensor], Tensor]


def _rank(rank: int) -> Callable[[Shape], bool]:
    return lambda shape: len(shape) == rank


def _taps(rank: int) -> Callable[[Shape], bool]:
    """The taps of a square kernel as the first of `rank` axes."""
    return lambda shape: len(shape) == rank and _side(shape[0]) ** 2 == shape[0]


def _vector(*sides: int) -> Callable[[Shape], bool]:
    """A vector in a shape of more axes; -1 is its own."""
    return lambda shape: (
        len(shape) == len(sides)
        and all(side in (-1, length) for side, length in zip(sides, shape, strict=True))
    )


def _side(taps: int) -> int:
    return round(taps**0.5)


def _dense_conv(kernel: Tensor) -> Tensor:
    # MinkowskiEngine lists the taps of a kernel with the image's two axes exchanged.
    side = _side(kernel.shape[0])
    taps_last = kernel.permute(2, 1, 0)  # (kk, in, out) -> (out, in, kk)
    return taps_last.reshape(*taps_last.shape[:2], side, side).transpose(3, 2)


def _sparse_conv(weight: Tensor) -> Tensor:
    return weight.transpose(3, 2).flatten(2).permute(2, 1, 0)  # (out, in, k, k) -> (kk, in, out)


def _dense_depthwise(kernel: Tensor) -> Tensor:
    side = _side(kernel.shape[0])
    return kernel.t().reshape(-1, 1, side, side).transpose(3, 2)  # (kk, C) -> (C, 1, k, k)


def _sparse_depthwise(weight: Tensor) -> Tensor:
    return weight.transpose(3, 2).flatten(1).t()  # (C, 1, k, k) -> (kk, C)


STORAGES: Mapping[str, Storage] = {
    "same": Storage(_rank(4), lambda x: x, lambda x: x),
    "flat": Storage(_rank(1), lambda x: x, lambda x: x),
    "squeeze_scale": Storage(_vector(-1, 1, 1), lambda x: x.flatten(), lambda x: x[:, None, None]),
    "flatten_row": Storage(_vector(1, -1), lambda x: x.flatten(), lambda x: x[None]),
    "flatten_grn": Storage(
        _vector(1, 1, 1, -1), lambda x: x.flatten(), lambda x: x[None, None, None]
    ),
    "flatten_grn_nchw": Storage(
        _vector(1, -1, 1, 1), lambda x: x.flatten(), lambda x: x[None, :, None, None]
    ),
    "linear": Storage(_rank(2), lambda x: x, lambda x: x),
    "conv1x1_to_linear": Storage(
        lambda s: len(s) == 4 and s[2:] == (1, 1),
        lambda x: x.flatten(1),
        lambda x: x[:, :, None, None],
    ),
    "transpose": Storage(_rank(2), lambda x: x.t(), lambda x: x.t()),
    "hwio_to_oihw": Storage(
        _rank(4), lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0)
    ),
    "dense_conv": Storage(_taps(3), _dense_conv, _sparse_conv),
    "dense_depthwise": Storage(_taps(2), _dense_depthwise, _sparse_depthwise),
}
