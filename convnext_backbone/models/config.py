"""ConvNextConfig: the architecture and the outputs of a ConvNeXt, in Hugging Face's names.

The rules of `out_features` and `out_indices` are transformers' (`backbone_utils.py`), and stricter:
`[]` and indices out of range are refused, tuples and lists are treated alike.
"""

import copy
import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
from typing_extensions import Self, Unpack

from ..archs import FAMILIES, arch_fields, stated_model_type
from ..utils.checks import (
    as_int,
    check_choice,
    check_min,
    did_you_mean,
    errors_about,
)
from ..utils.files import encode_json, expand_path, read_json, write_json
from ..weights.source import resolve
from .labels import align_labels, check_problem_type
from .layers import ACTIVATIONS, NORMS

CONFIG_NAME = "config.json"
# Far more than any network has; a file of a few bytes may ask for more than the memory holds.
_MAX_STAGES, _MAX_BLOCKS = 1_000, 10_000
_NAMING = {"model_type", "depths", "hidden_sizes"}  # one of them is in every ConvNeXt's config.json
_NORM_EPS = _LAYER_SCALE = 1e-6
# The default of a field that is derived from others. No such field is None in a built config, so
# the annotations leave None out.
_DERIVED: Any = None
# Fields that a change of another makes obsolete, unless they are changed with it.
_SUPERSEDES: Mapping[str, tuple[str, ...]] = {
    "depths": ("num_stages",),
    "use_grn": ("model_type",),
    "model_type": ("use_grn",),
    "out_features": ("out_indices",),
    "out_indices": ("out_features",),
    "num_labels": ("id2label", "label2id"),
    "id2label": ("num_labels", "label2id"),
    "label2id": ("num_labels",),
    "output_stride": ("dilations",),
    "dilations": ("output_stride",),
}
# timm's names, and "patch_no_norm", the stem of facebookresearch's isotropic ConvNeXts.
STEM_TYPES = ("patch", "overlap", "overlap_tiered", "overlap_act", "patch_no_norm")
# Fields that only timm's layout and this package's own have names for.
VARIANT = ("stem_type", "norm_layer", "conv_bias", "head_norm_first", "head_hidden_size")
# What models return where a call leaves it open.
_OUTPUTS = ("output_hidden_states", "return_dict")
# Fields that config.json holds only where they differ from their default.
_OPTIONAL = (*VARIANT, *_OUTPUTS, "pad_to_stride", "problem_type")
# Arguments of timm, mmpretrain and facebookresearch, and what says the same here.
_NAMED_HERE = {
    "in_chans": "num_channels",
    "in_channels": "num_channels",
    "num_classes": "num_labels",
    "dims": "hidden_sizes",
    "channels": "hidden_sizes",
    "kernel_sizes": "kernel_size",
    "act_layer": "hidden_act",
    "ls_init_value": "layer_scale_init_value",
    "stem_patch_size": "patch_size",
    "drop_path": "drop_path_rate",
}
_ELSEWHERE = {
    **{name: f"it is named {here!r} here" for name, here in _NAMED_HERE.items()},
    "pretrained": (
        "ConvNextBackbone.from_pretrained('convnext_tiny.fb_in1k') loads weights, a config has "
        "init_cfg=dict(type='Pretrained', checkpoint='convnext_tiny.fb_in1k')"
    ),
    "features_only": (
        "ConvNextBackbone returns the feature maps of out_features; "
        "ConvNextForImageClassification has logits"
    ),
    "gap_before_final_norm": "a backbone norms feature maps; head_norm_first is the classifier's",
    "global_pool": "feature maps are not pooled; ConvNextModel returns the average, pooler_output",
}
# The largest value of each number field.
_UPPER_BOUNDS = {
    "initializer_range": math.inf,
    "layer_norm_eps": 1.0,
    "norm_eps": 1.0,
    "layer_scale_init_value": math.inf,
    "drop_path_rate": 1.0,
}
_Init = TypeVar("_Init", bound=Callable[..., None])


class ConfigFields(TypedDict, total=False):
    """The fields of `ConvNextConfig` as keyword arguments, for static completion and checks."""

    num_channels: int
    patch_size: int
    num_stages: int
    hidden_sizes: Sequence[int]
    depths: Sequence[int]
    hidden_act: str
    initializer_range: float
    layer_norm_eps: float
    layer_scale_init_value: float
    drop_path_rate: float
    image_size: int | Sequence[int]
    use_grn: bool
    norm_eps: float
    kernel_size: int | Sequence[int]
    output_stride: int
    dilations: Sequence[int]
    pad_to_stride: bool
    stem_type: str
    norm_layer: str
    conv_bias: bool
    head_norm_first: bool
    head_hidden_size: int
    out_features: Sequence[str]
    out_indices: Sequence[int]
    model_type: str
    num_labels: int
    id2label: Mapping[int, str]
    label2id: Mapping[str, int]
    problem_type: str | None
    output_hidden_states: bool
    return_dict: bool


@dataclass(kw_only=True)
class ConvNextConfig:
    """The architecture and the outputs of a ConvNeXt.

    Every field may be assigned later. An assignment is checked like an argument, leaves the config
    as it was where it is refused, and updates the fields that are derived from it: those that were
    neither given nor assigned. None stands for "derived". Fields that fit each other only together,
    such as `depths` and `hidden_sizes`, are changed together, by `replace` or `update`.

    Attributes:
        num_channels: Channels of the input image.
        patch_size: Kernel and stride of the stem, in pixels.
        num_stages: Number of stages; the length of `depths`.
        hidden_sizes: Channels of each stage; the stem has those of the first.
        depths: Number of blocks of each stage.
        hidden_act: Activation between the pointwise layers, a key of `layers.ACTIVATIONS`.
        initializer_range: Standard deviation of the truncated normal that fills weights.
        layer_norm_eps: Epsilon of the final norm over the pooled map, and of that norm only. By
            default, transformers' own for the family: 1e-12, or 1e-6 for DINOv3.
        layer_scale_init_value: Start of the layer scale; 0 builds none. By default 1e-6, but 0
            where `model_type` is given as "convnextv2": with `use_grn` alone, as in timm, both are
            built.
        drop_path_rate: Stochastic depth of the last block; the rates of the blocks before it rise
            linearly from 0.
        image_size: Side of the images that the weights were trained on, or height and width, in
            pixels; informative.
        use_grn: Build the V2 block, with Global Response Normalization; by default, the family's.
        norm_eps: Epsilon of every norm but the final one (1e-6; xxlarge was trained with 1e-5). In
            DINOv3, which has one epsilon, by default that of the final norm.
        kernel_size: Side of the depthwise kernel, odd, in pixels; or one for each stage.
        output_stride: The largest stride, by default that of the last stage. Stages that would
            exceed a smaller one (8, 16) keep the size of the map and dilate their convolutions
            instead, with the same weights, as in timm.
        dilations: The same for each stage, by default what `output_stride` asks for: 1 for the
            first, and for every other that of the stage before it (which is then downsampled) or
            twice that (the map keeps its size). (1, 1, 2, 4) is `output_stride` 8.
        pad_to_stride: Pad images with zeros, on the right and below, to a multiple of the largest
            stride, and crop the maps to ceil(side / stride). By default the border that a stride
            does not fill is left out, as in every other implementation.
        stem_type: timm's: "patch", a convolution of patches; "overlap", two of kernel 3 and stride
            2; "overlap_tiered", with half the width between them; "overlap_act", with the
            activation. "patch_no_norm" has no norm, as the isotropic ConvNeXts.
        norm_layer: timm's: "layernorm", "rmsnorm" or "simplenorm", of which the last two have no
            bias and do not centre.
        conv_bias: Whether convolutions have a bias; pointwise layers always have.
        head_norm_first: Whether the final norm comes before the pooling (timm's "_hnf").
        head_hidden_size: Width of a hidden layer with GELU in the classifier; 0 builds none.
        out_features: Names of the outputs, out of `stage_names`, in their order.
        out_indices: The same outputs as positions in `stage_names`; negative ones count from the
            end, and an integer is the only one. With neither given the last stage is the output;
            with both, they must agree.
        model_type: transformers' name of the family: "convnext", "convnextv2" or
            "dinov3_convnext". By default, one of the first two, by `use_grn`.
        num_labels: Number of classes of the classifier; by default that of `id2label`, or 2.
        id2label: The name of each class, by default `LABEL_i`.
        label2id: The class of each name, by default the inverse of `id2label`.
        problem_type: The loss of the classifier, one of `labels.PROBLEM_TYPES`. None is a value of
            its own, as in transformers: the number of classes and the dtype of the labels decide.
        output_hidden_states: Whether the models return their hidden states where a call leaves it
            open.
        return_dict: Whether they return named values or a plain tuple where a call leaves it open.

    Raises:
        ValueError: A value is out of its range, or values do not fit each other.
        TypeError: A value is of the wrong type, or a name is not a field.

    Example:
        >>> config = ConvNextConfig(depths=(2, 2, 6, 2), hidden_sizes=(40, 80, 160, 320))
        >>> config.use_grn = True
        >>> config.model_type, config.out_features
        ('convnextv2', ['stage4'])
    """

    num_channels: int = 3
    patch_size: int = 4
    num_stages: int = _DERIVED
    hidden_sizes: Sequence[int] = (96, 192, 384, 768)
    depths: Sequence[int] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = _DERIVED
    layer_scale_init_value: float = _DERIVED
    drop_path_rate: float = 0.0
    image_size: int | Sequence[int] = 224
    use_grn: bool = _DERIVED
    norm_eps: float = _DERIVED
    kernel_size: int | Sequence[int] = 7
    output_stride: int = _DERIVED
    dilations: Sequence[int] = _DERIVED
    pad_to_stride: bool = False
    stem_type: str = "patch"
    norm_layer: str = "layernorm"
    conv_bias: bool = True
    head_norm_first: bool = False
    head_hidden_size: int = 0
    out_features: Sequence[str] = _DERIVED
    out_indices: Sequence[int] = _DERIVED
    model_type: str = _DERIVED
    num_labels: int = _DERIVED
    id2label: Mapping[int, str] = _DERIVED
    label2id: Mapping[str, int] = _DERIVED
    problem_type: str | None = None
    output_hidden_states: bool = False
    return_dict: bool = True

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        self._resolve_family()
        self._check_architecture()
        labels = align_labels(self.num_labels, self.id2label, self.label2id)
        self.num_labels, self.id2label, self.label2id = labels
        check_problem_type(self.problem_type, self.num_labels)
        outputs = align_outputs(self.stage_names, self.out_features, self.out_indices)
        self.out_features, self.out_indices = outputs
        # What the user has set, from which the rest is derived anew after a change. From here on
        # __setattr__ checks. Copies, since the lists of a config may be edited in place.
        self._given = {name: copy.copy(getattr(self, name)) for name in given}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dataclass_fields__ and "_given" in vars(self):
            self.update({name: value})
        else:
            super().__setattr__(name, value)

    def _resolve_family(self) -> None:
        if self.model_type is None:
            fitting = (name for name, f in FAMILIES.items() if f.use_grn == bool(self.use_grn))
            self.model_type = next(fitting)
            if self.layer_scale_init_value is None:
                self.layer_scale_init_value = _LAYER_SCALE
        check_choice("model_type", self.model_type, tuple(FAMILIES))
        family = FAMILIES[self.model_type]
        for name in ("use_grn", "layer_scale_init_value", "layer_norm_eps"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(family, name))
        if self.norm_eps is None:
            self.norm_eps = self.layer_norm_eps if family.single_eps else _NORM_EPS
        self._replace_each(_as_bool, "use_grn", *_OUTPUTS)
        if self.use_grn != family.use_grn:
            raise ValueError(f"use_grn={self.use_grn} does not fit model_type {self.model_type!r}")

    def _check_architecture(self) -> None:
        self.hidden_sizes = _positive_ints("hidden_sizes", self.hidden_sizes)
        self.depths = _positive_ints("depths", self.depths)
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes and depths must have one entry per stage, got hidden_sizes="
                f"{self.hidden_sizes} and depths={self.depths}; replace() and update() change both"
            )
        if len(self.depths) > _MAX_STAGES or sum(self.depths) > _MAX_BLOCKS:
            raise ValueError(
                f"depths must be of at most {_MAX_STAGES} stages and {_MAX_BLOCKS} blocks, got "
                f"{len(self.depths)} and {sum(self.depths)}"
            )
        if self.num_stages is not None and as_int(self.num_stages) != len(self.depths):
            raise ValueError(
                f"num_stages must be the length of depths, {len(self.depths)}, "
                f"got {self.num_stages!r}"
            )
        self.num_stages = len(self.depths)
        self._replace_each(_as_positive, "num_channels", "patch_size")
        self._replace_each(_as_side_or_sides, "image_size", "kernel_size")
        self._replace_each(_as_number, *_UPPER_BOUNDS)
        check_choice("hidden_act", self.hidden_act, tuple(ACTIVATIONS))
        self._check_variant()
        self._resolve_dilations()

    def _replace_each(self, check: Callable[[str, Any], Any], *names: str) -> None:
        """Put what `check` returns of each field, a plain value of Python, in its place."""
        for name in names:
            setattr(self, name, check(name, getattr(self, name)))

    def _check_variant(self) -> None:
        """Check what only some ConvNeXts have otherwise than most."""
        sides = self.kernel_sizes
        if any(side % 2 == 0 for side in sides):
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        _check_per_stage("kernel_size", sides, self.depths)
        self.kernel_size = sides[0] if len(set(sides)) == 1 else sides
        self._replace_each(_as_bool, "conv_bias", "head_norm_first", "pad_to_stride")
        check_choice("stem_type", self.stem_type, STEM_TYPES)
        check_choice("norm_layer", self.norm_layer, tuple(NORMS))
        self.head_hidden_size = check_min("head_hidden_size", self.head_hidden_size, 0)
        if self.stem_type.startswith("overlap") and self.patch_size != 4:
            raise ValueError(
                f"patch_size must be 4 with stem_type {self.stem_type!r}, got {self.patch_size}"
            )
        has_tokens = FAMILIES[self.model_type].returns_tokens  # normed after the pooling
        if self.head_norm_first and (self.head_hidden_size or has_tokens):
            raise ValueError(
                "head_norm_first=True does not fit "
                f"head_hidden_size={self.head_hidden_size} and model_type {self.model_type!r}"
            )

    def _resolve_dilations(self) -> None:
        if self.dilations is None:
            strides = tuple(self.patch_size * 2**i for i in range(self.num_stages))
            largest = strides[-1] if self.output_stride is None else self.output_stride
            check_choice("output_stride", largest, strides)
            self.dilations = tuple(max(1, stride // int(largest)) for stride in strides)
        self.dilations = _positive_ints("dilations", self.dilations)
        _check_per_stage("dilations", self.dilations, self.depths)
        steps = zip((1, *self.dilations), self.dilations, strict=False)
        if self.dilations[0] != 1 or any(new not in (old, 2 * old) for old, new in steps):
            raise ValueError(
                "dilations must start with 1, and each be that of the stage before or twice that, "
                f"got {self.dilations}"
            )
        if self.output_stride not in (None, self.strides[-1]):
            raise ValueError(
                f"dilations={self.dilations} imply output_stride={self.strides[-1]}, got "
                f"{self.output_stride}"
            )
        self.output_stride = self.strides[-1]

    @property
    def stage_names(self) -> list[str]:
        """The names of all possible outputs: the stem, then stage1 to stageN."""
        return _stage_names(len(self.depths))

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each entry of `stage_names`, in input pixels."""
        p = self.patch_size
        return (p, *(p * 2**i // dilation for i, dilation in enumerate(self.dilations)))

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """The side of the depthwise kernel of each stage."""
        sides = self.kernel_size
        return (sides,) * len(self.depths) if isinstance(sides, int) else tuple(sides)

    @classmethod
    def from_arch(cls, arch: str, **overrides: Unpack[ConfigFields]) -> Self:
        """Build the config of a named architecture, with fields replaced by `overrides`.

        Raises:
            ValueError: `arch` is not in `list_archs()`, or an override is out of its range.
            TypeError: An override is not a field.
        """
        return cls._from_values(arch_fields(arch)).replace(**overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Unpack[ConfigFields]) -> Self:
        """Build a config from the contents of a Hugging Face config.json.

        Entries that do not describe the architecture (`torch_dtype`, `transformers_version`, ...)
        have no meaning here and are left out.

        Raises:
            ValueError: The model_type is not a ConvNeXt's, or a value is out of its range.
            TypeError: A value is of another type.
        """
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        known["model_type"] = stated_model_type(values, "convnext")
        side = known.get("patch_size")
        if isinstance(side, list | tuple) and len({*side}) == 1:
            known["patch_size"] = side[0]  # transformers takes height and width, too
        keep_names_or_positions(known, known.get("depths", cls.depths))
        return cls._from_values(known).replace(**overrides)

    @classmethod
    def _from_values(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from a file or table, whose defaults are not the user's choice."""
        config = cls(**values)
        kept = {name: getattr(config, name) for name in _NAMING}
        default = cls(**kept)
        given = {k: v for k, v in config._given.items() if v != getattr(default, k)}
        config._given = {**given, **kept}
        return config

    def replace(self, **changes: Unpack[ConfigFields]) -> Self:
        """Return a copy with fields replaced; fields derived from a replaced one follow it.

        Raises:
            ValueError: A change is out of its range.
            TypeError: A change is not a field.
        """
        # Lists that were edited in place (`config.out_features.append(...)`) count as assigned.
        built = vars(type(self)(**self._given))
        now = {f.name: getattr(self, f.name) for f in fields(self)}
        edited = {name: value for name, value in now.items() if value != built[name]}
        given = _apply_changes(self._given, built, edited)
        return type(self)(**_apply_changes(given, now, changes))

    # Python's copy.replace, which dataclasses would otherwise make of all fields.
    __replace__ = replace

    def update(self, values: Mapping[str, Any]) -> None:
        """Change fields in place; fields derived from a changed one follow it.

        Raises:
            ValueError: A value is out of its range; nothing is changed then.
            TypeError: A name is not a field.
        """
        vars(self).update(vars(self.replace(**values)))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        **overrides: Unpack[ConfigFields],
    ) -> Self:
        """Read a config.json.

        Args:
            source: The file, the directory that holds it, or a Hugging Face id.
            revision: The branch, tag or commit of a Hugging Face repository.
            subfolder: The folder inside the directory or repository.
            overrides: Fields to replace.

        Raises:
            FileNotFoundError: There is no such file.
            ConnectionError: The hub cannot be reached.
            ValueError: The file is not a ConvNeXt's config.json.
        """
        path = resolve(source, revision=revision, subfolder=subfolder).file(CONFIG_NAME)
        return cls.from_json_file(path).replace(**overrides)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a config from a file; see `from_pretrained`."""
        path = expand_path(path, "path")
        values = read_json(path)
        with errors_about(path):
            if not _NAMING & values.keys():
                raise ValueError(
                    "this is no config.json of transformers, which names model_type, depths or "
                    "hidden_sizes; from_pretrained of a model reads the weights of other libraries"
                )
            return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, with `stage_names` as transformers writes it."""
        unwritten = self._unwritten()
        values = {k: v for k, v in asdict(self).items() if k not in unwritten}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {**values, "stage_names": self.stage_names}

    def _unwritten(self) -> set[str]:
        """Return the fields that transformers derives, or whose value is its default."""
        names = {"num_labels", *FAMILIES[self.model_type].derived}
        standard = {name: getattr(ConvNextConfig, name) for name in _OPTIONAL}
        names |= {name for name, value in standard.items() if getattr(self, name) == value}
        if max(self.dilations) == 1:
            names |= {"output_stride", "dilations"}
        if (self.id2label, self.label2id) == align_labels(None, None, None)[1:]:
            names |= {"id2label", "label2id"}
        return names

    def to_json_string(self) -> str:
        """Return the text of a config.json."""
        return encode_json(self.to_dict()).decode()

    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        """Write a config.json, replacing it in one step."""
        write_json(expand_path(path, "path"), self.to_dict())

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `directory`/config.json, replacing it in one step."""
        folder = Path(expand_path(directory, "directory"))
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_NAME)


def _apply_changes(
    given: Mapping[str, Any], current: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is given after `changes`, without what they make obsolete."""

    def is_new(name: str, value: Any) -> bool:
        integer = as_int(value)
        value = value if integer is None else integer
        # By type first: comparing an array of the user's to a tuple has no single truth value.
        return type(value) is not type(current.get(name)) or value != current[name]

    changed = [name for name, value in changes.items() if is_new(name, value)]
    obsolete = {other for name in changed for other in _SUPERSEDES.get(name, ())}
    return {**{name: given[name] for name in given if name not in obsolete}, **changes}


def align_outputs(
    stage_names: Sequence[str],
    out_features: Iterable[str] | None,
    out_indices: Iterable[int] | int | None,
) -> tuple[list[str], list[int]]:
    """Return `out_features` and `out_indices`, each derived from the other where it is None.

    Negative indices stay negative, as in transformers. An integer is one index, as in mmpretrain.

    Raises:
        ValueError: A choice is empty, unknown, out of range, repeated or not in the order of
            `stage_names`, or the two do not name the same stages.
        TypeError: A choice is not a sequence of names or of integers.
    """
    names, num = list(stage_names), len(stage_names)
    index = as_int(out_indices)
    out_indices = out_indices if index is None else [index]
    if out_features is None:
        indices = _sequence("out_indices", [num - 1] if out_indices is None else out_indices, int)
        if any(not -num <= i < num for i in indices):
            raise ValueError(
                f"out_indices must be valid indices for stage_names {names}, "
                f"from {-num} to {num - 1}, got {indices}"
            )
        positions = [i % num for i in indices]
        _check_order("out_indices", indices, positions)
        return [names[i] for i in positions], indices
    features = _sequence("out_features", out_features, str)
    if any(name not in names for name in features):
        raise ValueError(f"out_features must be a subset of stage_names {names}, got {features}")
    positions = [names.index(name) for name in features]
    _check_order("out_features", features, positions)
    if out_indices is None:
        return features, positions
    placed, indices = align_outputs(names, None, out_indices)
    if placed != features:
        raise ValueError(
            f"out_features and out_indices must name the same stages of {names}, "
            f"got out_features={features} and out_indices={indices}"
        )
    return features, indices


def keep_names_or_positions(values: dict[str, Any], depths: Any) -> None:
    """Of the names and the positions of outputs, both of which a config.json has, drop one.

    Names mean the same in every release. Positions that count from the end say more, and are kept
    where they stand for these names.
    """
    names, positions = values.get("out_features"), values.get("out_indices")
    if names is None or positions is None:
        return
    try:
        placed = align_outputs(_stage_names(len(depths)), None, positions)[0]
        keeps_positions = placed == list(names) and min(positions) < 0
    except (TypeError, ValueError):
        keeps_positions = False
    del values["out_features" if keeps_positions else "out_indices"]


def _stage_names(num_stages: int) -> list[str]:
    return ["stem", *(f"stage{i}" for i in range(1, num_stages + 1))]


def _sequence(name: str, value: Any, kind: type) -> list[Any]:
    try:
        items = None if isinstance(value, str) else list(value)
    except TypeError:  # of what has no items, such as an array without axes
        items = None
    if items == []:
        raise ValueError(f"{name} must not be empty, got {value!r}")
    plain = items if kind is str or items is None else [as_int(item) for item in items]
    if plain is None or any(not isinstance(item, kind) for item in plain):
        raise TypeError(f"{name} must be a list or tuple of {kind.__name__}, got {value!r}")
    return plain


def _check_order(name: str, given: Sequence[object], positions: list[int]) -> None:
    if len(set(positions)) != len(positions):
        raise ValueError(f"{name} must not contain any duplicates, got {given}")
    if positions != sorted(positions):
        raise ValueError(f"{name} must be in the same order as stage_names, got {given}")


def _positive_ints(name: str, value: object) -> tuple[int, ...]:
    items = tuple(_sequence(name, value, int))
    if min(items) < 1:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return items


def _check_per_stage(name: str, values: Sequence[int], depths: Sequence[int]) -> None:
    if len(values) != len(depths):
        raise ValueError(f"{name} must have one entry per stage, got {values} and depths={depths}")


# Each returns the value as Python's own, which JSON takes; NumPy's are taken too.


def _as_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _as_positive(name: str, value: object) -> int:
    integer = as_int(value)
    if integer is None:
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if integer < 1:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return integer


def _as_side_or_sides(name: str, value: object) -> int | tuple[int, ...]:
    has_items = isinstance(value, Iterable) and as_int(value) is None
    return _positive_ints(name, value) if has_items else _as_positive(name, value)


def _as_number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    upper = _UPPER_BOUNDS[name]
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not 0.0 <= number <= upper or number == math.inf:
        raise ValueError(f"{name} must lie between 0 and {upper}, got {value!r}")
    return number


def check_names(owner: str, names: Iterable[str], choices: Collection[str]) -> None:
    """Refuse an argument that is not among the choices, with a TypeError."""
    for name in names:
        if name not in choices:
            hint = f" ({_ELSEWHERE[name]})" if name in _ELSEWHERE else did_you_mean(name, choices)
            raise TypeError(
                f"{owner} has no argument {name!r}{hint}; its arguments are {tuple(choices)}, "
                "most of them fields of ConvNextConfig"
            )


def show_config_fields(init: _Init) -> _Init:
    """Show the fields of `ConvNextConfig` in the signature of a constructor with `**fields`.

    What `help()`, `inspect.signature` and completion in a shell read. Static tools read the
    `Unpack[ConfigFields]` of the annotation.
    """
    signature, shown = inspect.signature(init), inspect.signature(ConvNextConfig)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters = [*named, *shown.parameters.values()]
    setattr(init, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    return init


def resolve_config(
    owner: type,
    config: ConvNextConfig | str | None,
    arch: str | None,
    **fields: Unpack[ConfigFields],
) -> ConvNextConfig:
    """Return the config that a model's arguments describe: a config or an arch, then fields.

    Args:
        owner: The class that takes the arguments.
        config: A config, or the name of an architecture.
        arch: The name of an architecture.
        fields: Fields that replace those of the config or architecture.

    Raises:
        ValueError: Both are given, `arch` is unknown, or a value is out of its range.
        TypeError: A field is unknown, or `config` is of another type.
    """
    own = inspect.signature(owner).parameters
    check_names(owner.__name__, fields, dict.fromkeys([*own, *ConfigFields.__annotations__]))
    if config is not None and arch is not None:
        raise ValueError(f"give config or arch, not both: got config={config!r} and arch={arch!r}")
    if not isinstance(config, ConvNextConfig | str | None):
        raise TypeError(
            "config must be a ConvNextConfig or the name of an architecture, "
            f"got {type(config).__name__}"
        )
    if isinstance(config, ConvNextConfig):
        return config.replace(**fields)
    name = config if arch is None else arch
    return ConvNextConfig(**fields) if name is None else ConvNextConfig.from_arch(name, **fields)
