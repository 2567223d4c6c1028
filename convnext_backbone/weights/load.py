"""Load weights of any known layout into a ConvNeXt, exactly, or say precisely why not.

Three steps: `open_weights` reads a source and brings its tensors to native names, `infer_fields`
reads the architecture out of them, `load_native` fills a module and accounts for every tensor.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..archs import ARCHS
from ..config import ConvNextConfig
from .catalogue import TIMM_FIELDS, WeightEntry
from .download import locate
from .layouts import Converted, Match, UnknownLayoutError, convert, recognise
from .read import read_checkpoint

_PACKAGE = f"{__name__.partition('.')[0]}."
FINAL_NORM_CHOICES = ("stage", "drop")
_STEM = "downsample_layers.0.0.weight"
_LISTED = 40  # tensors that an error names before it only counts the rest
# What config.json knows and tensors do not tell.
_CONFIG_FIELDS = (
    "hidden_act",
    "initializer_range",
    "layer_norm_eps",
    "norm_eps",
    "drop_path_rate",
    "image_size",
    "out_features",
    "output_hidden_states",
    "return_dict",
)
_FAMILIES = ("convnext", "convnextv2", "dinov3_convnext")  # model_type of config.json
_OPEN_OPTIONS = ("ema", "prefix")
_FILL_OPTIONS = ("final_norm", "adapt_in_channels", "fresh")
LOAD_OPTIONS = (*_OPEN_OPTIONS, *_FILL_OPTIONS)  # what `load_weights` takes by keyword

Built = TypeVar("Built")


# ------------------------------------------------------------------------------ the report


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a source and of a module.

    Attributes:
        source: What was asked for.
        layout: The key layout that was recognised.
        loaded: Native keys that were filled from the source.
        fresh: Native keys that the source does not have and that keep their initial values.
        dropped: Source keys that were left out on purpose: heads, decoders, other modules.
        reshaped: Source key -> how its tensor changed form.
        notes: What else a user should know.
    """

    source: str
    layout: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    reshaped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        reshaped = [f"{key} ({how})" for key, how in self.reshaped.items()]
        counted = (
            ("loaded", self.loaded, 0),
            ("fresh", self.fresh, 6),
            ("dropped", self.dropped, 6),
            ("reshaped", reshaped, 2),
        )
        rows = [("source", self.source), ("layout", self.layout)]
        rows += [(name, f"{len(keys):>5}  {_some(keys, show)}") for name, keys, show in counted]
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<9} {text}".rstrip() for name, text in rows)


def _some(keys: Collection[str], number: int) -> str:
    shown = ", ".join(list(keys)[:number])
    return shown + (", ..." if number and len(keys) > number else "")


# ------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class NativeWeights:
    """The tensors of a source under native names, and what is known of them.

    Attributes:
        source: What was asked for.
        match: The layout and the prefix that were recognised.
        converted: The tensors, and the keys left out.
        config: The config.json that lies beside the weights, or nothing.
        entry: The catalogue's entry, when the source is in it.
        notes: What a user should know about how they were read.
        mapped: Whether the tensors may be views of the mapped file.
    """

    source: str
    match: Match
    converted: Converted
    config: Mapping[str, Any]
    entry: WeightEntry | None
    notes: tuple[str, ...]
    mapped: bool = True

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by native key."""
        return self.converted.tensors

    @property
    def num_labels(self) -> int | None:
        """The number of classes of the head, or None without one."""
        head = self.tensors.get("head.weight")
        return None if head is None else head.shape[0]

    def fields(self) -> dict[str, Any]:
        """Return the fields of `ConvNextConfig` that the weights and their config.json imply.

        Raises:
            ValueError: The tensors do not make up a ConvNeXt.
        """
        with _named(self.source):
            found = infer_fields(self.tensors)
        layout = self.match.layout
        found |= _beside(self.config)
        if self.entry is not None:
            found |= self.entry.fields
        if layout.final_norm == "stage":
            found.setdefault("model_type", "dinov3_convnext")
        found |= _labels(self.config, self.num_labels)
        found.setdefault("layer_norm_eps", layout.layer_norm_eps or found["norm_eps"])
        return found


class _named:  # noqa: N801 - a context manager, used as a word
    """Put the source's name in front of a ValueError."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, UnknownLayoutError):
            raise UnknownLayoutError(f"{self.source}: {error}") from error
        if type(error) is ValueError:
            raise ValueError(f"{self.source}: {error}") from error


def open_weights(
    source: str | os.PathLike[str],
    *,
    ema: bool = False,
    prefix: str | None = None,
    mapped: bool = True,
) -> NativeWeights:
    """Read a source and bring its tensors to native names.

    Args:
        source: A file, a directory, a URL, a Hugging Face id or an `arch.tag` of `list_weights()`.
        ema: Where a file holds both the trained weights and their moving average, take the average.
        prefix: Where a file holds several ConvNeXts, the prefix of the keys of the wanted one.
        mapped: Map a large file instead of reading it. False for tensors that a module is to keep.

    Raises:
        ValueError: The source is not a ConvNeXt, is damaged, or is refused as unsafe.
        FileNotFoundError: There is no such file.
        DownloadError: It cannot be fetched.
    """
    path, entry = locate(source)
    name = os.fspath(source)
    checkpoint = read_checkpoint(path, ema=ema, mapped=mapped)
    with _named(name):
        match = recognise({k: tuple(v.shape) for k, v in checkpoint.tensors.items()}, prefix)
        converted = name_final_norm(convert(checkpoint.tensors, match), match)
    if entry is not None:
        entry.warn_once()
    notes = tuple(checkpoint.notes)
    return NativeWeights(name, match, converted, checkpoint.config, entry, notes, mapped)


def infer_fields(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the architecture out of native tensors.

    Returns:
        Fields of `ConvNextConfig`: widths, depths, V1 or V2, layer scale, stem patch, input
        channels, kernel size; and the epsilon of the named architecture that has these numbers.

    Raises:
        ValueError: The stem or a whole stage is missing.
    """
    depths = _depths(tensors)
    widths = tuple(_usual(_sizes(tensors, s)) for s in range(len(depths)))
    kernels = _usual(t.shape[-1] for k, t in tensors.items() if k.endswith(".dwconv.weight"))
    if _STEM not in tensors or None in (*widths, kernels) or not depths:
        raise ValueError(f"the architecture cannot be read from {len(tensors)} tensors of it")
    stem = tensors[_STEM].shape
    fields: dict[str, Any] = {
        "num_channels": stem[1],
        "patch_size": stem[-1],
        "hidden_sizes": widths,
        "depths": depths,
        "use_grn": any(".grn." in key for key in tensors),
        "kernel_size": kernels,
    }
    scaled = any(re.fullmatch(r"stages\.\d+\.\d+\.gamma", key) for key in tensors)
    fields["layer_scale_init_value"] = 1e-6 if scaled else 0.0
    arch = arch_name(fields)
    fields["norm_eps"] = ARCHS[arch]["norm_eps"] if arch else 1e-6
    return fields


def _sizes(tensors: Mapping[str, Tensor], stage: int) -> list[int]:
    """Return what the tensors of a stage's width say that it is."""
    pattern = re.compile(rf"stages\.{stage}\.\d+\.(dwconv\.weight|dwconv\.bias|norm\.\w+|gamma)")
    return [t.shape[0] for key, t in tensors.items() if pattern.fullmatch(key)]


def _usual(values: Iterable[int]) -> int | None:
    """Return the most frequent value: one odd tensor shall be named, not believed."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def arch_name(fields: Mapping[str, Any]) -> str | None:
    """Name the architecture of `list_archs()` that has these widths, depths and blocks."""
    wanted = {k: fields[k] for k in ("depths", "hidden_sizes", "use_grn")}
    if fields["kernel_size"] != 7 or fields["patch_size"] != 4:
        return None
    return next(
        (name for name, arch in ARCHS.items() if all(arch[k] == v for k, v in wanted.items())), None
    )


def _depths(keys: Iterable[str]) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for key in keys:
        place = re.match(r"stages\.(\d+)\.(\d+)\.", key)
        if place is not None:
            stage, block = int(place[1]), int(place[2])
            found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(found.get(stage, 0) for stage in range(max(found, default=-1) + 1))


def _beside(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a config.json, of transformers or of timm, what tensors do not tell."""
    if config.get("model_type") in _FAMILIES:
        known = {k: config[k] for k in _CONFIG_FIELDS if config.get(k) is not None}
        if config["model_type"] == "dinov3_convnext" and "layer_norm_eps" in known:
            known.setdefault("norm_eps", known["layer_norm_eps"])  # DINOv3 has one epsilon
        return known
    return dict(TIMM_FIELDS.get(str(config.get("architecture")), {}))


def _labels(config: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """Take the names of the classes from a config.json, where they fit the head of `count`."""
    names = config.get("id2label")
    if config.get("model_type") in _FAMILIES and names is not None and count in (None, len(names)):
        return {k: config[k] for k in ("id2label", "label2id", "problem_type") if k in config}
    return {} if count is None else {"num_labels": count}


# ------------------------------------------------------------------------------ filling


def load_weights(
    module: nn.Module,
    source: str | os.PathLike[str],
    *,
    final_norm: str | None = None,
    adapt_in_channels: bool = False,
    fresh: Collection[str] = (),
    ema: bool = False,
    prefix: str | None = None,
) -> LoadReport:
    """Load a source of any known layout into a module of this package.

    Args:
        module: A `ConvNextBackbone`, `ConvNextModel` or `ConvNextForImageClassification`.
        source: A file, a directory, a URL, a Hugging Face id or an `arch.tag` of `list_weights()`.
        final_norm: Where the norm after the last stage goes in a backbone: "stage" makes it the
            norm of the last stage, "drop" leaves it out. The default is each family's published
            recipe: "stage" for DINOv3, "drop" for V1 and V2.
        adapt_in_channels: Fit the stem to another number of input channels: their sum for one
            channel, otherwise tiled and rescaled to keep the size of the response.
        fresh: Names at the start of native keys ("head.") that may keep their initial values when
            the source does not have them or has them in another shape.
        ema: Where a file holds both the trained weights and their moving average, take the average.
        prefix: Where a file holds several ConvNeXts, the prefix of the keys of the wanted one.

    Returns:
        What became of every tensor. Norms of outputs that the source does not have stay fresh.

    Raises:
        ValueError: Anything does not fit; everything that does not is listed.
        FileNotFoundError: There is no such file.
        DownloadError: The source cannot be fetched.
    """
    weights = open_weights(source, ema=ema, prefix=prefix)
    return load_native(
        module, weights, final_norm=final_norm, adapt_in_channels=adapt_in_channels, fresh=fresh
    )


def load_pretrained_(
    cls: type[Built], source: str | os.PathLike[str], overrides: Mapping[str, Any]
) -> Built:
    """Build the module that a source describes and load it; `load_report` says how that went.

    Args:
        cls: A class whose constructor takes a `ConvNextConfig` and keywords.
        source: As in `load_weights`.
        overrides: Options of `load_weights`; the rest goes to the constructor.

    Raises:
        ValueError: The source is not a ConvNeXt, or does not fit what `overrides` ask for.
    """
    opened = {k: v for k, v in overrides.items() if k in _OPEN_OPTIONS}
    options = {k: v for k, v in overrides.items() if k in _FILL_OPTIONS}
    built = {k: v for k, v in overrides.items() if k not in opened and k not in options}
    weights = open_weights(source, mapped=False, **opened)
    if not {"config", "arch"} & built.keys():
        fields = weights.fields()
        if {"out_features", "out_indices"} & built.keys():
            fields.pop("out_features", None)
        built["config"] = ConvNextConfig(**fields)
    module = build_blank(cls, **built)
    assert isinstance(module, nn.Module)
    load_native(module, weights, **options)
    return module


def build_blank(cls: type[Built], *args: Any, **kwargs: Any) -> Built:
    """Build a module for weights that come right after: on the meta device, without values.

    Drawing the initial values of a large ConvNeXt takes longer than reading its weights, and holds
    as much memory. A user's subclass is built as usual: it may compute with tensors, hold buffers
    and have initial values of its own, of which the meta device knows nothing.
    """
    with torch.device("meta") if cls.__module__.startswith(_PACKAGE) else nullcontext():
        return cls(*args, **kwargs)


def load_native(
    module: nn.Module,
    weights: NativeWeights,
    *,
    final_norm: str | None = None,
    adapt_in_channels: bool = False,
    fresh: Collection[str] = (),
) -> LoadReport:
    """Fill a module with weights that `open_weights` returned; arguments as in `load_weights`.

    Raises:
        ValueError: Anything does not fit; everything that does not is listed.
    """
    if final_norm is not None and final_norm not in FINAL_NORM_CHOICES:
        raise ValueError(
            f"final_norm must be None or one of {FINAL_NORM_CHOICES}, got {final_norm!r}"
        )
    target = module.state_dict()
    if _STEM not in target:
        raise ValueError(f"module must be a ConvNeXt of this package, got {type(module).__name__}")
    recipe = weights.entry.final_norm if weights.entry is not None else None
    placed = _place(weights.converted, weights.match, target, final_norm or recipe)
    notes = [*weights.notes, *placed.notes]
    tensors = placed.tensors
    if adapt_in_channels:
        notes += _adapt_stem(tensors, target[_STEM].shape[1])
    missing = [key for key in target if key not in tensors]
    shapes = {
        key: (tuple(tensor.shape), tuple(target[key].shape))
        for key, tensor in tensors.items()
        if key in target and tensor.shape != target[key].shape
    }
    optional = ("norms.", *fresh)
    kept = [k for k in missing if k.startswith(optional)]
    kept += [k for k in shapes if fresh and k.startswith(tuple(fresh))]
    for key in shapes.keys() & set(kept):
        placed.dropped.append(weights.converted.sources[key])
        del tensors[key]
    problems = {
        "missing": [k for k in missing if k not in kept],
        "unexpected": [*weights.converted.unexpected, *(k for k in tensors if k not in target)],
        "of the wrong shape": [
            f"{weights.converted.sources.get(k, k)} is {got}, must be {want}"
            for k, (got, want) in shapes.items()
            if k not in kept
        ],
        "not floating point (quantized weights are not read)": [
            f"{weights.converted.sources.get(k, k)} is {t.dtype}"
            for k, t in tensors.items()
            if not t.is_floating_point()
        ],
    }
    if "head.weight" in target and weights.converted.headless:
        problems["part of a head that this classifier does not have"] = [
            *weights.converted.headless
        ]
    if any(problems.values()) or not tensors:
        hint = _channels_hint(shapes, adapt_in_channels) + _head_hint(missing, shapes, kept)
        raise ValueError(_misfit(weights, type(module).__name__, problems, hint))
    notes += _warn_not_finite(tensors, weights)
    _fill(module, tensors, kept, weights.mapped)
    report = LoadReport(
        source=weights.source,
        layout=str(weights.match),
        loaded=tuple(tensors),
        fresh=tuple(kept),
        dropped=tuple(placed.dropped),
        reshaped=dict(weights.converted.reshaped),
        notes=tuple(notes),
    )
    if hasattr(module, "load_report"):
        # mmengine's init_weights, which comes after the building, must not draw the values anew.
        vars(module).update(load_report=report, is_init=True)
    return report


def name_final_norm(converted: Converted, match: Match) -> Converted:
    """Tell mmpretrain's final norm from the norms of outputs.

    mmpretrain names the norm after the last stage alike whether it stands before or after the
    pooling. Where it is the only one, or there is a classifier, it is the final norm.
    """
    last = f"norms.stage{len(_depths(converted.tensors))}."
    norms = {k for k in converted.tensors if k.startswith("norms.")}
    lone = all(k.startswith(last) for k in norms)
    if match.layout.name != "mmpretrain" or not (lone or "head.weight" in converted.tensors):
        return converted

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k.replace(last, "norm."): v for k, v in values.items()}

    return replace(
        converted,
        tensors=renamed(converted.tensors),
        sources=renamed(converted.sources),
        storage=renamed(converted.storage),
    )


@dataclass
class _Placed:
    tensors: dict[str, Tensor]
    dropped: list[str]
    notes: list[str]


def _place(
    converted: Converted, match: Match, target: Collection[str], final_norm: str | None
) -> _Placed:
    """Decide which native tensors the target takes, and where the final norm goes."""
    tensors, dropped = dict(converted.tensors), list(converted.dropped)
    notes: list[str] = []
    last = f"norms.stage{len(_depths(tensors))}."
    default = match.layout.final_norm
    if match.layout.name == "mmpretrain" and "head.weight" not in tensors:
        default = "stage"  # without a classifier, it is the norm of the map
    where = final_norm or default
    for part in ("weight", "bias"):
        if f"norm.{part}" in tensors and f"norm.{part}" not in target:
            tensor = tensors.pop(f"norm.{part}")
            if where == "stage" and last + part in target:
                tensors[last + part] = tensor
                notes += [f"the final norm is the norm of {last[6:-1]}"] * (part == "weight")
            else:
                dropped.append(_source(converted, f"norm.{part}", last + part))
    for key in [k for k in tensors if k not in target and k.startswith(("norms.", "head."))]:
        del tensors[key]
        dropped.append(_source(converted, key))
    return _Placed(tensors, dropped, notes)


def _source(converted: Converted, *keys: str) -> str:
    return next((converted.sources[key] for key in keys if key in converted.sources), keys[0])


def _adapt_stem(tensors: dict[str, Tensor], channels: int) -> list[str]:
    weight = tensors.get(_STEM)
    if weight is None or weight.shape[1] == channels:
        return []
    before = weight.shape[1]
    tensors[_STEM] = adapt_input_channels(weight, channels)
    return [f"the stem was adapted from {before} to {channels} input channels"]


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit a stem's weight (C, in, p, p) to another number of input channels.

    One channel gets the sum, which answers a grey image as the original answers its grey RGB copy.
    More get the original's channels in turn, rescaled to keep the size of the response.
    """
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    taken = torch.arange(channels, device=weight.device) % before
    return weight[:, taken] * (before / channels)


def _channels_hint(
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], adapted: bool
) -> str:
    got, want = shapes.get(_STEM, ((), ()))
    if adapted or len(got) != 4 or got[0] != want[0] or got[1] == want[1]:
        return ""
    return (
        f"\n  hint: the weights take {got[1]} input channels and the module {want[1]}; "
        "adapt_in_channels=True fits them"
    )


def _head_hint(missing: Iterable[str], shapes: Iterable[str], kept: Collection[str]) -> str:
    if not any(key.startswith("head.") and key not in kept for key in (*missing, *shapes)):
        return ""
    return "\n  hint: fresh=('head.',) keeps the module's own head"


def _misfit(weights: NativeWeights, name: str, problems: Mapping[str, list[str]], hint: str) -> str:
    lines = [f"{weights.source}: the weights ({weights.match}) do not fit {name}"]
    for what, keys in problems.items():
        if keys:
            more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            lines.append(f"  {what}: {', '.join(keys[:_LISTED])}{more}")
    return "\n".join(lines) + hint


def _warn_not_finite(tensors: Mapping[str, Tensor], weights: NativeWeights) -> list[str]:
    bad = [
        weights.converted.sources.get(key, key)
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if not bad:
        return []
    note = f"{len(bad)} tensors hold NaN or infinity: {_some(bad, 4)}"
    warnings.warn(f"{weights.source}: {note}", stacklevel=5)
    return [note]


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor], fresh: Collection[str], mapped: bool
) -> None:
    """Copy the tensors into the module; where that has no memory, make them its parameters."""
    target = module.state_dict()
    if not any(tensor.is_meta for tensor in target.values()):
        module.load_state_dict(tensors, strict=False)
        return
    device = torch.get_default_device()
    device = torch.device("cpu") if device.type == "meta" else device
    materialise = getattr(module, "materialise_")  # noqa: B009 - nn.Module types it as a tensor
    materialise(fresh, device)
    module.load_state_dict(_owned(tensors, target, device, mapped), strict=False, assign=True)


def _owned(
    tensors: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    device: torch.device,
    mapped: bool,
) -> dict[str, Tensor]:
    """Return the tensors in the target's dtypes, contiguous, each in memory of its own.

    A view of a mapped file would crash the process when somebody overwrites the file; a part of a
    larger storage would keep and save all of it; two views of one storage would train as one.
    """
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        value = tensor.to(device, target[key].dtype).contiguous()
        storage = value.untyped_storage()
        lent = mapped or storage.nbytes() != value.nbytes or storage.data_ptr() in storages
        owned[key] = value.clone() if lent and value is tensor else value
        storages.add(storage.data_ptr())
    return owned


# ------------------------------------------------------------------------------ in flight


def to_native_(state_dict: dict[str, Any], prefix: str, module_keys: Collection[str]) -> None:
    """Rename the keys under `prefix` to native ones, in place; for a `load_state_dict` pre-hook.

    A native state dict is left as it is, and so is one of no known layout: torch then reports what
    is missing and unexpected. From any other, and from a native one inside a larger model's, heads
    and norms that the module does not have are taken out.

    Args:
        state_dict: The state dict that is being loaded.
        prefix: The prefix of the module whose hook runs, as torch passes it.
        module_keys: The module's own keys, without the prefix.
    """
    inside = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
    inner = {k[len(prefix) :]: v for k, v in inside.items() if isinstance(v, Tensor)}
    if not inner or _is_native(inner, module_keys):
        return
    try:
        match = recognise({k: tuple(v.shape) for k, v in inner.items()})
    except UnknownLayoutError:
        return
    if match.layout.name == "native" and not match.prefix:
        return
    if prefix and "head.fc.weight" in state_dict:
        inner["head.fc.weight"] = state_dict["head.fc.weight"]  # marks mmpretrain's final norm
    converted = name_final_norm(convert(inner, match), match)
    placed = _place(converted, match, module_keys, None)
    for key in inside:
        del state_dict[key]
    state_dict.update({prefix + k: v for k, v in placed.tensors.items()})
    state_dict.update({prefix + k: inner[k] for k in converted.unexpected})


def _is_native(tensors: Mapping[str, Tensor], module_keys: Collection[str]) -> bool:
    return tensors.keys() <= set(module_keys) and not any(
        tensor.dim() > 1 for key, tensor in tensors.items() if ".grn." in key
    )


# ------------------------------------------------------------------------------ for people


def describe(weights: NativeWeights) -> str:
    """Say in a few lines what a source holds: layout, architecture, size, licence.

    Raises:
        ValueError: The tensors do not make up a ConvNeXt.
    """
    fields = weights.fields()
    family = "V2 (GRN)" if fields["use_grn"] else "V1"
    scale = "layer scale" if fields["layer_scale_init_value"] else "no layer scale"
    trunk = [t for k, t in weights.tensors.items() if k.startswith(("downsample_", "stages."))]
    parts = {
        "final norm": "norm.weight" in weights.tensors,
        f"head of {weights.num_labels} classes": weights.num_labels is not None,
        "norms of outputs": any(k.startswith("norms.") for k in weights.tensors),
    }
    entry = weights.entry
    rows = [
        ("source", weights.source),
        ("layout", str(weights.match)),
        ("architecture", arch_name(fields) or "no named one"),
        ("", f"depths {_numbers(fields['depths'])}, widths {_numbers(fields['hidden_sizes'])}"),
        ("", f"{family}, {scale}, depthwise kernel {fields['kernel_size']}"),
        ("input", f"{fields['num_channels']} channels, patches of {fields['patch_size']} pixels"),
        ("besides", ", ".join(name for name, there in parts.items() if there) or "nothing"),
        ("parameters", f"{_count(weights.tensors.values()):,} ({_count(trunk):,} in the trunk)"),
        ("licence", entry.licence if entry else "unknown: not a source of the catalogue"),
    ]
    rows += [("trained on", entry.data)] if entry else []
    dropped, unknown = weights.converted.dropped, weights.converted.unexpected
    rows += [("left out", f"{len(dropped)} tensors: {_some(dropped, 4)}")] if dropped else []
    rows += [("unexpected", f"{len(unknown)} tensors: {_some(unknown, 4)}")] if unknown else []
    rows += [("note", note) for note in weights.notes]
    return "\n".join(f"{name:<13} {text}" for name, text in rows)


def _numbers(values: Iterable[int]) -> str:
    return "-".join(map(str, values))


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
