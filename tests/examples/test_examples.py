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

from convnext_backbone import ConvNextForImageClassification

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


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


def test_an_fpn_detector_in_plain_pytorch_learns_where_the_squares_are(monkeypatch, capsys):
    torch.manual_seed(0)
    run(monkeypatch, "fpn_detector.py", "--steps", 25)
    steps = capsys.readouterr().out.splitlines()
    overlaps = [float(step.split()[-1]) for step in steps]
    assert len(steps) == 25
    assert sum(overlaps[-5:]) / 5 > 0.35  # a box of the mean size at the right place has 0.5


@pytest.fixture
def weights(tmp_path):
    """A directory of tiny random weights."""
    torch.manual_seed(0)
    ConvNextForImageClassification(
        hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), layer_scale_init_value=1.0
    ).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def write_halves(folder, count=6):
    """Images that are dark on the left of a line and bright on the right, and their masks."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for i in range(count):
        mask = np.zeros((64, 96), np.uint8)
        mask[:, 16 * (1 + i % 5) :] = 1
        image = rng.normal(40 + 160 * mask[..., None], 10, (64, 96, 3)).clip(0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.jpg")
        mask[:4] = 255  # not labelled
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder / "images", folder / "masks"


def test_the_most_similar_image_is_the_image_itself(monkeypatch, capsys, weights, tmp_path):
    images, _ = write_halves(tmp_path)
    (images / "damaged.jpg").write_bytes(b"no image")
    query = images / "2.jpg"
    sheet = tmp_path / "sheet.png"
    options = ["--weights", weights, "--top", 3, "--out", sheet]
    run(monkeypatch, "similar_images.py", images, query, *options)
    first, *others = capsys.readouterr().out.splitlines()[:3]
    assert first.split() == ["1.000", str(query)]
    assert all(float(line.split()[0]) < 1 for line in others)
    with Image.open(sheet) as picture:
        assert picture.size == (4 * 160, 160)


def test_a_linear_probe_segments_frozen_features(monkeypatch, capsys, weights, tmp_path):
    images, masks = write_halves(tmp_path)
    options = ["--weights", weights, "--stage", "stage1", "--steps", 100]
    torch.manual_seed(0)
    run(monkeypatch, "linear_segmentation_probe.py", images, masks, *options)
    result = capsys.readouterr().out.splitlines()[-1]
    assert result.startswith("mIoU on 2 images held out:")
    assert float(result.split()[-1]) > 80  # dark and bright, at a quarter of the resolution


@pytest.mark.openmmlab
def test_a_deployed_folder_is_used_from_a_program(monkeypatch, capsys, tmp_path):
    config = pytest.importorskip("mmengine").Config.fromfile(
        ROOT / "configs/linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py"
    )
    from convnext_backbone.openmmlab.tools.config import build_model

    widths = {"hidden_sizes": (8, 8, 8, 16), "depths": (1, 1, 1, 1), "init_cfg": None}
    config.model.backbone.update(arch=None, **widths)
    config.model.decode_head.in_channels = 16
    config.dump(tmp_path / "config.py")
    state = build_model(config, "cpu").state_dict()
    meta = {"dataset_meta": {"classes": [f"class {i}" for i in range(150)]}}
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "model.pth")
    images, _ = write_halves(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / "config.py", tmp_path / "model.pth", images / "0.jpg"]
    run(monkeypatch, "deploy_and_predict.py", *paths)
    printed = capsys.readouterr().out.splitlines()
    shares = [
        float(line.split(": ")[1].split("%")[0]) for line in printed if "of the image" in line
    ]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert (tmp_path / "deployed" / "model.onnx").is_file()
