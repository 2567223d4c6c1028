"""Load weights of any known layout into a ConvNeXt exactly, or raise an error with every mismatch.

Three steps: `open_weights` reads a source and brings its tensors to native names, `infer_fields`
reads the architecture out of them, `load_native` fills a module and accounts for every tensor.
"""

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..archs import NORM_DROPPED, NORM_OF_STAGE
from ..models.config import ConvNextConfig
from ..utils.checks import check_choice, errors_about, shorten_list
from .layouts import STEM_KEY
from .native import NativeWeights, open_weights
from .placement import assign_to_target
from .report import LoadReport
from .timm_config import timm_pooling

_PACKAGE = f"{__name__.partition('.')[0]}."
_LISTED = 40  # tensors that an error names before it only counts the rest
OPEN_OPTIONS = ("ema", "prefix", "revision", "subfolder")  # what `open_weights` takes by keyword
_FILL_OPTIONS = ("final_norm", "adapt_in_channels", "fresh")
LOAD_OPTIONS = (*OPEN_OPTIONS, *_FILL_OPTIONS)  # what `load_weights` takes by keyword

Built = TypeVar("Built")


def load_weights(
    module: nn.Module,
    source: str | os.PathLike[str],
    *,
    final_norm: str | None = None,
    adapt_in_channels: bool = False,
    fresh: Collection[str] = (),
    ema: bool = False,
    prefix: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
) -> LoadReport:
    """Load a source of any known layout into a module of this package.

    Example:
        >>> backbone = ConvNextBackbone(arch="convnext_atto", out_features=["stage4"])
        >>> load_weights(backbone, "convnext_atto.d2_in1k").fresh
        ('norms.stage4.weight', 'norms.stage4.bias')

    Args:
        module: A `ConvNextBackbone`, `ConvNextModel` or `ConvNextForImageClassification`.
        source: A file, a directory, a URL, a Hugging Face id or an `arch.tag` of `list_weights()`.
        final_norm: Where the norm after the last stage goes in a backbone: "stage" makes it the
            norm of the last stage, "drop" leaves it out. The default is each family's published
            recipe: "stage" for DINOv3, "drop" for V1 and V2.
        adapt_in_channels: Fit the stem to another number of input channels: their sum for one
            channel, otherwise tiled and rescaled to keep the size of the response.
        fresh: Names at the start of native keys (("head.",), or "head." alone) that may keep their
            initial values when the source does not have them or has them in another shape.
        ema: Where a file holds both the trained weights and their moving average, take the average.
            Of mmengine's EMAHook, which exchanges the two, it is the average in any case, as there.
        prefix: Where a file holds several ConvNeXts, the prefix of the keys of the wanted one.
        revision: The branch, tag or commit of a Hugging Face repository.
        subfolder: The folder inside a directory or a Hugging Face repository.

    Returns:
        What became of every tensor. Norms of outputs that the source does not have keep their
        initial values.

    Raises:
        ValueError: Anything does not fit; everything that does not is listed.
        FileNotFoundError: There is no such file.
        DownloadError: The source cannot be fetched.
    """
    weights = open_weights(source, ema=ema, prefix=prefix, revision=revision, subfolder=subfolder)
    return load_native(
        module, weights, final_norm=final_norm, adapt_in_channels=adapt_in_channels, fresh=fresh
    )


def load_pretrained_(
    cls: type[Built],
    source: str | os.PathLike[str],
    overrides: Mapping[str, Any],
    dtype: torch.dtype | str | None,
) -> Built:
    """Build the `cls` that a source describes and load it; `load_report` is then the report.

    `overrides` are options of `load_weights`; the rest goes to the constructor. The `dtype` "auto"
    is that of the source, None that of the module.
    """
    opened = {k: v for k, v in overrides.items() if k in OPEN_OPTIONS}
    options = {k: v for k, v in overrides.items() if k in _FILL_OPTIONS}
    built = {k: v for k, v in overrides.items() if k not in LOAD_OPTIONS}
    weights = open_weights(source, mmap=False, **opened)
    if not {"config", "arch"} & built.keys():
        with errors_about(weights.source):
            built["config"] = ConvNextConfig(**weights.fields())
    module = build_blank(cls, **built)
    assert isinstance(module, nn.Module)
    if pooling := _other_pooling(module, weights):
        raise ValueError(f"{weights.source}: {pooling}")
    stored = [t.dtype for t in weights.tensors.values() if t.is_floating_point()]
    if dtype == "auto":
        dtype = next(iter(stored), None)
    if dtype is not None:  # loaded in a dtype that holds every value, so that none is rounded twice
        module.to(torch.float64 if torch.float64 in {dtype, *stored} else torch.float32)
    load_native(module, weights, **options)
    return module.to(dtype)


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
    """Fill a module with weights that `open_weights` returned, as `load_weights` does."""
    check_choice("final_norm", final_norm, (None, NORM_OF_STAGE, NORM_DROPPED))
    target = module.state_dict()
    if STEM_KEY not in target:
        raise ValueError(f"module must be a ConvNeXt of this package, got {type(module).__name__}")
    goes_to = final_norm or weights.final_norm
    assigned = assign_to_target(weights.converted, weights.match, target, goes_to)
    tensors, notes = assigned.tensors, [*weights.notes, *assigned.notes]
    before = tensors[STEM_KEY].shape[1] if STEM_KEY in tensors else 0
    channels = target[STEM_KEY].shape[1]
    if adapt_in_channels and before not in (0, channels):
        tensors[STEM_KEY] = adapt_input_channels(tensors[STEM_KEY], channels)
        notes.append(f"the stem was adapted from {before} to {channels} input channels")
    fit = _compare(tensors, target, fresh)
    for key in fit.replaced:
        assigned.dropped.append(weights.converted.sources[key])
        del tensors[key]
    _refuse_mismatches(module, weights, tensors, fit, adapt_in_channels)
    notes += _warn_not_finite(tensors, weights)
    notes += _warn_other_fields(module, weights)
    notes += _warn_other_pooling(module, weights)
    _fill(module, tensors, fit.fresh, weights.mmap)
    report = LoadReport(
        source=weights.source,
        layout=str(weights.match),
        loaded=tuple(tensors),
        fresh=fit.fresh,
        dropped=tuple(assigned.dropped),
        reshaped=dict(weights.converted.reshaped),
        notes=tuple(notes),
        assumed=str(weights.assumed()),
    )
    if hasattr(module, "load_report"):
        # mmengine's init_weights, which comes after the building, must not draw the values anew.
        vars(module).update(load_report=report, is_init=True)
    return report


@dataclass(frozen=True)
class _Fit:
    """How the tensors of a source fit those of a module, by native key."""

    fresh: tuple[str, ...]  # may keep its values: not in the source, or in another shape
    replaced: tuple[str, ...]  # those of them that the source has in another shape
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # the source's, the module's


def _compare(
    tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], fresh: Collection[str]
) -> _Fit:
    wanted = (fresh,) if isinstance(fresh, str) else tuple(fresh)
    optional = ("norms.", *wanted)
    absent = [key for key in target if key not in tensors]
    shapes = {
        key: (tuple(tensor.shape), tuple(target[key].shape))
        for key, tensor in tensors.items()
        if key in target and tensor.shape != target[key].shape
    }
    replaced = [key for key in shapes if wanted and key.startswith(wanted)]
    return _Fit(
        fresh=(*(key for key in absent if key.startswith(optional)), *replaced),
        replaced=tuple(replaced),
        missing=tuple(key for key in absent if not key.startswith(optional)),
        unexpected=tuple(key for key in tensors if key not in target),
        misshapen={key: pair for key, pair in shapes.items() if key not in replaced},
    )


def _refuse_mismatches(
    module: nn.Module,
    weights: NativeWeights,
    tensors: Mapping[str, Tensor],
    fit: _Fit,
    adapted: bool,
) -> None:
    converted, sources = weights.converted, weights.converted.sources
    problems: dict[str, Sequence[str]] = {
        "missing": fit.missing,
        "unexpected": (*converted.unexpected, *fit.unexpected),
        "of the wrong shape": [
            f"{sources.get(key, key)} is {got}, must be {want}"
            for key, (got, want) in fit.misshapen.items()
        ],
        "not floating point (quantized weights are not read)": [
            f"{sources.get(key, key)} is {tensor.dtype}"
            for key, tensor in tensors.items()
            if not tensor.is_floating_point()
        ],
    }
    if not any(problems.values()) and tensors:
        return
    lines = [f"{weights.source}: the weights ({weights.match}) do not fit {type(module).__name__}"]
    lines += [f"  {what}: {shorten_list(keys, _LISTED)}" for what, keys in problems.items() if keys]
    got, want = fit.misshapen.get(STEM_KEY, ((), ()))
    if not adapted and len(got) == 4 and got[0] == want[0] and got[1] != want[1]:
        lines.append(
            f"  hint: the weights take {got[1]} input channels and the module {want[1]}; "
            "adapt_in_channels=True fits them"
        )
    unfit = (*fit.missing, *fit.misshapen)
    own = tuple(part for part in ("norm.", "head.") if any(k.startswith(part) for k in unfit))
    if "head." in own:
        lines.append(f"  hint: fresh={own} keeps the module's own values of these")
    raise ValueError("\n".join(lines))


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


def _warn_not_finite(tensors: Mapping[str, Tensor], weights: NativeWeights) -> list[str]:
    bad = [
        weights.converted.sources.get(key, key)
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not _isfinite(tensor).all()
    ]
    if not bad:
        return []
    note = f"{len(bad)} tensors hold NaN or infinity: {shorten_list(bad, 4)}"
    warnings.warn(f"{weights.source}: {note}", stacklevel=5)
    return [note]


def _isfinite(tensor: Tensor) -> Tensor:
    return torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor)  # none for float8


def _warn_other_fields(module: nn.Module, weights: NativeWeights) -> list[str]:
    """Note where the module has another epsilon, activation or norm than the weights.

    Where a tag or config.json states them, it is a warning as well.
    """
    config, assumed = getattr(module, "config", None), weights.assumed()
    differing = [
        f"{name}={value} and the module has {getattr(config, name)}"
        for name, value in assumed.values.items()
        if isinstance(config, ConvNextConfig) and getattr(config, name) != value
    ]
    if not differing:
        return []
    note = f"the weights are for {', for '.join(differing)} ({assumed.origin})"
    if assumed.is_stated:
        warnings.warn(f"{weights.source}: {note}", stacklevel=5)
    return [note]


def _other_pooling(module: nn.Module, weights: NativeWeights) -> str:
    """Say where a module pools its map otherwise than the network of the weights, else ""."""
    keys, pooling = module.state_dict().keys(), timm_pooling(weights.config)
    is_backbone = any(key.startswith("norms.") for key in keys)
    gives_maps = pooling == "" and "head.weight" not in keys  # which are there without pooling
    if pooling is None or is_backbone or gives_maps:
        return ""
    return (
        f"the weights are of a network with global_pool {pooling!r}, "
        f"and {type(module).__name__} takes the average"
    )


def _warn_other_pooling(module: nn.Module, weights: NativeWeights) -> list[str]:
    note = _other_pooling(module, weights)
    if note:
        warnings.warn(f"{weights.source}: {note}", stacklevel=5)
    return [note] if note else []


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor], fresh: Collection[str], mmap: bool
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
    module.load_state_dict(_copied(tensors, target, device, mmap), strict=False, assign=True)


def _copied(
    tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], device: torch.device, mmap: bool
) -> dict[str, Tensor]:
    """Return the tensors in the target's dtypes, contiguous, each in memory of its own.

    A view of a mapped file would crash the process when somebody overwrites the file; a part of a
    larger storage would keep and save all of it; two views of one storage would train as one.
    """
    copied: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        value = tensor.to(device, target[key].dtype).contiguous()
        storage = value.untyped_storage()
        must_copy = mmap or storage.nbytes() != value.nbytes or storage.data_ptr() in storages
        copied[key] = value.clone() if must_copy and value is tensor else value
        storages.add(storage.data_ptr())
    return copied
