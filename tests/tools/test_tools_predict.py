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
from convnext_backbone.openmmlab.tools import predict as predict_tool
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
    assert "2 images predicted, 1 failed" in said.out
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


def _photos(folder, *names, size=(64, 64)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(folder / name)
    return [folder / name for name in names]


def _is_red(path):
    with Image.open(path) as image:
        return image.convert("RGB").getcolors() == [(64 * 64, (255, 0, 0))]


def test_images_of_a_list_are_not_replaced_by_their_pictures(segmentor_run, tmp_path):
    photos = _photos(tmp_path, "photos/0.png", "photos/1.png", "lists/2.png")
    (tmp_path / "lists" / "l.txt").write_text(f"{photos[0]}\n../photos/1.png\n2.png\n")
    line = ["predict", str(segmentor_run[1]), str(tmp_path / "lists" / "l.txt"), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    assert all(map(_is_red, photos))
    names = {"photos/0.png", "photos/1.png", "lists/2.png"}
    for kind in ("maps", "pictures"):
        root = tmp_path / "out" / kind
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.png")} == names
    written = {path for path in tmp_path.rglob("*.png") if tmp_path / "out" not in path.parents}
    assert written == set(photos)


@pytest.mark.parametrize("kind", ["pictures", "maps"])
def test_a_folder_that_would_replace_its_images_is_refused(
    kind, segmentor_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (photo,) = _photos(tmp_path, f"{kind}/0.png")
    for source in (kind, f"{kind}/*.png", str(photo)):
        line = ["predict", str(segmentor_run[1]), source, "--out", "."]
        assert main([*line, "--device", "cpu"]) == 2
        assert f"{str(photo)!r} is read, and would be replaced by" in capsys.readouterr().err
        assert _is_red(photo)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.png", kind]
    # What is not written is in no danger.
    if kind == "pictures":
        assert main([*line, "--device", "cpu", "--no-pictures"]) == 0
        assert _is_red(photo)


def test_a_detector_does_not_replace_what_it_reads(detector_run, images, tmp_path, capsys):
    config = tmp_path / "predictions.json"
    Config.fromfile(detector_run[0]).dump(config)
    before = config.read_bytes()
    line = ["predict", str(config), str(detector_run[1]), str(images / "a.png")]
    assert main([*line, "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "is read, and would be replaced by" in capsys.readouterr().err
    assert config.read_bytes() == before


@pytest.mark.parametrize("run", ["detector_run", "segmentor_run"])
def test_an_image_that_the_network_cannot_take_costs_no_other(run, request, tmp_path, capsys):
    _, checkpoint = request.getfixturevalue(run)
    photos = tmp_path / "photos"
    _photos(photos, "a.png", "z.png")
    for name, size in (("one", (1, 1)), ("tall", (1, 3000)), ("wide", (3000, 1))):
        _photos(photos, f"{name}.png", size=size)
    line = ["predict", str(checkpoint), str(photos), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    failed = [text.split("'")[1] for text in printed.err.splitlines() if "failed: " in text]
    assert f"{5 - len(failed)} images predicted, {len(failed)} failed" in printed.out
    assert set(failed) <= {"one.png", "tall.png", "wide.png"}
    drawn = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert drawn == {"a.png", "one.png", "tall.png", "wide.png", "z.png"} - set(failed)
    if run == "detector_run":
        written = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert {image["file_name"] for image in written["images"]} == drawn
    else:
        assert failed
        assert main([*line, "--out", str(tmp_path / "raised"), "--on-error", "raise"]) == 2
        assert f"cannot predict image {str(photos / failed[0])!r}: " in capsys.readouterr().err
        line[2] = str(photos / failed[0])
        assert main([*line, "--out", str(tmp_path / "none")]) == 2
        assert "none of the 1 images could be predicted" in capsys.readouterr().err


def test_an_interrupted_detector_leaves_the_predictions_that_it_has(
    detector_run, tmp_path, monkeypatch
):
    photos = _photos(tmp_path / "photos", "a.png", "b.png", "c.png")
    read = predict_tool.read_image

    def interrupt(pipeline, path):
        if path == photos[1]:
            raise KeyboardInterrupt
        return read(pipeline, path)

    monkeypatch.setattr(predict_tool, "read_image", interrupt)
    line = ["predict", str(detector_run[1]), str(tmp_path / "photos"), "--device", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        main([*line, "--out", str(tmp_path / "out"), "--no-pictures"])
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.png"]


def test_a_long_name_has_a_picture(segmentor_run, tmp_path):
    (photo,) = _photos(tmp_path / "photos", f"{'a' * 250}.png")
    line = ["predict", str(segmentor_run[1]), str(photo.parent), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "pictures" / photo.name).is_file()
