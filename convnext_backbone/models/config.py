"""ConvNextConfig: what a ConvNeXt is, in Hugging Face's parameter names.

The rules of `out_features` and `out_indices` are transformers' (`backbone_utils.py`), with its gaps
closed: `[]` and indices out of range are refused, tuples and lists are alike, and either field may
be changed later.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..archs import arch_fields
from ..utils.checks import check_choice
from ..utils.files import read_json, write_json
from ..weights.source import find_file
from .labels import align_labels, check_problem_type
from .layers import ACTIVATIONS

CONFIG_NAME = "config.json"
# config.json's model_type -> the fields that it implies.
_MODEL_TYPES: dict[str, dict[str, object]] = {
    "convnext": {"use_grn": False},
    "convnextv2": {"use_grn": True, "layer_scale_init_value": 0.0},
    "dinov3_convnext": {"use_grn": False},
}
_FINAL_NORM_EPS = {"convnext": 1e-12, "convnextv2": 1e-12, "dinov3_convnext": 1e-6}
MODEL_TYPES = tuple(_MODEL_TYPES)
# model_type -> fields that transformers' class derives itself and refuses to read.
_DERIVED = {"dinov3_convnext": {"num_stages"}}
_OUTPUTS = {"out_features", "out_indices"}
_LABELS = ("num_labels", "id2label", "label2id")
# How a model answers, which config.json holds only where it is not the default.
_ANSWERS = {"output_hidden_states": False, "return_dict": True}


@dataclass(kw_only=True)
class ConvNextConfig:
    """The architecture and the outputs of a ConvNeXt.

    Attributes:
        num_channels: Channels of the input image.
        patch_size: Kernel and stride of the stem, in pixels.
        num_stages: Number of stages; derived from `depths` when not given.
        hidden_sizes: Channels of each stage; the stem has those of the first.
        depths: Number of blocks of each stage.
        hidden_act: Activation between the pointwise layers, a key of `layers.ACTIVATIONS`.
        initializer_range: Standard deviation of the truncated normal that fills weights.
        layer_norm_eps: Epsilon of the final norm over the pooled map, and of that norm only;
            transformers' own for the family when not given, 1e-12, or 1e-6 for DINOv3.
        layer_scale_init_value: Start of the layer scale; 0 builds none.
        drop_path_rate: Stochastic depth of the last block; blocks before it get a linear share.
        image_size: Side of the images that the weights were trained on, in pixels; informative.
        use_grn: Build the V2 block, with Global Response Normalisation.
        norm_eps: Epsilon of every norm but the final one (1e-6; xxlarge was trained with 1e-5).
        kernel_size: Side of the depthwise kernel, odd, in pixels.
        out_features: Names of the outputs, out of `stage_names`, in their order.
        out_indices: The same outputs as positions in `stage_names`; negative ones count from the
            end. With neither given the last stage is the output; with both, they must agree.
        model_type: transformers' name of the family; derived from `use_grn` when not given.
        num_labels: Number of classes of the classifier; that of `id2label`, or 2.
        id2label: The name of each class; `LABEL_i` when not given.
        label2id: The class of each name; the inverse of `id2label` when not given.
        problem_type: The loss of the classifier, one of `labels.PROBLEM_TYPES`; None goes by the
            number of classes and the type of the labels.
        output_hidden_states: Whether the models return their hidden states where a call does not
            say.
        return_dict: Whether they return named values, or else a plain tuple, where a call does not
            say.

    Raises:
        ValueError: A value is out of its range, or `out_features` and `out_indices` are not a
            valid choice of outputs.
        TypeError: A value is of the wrong type, or a name is not a field.
    """

    num_channels: int = 3
    patch_size: int = 4
    num_stages: int | None = None
    hidden_sizes: Sequence[int] = (96, 192, 384, 768)
    depths: Sequence[int] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float | None = None
    layer_scale_init_value: float = 1e-6
    drop_path_rate: float = 0.0
    image_size: int = 224
    use_grn: bool = False
    norm_eps: float = 1e-6
    kernel_size: int = 7
    out_features: Sequence[str] | None = None
    out_indices: Sequence[int] | None = None
    model_type: str | None = None
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    label2id: Mapping[str, int] | None = None
    problem_type: str | None = None
    output_hidden_states: bool = False
    return_dict: bool = True

    def __post_init__(self) -> None:
        if self.model_type is None:
            self.model_type = "convnextv2" if self.use_grn else "convnext"
        check_choice("model_type", self.model_type, MODEL_TYPES)
        if self.layer_norm_eps is None:
            self.layer_norm_eps = _FINAL_NORM_EPS[self.model_type]
        self._check_architecture()
        if _MODEL_TYPES[self.model_type]["use_grn"] != self.use_grn:
            raise ValueError(f"use_grn={self.use_grn} does not fit model_type {self.model_type!r}")
        self._set_labels(**{name: getattr(self, name) for name in _LABELS})
        check_problem_type(self.problem_type, self.num_labels)
        features, indices = align_outputs(self.stage_names, self.out_features, self.out_indices)
        self._set_outputs(features, indices)

    def __setattr__(self, name: str, value: Any) -> None:
        # Once built, a change of one field carries along those that say the same.
        built = "_ready" in self.__dict__
        if built and name in _OUTPUTS:
            chosen = {**dict.fromkeys(_OUTPUTS), name: value}
            self._set_outputs(*align_outputs(self.stage_names, **chosen))
        elif built and name in ("num_labels", "id2label"):
            self._set_labels(**{**dict.fromkeys(_LABELS), name: value})
        else:
            object.__setattr__(self, name, value)

    def _set_outputs(self, features: list[str], indices: list[int]) -> None:
        self.__dict__.update(out_features=features, out_indices=indices, _ready=True)

    def _set_labels(self, **fields: Any) -> None:
        self.__dict__.update(zip(_LABELS, align_labels(**fields), strict=True))

    def _check_architecture(self) -> None:
        self.hidden_sizes = _positive_ints("hidden_sizes", self.hidden_sizes)
        self.depths = _positive_ints("depths", self.depths)
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes and depths must have one entry per stage, got hidden_sizes="
                f"{self.hidden_sizes} and depths={self.depths}"
            )
        if self.num_stages is None:
            self.num_stages = len(self.depths)
        if self.num_stages != len(self.depths):
            raise ValueError(
                f"num_stages must be the length of depths, {len(self.depths)}, "
                f"got {self.num_stages!r}"
            )
        for name in ("num_channels", "patch_size", "image_size", "kernel_size"):
            _positive_ints(name, (getattr(self, name),))
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        for name, upper in _RATES.items():
            _check_number(name, getattr(self, name), upper)
        for name in ("use_grn", *_ANSWERS):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        check_choice("hidden_act", self.hidden_act, tuple(ACTIVATIONS))

    @property
    def stage_names(self) -> list[str]:
        """The names of all possible outputs: the stem, then stage1 to stageN."""
        return ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each entry of `stage_names`, in input pixels."""
        p = self.patch_size
        return (p, *(p * 2**i for i in range(len(self.depths))))

    @property
    def use_return_dict(self) -> bool:
        """Older releases' name of `return_dict`."""
        return self.return_dict

    @classmethod
    def from_arch(cls, arch: str, **overrides: Any) -> "ConvNextConfig":
        """Build the config of a named architecture, with fields replaced by `overrides`.

        Raises:
            ValueError: `arch` is not in `list_archs()`, or an override is out of its range.
            TypeError: An override is not a field.
        """
        return cls(**{**arch_fields(arch), **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> "ConvNextConfig":
        """Build a config from the contents of a Hugging Face config.json.

        Entries that do not describe the architecture (`torch_dtype`, `transformers_version`, ...)
        have no meaning here and are left out.

        Raises:
            ValueError: The model_type is not a ConvNeXt's, or a value is out of its range.
        """
        model_type = values.get("model_type", "convnext")
        check_choice("model_type", model_type, MODEL_TYPES)
        known = {f.name for f in fields(cls)}
        given = {k: v for k, v in values.items() if k in known}
        # Both are written; the names are kept, since they alone mean the same in every release.
        if given.get("out_features") is not None:
            given.pop("out_indices", None)
        if model_type == "dinov3_convnext" and "layer_norm_eps" in given:
            given.setdefault("norm_eps", given["layer_norm_eps"])  # DINOv3 has one epsilon
        return cls(**{**_MODEL_TYPES[model_type], **given}).replace(**overrides)

    def replace(self, **changes: Any) -> "ConvNextConfig":
        """Return a copy with fields replaced; fields derived from a replaced one follow it.

        Raises:
            ValueError: A change is out of its range.
            TypeError: A change is not a field.
        """
        derived = {"num_stages"} if "depths" in changes else set()
        derived |= {"model_type"} if "use_grn" in changes else set()
        derived |= {"out_features", "out_indices"} if _OUTPUTS & changes.keys() else {"out_indices"}
        derived |= {"num_labels"} if "num_labels" not in changes else {"id2label"}
        derived |= {"label2id"} if {"num_labels", "id2label"} & changes.keys() else set()
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in derived}
        return type(self)(**{**kept, **changes})

    def update(self, values: Mapping[str, Any]) -> None:
        """Change fields in place; fields derived from a changed one follow it.

        Raises:
            ValueError: A value is out of its range; nothing is changed then.
            TypeError: A name is not a field.
        """
        self.__dict__.update(self.replace(**values).__dict__)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        **overrides: Any,
    ) -> "ConvNextConfig":
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
        path = find_file(source, CONFIG_NAME, revision=revision, subfolder=subfolder)
        return cls.from_dict(read_json(path), **overrides)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> "ConvNextConfig":
        """Read a config from a file; see `from_pretrained`."""
        return cls.from_dict(read_json(path))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, with `stage_names` as transformers writes it."""
        unwritten = self._unwritten()
        values = {k: v for k, v in asdict(self).items() if k not in unwritten}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {**values, "stage_names": self.stage_names}

    def _unwritten(self) -> set[str]:
        """Leave out what transformers derives or takes as its default."""
        names = {"num_labels"} | _DERIVED.get(str(self.model_type), set())
        names |= {name for name, default in _ANSWERS.items() if getattr(self, name) == default}
        if self.problem_type is None:
            names.add("problem_type")
        if (self.id2label, self.label2id) == align_labels(None, None, None)[1:]:
            names |= {"id2label", "label2id"}
        return names

    def to_json_string(self) -> str:
        """Return the text of a config.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        """Write a config.json, replacing it in one step."""
        write_json(path, self.to_dict())

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `directory`/config.json, replacing it in one step."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(directory) / CONFIG_NAME)


# Number fields and the largest value that makes sense for each.
_RATES = {
    "initializer_range": float("inf"),
    "layer_norm_eps": 1.0,
    "norm_eps": 1.0,
    "layer_scale_init_value": float("inf"),
    "drop_path_rate": 1.0,
}


def align_outputs(
    stage_names: Sequence[str],
    out_features: Iterable[str] | None,
    out_indices: Iterable[int] | None,
) -> tuple[list[str], list[int]]:
    """Return `out_features` and `out_indices`, each derived from the other where it is None.

    Negative indices stay negative, as in transformers.

    Raises:
        ValueError: A choice is empty, unknown, out of range, repeated or not in the order of
            `stage_names`, or the two do not name the same stages.
        TypeError: A choice is not a sequence of names or of integers.
    """
    num = len(stage_names)
    if out_features is None and out_indices is None:
        return [stage_names[-1]], [num - 1]
    named = placed = None
    if out_features is not None:
        features = _sequence("out_features", out_features, str)
        unknown = [f for f in features if f not in stage_names]
        if unknown:
            raise ValueError(
                f"out_features must be a subset of stage_names {list(stage_names)}, got {features}"
            )
        named = [list(stage_names).index(f) for f in features]
        _check_order("out_features", features, named)
    if out_indices is not None:
        indices = _sequence("out_indices", out_indices, int)
        if any(not -num <= i < num for i in indices):
            raise ValueError(
                f"out_indices must be valid indices for stage_names {list(stage_names)}, "
                f"from {-num} to {num - 1}, got {indices}"
            )
        placed = [i % num for i in indices]
        _check_order("out_indices", indices, placed)
    if named is not None and placed is not None and named != placed:
        raise ValueError(
            f"out_features and out_indices must name the same stages of {list(stage_names)}, "
            f"got out_features={features} and out_indices={indices}"
        )
    if named is None:
        assert placed is not None
        features = [stage_names[i] for i in placed]
    if placed is None:
        assert named is not None
        indices = named
    return features, indices


def _sequence(name: str, value: Any, kind: type) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list or tuple of {kind.__name__}, got {value!r}")
    items = list(value)
    if not items:
        raise ValueError(f"{name} must not be empty, got {value!r}")
    if any(not isinstance(item, kind) or isinstance(item, bool) for item in items):
        raise TypeError(f"{name} must be a list or tuple of {kind.__name__}, got {value!r}")
    return items


def _check_order(name: str, given: list[Any], positions: list[int]) -> None:
    if len(set(positions)) != len(positions):
        raise ValueError(f"{name} must not contain any duplicates, got {given}")
    if positions != sorted(positions):
        raise ValueError(f"{name} must be in the same order as stage_names, got {given}")


def _positive_ints(name: str, value: Any) -> tuple[int, ...]:
    items = tuple(_sequence(name, value, int))
    if min(items) < 1:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return items


def _check_number(name: str, value: Any, upper: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0.0 <= value <= upper:
        raise ValueError(f"{name} must lie between 0 and {upper}, got {value!r}")


def resolve_config(
    config: ConvNextConfig | str | None, arch: str | None, fields: dict[str, Any]
) -> ConvNextConfig:
    """Return the config that a model's arguments describe: a config or an arch, then fields.

    Raises:
        ValueError: Both are given, `arch` is unknown, or a value is out of its range.
        TypeError: A field is unknown.
    """
    if config is not None and arch is not None:
        raise ValueError(f"give config or arch, not both: got config={config!r} and arch={arch!r}")
    if isinstance(config, ConvNextConfig):
        return config.replace(**fields)
    name = config if arch is None else arch
    return ConvNextConfig(**{**(arch_fields(name) if name is not None else {}), **fields})
