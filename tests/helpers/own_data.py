"""Configs, data sets of a user's own on them, and what the checks of the data report."""

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

import convnext_backbone  # noqa: F401
from convnext_backbone.openmmlab.tools.checks.data import check_data
from convnext_backbone.openmmlab.tools.checks.report import Report
from convnext_backbone.openmmlab.tools.checks.schedule import check_schedule
from convnext_backbone.openmmlab.tools.config import load_config
from convnext_backbone.openmmlab.tools.config_options import apply_options

CONFIGS = Path(__file__).parents[2] / "configs"
DETECTOR = CONFIGS / "mask_rcnn/mask-rcnn_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py"
CASCADE = CONFIGS / (
    "cascade_rcnn/cascade-mask-rcnn_convnext-t_fpn_4conv1fc-giou_8xb2-amp-ms-crop-3x_coco.py"
)
BOX_DETECTOR = CONFIGS / "retinanet/retinanet_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py"
SEGMENTOR = CONFIGS / "upernet/upernet_convnext-t_8xb2-amp-160k_ade20k-512x512.py"
MASK2FORMER = CONFIGS / "mask2former/mask2former_convnext-t_8xb2-160k_ade20k-512x512.py"
NAMES = ["nut", "bolt", "gear"]


def coco(**changes):
    """A COCO file of two images, whose category ids are neither dense nor from zero."""
    values = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 80, "height": 60} for i in (1, 2)
        ],
        "categories": [
            {"id": i, "name": name} for i, name in zip((3, 7, 9), NAMES, strict=True)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [4, 4, 20, 12], "area": 240,
             "iscrowd": 0, "segmentation": [[4, 4, 24, 4, 24, 16]]}
            for i in (1, 2)
        ],
    }  # fmt: skip
    return {**values, **changes}


def write_detection(root, train=None, val=None):
    for split, values in (("train", train or coco()), ("val", val or coco())):
        (root / split).mkdir(parents=True)
        for entry in values["images"]:
            Image.new("RGB", (80, 60), "gray").save(root / split / entry["file_name"])
        (root / f"{split}.json").write_text(json.dumps(values))
    return {
        "root": str(root), "train_ann": "train.json", "train_img": "train",
        "val_ann": "val.json", "val_img": "val",
    }  # fmt: skip


def write_segmentation(root, highest=2):
    for split in ("train", "val"):
        (root / split / "maps").mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (40, 30), "gray").save(root / split / f"{name}.jpg")
            labels = np.arange(1200).reshape(30, 40) % (highest + 1)
            Image.fromarray(labels.astype(np.uint8)).save(root / split / "maps" / f"{name}.png")
    return {
        "root": str(root), "train_ann": "train/maps", "train_img": "train",
        "val_ann": "val/maps", "val_img": "val", "classes": ["road", "sky"],
    }  # fmt: skip


def prepared(path, **options):
    """The config as tools/train.py has it after `--cfg-options`."""
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    apply_options(cfg)
    return cfg


def annotation(number=1, **changes):
    return {**coco()["annotations"][0], "id": number, **changes}


def typed(path, data=None, launcher="none", **options):
    """The config after these `--cfg-options`; `__` stands for a dot."""
    named = {f"custom_dataset.{key}": value for key, value in (data or {}).items()}
    named |= {key.replace("__", "."): value for key, value in options.items()}
    return load_config(str(path), named, (), launcher)


def checked(cfg, *splits):
    """The report of the checks of the data, and of the schedule that depends on it."""
    report = Report(cfg, splits or ("train", "val", "test"))
    check_data(report)
    check_schedule(report)
    return report
