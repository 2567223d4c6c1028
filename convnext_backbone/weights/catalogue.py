"""Every public ConvNeXt weight as `arch.tag`: its address, its licence and its preprocessing.

The entries are the lines of catalogue.csv: a new weight is a new line.
Tags follow timm where timm has the weight. Others start with a publisher: `fb_` facebookresearch,
`hf_` transformers on the Hugging Face hub, `tv_` torchvision, `keras_`, `mm_` OpenMMLab.
Sources: the READMEs and licences of facebookresearch/ConvNeXt, ConvNeXt-V2 and dinov3, timm 1.0.31
`default_cfgs`, torchvision's and keras.applications' tables, the metafiles of mmpretrain 1.2.0,
mmdet 3.3.0 and mmsegmentation 1.2.2. The weights are not part of this package and keep their own
licences; those of V2 and of EUPE are for non-commercial use.
"""

import csv
import fnmatch
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

# Mean and standard deviation of each channel of an image in 0..1, by their name in catalogue.csv.
_NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
DINOV3 = "DINOv3-License"
NON_COMMERCIAL = ("CC-BY-NC-4.0", "FAIR-Noncommercial-Research-License")


@dataclass(frozen=True)
class WeightEntry:
    """One public weight; a text is "" where there is none."""

    name: str  # arch.tag
    licence: str
    data: str  # what it was trained on, in the order of training
    url: str  # "" where it is on the hub alone or has no public link
    hub_id: str
    input_size: int  # side of the images at evaluation, in pixels
    mean: tuple[float, ...]  # of each channel of an image in 0..1
    std: tuple[float, ...]
    interpolation: str
    crop_pct: (
        float | None
    )  # side of the crop over the short side of the resized image, if published
    crop_mode: str  # "center", or "squash" to resize both sides without a crop
    num_classes: int  # 0 without a head
    task: str  # "classification", "features", "detection" or "segmentation"
    gated: bool  # the hub asks to accept a licence and to be logged in
    unsupported: str  # why `ConvNextBackbone` cannot hold it
    fields: Mapping[str, Any]  # of `ConvNextConfig`, which the tensors do not show
    file_name: str  # of a file that has no link

    @property
    def arch(self) -> str:
        """The architecture, the part of the name before the first dot."""
        return self.name.partition(".")[0]

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return self.licence in NON_COMMERCIAL

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256 where its name has them, or ""."""
        return hash_in_name(self.url or self.file_name)

    def warn_once(self) -> None:
        """Warn once of a licence that asks for more than to be passed on."""
        if self.name in _WARNED or not (self.non_commercial or self.licence == DINOV3):
            return
        _WARNED.add(self.name)
        what = "non-commercial use only" if self.non_commercial else "conditions on use and sharing"
        message = f"{self.name}: these weights are under {self.licence}: {what}"
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
    row["crop_pct"] = float(row["crop_pct"]) if row["crop_pct"] else None
    row["gated"] = row["gated"] == "yes"
    row["fields"] = json.loads(row["fields"]) if row["fields"] else {}
    return WeightEntry(**row)


with (files(__package__) / "catalogue.csv").open(encoding="utf-8") as _file:
    WEIGHTS: Mapping[str, WeightEntry] = {row["name"]: _read(row) for row in csv.DictReader(_file)}


def list_weights(pattern: str | None = None) -> tuple[str, ...]:
    """List the name, `arch.tag`, of every public weight in alphabetical order.

    Example:
        >>> list_weights("convnext_small.fb_in1k*")
        ('convnext_small.fb_in1k', 'convnext_small.fb_in1k_ade20k_upernet', ...)

    Args:
        pattern: Keep the names that fit it: a shell pattern (`convnext_tiny.*`), or a part of the
            name when it has no wildcard. None keeps all.
    """
    if pattern is None:
        return tuple(sorted(WEIGHTS))
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return tuple(name for name in sorted(WEIGHTS) if fnmatch.fnmatchcase(name, wanted))


def get_weight(name: str) -> WeightEntry:
    """Return the entry of a weight; ValueError with the nearest names where there is none."""
    if name not in WEIGHTS:
        arch = name.partition(".")[0]
        near = [n for n in list_weights() if n.startswith(f"{arch}.")] or list_weights(arch)
        hint = f"; of {arch!r} there are {', '.join(near)}" if near else ""
        raise ValueError(f"there is no weight named {name!r} in list_weights(){hint}")
    return WEIGHTS[name]
