"""The tools end to end: train, test and resume a detector and a segmentor on a few images."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.tool_process import run_tool, write_config
from PIL import Image

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.runner import CheckpointLoader


def run(*args, cwd):
    result = run_tool(*args, cwd=cwd)
    assert result.code == 0, result.out[-2000:] + result.err
    return result


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), map_location="cpu")


def last_metrics(folder):
    """The metrics that mmengine wrote last below a work directory."""
    files = sorted(folder.rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return next(line for line in reversed(lines) if any("mAP" in k or "mIoU" in k for k in line))


@pytest.fixture(scope="module")
def detection(detector, tmp_path_factory):
    """A detector trained for an epoch of three iterations with --amp, on the CPU."""
    folder = tmp_path_factory.mktemp("detection")
    return folder, run("train.py", detector, "--amp", "--work-dir", "run", cwd=folder)


@pytest.fixture(scope="module")
def segmentation(segmentor, tmp_path_factory):
    """A segmentor trained for four iterations, with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("segmentation")
    return folder, run("train.py", segmentor, cwd=folder)


def test_amp_without_a_gpu_trains_in_full_precision_and_says_so(detection):
    folder, result = detection
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = [line for line in result.out.splitlines() if "float32" in line]
    assert len(said) == 1
    assert re.search("No GPU", said[0])
    checkpoint = load(folder / "run" / "epoch_1.pth")
    assert "loss_scaler" not in checkpoint["optimizer"]
    floats = {v.dtype for v in checkpoint["state_dict"].values() if v.is_floating_point()}
    assert floats == {torch.float32}


def test_a_detector_trains_and_is_validated(detection):
    folder, result = detection
    assert (folder / "run" / "epoch_1.pth").is_file()
    assert "eta:" in result.out
    assert "loss_mask:" in result.out
    metrics = last_metrics(folder / "run")
    assert 0 <= metrics["coco/bbox_mAP"] <= 1
    assert 0 <= metrics["coco/segm_mAP"] <= 1


@pytest.fixture(scope="module")
def detected(detection, detector):
    """The metrics of tools/test.py, what it dumped, and the names of the pictures it drew."""
    folder, _ = detection
    run(
        *("test.py", detector, "run/epoch_1.pth", "--work-dir", "test"),
        *("--out", "dump/predictions.pkl", "--show-dir", "shown"),
        *("--cfg-options", "default_hooks.visualization.interval=1"),
        cwd=folder,
    )
    with open(folder / "dump" / "predictions.pkl", "rb") as stream:
        predictions = pickle.load(stream)
    shown = {path.stem for path in (folder / "test").rglob("shown/*")}
    return last_metrics(folder / "test"), predictions, shown


def test_a_detector_is_tested_as_it_was_validated(detection, detected):
    validated = last_metrics(detection[0] / "run")
    tested, predictions, shown = detected
    for name in ("coco/bbox_mAP", "coco/segm_mAP", "coco/bbox_mAP_50"):
        assert tested[name] == validated[name]
    names = [f"{index:06d}.png" for index in range(1, 5)]
    assert [p["img_path"].rpartition("/")[2] for p in predictions] == names
    assert {"bboxes", "scores", "labels", "masks"} <= set(predictions[0]["pred_instances"])
    assert shown == {name[:-4] for name in names}


@pytest.mark.parametrize("changes", ["ids from 0", "no iscrowd"])
def test_perfect_detections_score_one_whatever_the_file_leaves_to_pycocotools(
    changes, detector, digits, tmp_path
):
    data = json.loads((digits / "annotations" / "instances_val.json").read_text())
    for number, annotation in enumerate(data["annotations"]):
        if changes == "ids from 0":
            annotation["id"] = number
        else:
            del annotation["iscrowd"]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(data))
    config = write_config(
        tmp_path / "oracle.py",
        f"""
        _base_ = ['{detector}']
        custom_imports = dict(imports=['convnext_backbone', 'helpers.oracle_detector'])
        model = dict(_delete_=True, type='OracleDetector')
        test_dataloader = dict(dataset=dict(ann_file='{path}'))
        test_evaluator = dict(ann_file='{path}', metric='bbox')
        """,
    )
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "oracle.pth")
    work = tmp_path / "work"
    work.mkdir()
    result = run("test.py", config, tmp_path / "oracle.pth", "--work-dir", "run", cwd=work)
    assert last_metrics(work / "run")["coco/bbox_mAP"] == 1.0
    assert ("its ids begin at 0" in result.err) == (changes == "ids from 0")
    assert ("have no 'iscrowd'" in result.err) == (changes == "no iscrowd")
    assert json.loads(path.read_text()) == data


def test_a_detector_is_tested_with_augmentation(detection, detector):
    folder, _ = detection
    # mmdet merges boxes only.
    boxes = ("model.roi_head.mask_head=None", "test_evaluator.metric=bbox")
    run(
        *("test.py", detector, "run/epoch_1.pth", "--work-dir", "tta", "--tta"),
        *("--cfg-options", *boxes),
        cwd=folder,
    )
    assert "coco/bbox_mAP" in last_metrics(folder / "tta")


def test_a_detector_resumes_where_it_stopped(detection, detector):
    folder, _ = detection
    more = ("--cfg-options", "train_cfg.max_epochs=2")
    run("train.py", detector, "--work-dir", "run", "--resume", *more, cwd=folder)
    first, second = (load(folder / "run" / f"epoch_{n}.pth") for n in (1, 2))
    assert (first["meta"]["iter"], second["meta"]["iter"]) == (3, 6)
    assert (first["meta"]["epoch"], second["meta"]["epoch"]) == (1, 2)
    steps = {float(state["step"]) for state in second["optimizer"]["state"].values()}
    assert steps == {6.0}
    assert not (folder / "run" / "epoch_3.pth").exists()


@pytest.fixture(scope="module")
def segmented(segmentation, segmentor):
    """A folder in which tools/test.py wrote label maps and pictures, and the checkpoint tested."""
    folder, _ = segmentation
    checkpoint = folder / "work_dirs" / "segmentor" / "iter_4.pth"
    run(
        *("test.py", segmentor, checkpoint, "--work-dir", "test", "--out", "maps"),
        *("--show-dir", "shown", "--cfg-options", "default_hooks.visualization.interval=1"),
        cwd=folder,
    )
    return folder, checkpoint


def test_a_segmentor_is_tested_as_it_was_validated(segmented, digits):
    folder, checkpoint = segmented
    validated = last_metrics(checkpoint.parent)
    tested = last_metrics(folder / "test")
    assert tested["mIoU"] == validated["mIoU"]
    assert tested["aAcc"] == validated["aAcc"]
    # An independent count of the pixels that are right, from the maps that were written.
    right = []
    for path in sorted((digits / "annotations" / "validation").iterdir()):
        truth = np.asarray(Image.open(path))
        written = np.asarray(Image.open(folder / "maps" / path.name))
        assert written.min() >= 1
        right.append((written == truth).mean())
    assert len(right) == 4
    assert round(100 * np.mean(right), 2) == pytest.approx(tested["aAcc"], abs=0.011)
    assert len(list((folder / "shown").rglob("*.png"))) == 4


def test_augmentation_averages_a_segmentors_mirrored_image(segmented, segmentor, digits, tmp_path):
    from mmseg.apis import inference_model, init_model

    _, checkpoint = segmented
    flips = "[dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]"
    text = f"""
        _base_ = ['{segmentor}']
        last = [[dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]]
        tta_pipeline = [
            dict(type='LoadImageFromFile'),
            dict(type='TestTimeAug', transforms=[{flips}, *last]),
        ]
        """
    config = write_config(tmp_path / "tta.py", text)
    work = tmp_path / "work"
    work.mkdir()
    run("test.py", config, checkpoint, "--tta", "--out", "maps", cwd=work)
    model = init_model(str(segmentor), str(checkpoint), device="cpu")
    for path in sorted((digits / "images" / "validation").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))[..., ::-1]  # as OpenCV reads it
        plain, mirrored = (
            inference_model(model, np.ascontiguousarray(pixels)).seg_logits.data.softmax(0)
            for pixels in (image, image[:, ::-1])
        )
        expected = (plain + mirrored.flip(2)).argmax(0)
        written = np.asarray(Image.open(work / "maps" / path.name)).astype(int) - 1
        assert (written == expected.numpy()).mean() > 0.999  # but for ties by rounding


def in_a_fresh_process(script, *args):
    """What a user's own script prints, whose imports are its own."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


DETECT = """
import json, sys
import convnext_backbone
from mmdet.apis import DetInferencer, inference_detector, init_detector
config, checkpoint, image, out = sys.argv[1:]
inferencer = DetInferencer(config, checkpoint, device="cpu", show_progress=False)
found = inferencer(image, out_dir=out, no_save_pred=False)["predictions"][0]
sample = inference_detector(init_detector(config, checkpoint, device="cpu"), image)
print(json.dumps([found, sample.pred_instances.bboxes.tolist()]))
"""


def test_mmdets_inferencer_finds_what_the_test_found(detection, detector, detected, tmp_path):
    expected = detected[1][0]
    checkpoint = detection[0] / "run" / "epoch_1.pth"
    found, boxes = in_a_fresh_process(DETECT, detector, checkpoint, expected["img_path"], tmp_path)
    instances = expected["pred_instances"]
    assert len(instances["bboxes"]) > 0
    for key in ("bboxes", "scores", "labels"):
        np.testing.assert_allclose(found[key], instances[key], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(boxes, instances["bboxes"], rtol=1e-5, atol=1e-4)
    assert {path.parent.name for path in tmp_path.rglob("000001.*")} == {"preds", "vis"}


SEGMENT = """
import json, sys
import convnext_backbone
from mmseg.apis import MMSegInferencer, inference_model, init_model
config, checkpoint, image, out = sys.argv[1:]
inferencer = MMSegInferencer(config, checkpoint, device="cpu")
labels = inferencer(image, out_dir=out)["predictions"]
sample = inference_model(init_model(config, checkpoint, device="cpu"), image)
print(json.dumps([labels.tolist(), sample.pred_sem_seg.data[0].tolist()]))
"""


def test_mmsegs_inferencer_labels_as_the_test_did(segmented, segmentor, digits, tmp_path):
    folder, checkpoint = segmented
    image = digits / "images" / "validation" / "000001.png"
    expected = np.asarray(Image.open(folder / "maps" / image.name)).astype(int) - 1
    for labels in in_a_fresh_process(SEGMENT, segmentor, checkpoint, image, tmp_path):
        np.testing.assert_array_equal(labels, expected)
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"pred", "vis"}


@pytest.mark.parametrize("how", ["a path", "the newest"])
def test_a_resumed_segmentor_ends_where_an_uninterrupted_one_does(
    how, segmentation, segmentor, tmp_path
):
    folder, _ = segmentation
    full = load(folder / "work_dirs" / "segmentor" / "iter_4.pth")
    work = tmp_path / "work"
    work.mkdir()
    half = folder / "work_dirs" / "segmentor" / "iter_2.pth"
    if how == "the newest":
        (work / "run").mkdir()
        (work / "run" / "iter_2.pth").write_bytes(half.read_bytes())
        (work / "run" / "last_checkpoint").write_text(str(work / "run" / "iter_2.pth"))
    checkpoint = (half,) if how == "a path" else ()
    run("train.py", segmentor, "--work-dir", "run", "--resume", *checkpoint, cwd=work)
    resumed = load(work / "run" / "iter_4.pth")
    start = load(half)["state_dict"]
    assert resumed["state_dict"].keys() == full["state_dict"].keys()
    for name, value in full["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(start[name], value) for name, value in full["state_dict"].items())
    assert resumed["meta"]["iter"] == full["meta"]["iter"] == 4
    assert resumed["param_schedulers"] == full["param_schedulers"]
    assert not (work / "run" / "iter_5.pth").exists()


@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_the_picture_shows_truth_and_prediction_of_each_image(
    kind, detector, segmentor, detection, segmentation, tmp_path
):
    config, checkpoint = {
        "detector": (detector, detection[0] / "run" / "epoch_1.pth"),
        "segmentor": (segmentor, segmentation[0] / "work_dirs" / "segmentor" / "iter_4.pth"),
    }[kind]
    out = tmp_path / "out"
    out.mkdir()
    run("draw_quickstart.py", config, checkpoint, "--out", "a/b.png", "--num", "3", cwd=out)
    assert [path.name for path in (out / "a").iterdir()] == ["b.png"]
    with Image.open(out / "a" / "b.png") as picture:
        assert picture.mode == "RGB"
        # Two rows of two pairs, each half three times the size of an image of 64x64.
        assert picture.width > 4 * 192
        assert picture.height > 2 * 192
        assert len(picture.getcolors(picture.width * picture.height)) > 1000
