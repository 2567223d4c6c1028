"""`predict` gives what OpenMMLab's own inference gives, for every file that can be read."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from convnext_backbone.cli import main
from convnext_backbone.openmmlab.tools.config import NEEDED, build_model, load_config

STEP_THAT_IS_NONE = "test_dataloader.dataset.pipeline.1.type=NoStep"
SCORE = "0.05"  # of weights that have not learnt anything


def make_run(config, folder):
    """A work directory as a run leaves it: a dumped config and a checkpoint of random weights."""
    cfg = load_config(str(config), None, NEEDED["test"])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg, "cpu")
        model.init_weights()
    classes = tuple(cfg.test_dataloader.dataset.metainfo.classes)
    meta = {"dataset_meta": {"classes": classes}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "epoch_1.pth")
    cfg.dump(folder / config.name)
    return folder / config.name, folder / "epoch_1.pth"


@pytest.fixture(scope="module")
def detector_run(detector, tmp_path_factory):
    return make_run(detector, tmp_path_factory.mktemp("detector_run"))


@pytest.fixture(scope="module")
def segmentor_run(segmentor, tmp_path_factory):
    return make_run(segmentor, tmp_path_factory.mktemp("segmentor_run"))


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory):
    """Three images in two folders, one of them damaged, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    val = digits / "images" / "validation"
    shutil.copy(val / "000001.png", folder / "a.png")
    Image.open(val / "000002.png").convert("RGB").save(folder / "below" / "b.jpg", quality=95)
    data = (folder / "below" / "b.jpg").read_bytes()
    (folder / "below" / "damaged.jpg").write_bytes(data[: len(data) // 2])
    (folder / "notes.dat").write_text("no image")
    return folder


def test_detections_are_those_of_mmdets_own_inference(detector_run, images, tmp_path, capsys):
    from mmdet.apis import inference_detector, init_detector

    config, checkpoint = map(str, detector_run)
    line = ["predict", config, checkpoint, str(images), "--score", SCORE, "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2 images predicted, 1 unreadable" in said.out
    assert "below/damaged.jpg" in said.err
    coco = COCO(str(tmp_path / "predictions.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [str(i) for i in range(10)]
    model = init_detector(config, checkpoint, device="cpu")
    assert {image["file_name"] for image in coco.imgs.values()} == {"a.png", "below/b.jpg"}
    for image_id, image in coco.imgs.items():
        expected = inference_detector(model, str(images / image["file_name"])).pred_instances
        expected = expected[expected.scores >= float(SCORE)]
        found = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(found) == len(expected) > 0
        boxes = torch.tensor([a["bbox"] for a in found])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, expected.bboxes, rtol=1e-5, atol=1e-4)
        assert [a["category_id"] - 1 for a in found] == expected.labels.tolist()
        for annotation, mask in zip(found, expected.masks.numpy(), strict=True):
            np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
        size = Image.open(images / image["file_name"]).size
        assert (image["width"], image["height"]) == size
    drawn = {path.relative_to(tmp_path / "pictures").as_posix() for path in tmp_path.rglob("*.png")}
    assert drawn == {"a.png", "below/b.png"}
    with Image.open(tmp_path / "pictures" / "a.png") as picture:
        original = np.asarray(Image.open(images / "a.png").convert("RGB")).astype(int)
        assert picture.size == original.shape[1::-1]
        assert (np.abs(np.asarray(picture.convert("RGB")) - original) > 30).any()


def test_label_maps_are_those_of_mmsegs_own_inference(segmentor_run, images, tmp_path):
    from mmseg.apis import inference_model, init_model

    config, checkpoint = map(str, segmentor_run)
    # The config is the one beside the checkpoint.
    line = ["predict", checkpoint, str(images / "*.png"), str(images / "below" / "b.jpg")]
    assert main([*line, "--out", str(tmp_path), "--device", "cpu"]) == 0
    model = init_model(config, checkpoint, device="cpu")
    for source, target in (("a.png", "a.png"), ("below/b.jpg", "below/b.png")):
        expected = inference_model(model, str(images / source)).pred_sem_seg.data[0].numpy()
        written = np.asarray(Image.open(tmp_path / "maps" / target))
        # The quickstart's maps leave 0 to pixels without a label.
        np.testing.assert_array_equal(written, expected + 1)
        with Image.open(tmp_path / "pictures" / target) as picture:
            assert picture.size == expected.shape[::-1]


def test_predictions_bear_the_names_that_the_checkpoint_was_trained_on(
    detector_run, images, tmp_path, capsys
):
    config, checkpoint = detector_run
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.metainfo = {"classes": [f"c{i}" for i in range(10)]}
    cfg.dump(tmp_path / "other.py")
    line = ["predict", str(tmp_path / "other.py"), str(checkpoint), str(images / "a.png")]
    assert main([*line, "--out", str(tmp_path), "--device", "cpu", "--no-pictures"]) == 0
    assert "not the config's 'c0', 'c1'" in capsys.readouterr().out
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [c["name"] for c in written["categories"]] == [str(i) for i in range(10)]


def test_two_images_of_one_stem_keep_both_maps(segmentor_run, images, tmp_path):
    for suffix in ("png", "bmp"):
        Image.open(images / "a.png").convert("RGB").save(tmp_path / f"a.{suffix}")
    line = ["predict", str(segmentor_run[1]), str(tmp_path / "a.*"), "--no-pictures"]
    assert main([*line, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    written = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["a.bmp.png", "a.png.png"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["{checkpoint}", "{images}", "--on-error", "raise"], "damaged.jpg"),
        (["{checkpoint}"], "images"),
        (["{images}/gone.pth", "{images}"], "gone.pth"),
        (["{checkpoint}", "{images}/gone"], "gone"),
        (["{checkpoint}", "{images}/notes.dat", "--on-error", "raise"], "notes.dat"),
        (["{checkpoint}", "{images}", "--score", "3"], "score"),
        (["{alone}", "{images}"], "give the config"),
        (["{segmentor}", "{checkpoint}", "{images}"], "does not fit"),
        (["{checkpoint}", "{images}", "--cfg-options", "x"], "key=value"),
        (["{checkpoint}", "{images}", "--cfg-options", "model.neck.type=NoNeck"], "NoNeck"),
        (["{checkpoint}", "{images}", "--cfg-options", "model.neck.out_channels=a"], "be built"),
        (["{checkpoint}", "{images}", "--cfg-options", STEP_THAT_IS_NONE], "NoStep"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    line, named, detector_run, segmentor, images, tmp_path, capsys
):
    alone = tmp_path / "alone.pth"
    shutil.copy(detector_run[1], alone)
    names = {"checkpoint": detector_run[1], "images": images, "alone": alone}
    names["segmentor"] = segmentor
    arguments = [part.format(**names) for part in line]
    assert main(["predict", *arguments, "--out", str(tmp_path / "out"), "--no-pictures"]) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if "error:" in text]
    assert len(error) == 1
    assert named in error[0]


def test_a_config_of_more_than_80_classes_draws(detector_run, images, tmp_path):
    # mmdet takes COCO's palette of 80 for any CocoDataset whose classes are given.
    config, _ = detector_run
    cfg = Config.fromfile(config)
    names = [f"c{i}" for i in range(90)]
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = 90
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.test_dataloader.dataset.metainfo = {"classes": names}
    cfg.dump(tmp_path / "many.py")
    _, checkpoint = make_run(tmp_path / "many.py", tmp_path)
    line = ["predict", str(checkpoint), str(images / "a.png"), "--score", "0"]
    assert main([*line, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert (tmp_path / "out" / "pictures" / "a.png").is_file()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
