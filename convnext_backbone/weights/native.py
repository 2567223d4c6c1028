"""A source's tensors under native names, and the architecture that they make up."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..archs import (
    ARCH_DEFAULTS,
    ARCHS,
    FAMILIES,
    NORM_HAS_BIAS,
    NORM_OF_STAGE,
    NOT_IN_TENSORS,
    Family,
    fields_not_in_tensors,
    stated_model_type,
    trunk_shapes,
)
from ..models.config import STEM_TYPES, ConvNextConfig, keep_names_or_positions
from ..utils.checks import errors_about, shorten_list
from .catalogue import WeightEntry
from .layouts import (
    STEM_KEY,
    TRUNK,
    LayoutMatch,
    NativeStateDict,
    UnknownLayoutError,
    convert,
    depths_of,
    locate_key,
    recognise,
)
from .read import read_checkpoint
from .source import WeightsSource, resolve
from .timm_config import timm_args, timm_dilations, timm_fields

# What the tensors themselves show, and the labels. Every other field of a config.json is taken from
# it, so that a new field of `ConvNextConfig` needs no mention here. The fields of the head are
# among them: the tensors of a backbone do not show these. `_stated_and_shown` has the rest.
_READ_FROM_TENSORS = {
    *("num_channels", "patch_size", "num_stages", "hidden_sizes", "depths", "kernel_size"),
    *("use_grn", "layer_scale_init_value", "model_type", "num_labels", "id2label", "label2id"),
    *("stem_type", "conv_bias"),
}
# What tensors show that sets architectures of the same sizes apart.
_PARTS = ("stem_type", "conv_bias", "head_norm_first", "head_hidden_size")
_DISTINCTIVE = ("use_grn", "patch_size", "kernel_size", *_PARTS)
_STEM_WEIGHT = re.compile(r"downsample_layers\.0\.\d\.weight")
_GAMMA = re.compile(r"stages\.\d+\.\d+\.gamma")
_NORM_BIAS = re.compile(r"stages\.\d+\.\d+\.norm\.bias")


@dataclass(frozen=True)
class NativeWeights:
    """The tensors of a source under native names, and what is known of them."""

    origin: WeightsSource  # where the weights and the files beside them are
    match: LayoutMatch
    converted: NativeStateDict
    config: Mapping[str, Any]  # the config.json beside the weights, or {}
    notes: tuple[str, ...]  # what a user should know about how they were read
    mmap: bool = True  # whether the tensors may be views of the mapped file

    @property
    def source(self) -> str:
        """What the user asked for."""
        return self.origin.name

    @property
    def entry(self) -> WeightEntry | None:
        """The catalogue's entry, when the source is in the catalogue."""
        return self.origin.entry

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by native key."""
        return self.converted.tensors

    @property
    def final_norm(self) -> str | None:
        """Where the family puts the final norm in a backbone; None: where the layout does."""
        family = _family(self.entry.fields if self.entry else self.config)
        return NORM_OF_STAGE if family and family.final_norm == NORM_OF_STAGE else None

    @property
    def num_labels(self) -> int | None:
        """The number of classes of the head, or None without one."""
        head = self.tensors.get("head.weight")
        return None if head is None else head.shape[0]

    def fields(self) -> dict[str, Any]:
        """Return the fields of `ConvNextConfig` that the weights and their config.json imply."""
        with errors_about(self.source, UnknownLayoutError):
            found = infer_fields(self.tensors)
        layout = self.match.layout
        usual = {**NOT_IN_TENSORS, "norm_layer": found["norm_layer"]}
        found |= {**usual, **fields_not_in_tensors(_published(found)[0])}
        with errors_about(self.source):
            stated = _fields_from_config_json(self.config, found, self.tensors)
            if layout.is_timms and not stated:
                stated = timm_dilations(found)
        found |= stated
        if layout.model_type is not None:
            found["model_type"] = layout.model_type
        if self.entry is not None:
            found |= {**fields_not_in_tensors(self.entry.arch), **self.entry.fields}
        found |= _labels(self.config, self.num_labels)
        found.setdefault("layer_norm_eps", layout.layer_norm_eps or found["norm_eps"])
        return found

    def assumed(self) -> "AssumedFields":
        """Return the fields that the tensors do not show, and where their values are from."""
        fields, arch = self.fields(), self.entry.arch if self.entry else None
        values = {name: fields[name] for name in NOT_IN_TENSORS}
        if fields_not_in_tensors(arch):
            return AssumedFields(values, f"of {arch}, which the tag names", True)
        stated = _fields_from_config_json(self.config, fields, self.tensors)
        if NOT_IN_TENSORS.keys() & stated.keys():
            return AssumedFields(values, "of config.json", True)
        name, why = _published(fields)
        origin = f"of {name}, {why}" if name else "defaults: no published model has these sizes"
        return AssumedFields(values, origin, False)


@dataclass(frozen=True)
class AssumedFields:
    """Fields of `ConvNextConfig` that tensors do not show."""

    values: Mapping[str, Any]
    origin: str  # where the values are from
    is_stated: bool  # by the tag or by config.json, and not concluded from the sizes

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value}" for name, value in self.values.items())
        return f"{values}: {self.origin}"


def open_weights(
    source: str | os.PathLike[str],
    *,
    ema: bool = False,
    prefix: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    mmap: bool = True,
) -> NativeWeights:
    """Read a source and bring its tensors to native names.

    Args:
        source: A file, a directory, a URL, a Hugging Face id or an `arch.tag` of `list_weights()`.
        ema: Where a file holds both the trained weights and their moving average, take the average.
        prefix: Where a file holds several ConvNeXts, the prefix of the keys of the wanted one.
        revision: The branch, tag or commit of a Hugging Face repository.
        subfolder: The folder inside a directory or a Hugging Face repository.
        mmap: Map a large file instead of reading it. False for tensors that a module is to keep.

    Raises:
        ValueError: The source is not a ConvNeXt, is damaged, or is refused as unsafe.
        FileNotFoundError: There is no such file.
        DownloadError: It cannot be fetched.
    """
    origin = resolve(source, revision=revision, subfolder=subfolder)
    checkpoint = read_checkpoint(origin.weights(), ema=ema, mmap=mmap)
    tensors = checkpoint.tensors.items()
    shapes = {k: () if v.is_nested else tuple(v.shape) for k, v in tensors}
    with errors_about(origin.name, UnknownLayoutError):
        try:
            match = recognise(shapes, prefix)
        except UnknownLayoutError:
            checkpoint.check(shapes)
            raise
        # Those of other modules, which are dropped, may be of any kind and size.
        checkpoint.check(k for k in shapes if k.startswith(match.prefix) or locate_key(k, match)[0])
        converted = convert(checkpoint.tensors, match, projection=True)
    if origin.entry is not None:
        origin.entry.warn_once()
    notes = tuple(checkpoint.notes)
    return NativeWeights(origin, match, converted, checkpoint.config, notes, mmap)


def infer_fields(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the architecture out of native tensors, as fields of `ConvNextConfig`.

    ValueError: the stem or a whole stage is missing.
    """
    depths = depths_of(tensors)
    stages = range(len(depths))
    sizes, sides = _sizes_of_stages(tensors)
    widths = tuple(_most_common(sizes.get(stage, ())) for stage in stages)
    usual_side = _most_common(side for found in sides.values() for side in found)
    kernels = tuple(_most_common(sides.get(stage, ())) or usual_side for stage in stages)
    if STEM_KEY not in tensors or None in (*widths, *kernels) or not depths:
        raise ValueError(
            "cannot infer the architecture: the stem or a whole stage is missing, "
            f"{len(tensors)} tensors were found"
        )
    stem, hidden = tensors[STEM_KEY].shape, tensors.get("pre_logits.fc.weight")
    stem_type = _stem_type(tensors, len(depths))
    has_norm_bias = any(_NORM_BIAS.fullmatch(key) for key in tensors)
    return {
        "num_channels": stem[1],
        "patch_size": stem[-1] if stem_type.startswith("patch") else 4,
        "stem_type": stem_type,
        "hidden_sizes": widths,
        "depths": depths,
        "use_grn": any(".grn." in key for key in tensors),
        "kernel_size": kernels[0] if len(set(kernels)) == 1 else kernels,
        "conv_bias": any(key.endswith(".dwconv.bias") for key in tensors),
        "norm_layer": next(n for n, has in NORM_HAS_BIAS.items() if has == has_norm_bias),
        "layer_scale_init_value": 1e-6 if any(map(_GAMMA.fullmatch, tensors)) else 0.0,
        "head_norm_first": "norm_pre.weight" in tensors,
        "head_hidden_size": 0 if hidden is None else hidden.shape[0],
    }


def _stem_type(tensors: Mapping[str, Tensor], num_stages: int) -> str:
    weights = {i: tensors.get(f"downsample_layers.0.{i}.weight") for i in range(4)}
    convs = [index for index, weight in weights.items() if weight is not None and weight.ndim == 4]
    if convs == [0, 2]:
        return "overlap_act"
    if convs == [0, 1]:
        middle, width = (weights[i].shape[0] for i in convs)  # type: ignore[union-attr]
        return "overlap" if middle == width else "overlap_tiered"
    # A cut file must not pass for an isotropic network.
    has_norm = any(key.startswith("downsample_layers.0.1.") for key in tensors)
    return "patch" if has_norm or num_stages > 1 else "patch_no_norm"


def _has_stem(tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> bool:
    """Return whether the weights of the stem are those of an architecture."""
    shown = {k: tuple(v.shape) for k, v in tensors.items() if _STEM_WEIGHT.fullmatch(k)}
    return shown == {k: v for k, v in trunk_shapes(fields).items() if _STEM_WEIGHT.fullmatch(k)}


def _sizes_of_stages(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return the width of each stage by every tensor that has it, and the side of its kernels."""
    pattern = re.compile(r"stages\.(\d+)\.\d+\.(dwconv\.weight|dwconv\.bias|norm\.\w+|gamma)")
    sizes: dict[int, list[int]] = {}
    sides: dict[int, list[int]] = {}
    for key, tensor in tensors.items():
        if found := pattern.fullmatch(key):
            sizes.setdefault(int(found[1]), []).append(tensor.shape[0])
            if tensor.ndim == 4:
                sides.setdefault(int(found[1]), []).append(tensor.shape[-1])
    return sizes, sides


def _most_common(values: Iterable[int]) -> int | None:
    """Return the most common value: one corrupt tensor must not change the architecture."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def arch_name(fields: Mapping[str, Any]) -> str | None:
    """Name the architecture of `list_archs()` that has these sizes, this stem, norm and head."""
    return next((a for a in _similar(fields) if ARCHS[a]["depths"] == fields["depths"]), None)


def _similar(fields: Mapping[str, Any]) -> list[str]:
    """Name the architectures that, as far as tensors show, differ from `fields` in depths only."""
    has_bias = NORM_HAS_BIAS[fields["norm_layer"]]
    return [
        name
        for name, arch in ARCHS.items()
        if arch["hidden_sizes"] == fields["hidden_sizes"]
        and all(arch.get(k, ARCH_DEFAULTS[k]) == fields[k] for k in _DISTINCTIVE)
        and NORM_HAS_BIAS[fields_not_in_tensors(name)["norm_layer"]] == has_bias
    ]


def _published(fields: Mapping[str, Any]) -> tuple[str | None, str]:
    """Name the published architecture that fixes what the tensors leave open, and say why."""
    if name := arch_name(fields):
        return name, "the published model of these sizes"
    similar = _similar(fields)
    agree = all(fields_not_in_tensors(a) == fields_not_in_tensors(similar[0]) for a in similar)
    return (similar[0], "the published model of these widths") if similar and agree else (None, "")


def _fields_from_config_json(
    config: Mapping[str, Any], found: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Take what tensors do not show from a config.json of transformers or of timm.

    `found` holds the fields that the tensors show.
    """
    nested = config.get("backbone_config")  # of transformers' UperNet, say
    config = nested if isinstance(nested, Mapping) else config
    family = _family(config)
    if family is None:
        return timm_fields(config, found)
    names = {field.name for field in dataclasses.fields(ConvNextConfig)}
    names -= _READ_FROM_TENSORS
    known = {k: v for k, v in config.items() if k in names and v is not None}
    keep_names_or_positions(known, found["depths"])
    if family.single_eps and "layer_norm_eps" in known:
        known.setdefault("norm_eps", known["layer_norm_eps"])
    return known | _stated_and_shown(config, family, found, tensors)


def _family(config: Mapping[str, Any]) -> Family | None:
    return FAMILIES.get(str(stated_model_type(config)))


def _stated_and_shown(
    config: Mapping[str, Any],
    family: Family,
    found: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Take what the tensors show in part, where config.json and they agree."""
    known: dict[str, Any] = {}
    if family.use_grn == found["use_grn"]:
        known["model_type"] = family.model_type
    scale = config.get("layer_scale_init_value")
    if scale is not None and bool(scale) == bool(found["layer_scale_init_value"]):
        known["layer_scale_init_value"] = scale
    stem = config.get("stem_type")
    if stem in STEM_TYPES and _has_stem(tensors, {**found, "stem_type": stem}):
        known["stem_type"] = stem
    return known


def _labels(config: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """Take the names of the classes from a config.json, where they fit the head of `count`."""
    names = config.get("id2label")
    if _family(config) and isinstance(names, Mapping) and count in (None, len(names)):
        return {k: config[k] for k in ("id2label", "label2id") if k in config}
    stated = timm_args(config).get("num_classes", config.get("num_classes"))
    if count is None and "architecture" in config and stated == 0:
        return {"num_labels": 0}  # timm's pooled features
    return {} if count is None else {"num_labels": count}


def describe(weights: NativeWeights) -> str:
    """Return a few lines on what a source holds: layout, architecture, size, licence."""
    fields = weights.fields()
    depths, widths = ("-".join(map(str, fields[name])) for name in ("depths", "hidden_sizes"))
    family = "V2 (GRN)" if fields["use_grn"] else "V1"
    variant = [f"{k} {fields[k]}" for k in _PARTS if fields[k] != ARCH_DEFAULTS[k]]
    variant += [f"{k} {fields[k]}" for k in ("dilations",) if k in fields]
    scale = "layer scale" if fields["layer_scale_init_value"] else "no layer scale"
    trunk = [t for k, t in weights.tensors.items() if k.startswith(TRUNK)]
    parts = {
        "final norm": "norm.weight" in weights.tensors,
        f"head of {weights.num_labels} classes": weights.num_labels is not None,
        "norms of outputs": any(k.startswith("norms.") for k in weights.tensors),
    }
    entry = weights.entry
    rows = [
        ("source", weights.source),
        ("layout", str(weights.match)),
        ("architecture", arch_name(fields) or "custom"),
        ("", f"depths {depths}, widths {widths}"),
        ("", ", ".join([family, scale, f"depthwise kernel {fields['kernel_size']}", *variant])),
        ("assumed", str(weights.assumed())),
        ("input", f"{fields['num_channels']} channels, patches of {fields['patch_size']} pixels"),
        ("also has", ", ".join(name for name, there in parts.items() if there) or "nothing"),
        ("parameters", f"{_count(weights.tensors.values()):,} ({_count(trunk):,} in the trunk)"),
        ("licence", entry.licences if entry else "unknown: not a source of the catalogue"),
    ]
    rows += [("trained on", entry.data)] if entry else []
    others = {"left out": weights.converted.dropped, "unexpected": weights.converted.unexpected}
    rows += [
        (name, f"{len(keys)} tensors: {shorten_list(keys, 4)}")
        for name, keys in others.items()
        if keys
    ]
    rows += [("note", note) for note in weights.notes]
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
