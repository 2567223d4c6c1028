"""Every known key layout of a ConvNeXt checkpoint, as tables to and from the native names.

A layout is a map from its key patterns to native ones (`None`: dropped on purpose) and a word on
how it stores each kind of tensor. Layouts are recognised by keys and shapes, never by file name.
The tables were read from the sources of facebookresearch/ConvNeXt, ConvNeXt-V2 and dinov3, timm,
torchvision, transformers, mmpretrain and keras; files of the last two were opened as well.

Placeholders of a pattern: `{s}` stage, `{b}` block, `{t}` transition into stage t >= 1 (each with
arithmetic, `{2s+1}`), `{i}` 0 or 1, `{j}` 1 or 2, `{p}` weight or bias, `{g}` gamma or beta, `{n}`
a model name that is the same in the whole file, `{v}` any one name, `{*}` anything.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from torch import Tensor

from ..utils.checks import shorten_list
from .patterns import STORAGES, Pattern, Shape

Shapes = Mapping[str, Shape]

_VECTORS = ("flat", "squeeze_scale", "flatten_row", "flatten_grn", "flatten_grn_nchw")
_AS_NATIVE = {"same", "flat", "linear"}

# What a native tensor is, by its key; the first that fits. A vector is everything else.
_KINDS: Mapping[str, re.Pattern[str]] = {
    "conv": re.compile(r"downsample_layers\.(0\.0|[1-9]\d*\.1)\.weight"),
    "depthwise": re.compile(r"stages\.\d+\.\d+\.dwconv\.weight"),
    "pointwise": re.compile(r"stages\.\d+\.\d+\.pwconv[12]\.weight"),
    "head": re.compile(r"head\.weight"),
    "scale": re.compile(r"stages\.\d+\.\d+\.gamma"),
    "grn": re.compile(r"stages\.\d+\.\d+\.grn\.(gamma|beta)"),
    "vector": re.compile(".*"),
}
# How PyTorch layouts may store each kind; a file's own choice is read from its shapes.
_TORCH: Mapping[str, tuple[str, ...]] = {
    "conv": ("same",),
    "depthwise": ("same",),
    "pointwise": ("linear", "conv1x1_to_linear"),
    "head": ("linear", "conv1x1_to_linear"),
    "scale": _VECTORS,
    "grn": _VECTORS,
    "vector": ("flat", "flatten_row"),
}
_GRN4: Mapping[str, tuple[str, ...]] = {**_TORCH, "grn": ("flatten_grn", *_VECTORS)}
_HWIO: Mapping[str, tuple[str, ...]] = {
    **_GRN4,
    "conv": ("hwio_to_oihw",),
    "depthwise": ("hwio_to_oihw",),
    "pointwise": ("transpose",),
    "head": ("transpose",),
}
_SPARSE: Mapping[str, tuple[str, ...]] = {
    **_TORCH,
    "conv": ("dense_conv", "same"),
    "depthwise": ("dense_depthwise",),
}


def kind_of(native_key: str) -> str:
    """Say which kind of tensor a native key names: conv, depthwise, pointwise, head, ..."""
    return next(kind for kind, regex in _KINDS.items() if regex.fullmatch(native_key))


# ------------------------------------------------------------------------------ layouts


@dataclass(frozen=True)
class Layout:
    """One way to name and store the tensors of a ConvNeXt.

    Attributes:
        name: What reports call it.
        rows: Key pattern -> native pattern, or None for a tensor that is dropped on purpose.
        anchor: The stem convolution's pattern; its place gives the prefix of all keys.
        requires: Patterns of which each must name at least one key.
        forbids: Patterns that name none of the keys.
        outer: Rows for keys beside the trunk, which stand under one of the prefix's parents.
        aliases: Rows for second names of a tensor, taken where the first name is missing.
        storage: For each kind of tensor the storages it may have, the usual one first.
        final_norm: Where the final norm belongs in a backbone: "drop", since the published
            detection recipe of V1 and V2 starts its norms fresh, or "stage" for the last stage's.
        layer_norm_eps: Epsilon of the final norm, where the layout's home fixes it.
        headless: Patterns of a head that the classifier of this package cannot hold.
        home: The prefix of the trunk in its home's own files.
    """

    name: str
    rows: Mapping[str, str | None]
    anchor: str
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    outer: Mapping[str, str | None] = field(default_factory=dict)
    aliases: Mapping[str, str | None] = field(default_factory=dict)
    storage: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _TORCH)
    final_norm: str = "drop"
    layer_norm_eps: float | None = None
    headless: tuple[str, ...] = ()
    home: str = ""

    @cached_property
    def _compiled(self) -> tuple[tuple[Pattern, Pattern | None], ...]:
        return _compile(self.rows)

    @cached_property
    def _compiled_outer(self) -> tuple[tuple[Pattern, Pattern | None], ...]:
        return _compile(self.outer)

    @cached_property
    def _compiled_anchor(self) -> re.Pattern[str]:
        return re.compile(rf"(?P<prefix>(?:.*[./])?)(?:{Pattern(self.anchor).regex.pattern})")

    def prefixes(self, keys: Iterable[str]) -> set[str]:
        """Return every prefix under which the stem convolution stands."""
        found = (self._compiled_anchor.fullmatch(key) for key in keys)
        return {match["prefix"] for match in found if match is not None}

    def fits(self, keys: Iterable[str]) -> bool:
        """Say whether keys, without their prefix, carry this layout's marks."""
        keys = list(keys)

        def present(text: str) -> bool:
            pattern = Pattern(text)
            return any(pattern.read(key) is not None for key in keys)

        return all(map(present, self.requires)) and not any(map(present, self.forbids))

    def native_key(self, key: str, *, outer: bool = False) -> tuple[bool, str | None, str | None]:
        """Return whether `key` is known, its native name, and the model name it carries."""
        for pattern, native in self._compiled_outer if outer else self._compiled:
            values = pattern.read(key)
            if values is not None:
                return True, native.write(values) if native else None, values.get("n")
        return False, None, None

    def source_key(
        self, native_key: str, prefix: str | None = None, model_name: str = "convnext"
    ) -> str | None:
        """Return the key of a native tensor in this layout, or None when it has no place."""
        inner = self.home if prefix is None else prefix
        for table, start in (self._compiled, inner), (self._compiled_outer, ""):
            for pattern, native in table:
                values = native.read(native_key) if native else None
                if values is not None:
                    return start + pattern.write({"n": model_name, "v": "gamma", **values})
        return None


def _compile(rows: Mapping[str, str | None]) -> tuple[tuple[Pattern, Pattern | None], ...]:
    return tuple((Pattern(a), Pattern(b) if b is not None else None) for a, b in rows.items())


def _same(*patterns: str) -> dict[str, str | None]:
    return {pattern: pattern for pattern in patterns}


def _dropped(*patterns: str) -> dict[str, str | None]:
    return dict.fromkeys(patterns)


_STEM = "downsample_layers.0.0.weight"
_FACEBOOK = _same(
    "downsample_layers.{s}.{i}.{p}",
    "stages.{s}.{b}.gamma",
    "stages.{s}.{b}.dwconv.{p}",
    "stages.{s}.{b}.norm.{p}",
    "stages.{s}.{b}.pwconv{j}.{p}",
    "stages.{s}.{b}.grn.{g}",
)
_FACEBOOK_TOP = _same("norm.{p}", "head.{p}")
_NATIVE_NORMS = _same("norms.stem.{p}", "norms.stage{s}.{p}")
_FCMAE_DECODER = _dropped("mask_token", "proj.{*}", "decoder.{*}", "pred.{*}")
_FACEBOOK_BLOCK = "stages.{s}.{b}.dwconv.weight"

_TIMM_BLOCK: dict[str, str | None] = {
    "stages{.}{s}.downsample.0.{p}": "downsample_layers.{t}.0.{p}",
    "stages{.}{s}.downsample.1.{p}": "downsample_layers.{t}.1.{p}",
    "stages{.}{s}.blocks.{b}.gamma": "stages.{s}.{b}.gamma",
    "stages{.}{s}.blocks.{b}.conv_dw.{p}": "stages.{s}.{b}.dwconv.{p}",
    "stages{.}{s}.blocks.{b}.norm.{p}": "stages.{s}.{b}.norm.{p}",
    "stages{.}{s}.blocks.{b}.mlp.fc{j}.{p}": "stages.{s}.{b}.pwconv{j}.{p}",
    "stages{.}{s}.blocks.{b}.mlp.grn.weight": "stages.{s}.{b}.grn.gamma",
    "stages{.}{s}.blocks.{b}.mlp.grn.bias": "stages.{s}.{b}.grn.beta",
}


def _timm(separator: str) -> dict[str, str | None]:
    """The rows of timm; `features_only` joins the index of a stage with "_" instead of "."."""
    rows: dict[str, str | None] = {
        f"stem{separator}0.{{p}}": "downsample_layers.0.0.{p}",
        f"stem{separator}1.{{p}}": "downsample_layers.0.1.{p}",
    }
    for key, native in _TIMM_BLOCK.items():
        key = key.replace("{.}", separator)
        rows[key.replace("{s}", "{t}") if "downsample" in key else key] = native
    return rows


_HUGGINGFACE: dict[str, str | None] = {
    "embeddings.patch_embeddings.{p}": "downsample_layers.0.0.{p}",
    "embeddings.layernorm.{p}": "downsample_layers.0.1.{p}",
    "encoder.stages.{t}.downsampling_layer.{i}.{p}": "downsample_layers.{t}.{i}.{p}",
    "encoder.stages.{s}.layers.{b}.layer_scale_parameter": "stages.{s}.{b}.gamma",
    "encoder.stages.{s}.layers.{b}.dwconv.{p}": "stages.{s}.{b}.dwconv.{p}",
    "encoder.stages.{s}.layers.{b}.layernorm.{p}": "stages.{s}.{b}.norm.{p}",
    "encoder.stages.{s}.layers.{b}.pwconv{j}.{p}": "stages.{s}.{b}.pwconv{j}.{p}",
    "encoder.stages.{s}.layers.{b}.grn.weight": "stages.{s}.{b}.grn.gamma",
    "encoder.stages.{s}.layers.{b}.grn.bias": "stages.{s}.{b}.grn.beta",
}
_HUGGINGFACE_NORMS: dict[str, str | None] = {
    "hidden_states_norms.stem.{p}": "norms.stem.{p}",
    "hidden_states_norms.stage{s+1}.{p}": "norms.stage{s+1}.{p}",
}
# The first conversion of UperNet numbered its norms, stage 1 being 0.
_HUGGINGFACE_NUMBERED: dict[str, str | None] = {
    "hidden_states_norms.{s}.{p}": "norms.stage{s+1}.{p}"
}
_HUGGINGFACE_TOP: dict[str, str | None] = {"layernorm.{p}": "norm.{p}"}
_CLASSIFIER: dict[str, str | None] = {"classifier.{p}": "head.{p}"}
_HUGGINGFACE_BLOCK = "encoder.stages.{s}.layers.{b}.dwconv.weight"

_DINOV3_HF: dict[str, str | None] = {
    "stages.0.downsample_layers.0.{p}": "downsample_layers.0.0.{p}",
    "stages.0.downsample_layers.1.{p}": "downsample_layers.0.1.{p}",
    "stages.{t}.downsample_layers.{i}.{p}": "downsample_layers.{t}.{i}.{p}",
    "stages.{s}.layers.{b}.gamma": "stages.{s}.{b}.gamma",
    "stages.{s}.layers.{b}.depthwise_conv.{p}": "stages.{s}.{b}.dwconv.{p}",
    "stages.{s}.layers.{b}.layer_norm.{p}": "stages.{s}.{b}.norm.{p}",
    "stages.{s}.layers.{b}.pointwise_conv{j}.{p}": "stages.{s}.{b}.pwconv{j}.{p}",
}
_MMPRETRAIN: dict[str, str | None] = {
    "downsample_layers.{s}.{i}.{p}": "downsample_layers.{s}.{i}.{p}",
    "stages.{s}.{b}.gamma": "stages.{s}.{b}.gamma",
    "stages.{s}.{b}.depthwise_conv.{p}": "stages.{s}.{b}.dwconv.{p}",
    "stages.{s}.{b}.norm.{p}": "stages.{s}.{b}.norm.{p}",
    "stages.{s}.{b}.pointwise_conv{j}.{p}": "stages.{s}.{b}.pwconv{j}.{p}",
    "stages.{s}.{b}.grn.{g}": "stages.{s}.{b}.grn.{g}",
}
_NUMBERED_NORMS: dict[str, str | None] = {"norm{s}.{p}": "norms.stage{s+1}.{p}"}

_TORCHVISION: dict[str, str | None] = {
    "features.0.{i}.{p}": "downsample_layers.0.{i}.{p}",
    "features.{2t}.{i}.{p}": "downsample_layers.{t}.{i}.{p}",
    "features.{2s+1}.{b}.layer_scale": "stages.{s}.{b}.gamma",
    "features.{2s+1}.{b}.block.0.{p}": "stages.{s}.{b}.dwconv.{p}",
    "features.{2s+1}.{b}.block.2.{p}": "stages.{s}.{b}.norm.{p}",
    "features.{2s+1}.{b}.block.3.{p}": "stages.{s}.{b}.pwconv1.{p}",
    "features.{2s+1}.{b}.block.5.{p}": "stages.{s}.{b}.pwconv2.{p}",
    "classifier.0.{p}": "norm.{p}",
    "classifier.2.{p}": "head.{p}",
}
_SPARSE_FCMAE: dict[str, str | None] = {
    "downsample_layers.0.{i}.{p}": "downsample_layers.0.{i}.{p}",
    "downsample_layers.{t}.0.ln.{p}": "downsample_layers.{t}.0.{p}",
    "downsample_layers.{t}.1.kernel": "downsample_layers.{t}.1.weight",
    "downsample_layers.{t}.1.bias": "downsample_layers.{t}.1.bias",
    "stages.{s}.{b}.dwconv.kernel": "stages.{s}.{b}.dwconv.weight",
    "stages.{s}.{b}.dwconv.bias": "stages.{s}.{b}.dwconv.bias",
    "stages.{s}.{b}.norm.ln.{p}": "stages.{s}.{b}.norm.{p}",
    "stages.{s}.{b}.pwconv{j}.linear.{p}": "stages.{s}.{b}.pwconv{j}.{p}",
    "stages.{s}.{b}.grn.{g}": "stages.{s}.{b}.grn.{g}",
}


def _h5_rows(
    layers: Mapping[str, str], variables: Mapping[str, Mapping[str, str]]
) -> dict[str, str | None]:
    """Cross the layers of an h5 layout with the variables that each of them holds."""
    rows: dict[str, str | None] = {}
    for layer, native in layers.items():
        native, _, role = native.partition(" ")
        for variable, suffix in variables[role].items():
            rows[f"{layer}/{variable}"] = native + suffix
    return rows


# Layer -> native name and what it is: a convolution or dense layer, a norm, a layer scale.
_KERAS_LAYERS = {
    "{n}_stem/{n}_stem_conv": "downsample_layers.0.0 affine",
    "{n}_stem/{n}_stem_layernorm": "downsample_layers.0.1 norm",
    "{n}_downsampling_block_{t-1}/{n}_downsampling_layernorm_{t-1}": "downsample_layers.{t}.0 norm",
    "{n}_downsampling_block_{t-1}/{n}_downsampling_conv_{t-1}": "downsample_layers.{t}.1 affine",
    "{n}_stage_{s}_block_{b}_depthwise_conv": "stages.{s}.{b}.dwconv affine",
    "{n}_stage_{s}_block_{b}_layernorm": "stages.{s}.{b}.norm norm",
    "{n}_stage_{s}_block_{b}_pointwise_conv_{j}": "stages.{s}.{b}.pwconv{j} affine",
    "{n}_stage_{s}_block_{b}_layer_scale": "stages.{s}.{b}.gamma scale",
    "{n}_head_layernorm": "norm norm",
    "{n}_head_dense": "head affine",
    "layer_normalization": "norm norm",
    "layer_normalization_{b}": "norm norm",
}
_KERAS_NAMED = {
    "affine": {"kernel": ".weight", "bias": ".bias"},
    "norm": {"gamma": ".weight", "beta": ".bias"},
    "scale": {"{v}": ""},  # Keras numbers this variable through the model: variable_8
}
_KERAS_NUMBERED = {
    "affine": {"0": ".weight", "1": ".bias"},
    "norm": {"0": ".weight", "1": ".bias"},
    "scale": {"0": ""},
}
_KERAS_PREPROCESSING = _dropped("{n}_prestem_normalization/{*}", "normalization/{*}")

_TF_LAYERS = {
    "embeddings/patch_embeddings": "downsample_layers.0.0 affine",
    "embeddings/layernorm": "downsample_layers.0.1 norm",
    "encoder/stages.{t}/downsampling_layer.0": "downsample_layers.{t}.0 norm",
    "encoder/stages.{t}/downsampling_layer.1": "downsample_layers.{t}.1 affine",
    "encoder/stages.{s}/layers.{b}/dwconv": "stages.{s}.{b}.dwconv affine",
    "encoder/stages.{s}/layers.{b}/layernorm": "stages.{s}.{b}.norm norm",
    "encoder/stages.{s}/layers.{b}/pwconv{j}": "stages.{s}.{b}.pwconv{j} affine",
    "encoder/stages.{s}/layers.{b}/grn": "stages.{s}.{b}.grn grn",
    "encoder/stages.{s}/layers.{b}": "stages.{s}.{b}.gamma scale",
    "layernorm": "norm norm",
}
_TF_VARIABLES = {
    **_KERAS_NAMED,
    "grn": {"weight": ".gamma", "bias": ".beta"},
    "scale": {"layer_scale_parameter": ""},
}

_HF_EPS = 1e-12  # ConvNextConfig.layer_norm_eps; all other homes use 1e-6 throughout
_TIMM_HEADS = ("norm_pre.{p}", "head.pre_logits.{*}", "head.mlp.{*}")

# Order decides where two layouts fit: the more particular one stands first.
_LAYOUTS = (
    Layout("facebook-fcmae-sparse", {**_SPARSE_FCMAE, **_FCMAE_DECODER}, _STEM,
           requires=("stages.{s}.{b}.dwconv.kernel",), storage=_SPARSE, home="encoder."),
    Layout("mmpretrain", {**_MMPRETRAIN, **_NUMBERED_NORMS}, _STEM,
           requires=("stages.{s}.{b}.depthwise_conv.weight",),
           outer={"head.fc.{p}": "head.{p}"}, home="backbone."),
    Layout("eupe", {**_FACEBOOK, **_FACEBOOK_TOP, **_dropped("projectors.{*}", "norms.{*}")},
           _STEM, requires=(_FACEBOOK_BLOCK, "projectors.{*}")),
    Layout("facebook-dinov3", {**_FACEBOOK, **_FACEBOOK_TOP, **_dropped("norms.{s}.{p}")}, _STEM,
           requires=(_FACEBOOK_BLOCK, "norms.{s}.weight"), final_norm="stage",
           aliases={"norms.{s}.{p}": "norm.{p}"}),
    Layout("facebook-dense", {**_FACEBOOK, **_NUMBERED_NORMS}, _STEM,
           requires=(_FACEBOOK_BLOCK, "norm{s}.weight"), storage=_GRN4, home="backbone."),
    Layout("native", {**_FACEBOOK, **_FACEBOOK_TOP, **_NATIVE_NORMS}, _STEM,
           requires=(_FACEBOOK_BLOCK, "norms.{v}.weight")),
    Layout("facebook-v2", {**_FACEBOOK, **_FACEBOOK_TOP, **_FCMAE_DECODER}, _STEM,
           requires=(_FACEBOOK_BLOCK, "stages.{s}.{b}.grn.gamma", "norm.weight"), storage=_GRN4),
    Layout("facebook-fcmae", {**_FACEBOOK, **_FCMAE_DECODER}, _STEM,
           requires=(_FACEBOOK_BLOCK, "stages.{s}.{b}.grn.gamma"), storage=_GRN4),
    Layout("facebook-v1", {**_FACEBOOK, **_FACEBOOK_TOP}, _STEM, requires=(_FACEBOOK_BLOCK,)),
    Layout("timm", {**_timm("."), "head.norm.{p}": "norm.{p}", "head.fc.{p}": "head.{p}",
                    **_dropped(*_TIMM_HEADS)},
           "stem.0.weight", requires=("stages.{s}.blocks.{b}.conv_dw.weight",),
           headless=_TIMM_HEADS),
    Layout("timm-features", _timm("_"), "stem_0.weight",
           requires=("stages_{s}.blocks.{b}.conv_dw.weight",)),
    Layout("torchvision", _TORCHVISION, "features.0.0.weight",
           requires=("features.{2s+1}.{b}.block.5.weight",),
           storage={**_TORCH, "scale": ("squeeze_scale", *_VECTORS)}),
    Layout("huggingface-v2", {**_HUGGINGFACE, **_HUGGINGFACE_TOP, **_HUGGINGFACE_NORMS},
           "embeddings.patch_embeddings.weight",
           requires=(_HUGGINGFACE_BLOCK, "encoder.stages.{s}.layers.{b}.grn.weight"),
           outer={**_CLASSIFIER, **_HUGGINGFACE_NORMS, **_HUGGINGFACE_NUMBERED},
           storage=_GRN4, layer_norm_eps=_HF_EPS, home="convnextv2."),
    Layout("huggingface-v1", {**_HUGGINGFACE, **_HUGGINGFACE_TOP, **_HUGGINGFACE_NORMS},
           "embeddings.patch_embeddings.weight", requires=(_HUGGINGFACE_BLOCK,),
           outer={**_CLASSIFIER, **_HUGGINGFACE_NORMS, **_HUGGINGFACE_NUMBERED},
           layer_norm_eps=_HF_EPS, home="convnext."),
    Layout("huggingface-dinov3", _DINOV3_HF, "stages.0.downsample_layers.0.weight",
           requires=("stages.{s}.layers.{b}.depthwise_conv.weight",),
           outer={"layer_norm.{p}": "norm.{p}"}, final_norm="stage"),
    Layout("huggingface-tf", _h5_rows(_TF_LAYERS, _TF_VARIABLES),
           "embeddings/patch_embeddings/kernel",
           requires=("encoder/stages.{s}/layers.{b}/dwconv/kernel",),
           outer={"classifier/kernel": "head.weight", "classifier/bias": "head.bias"},
           storage=_HWIO, layer_norm_eps=_HF_EPS),
    Layout("keras", {**_h5_rows(_KERAS_LAYERS, _KERAS_NAMED), **_KERAS_PREPROCESSING},
           "{n}_stem/{n}_stem_conv/kernel",
           requires=("{n}_stage_{s}_block_{b}_depthwise_conv/kernel",), storage=_HWIO),
    Layout("keras-numbered", {**_h5_rows(_KERAS_LAYERS, _KERAS_NUMBERED), **_KERAS_PREPROCESSING},
           "{n}_stem/{n}_stem_conv/0",
           requires=("{n}_stage_{s}_block_{b}_depthwise_conv/0",), storage=_HWIO),
)  # fmt: skip
LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _LAYOUTS})

# Relatives of ConvNeXt that the trunk cannot hold: patterns that must and must not be there.
_UNSUPPORTED: tuple[tuple[str, str, str | None, str], ...] = (
    ("stem.0.weight", "stem.2.weight", None,
     "an overlapping stem of several convolutions (timm's stem_type 'overlap', '_ols' models)"),
    ("stem.0.weight", "stem.1.weight", "stem.1.bias",
     "norms without a bias (timm's rmsnorm2d and simplenorm, '_rms' models)"),
    ("stem.0.weight", "stages.{s}.blocks.{b}.conv_dw.weight", "stages.{s}.blocks.{b}.conv_dw.bias",
     "depthwise convolutions without a bias (timm's conv_bias=False)"),
    ("stem_0.weight", "stem_2.weight", None,
     "an overlapping stem of several convolutions (timm's stem_type 'overlap', '_ols' models)"),
    ("stem_0.weight", "stem_1.weight", "stem_1.bias",
     "norms without a bias (timm's rmsnorm2d and simplenorm, '_rms' models)"),
    ("stem.weight", "blocks.{b}.dwconv.weight", None,
     "the isotropic ConvNeXt, which has one stage at stride 16 and no norm after its stem"),
)  # fmt: skip


# ------------------------------------------------------------------------------ recognition


@dataclass(frozen=True)
class Match:
    """A layout that was recognised: where it stands and how it stores its tensors."""

    layout: Layout
    prefix: str
    model_name: str | None = None

    def __str__(self) -> str:
        return f"{self.layout.name} (prefix {self.prefix!r})" if self.prefix else self.layout.name


class UnknownLayoutError(ValueError):
    """The keys are not those of any ConvNeXt layout."""


def recognise(shapes: Shapes, prefix: str | None = None) -> Match:
    """Find the layout of a state dict.

    Args:
        shapes: The shape of every tensor, by key.
        prefix: Consider this prefix only; needed where one file holds two ConvNeXts.

    Raises:
        UnknownLayoutError: There is no ConvNeXt under the keys.
        ValueError: It is a relative that the trunk cannot hold, or there are several.
    """
    if not shapes:
        raise UnknownLayoutError("there are no tensors in it")
    if prefix and not prefix.endswith((".", "/")):
        prefix += "."
    keys = list(shapes)
    _refuse_unsupported(keys)
    found: dict[str, Match] = {}
    for layout in _LAYOUTS:
        for place in layout.prefixes(keys):
            if place in found or (prefix is not None and place != prefix):
                continue
            inner = [key[len(place) :] for key in keys if key.startswith(place)]
            if layout.fits(inner):
                found[place] = Match(layout, place, _model_name(layout, inner))
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


def _refuse_unsupported(keys: Iterable[str]) -> None:
    keys = list(keys)
    for anchor, required, forbidden, what in _UNSUPPORTED:
        probe = Layout(what, {}, anchor, (required,), (forbidden,) if forbidden else ())
        for place in probe.prefixes(keys):
            inner = [key[len(place) :] for key in keys if key.startswith(place)]
            if probe.fits(inner) and any("dw" in key for key in inner):
                raise ValueError(f"it has {what}, which ConvNextBackbone does not support")


def _not_a_convnext(keys: list[str], prefix: str | None) -> str:
    layout, place, unknown = _nearest(keys, prefix)
    if len(unknown) <= len(keys) // 2:
        marks = (layout.anchor, *layout.requires)
        return (
            f"its keys are nearly those of {layout.name}, but none fits "
            f"{' or '.join(place + mark for mark in marks)}; unknown are {shorten_list(unknown, 4)}"
        )
    under = "" if prefix is None else f" under the prefix {prefix!r}"
    return (
        f"its keys are of no known ConvNeXt layout{under}: {len(keys)} tensors, "
        f"{shorten_list(keys, 4)}; known layouts are {', '.join(LAYOUTS)}"
    )


def _nearest(keys: list[str], prefix: str | None) -> tuple[Layout, str, list[str]]:
    """Return the layout and the prefix under which the fewest keys are unknown, and those keys."""
    best: tuple[Layout, str, list[str]] = (_LAYOUTS[0], "", keys)
    for layout in _LAYOUTS:
        for place in {"", layout.home, "module."} if prefix is None else {prefix}:
            match = Match(layout, place)
            unknown = [key for key in keys if not _place(key, match)[0]]
            if len(unknown) < len(best[2]):
                best = layout, place, unknown
    return best


# ------------------------------------------------------------------------------ conversion


@dataclass(frozen=True)
class Converted:
    """A state dict under native names, and what became of the rest.

    Attributes:
        tensors: Native key -> tensor in native form.
        sources: Native key -> the key it came from.
        storage: Native key -> how its tensor was stored; `restore` takes it.
        dropped: Source keys left out on purpose: heads, decoders, mask tokens, other modules.
        reshaped: Source keys whose tensors changed form, and how.
        unexpected: Source keys under the prefix that the layout does not know.
        headless: Source keys of a head that this package's classifier cannot hold.
    """

    tensors: dict[str, Tensor]
    sources: dict[str, str]
    storage: dict[str, str]
    dropped: tuple[str, ...]
    reshaped: Mapping[str, str]
    unexpected: tuple[str, ...]
    headless: tuple[str, ...]


def convert(state_dict: Mapping[str, Tensor], match: Match) -> Converted:
    """Rename and reshape a state dict of a recognised layout into the native one.

    Raises:
        ValueError: A tensor is of no shape that the layout may have, or two tensors claim one name.
    """
    layout = match.layout
    out = Converted({}, {}, {}, (), {}, (), ())
    dropped: list[str] = []
    unexpected: list[str] = []
    headless: list[str] = []
    reshaped: dict[str, str] = {}
    heads = [Pattern(text) for text in layout.headless]
    for key, tensor in state_dict.items():
        inside = key.startswith(match.prefix)
        known, native = _place(key, match)
        if not known:
            (unexpected if inside else dropped).append(key)
            continue
        if native is None:
            dropped.append(key)
            if any(head.read(key[len(match.prefix) :]) is not None for head in heads):
                headless.append(key)
            continue
        if native in out.sources:
            raise ValueError(f"{key} and {out.sources[native]} both stand for {native}")
        name = storage_of(layout, native, tuple(tensor.shape), key)
        if name not in _AS_NATIVE:
            reshaped[key] = name
        out.tensors[native] = STORAGES[name].to_native(tensor)
        out.sources[native] = key
        out.storage[native] = name
    for key in list(dropped):
        native = _alias(key, match)
        if native is not None and native not in out.tensors:
            dropped.remove(key)
            out.tensors[native], out.sources[native] = state_dict[key], key
    return replace(
        out,
        dropped=tuple(dropped),
        reshaped=reshaped,
        unexpected=tuple(unexpected),
        headless=tuple(headless),
    )


def _place(key: str, match: Match) -> tuple[bool, str | None]:
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


def _alias(key: str, match: Match) -> str | None:
    if not key.startswith(match.prefix):
        return None
    for pattern, native in _compile(match.layout.aliases):
        values = pattern.read(key[len(match.prefix) :])
        if values is not None and native is not None:
            return native.write(values)
    return None


def storage_of(layout: Layout, native_key: str, shape: Shape, key: str) -> str:
    """Name the way in which a tensor of `shape` is stored.

    Raises:
        ValueError: The layout stores no such tensor in that shape.
    """
    choices = layout.storage[kind_of(native_key)]
    for name in choices:
        if STORAGES[name].fits(shape):
            return name
    raise ValueError(f"{key} has the shape {shape}, which {layout.name} does not store so")


def restore(
    native: Mapping[str, Tensor],
    layout: Layout,
    *,
    prefix: str | None = None,
    model_name: str = "convnext",
    storage: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Write native tensors in a layout: the inverse of `convert`.

    Args:
        native: Native key -> tensor.
        layout: The layout to write.
        prefix: What stands before the keys of the trunk; None is the prefix of the layout's home.
        model_name: The name that the layout's keys carry, where they carry one.
        storage: For a kind of tensor or for one native key, the storage in place of the usual one.

    Raises:
        ValueError: The layout has no place for a tensor.
    """
    out: dict[str, Tensor] = {}
    homeless = []
    chosen = storage or {}
    for native_key, tensor in native.items():
        key = layout.source_key(native_key, prefix, model_name)
        if key is None:
            homeless.append(native_key)
            continue
        kind = kind_of(native_key)
        usual = layout.storage[kind][0]
        name = chosen.get(native_key) or chosen.get(kind) or usual
        out[key] = STORAGES[name].from_native(tensor).contiguous()
    if homeless:
        raise ValueError(f"the layout {layout.name} has no place for {', '.join(homeless)}")
    return out
