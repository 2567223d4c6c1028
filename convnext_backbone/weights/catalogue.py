"""Every public ConvNeXt weight as `arch.tag`: its address, its licence and its preprocessing.

The entries are the lines of catalogue.csv: a new weight is a new line.
Tags follow timm where timm has the weight. Others start with a publisher: `fb_` facebookresearch,
`hf_` transformers on the Hugging Face hub, `tv_` torchvision, `keras_` Keras, `mm_` OpenMMLab,
`lightly_` LightlyTrain. Sources: the READMEs and licences of facebookresearch/ConvNeXt,
ConvNeXt-V2, dinov3 and EUPE, timm 1.0.31 `default_cfgs` and its results-imagenet.csv, the tables
of torchvision and keras.applications, the metafiles of mmpretrain 1.2.0, mmdet 3.3.0 and
mmsegmentation 1.2.2, LightlyTrain's registry of models. The weights are not part of this package
and keep their own licences; those of V2 and of EUPE are for non-commercial use.
"""

import csv
import fnmatch
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ..archs import ARCH_DEFAULTS, ARCHS, trunk_shapes
from ..utils.checks import did_you_mean, shorten_list

# Mean and standard deviation of each channel of an image in 0..1, by their name in catalogue.csv.
_NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
DINOV3 = "DINOv3-License"
NON_COMMERCIAL = ("CC-BY-NC-4.0", "FAIR-Noncommercial-Research-License")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class WeightEntry(str):
    """One public weight: the string `arch.tag`, and as attributes what is published of it.

    A text is "" where there is none.
    """

    tag: str  # the string itself, as a plain one
    licence: str
    hub_licence: str  # that of the copy on the hub, where it is another one
    data: str  # what it was trained on, in the order of training
    url: str  # "" where it is on the hub alone or has no public link
    hub_id: str
    input_size: int  # side of the images at evaluation, in pixels
    crop_pct: float | None  # side of the crop over the short side of the resized image
    test_input_size: int | None  # timm's second, larger size for evaluation
    test_crop_pct: float | None
    top1: float | None  # ImageNet-1k accuracy at input_size, in percent, as the publisher gives it
    mean: tuple[float, ...]  # of each channel of an image in 0..1
    std: tuple[float, ...]
    interpolation: str
    crop_mode: str  # "center", or "squash" to resize both sides without a crop
    num_classes: int  # 0 without a head
    task: str  # "classification", "features", "detection" or "segmentation"
    gated: bool  # the hub asks to accept a licence and to be logged in
    fields: Mapping[str, Any]  # of `ConvNextConfig`, which neither tensors nor arch show
    file_name: str  # of a file that has no link

    def __new__(cls, tag: str, **_: Any) -> "WeightEntry":
        """Make the string; the attributes are set after it."""
        return super().__new__(cls, tag)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, str]]:
        return (), {"tag": self.tag}  # for copies and pickles

    @property
    def arch(self) -> str:
        """The architecture, the part before the first dot."""
        return self.tag.partition(".")[0]

    @property
    def parameters(self) -> int:
        """The number of parameters of the stem and the stages."""
        shapes = trunk_shapes({**ARCH_DEFAULTS, **ARCHS[self.arch]})
        return sum(math.prod(shape) for shape in shapes.values())

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses of the file and of the hub's copy."""
        hub = f"https://huggingface.co/{self.hub_id}" if self.hub_id else ""
        return tuple(filter(None, (self.url, hub)))

    @property
    def is_classifier(self) -> bool:
        """Whether it has a head that `ConvNextForImageClassification` loads."""
        return self.num_classes > 0 and self.task in ("classification", "features")

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return self.licence in NON_COMMERCIAL

    @property
    def licences(self) -> str:
        """The licence, and that of the hub's copy where it is another."""
        return self.licence + (f" ({self.hub_id}: {self.hub_licence})" if self.hub_licence else "")

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256 where its name has them, or ""."""
        return hash_in_name(self.url or self.file_name)

    def to_dict(self) -> dict[str, Any]:
        """Return what `convnext-backbone list --json` prints."""
        names = (
            *("tag", "arch", "parameters", "top1", "data", "task", "num_classes", "input_size"),
            *("test_input_size", "licence", "hub_licence", "non_commercial", "gated", "hosts"),
            "is_classifier",
        )
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        """Return a few lines on it, for `convnext-backbone info`."""
        second = f", and {self.test_input_size} at a test" if self.test_input_size else ""
        loads = "ConvNextBackbone" + ", ConvNextForImageClassification" * self.is_classifier
        asks = "; the hub asks to accept it and to be logged in" if self.gated else ""
        rows = (
            ("tag", self.tag),
            ("architecture", f"{self.arch}, {self.parameters:,} parameters in stem and stages"),
            ("trained on", self.data),
            ("ImageNet", "" if self.top1 is None else f"{self.top1} % top-1"),
            ("head", f"{self.num_classes} classes or channels" if self.num_classes else "none"),
            ("input", f"{self.input_size} pixels{second}"),
            ("licence", self.licences + asks),
            ("from", ", ".join(self.hosts) or f"{self.file_name}, which its owner hands out"),
            ("loaded by", loads),
            ("note", "this is what the catalogue says; nothing was fetched"),
        )
        return "\n".join(f"{name:<13} {text}" for name, text in rows if text)

    def warn_once(self) -> None:
        """Warn once of a licence that asks for more than to be passed on."""
        if self in _WARNED or not (self.non_commercial or self.licence == DINOV3):
            return
        _WARNED.add(self)
        what = "non-commercial use only" if self.non_commercial else "conditions on use and sharing"
        message = f"{self.tag}: these weights are under {self.licence}: {what}"
        warnings.warn(message, stacklevel=4)


_WARNED: set[str] = set()
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z0-9.]+$")


def hash_in_name(name: str) -> str:
    """Return the SHA-256 digits at a name's end, as torch.hub and OpenMMLab write them.

    Eight decimal digits are a date.
    """
    found = _HASH.search(name)
    return found[1] if found and not found[1].isdigit() else ""


def _read(row: dict[str, Any]) -> WeightEntry:
    """Build an entry of a row of catalogue.csv, in which an empty cell means that there is none."""
    row["mean"], row["std"] = _NORMALIZATIONS[row.pop("normalization")]
    row |= {name: int(row[name]) for name in ("num_classes", "input_size")}
    row["test_input_size"] = int(row["test_input_size"]) if row["test_input_size"] else None
    for name in ("crop_pct", "test_crop_pct", "top1"):
        row[name] = float(row[name]) if row[name] else None
    row["gated"] = row["gated"] == "yes"
    row["fields"] = json.loads(row["fields"]) if row["fields"] else {}
    return WeightEntry(**row)


with (files(__package__) / "catalogue.csv").open(encoding="utf-8") as _file:
    WEIGHTS: Mapping[str, WeightEntry] = {row["tag"]: _read(row) for row in csv.DictReader(_file)}


def list_weights(pattern: str | None = None) -> tuple[WeightEntry, ...]:
    """List every public weight in alphabetical order of the names, `arch.tag`.

    Example:
        >>> list_weights("convnext_small.fb_in1k*")
        ('convnext_small.fb_in1k', 'convnext_small.fb_in1k_ade20k_upernet', ...)
        >>> [(w.tag, w.top1, w.licence) for w in list_weights("convnextv2_atto.*") if w.top1]
        [('convnextv2_atto.fcmae_ft_in1k', 76.7, 'CC-BY-NC-4.0'), ...]

    Args:
        pattern: Keep the names that fit it: a shell pattern (`convnext_tiny.*`), or a part of the
            name when it has no wildcard. None keeps all.

    Returns:
        Strings that carry what is published of each: see `WeightEntry`.
    """
    wanted = "*" if pattern is None else pattern
    wanted = wanted if any(c in wanted for c in "*?[") else f"*{wanted}*"
    return tuple(WEIGHTS[n] for n in sorted(WEIGHTS) if fnmatch.fnmatchcase(n, wanted))


def get_weight(name: str) -> WeightEntry:
    """Return the entry of a weight; ValueError with the nearest names where there is none."""
    if name not in WEIGHTS:
        hint = suggest(name)
        raise ValueError(f"there is no weight named {name!r} in list_weights(){hint}")
    return WEIGHTS[name]


def suggest(name: str) -> str:
    """Return what a name that is no weight's may have meant, as the end of a sentence, or ""."""
    arch = name.partition(".")[0]
    near = list_weights(f"{arch}.*")
    listed = shorten_list(near or list_weights(arch or name), 6)
    if arch == name and near:
        return f"; {name!r} is an architecture, whose weights are {listed}"
    return did_you_mean(name, WEIGHTS) + (f"; of {arch!r} there are {listed}" if listed else "")
