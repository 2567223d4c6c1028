"""Every known key layout of a ConvNeXt checkpoint, as tables to and from the native names.

Layouts are recognised by keys and shapes, never by file name. A new layout is a table of its keys
in layouts.csv and a row of `_LAYOUTS` here, of which each field is one thing that sets layouts
apart. Only a placeholder or a form of tensors that no layout has yet goes into `patterns`.

The tables were read from the sources of facebookresearch/ConvNeXt, ConvNeXt-V2 and dinov3, timm,
torchvision, transformers, mmpretrain and keras; files of the last two were opened as well.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from typing import Any

from torch import Tensor

from ..archs import CONV_MLP, FAMILIES, NORM_DROPPED
from ..utils.checks import shorten_list
from .containers import current_limits
from .patterns import STORAGES, Pattern, Shape

_Rows = Mapping[str, str | None]  # pattern -> native pattern; None: dropped on purpose
_Storages = Mapping[str, tuple[str, ...]]  # kind of tensor -> its storages, most common first

_VECTORS = ("flat", "squeeze_scale", "flatten_row", "flatten_grn", "flatten_grn_nchw")
_AS_NATIVE = {"same", "flat", "linear"}

STEM_KEY = "downsample_layers.0.0.weight"  # of a native state dict
# What a native tensor is, by its key; the first that fits. A vector is everything else.
_KINDS: Mapping[str, re.Pattern[str]] = {
    "conv": re.compile(r"downsample_layers\.(0\.0|[1-9]\d*\.1)\.weight"),
    "stem": re.compile(r"downsample_layers\.0\.[1-9]\.weight"),
    "depthwise": re.compile(r"stages\.\d+\.\d+\.dwconv\.weight"),
    "pointwise": re.compile(r"stages\.\d+\.\d+\.pwconv[12]\.weight"),
    "head": re.compile(r"(head|pre_logits\.fc)\.weight"),
    "scale": re.compile(r"stages\.\d+\.\d+\.gamma"),
    "grn": re.compile(r"stages\.\d+\.\d+\.grn\.(gamma|beta)"),
    "vector": re.compile(".*"),
}
# How PyTorch layouts may store each kind; a file's own choice is read from its shapes.
_TORCH: _Storages = {
    "conv": ("same",),
    "depthwise": ("same",),
    "pointwise": ("linear", "conv1x1_to_linear"),
    "head": ("linear", "conv1x1_to_linear"),
    "scale": _VECTORS,
    "grn": _VECTORS,
    "vector": ("flat", "flatten_row"),
}
_GRN4: _Storages = {**_TORCH, "grn": ("flatten_grn", *_VECTORS)}
_HWIO: _Storages = {
    **_GRN4,
    **dict.fromkeys(("conv", "depthwise"), ("hwio_to_oihw",)),
    **dict.fromkeys(("pointwise", "head"), ("transpose",)),
}
_SPARSE: _Storages = {**_TORCH, "conv": ("dense_conv", "same"), "depthwise": ("dense_depthwise",)}

TRUNK = ("downsample_layers.", "stages.")  # of native keys
_BLOCK = re.compile(r"stages\.(\d{1,9})\.(\d{1,9})\.")
_MAX_PREFIXES = 100


def kind_of(native_key: str, rank: int) -> str:
    """Return the kind of tensor that a native key names: conv, depthwise, pointwise, head, ...

    In the stem of several convolutions, the rank of a tensor tells them from the norm.
    """
    kind = next(kind for kind, regex in _KINDS.items() if regex.fullmatch(native_key))
    return kind if kind != "stem" else "conv" if rank > 2 else "vector"


# ------------------------------------------------------------------------------ layouts


@dataclass(frozen=True)
class Layout:
    """One way to name and store the tensors of a ConvNeXt."""

    name: str
    rows: _Rows
    anchor: str = STEM_KEY  # the stem convolution; what stands before it is the prefix of all keys
    requires: tuple[str, ...] = ()  # patterns of which each must name at least one key
    # Rows for keys outside the trunk, which stand under one of the prefix's parents.
    outer: _Rows = field(default_factory=dict)
    norm_alias: str = ""  # second name of the final norm, with the index of the last stage
    storage: _Storages = field(default_factory=lambda: _TORCH)
    model_type: str | None = None  # the only family stored so; None where it holds several
    # Of the final norm, where the published models have another epsilon than in other norms.
    layer_norm_eps: float | None = None
    trunk_prefix: str = ""  # in published files
    is_native: bool = False  # whether the names are those of this package's own modules
    # Whether the norm after the last stage has one name before and after the pooling. It is the
    # final norm where it is the only norm or where there is a classifier.
    shared_final_norm: bool = False
    wrapper: str = ""  # the entry of a published PyTorch file that holds the tensors
    # Architectures whose pointwise layers are published as 1x1 convolutions; None: none can be.
    conv_pointwise: tuple[str, ...] | None = None
    is_timms: bool = False  # whether timm's network alone has these names
    target: str = ""  # what `convert --to` calls it, one name for several; "": it is not written
    # Which networks other than most it can hold: those of timm (see `config.VARIANT`), or with the
    # stem "patch_no_norm", of which a file shows only those with a single stage.
    holds_variants: bool = False
    holds_isotropic: bool = False

    @property
    def final_norm(self) -> str:
        """Where a backbone has the final norm: the detection recipe of V1 and V2 drops it."""
        return FAMILIES[self.model_type].final_norm if self.model_type else NORM_DROPPED

    @cached_property
    def _tables(self) -> "tuple[_Compiled, _Compiled]":
        return _compile(self.rows), _compile(self.outer)

    @cached_property
    def _compiled_anchor(self) -> re.Pattern[str]:
        return re.compile(rf"(?P<prefix>(?:.*[./])?)(?:{Pattern(self.anchor).regex.pattern})")

    def prefixes(self, keys: Iterable[str]) -> set[str]:
        """Return every prefix under which the stem convolution stands."""
        found = (self._compiled_anchor.fullmatch(key) for key in keys)
        return {match["prefix"] for match in found if match is not None}

    def fits(self, keys: Iterable[str]) -> bool:
        """Return whether keys, without their prefix, are those that mark this layout."""
        keys = list(keys)
        return all(_any_fits(text, keys) for text in self.requires)

    def native_key(self, key: str, *, outer: bool = False) -> tuple[bool, str | None, str | None]:
        """Return whether `key` is known, its native name, and the model name it carries."""
        return _look_up(self._tables[1 if outer else 0], key)

    def aliases(self, native_keys: Iterable[str]) -> dict[str, str]:
        """Return the second names, without a prefix, of the final norm's two native keys."""
        name = self.norm_alias.format(len(depths_of(native_keys)) - 1)
        return {f"norm.{part}": f"{name}.{part}" for part in ("weight", "bias") if name}

    def source_keys(
        self, native_keys: Iterable[str], prefix: str | None = None, model_name: str = "convnext"
    ) -> dict[str, str]:
        """Return the key in this layout of each native key that has one."""
        native_keys = list(native_keys)
        inner = self.trunk_prefix if prefix is None else prefix
        last = f"norms.stage{len(depths_of(native_keys))}."
        found = {}
        for key in native_keys:
            is_shared = self.shared_final_norm and key.startswith("norm.")
            shown = last + key.removeprefix("norm.") if is_shared else key
            for table, start in (self._tables[0], inner), (self._tables[1], ""):
                for pattern, native in table:
                    values = native.read(shown) if native else None
                    if values is not None and key not in found:
                        written = pattern.write({"n": model_name, "v": "gamma", **values})
                        found[key] = start + written
        return found


_Compiled = tuple[tuple[Pattern, Pattern | None], ...]


def _compile(rows: _Rows) -> _Compiled:
    return tuple((Pattern(a), Pattern(b) if b is not None else None) for a, b in rows.items())


def _any_fits(text: str, keys: Iterable[str]) -> bool:
    pattern = Pattern(text)
    return any(pattern.read(key) is not None for key in keys)


def _look_up(rows: _Compiled, key: str) -> tuple[bool, str | None, str | None]:
    """Return whether a row fits `key`, its native name, and the model name in it."""
    for pattern, native in rows:
        values = pattern.read(key)
        if values is not None:
            return True, native.write(values) if native else None, values.get("n")
    return False, None, None


def _rows(*tables: str, replacing: Mapping[str, str] | None = None) -> _Rows:
    """Return the rows of tables of layouts.csv, with parts of their keys replaced."""
    rows: dict[str, str | None] = {}
    for row in _TABLE:
        if row["table"] in tables:
            key = row["key"]
            for old, new in (replacing or {}).items():
                key = key.replace(old, new)
            rows[key] = row["native"] or None
    return rows


with (files(__package__) / "layouts.csv").open(encoding="utf-8") as _file:
    _TABLE = tuple(csv.DictReader(_file))

_FACEBOOK_BLOCK = "stages.{s}.{b}.dwconv.weight"
_HUGGINGFACE_BLOCK = "encoder.stages.{s}.layers.{b}.dwconv.weight"
_HUGGINGFACE = _rows("huggingface", "huggingface norms")
_HUGGINGFACE_OUTER = _rows("huggingface head", "huggingface norms", "huggingface first upernet")
_MMPRETRAIN = {"dwconv": "depthwise_conv", "pwconv": "pointwise_conv"}
_PROJECTION = re.compile(r"(.*\.)?head\.(proj|mlp\.fc[12])\.(weight|bias)")  # OpenCLIP's
_JOINED = {"stem.": "stem_", "stages.": "stages_"}  # as `features_only` names stages
_NUMBERED = {"{kernel}": "{number}", "{gamma}": "{number}", "{v}": "0"}

# transformers alone gives the final norm of V1 and V2 an epsilon of its own.
_HF_EPS = FAMILIES["convnext"].layer_norm_eps

# Order decides where two layouts fit: the more specific one stands first.
_LAYOUTS = (
    Layout("facebook-fcmae-sparse", _rows("facebook sparse", "facebook decoder"),
           requires=("stages.{s}.{b}.dwconv.kernel",), storage=_SPARSE, trunk_prefix="encoder."),
    Layout("mmpretrain", _rows("facebook", "numbered norms", replacing=_MMPRETRAIN),
           requires=("stages.{s}.{b}.depthwise_conv.weight",),
           outer=_rows("mmpretrain head"), trunk_prefix="backbone.", wrapper="state_dict",
           shared_final_norm=True, conv_pointwise=(), target="mmpretrain"),
    Layout("eupe", _rows("facebook", "facebook top", "eupe"),
           requires=(_FACEBOOK_BLOCK, "projectors.{*}")),
    Layout("facebook-dinov3", _rows("facebook", "facebook top", "facebook dinov3"),
           requires=(_FACEBOOK_BLOCK, "norms.{s}.weight"), model_type="dinov3_convnext",
           norm_alias="norms.{}", wrapper="model", target="facebook"),
    Layout("facebook-dense", _rows("facebook", "numbered norms"),
           requires=(_FACEBOOK_BLOCK, "norm{s}.weight"), storage=_GRN4, trunk_prefix="backbone.",
           wrapper="model", target="facebook"),
    Layout("native", _rows("facebook", "facebook top", "native norms", "native variants"),
           requires=(_FACEBOOK_BLOCK, "norms.{v}.weight"), is_native=True,
           target="native", holds_variants=True, holds_isotropic=True),
    # A classifier of this package has these names and those of V1 as well, and more as a variant.
    Layout("facebook-v2",
           _rows("facebook", "facebook top", "facebook decoder", "native variants"),
           requires=(_FACEBOOK_BLOCK, "stages.{s}.{b}.grn.gamma", "{top}.weight"), storage=_GRN4,
           wrapper="model", target="facebook"),
    Layout("facebook-fcmae", _rows("facebook", "facebook decoder"),
           requires=(_FACEBOOK_BLOCK, "stages.{s}.{b}.grn.gamma"), storage=_GRN4, wrapper="model",
           target="facebook"),
    Layout("facebook-v1", _rows("facebook", "facebook top", "native variants"),
           requires=(_FACEBOOK_BLOCK,), wrapper="model", target="facebook"),
    Layout("facebook-isotropic", _rows("facebook isotropic", "facebook top"), "stem.weight",
           requires=("blocks.{b}.dwconv.weight",), wrapper="model", target="facebook",
           holds_isotropic=True),
    Layout("timm", _rows("timm", "timm top"), "stem.0.weight",
           requires=("stages.{s}.blocks.{b}.conv_dw.weight",),
           outer=_rows("open_clip head"), conv_pointwise=CONV_MLP, is_timms=True,
           target="timm", holds_variants=True),
    Layout("timm-features", _rows("timm", replacing=_JOINED), "stem_0.weight",
           requires=("stages_{s}.blocks.{b}.conv_dw.weight",), is_timms=True),
    Layout("torchvision", _rows("torchvision"), "0.0.weight",
           requires=("{2s+1}.{b}.block.5.weight",), outer=_rows("torchvision top"),
           trunk_prefix="features.",
           storage={**_TORCH, "scale": ("squeeze_scale", *_VECTORS)}, target="torchvision"),
    Layout("huggingface-v2", _HUGGINGFACE,
           "embeddings.patch_embeddings.weight",
           requires=(_HUGGINGFACE_BLOCK, "encoder.stages.{s}.layers.{b}.grn.weight"),
           outer=_HUGGINGFACE_OUTER,
           storage=_GRN4, layer_norm_eps=_HF_EPS, trunk_prefix="convnextv2.", target="huggingface"),
    Layout("huggingface-v1", _HUGGINGFACE,
           "embeddings.patch_embeddings.weight", requires=(_HUGGINGFACE_BLOCK,),
           outer=_HUGGINGFACE_OUTER,
           layer_norm_eps=_HF_EPS, trunk_prefix="convnext.", target="huggingface"),
    Layout("huggingface-dinov3", _rows("huggingface dinov3"), "stages.0.downsample_layers.0.weight",
           requires=("stages.{s}.layers.{b}.depthwise_conv.weight",),
           outer=_rows("huggingface dinov3 norm"), model_type="dinov3_convnext",
           target="huggingface"),
    Layout("huggingface-tf", _rows("huggingface tf"),
           "embeddings/patch_embeddings/kernel",
           requires=("encoder/stages.{s}/layers.{b}/dwconv/kernel",),
           outer=_rows("huggingface tf head"),
           storage=_HWIO, layer_norm_eps=_HF_EPS),
    Layout("keras", _rows("keras"),
           "{n}_stem/{n}_stem_conv/kernel",
           requires=("{n}_stage_{s}_block_{b}_depthwise_conv/kernel",), storage=_HWIO),
    Layout("keras-numbered", _rows("keras", replacing=_NUMBERED),
           "{n}_stem/{n}_stem_conv/0",
           requires=("{n}_stage_{s}_block_{b}_depthwise_conv/0",), storage=_HWIO),
)  # fmt: skip
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _LAYOUTS}


# ------------------------------------------------------------------------------ recognition


@dataclass(frozen=True)
class LayoutMatch:
    """A recognised layout, the prefix of its keys and the model name that they carry."""

    layout: Layout
    prefix: str
    model_name: str | None = None

    def __str__(self) -> str:
        return f"{self.layout.name} (prefix {self.prefix!r})" if self.prefix else self.layout.name


class UnknownLayoutError(ValueError):
    """The keys are not those of any ConvNeXt layout."""


def recognise(shapes: Mapping[str, Shape], prefix: str | None = None) -> LayoutMatch:
    """Find the layout of a state dict, by the shape of every key.

    Raises:
        UnknownLayoutError: There is no ConvNeXt under the keys.
        ValueError: There are several, and `prefix` does not name one.
    """
    if not shapes:
        raise UnknownLayoutError("there are no tensors in it")
    if prefix and not prefix.endswith((".", "/")):
        prefix += "."
    keys = list(shapes)
    found: dict[str, LayoutMatch] = {}
    for layout in _LAYOUTS:
        starts = layout.prefixes(keys)
        if len(starts) > _MAX_PREFIXES:
            raise ValueError(f"there are {len(starts)} stems in it: {shorten_list([*starts])}")
        for start in starts:
            if start in found or (prefix is not None and start != prefix):
                continue
            inner = [key[len(start) :] for key in keys if key.startswith(start)]
            if layout.fits(inner):
                found[start] = LayoutMatch(layout, start, _model_name(layout, inner))
    if not found:
        raise UnknownLayoutError(_not_a_convnext(keys, prefix))
    if len(found) > 1:
        raise ValueError(
            f"there is more than one ConvNeXt in it, under the prefixes {sorted(found)}: "
            "name one with prefix="
        )
    return next(iter(found.values()))


def _model_name(layout: Layout, keys: Iterable[str]) -> str | None:
    pattern = Pattern(layout.anchor)
    if "n" not in pattern.names:
        return None
    return next((values["n"] for key in keys if (values := pattern.read(key))), None)


def _not_a_convnext(keys: list[str], prefix: str | None) -> str:
    matches = [
        LayoutMatch(layout, start)
        for layout in _LAYOUTS
        for start in (("", layout.trunk_prefix, "module.") if prefix is None else (prefix,))
    ]
    unknown_of = [[key for key in keys if not locate_key(key, match)[0]] for match in matches]
    unknown = min(unknown_of, key=len)
    if len(unknown) <= len(keys) // 2:
        nearest = matches[unknown_of.index(unknown)]
        marks = (nearest.layout.anchor, *nearest.layout.requires)
        return (
            f"the keys nearly match {nearest.layout.name}, but there is no "
            f"{' or '.join(nearest.prefix + mark for mark in marks)}; "
            f"unknown keys: {shorten_list(unknown, 4)}"
        )
    under = "" if prefix is None else f" under the prefix {prefix!r}"
    return (
        f"the keys match no known ConvNeXt layout{under}: {len(keys)} tensors, "
        f"{shorten_list(keys, 4)}; known layouts are {', '.join(LAYOUTS)}"
    )


# ------------------------------------------------------------------------------ conversion


@dataclass(frozen=True)
class NativeStateDict:
    """A state dict under native names, and what became of the rest."""

    tensors: dict[str, Tensor]  # native key -> tensor in native form
    sources: dict[str, str]  # native key -> the key it came from
    storage: dict[str, str]  # native key -> how its tensor was stored; `restore` takes it
    dropped: tuple[str, ...]  # left out on purpose: heads, decoders, mask tokens, other modules
    reshaped: Mapping[str, str]  # source keys whose tensors changed form, and how
    unexpected: tuple[str, ...]  # in a module of the trunk, and not known to the layout

    @property
    def last_norm(self) -> str:
        """The name, with a dot, of the norm of the last stage's output: `norms.stage4.`."""
        return f"norms.stage{len(depths_of(self.tensors))}."

    def source_of(self, *keys: str) -> str:
        """Return the source's name of the first of the native keys that it has."""
        return next((self.sources[key] for key in keys if key in self.sources), keys[0])


def depths_of(keys: Iterable[str]) -> tuple[int, ...]:
    """Return the number of blocks of each stage that native keys name.

    Raises:
        ValueError: The keys count far more stages or blocks than they name.
    """
    found = [match for key in keys if (match := _BLOCK.match(key))]
    blocks = {(int(match[1]), int(match[2])) for match in found}
    depths: dict[int, int] = {}
    for stage, block in blocks:
        depths[stage] = max(depths.get(stage, 0), block + 1)
    num_stages = max(depths, default=-1) + 1
    absent = num_stages + sum(depths.values()) - len(depths) - len(blocks)
    limit = current_limits().absent_blocks  # of a network that was cut
    if absent > limit:
        last = max(found, key=lambda match: max(int(match[1]), int(match[2])))
        raise ValueError(
            f"{last.string} counts {absent:,} stages and blocks that are not there; the limit is "
            f"{limit}; file_limits(absent_blocks=...) allows more"
        )
    return tuple(depths.get(stage, 0) for stage in range(num_stages))


def convert(
    state_dict: Mapping[str, Tensor], match: LayoutMatch, *, projection: bool = False
) -> NativeStateDict:
    """Rename and reshape a state dict of a recognised layout into the native one.

    With `projection`, OpenCLIP's is the head; otherwise it is left out, as other modules are.

    Raises:
        ValueError: A tensor is of no shape that the layout uses, or two map to one name.
    """
    layout = match.layout
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    storage: dict[str, str] = {}
    dropped: list[str] = []
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        known, native = locate_key(key, match)
        if native is None or (_PROJECTION.fullmatch(key) and not projection):
            (dropped if known else unknown).append(key)
            continue
        if native in sources:
            raise ValueError(f"{key} and {sources[native]} both map to {native}")
        sources[native] = key
        storage[native] = storage_of(layout, native, tuple(tensor.shape), key)
        tensors[native] = STORAGES[storage[native]].to_native(tensor)
    for native, alias in layout.aliases(tensors).items():
        key = match.prefix + alias
        if key in dropped and native not in tensors:
            dropped.remove(key)
            tensors[native], sources[native] = state_dict[key], key
    if _PROJECTION.fullmatch(head := sources.get("head.weight", "")) and "head.bias" not in tensors:
        tensors["head.bias"] = tensors["head.weight"].new_zeros(len(tensors["head.weight"]))
        sources["head.bias"], storage["head.bias"] = head, "a bias of zeros for none"
    trunk = {_root(sources[key], match) for key in tensors if key.startswith(TRUNK)}
    inside = {key for key in unknown if _root(key, match) in trunk}
    converted = NativeStateDict(
        tensors=tensors,
        sources=sources,
        storage=storage,
        dropped=(*dropped, *(key for key in unknown if key not in inside)),
        reshaped={sources[k]: how for k, how in storage.items() if how not in _AS_NATIVE},
        unexpected=tuple(key for key in unknown if key in inside),
    )
    return _name_final_norm(converted) if layout.shared_final_norm else converted


def _root(key: str, match: LayoutMatch) -> str | None:
    """Return the module right below the prefix that has a key; None: it is not below the prefix.

    What is beside the trunk's cannot change its maps. Keras' layers have names with a "_" instead.
    """
    below = key[len(match.prefix) :]
    return re.split("[./_]", below, maxsplit=1)[0] if key.startswith(match.prefix) else None


def _name_final_norm(converted: NativeStateDict) -> NativeStateDict:
    """Rename the last stage's norm to the final norm where it is that; see `Layout`."""
    last = converted.last_norm
    is_only = all(k.startswith(last) for k in converted.tensors if k.startswith("norms."))
    if not is_only and "head.weight" not in converted.tensors:
        return converted
    renamed: dict[str, Any] = {
        name: {k.replace(last, "norm."): v for k, v in getattr(converted, name).items()}
        for name in ("tensors", "sources", "storage")
    }
    return replace(converted, **renamed)


def locate_key(key: str, match: LayoutMatch) -> tuple[bool, str | None]:
    """Return whether the layout knows `key`, and its native name."""
    layout, prefix = match.layout, match.prefix
    if key.startswith(prefix):
        known, native, name = layout.native_key(key[len(prefix) :])
        if known and name in (None, match.model_name):
            return True, native
    parents = [prefix[: m.start() + 1] for m in re.finditer(r"[./]", prefix)]
    for parent in reversed(["", *parents]):
        if key.startswith(parent):
            known, native, _ = layout.native_key(key[len(parent) :], outer=True)
            if known:
                return True, native
    return False, None


def storage_of(layout: Layout, native_key: str, shape: Shape, key: str) -> str:
    """Return the key of `STORAGES` for a tensor of `shape`; ValueError where there is none."""
    for name in layout.storage[kind_of(native_key, len(shape))]:
        if STORAGES[name].fits(shape):
            return name
    raise ValueError(f"{key}: shape {shape} is not one that {layout.name} uses for this tensor")


def restore(
    native: Mapping[str, Tensor],
    layout: Layout,
    *,
    prefix: str | None = None,
    model_name: str = "convnext",
    storage: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Write native tensors in a layout: the inverse of `convert`.

    `storage` names, for a kind of tensor or one native key, another storage than the most common;
    a `prefix` of None is that of published files. ValueError: it cannot represent a tensor.
    """
    keys = layout.source_keys(native, prefix, model_name)
    unplaced = [native_key for native_key in native if native_key not in keys]
    if unplaced:
        raise ValueError(f"layout {layout.name} cannot represent {', '.join(unplaced)}")
    counts = Counter(keys.values())
    shared = [native_key for native_key, key in keys.items() if counts[key] > 1]
    if shared:
        raise ValueError(f"layout {layout.name} has one name for {' and '.join(shared)}")
    chosen = storage or {}
    out: dict[str, Tensor] = {}
    for native_key, tensor in native.items():
        kind = kind_of(native_key, tensor.dim())
        name = chosen.get(native_key) or chosen.get(kind) or layout.storage[kind][0]
        out[keys[native_key]] = STORAGES[name].from_native(tensor).contiguous()
    return out
