"""The examples run as they are written, on the smallest sizes that they take."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture
def coco(tmp_path):
    """Two images with one box each; the ids of the categories have gaps, as COCO's do."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    images, boxes = [], []
    for i in range(2):
        Image.fromarray(rng.integers(256, size=(48, 64, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
        images.append({"id": i, "file_name": f"{i}.png", "height": 48, "width": 64})
        box = {"id": i + 1, "image_id": i, "category_id": 90, "bbox": [4, 4, 24, 30]}
        boxes.append({**box, "area": 720, "iscrowd": 0})
    categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    annotations = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(annotations), encoding="utf-8")
    return tmp_path / "boxes.json", folder


def test_rt_detr_trains_from_a_coco_folder_and_reloads(monkeypatch, coco, tmp_path):
    from transformers import RTDetrImageProcessor, RTDetrV2ForObjectDetection

    size = ["--arch", "convnext_atto", "--size", 160, "--steps", 2, "--batch-size", 2]
    run(monkeypatch, "rt_detr_v2.py", *coco, *size, "--out", tmp_path / "run")
    model = RTDetrV2ForObjectDetection.from_pretrained(tmp_path / "run").eval()
    assert model.config.id2label == {0: "person", 1: "toothbrush"}
    processor = RTDetrImageProcessor.from_pretrained(tmp_path / "run")
    inputs = processor(Image.open(coco[1] / "0.png"), return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(48, 64)])
    assert found[0]["boxes"].shape[1] == 4
    assert set(found[0]["labels"].tolist()) <= {0, 1}


def test_torchvisions_mask_rcnn_trains(monkeypatch, capsys):
    run(
        monkeypatch,
        "torchvision_maskrcnn.py",
        "--arch",
        "convnext_atto",
        "--steps",
        2,
        "--size",
        64,
    )
    printed = capsys.readouterr().out
    assert "step 2: loss" in printed
    assert "drawn [[" in printed


def test_a_unet_of_segmentation_models_learns_the_squares(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    size = ["--size", 64, "--steps", 15]
    run(monkeypatch, "segmentation_models_unet.py", *size, "--out", tmp_path / "unet")
    printed = capsys.readouterr().out
    losses = [float(line.split()[-1]) for line in printed.splitlines() if "loss" in line]
    assert losses[-1] < losses[0]
    assert "IoU" in printed


# Lightning warns of missing loggers and few workers; kernels of 3 are none of transformers'.
@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_learns_digits(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    run(monkeypatch, "lightning_classifier.py", "--epochs", 2, "--out", tmp_path)
    accuracy = float(capsys.readouterr().out.split("accuracy")[-1])
    assert accuracy > 0.3  # one in ten by chance


@pytest.mark.skipif(
    importlib.util.find_spec("anomalib") is None,
    reason="anomalib is not installed: it brings OpenCV 5, kornia and pandas",
)
@pytest.mark.filterwarnings("ignore")
def test_patchcore_scores_broken_images_higher(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    for folder, count in (("good", 10), ("bad", 4)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            image = rng.normal(120, 10, (96, 96, 3)).clip(0, 255).astype(np.uint8)
            if folder == "bad":
                image[32:64, 32:64] = 255
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    options = ["--arch", "convnext_atto", "--size", 96, "--out", tmp_path / "run"]
    run(monkeypatch, "anomalib_patchcore.py", tmp_path, *options)
    scores = {"good": [], "bad": []}
    for line in capsys.readouterr().out.splitlines():
        for folder in scores:
            if f"/{folder}/" in line:
                scores[folder].append(float(line.split()[0]))
    # The images that anomalib does not keep for validation.
    assert min(scores["bad"]) > max(scores["good"])
