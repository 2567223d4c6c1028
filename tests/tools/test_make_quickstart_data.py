"""The quickstart data: same bytes for the same arguments, two halves that share nothing."""

import json

import numpy as np
import pytest
from helpers.tool_process import ROOT
from PIL import Image

FEW = ("--num-train", "6", "--num-val", "3", "--size", "64")
SPLITS = {"train": "training", "val": "validation"}


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_coco(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def larger(make_data, tmp_path_factory):
    """Enough images for a chance overlap of the halves to show."""
    out = tmp_path_factory.mktemp("data") / "larger"
    assert make_data.main(["--out", str(out), "--num-train", "150", "--num-val", "60"]) == 0
    return out


def test_same_arguments_give_the_same_bytes(make_data, tmp_path):
    for name in ("one", "two"):
        assert make_data.main(["--out", str(tmp_path / name), *FEW]) == 0
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert len(one) == 2 * (6 + 3) + 3
    assert one == two


def test_another_seed_gives_other_images(make_data, tmp_path):
    for seed in ("0", "1"):
        assert make_data.main(["--out", str(tmp_path / seed), "--seed", seed, *FEW]) == 0
    one, two = tree(tmp_path / "0"), tree(tmp_path / "1")
    images = [name for name in one if name.startswith("images")]
    assert images
    assert all(one[name] != two[name] for name in images)


def test_an_image_does_not_depend_on_how_many_are_made(make_data, tmp_path):
    more = ("--num-train", "8", "--num-val", "3", "--size", "64")
    assert make_data.main(["--out", str(tmp_path / "few"), *FEW]) == 0
    assert make_data.main(["--out", str(tmp_path / "more"), *more]) == 0
    few, many = tree(tmp_path / "few"), tree(tmp_path / "more")
    images = [name for name in few if name.endswith(".png")]
    assert len(images) == 18
    assert all(few[name] == many[name] for name in images)


def test_no_scan_is_in_both_halves(larger):
    train, val = (
        {annotation["scan"] for annotation in read_coco(larger, split)["annotations"]}
        for split in SPLITS
    )
    assert len(train) > 300
    assert len(val) > 150
    assert not train & val


def test_no_pixel_of_a_photograph_is_in_both_halves(larger):
    seen = {split: np.zeros((2, 427, 640), dtype=bool) for split in SPLITS}
    for split in SPLITS:
        for image in read_coco(larger, split)["images"]:
            photo = ("china.jpg", "flower.jpg").index(image["photo"])
            left, top, width, height = image["crop"]
            assert left + width <= 640
            assert top + height <= 427
            seen[split][photo, top : top + height, left : left + width] = True
    assert seen["train"].any(axis=(1, 2)).all()
    assert seen["val"].any(axis=(1, 2)).all()
    assert not (seen["train"] & seen["val"]).any()


def test_every_digit_is_named_as_scikit_learn_names_its_scan(larger):
    from sklearn.datasets import load_digits

    targets = load_digits().target
    for split in SPLITS:
        coco = read_coco(larger, split)
        names = {category["id"]: category["name"] for category in coco["categories"]}
        for annotation in coco["annotations"]:
            assert names[annotation["category_id"]] == str(targets[annotation["scan"]])
        assert {annotation["category_id"] for annotation in coco["annotations"]} == set(names)


@pytest.mark.parametrize("split", SPLITS)
def test_masks_agree_with_label_maps_pixel_by_pixel(larger, split):
    from pycocotools.coco import COCO

    coco = COCO(str(larger / "annotations" / f"instances_{split}.json"))
    for image_id, image in coco.imgs.items():
        labels = np.asarray(Image.open(larger / "annotations" / SPLITS[split] / image["file_name"]))
        assert labels.shape == (image["height"], image["width"]) == (160, 160)
        painted = np.ones_like(labels)  # background
        covered = np.zeros(labels.shape, dtype=int)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation).astype(bool)
            covered += mask
            painted[mask] = 2 + int(coco.cats[annotation["category_id"]]["name"])
        assert covered.max() == 1
        np.testing.assert_array_equal(painted, labels)


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_and_areas_are_those_of_the_masks(larger, split):
    from pycocotools.coco import COCO

    coco = COCO(str(larger / "annotations" / f"instances_{split}.json"))
    for annotation in coco.anns.values():
        rows, columns = np.nonzero(coco.annToMask(annotation))
        x, y = columns.min(), rows.min()
        width, height = columns.max() - x + 1, rows.max() - y + 1
        assert annotation["bbox"] == [x, y, width, height]
        assert annotation["area"] == len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_images_hold_several_digits_and_are_colour(larger, split):
    coco = read_coco(larger, split)
    counts = np.bincount([annotation["image_id"] for annotation in coco["annotations"]])[1:]
    assert len(counts) == len(coco["images"])
    assert counts.min() >= 1
    assert counts.mean() > 3
    for image in coco["images"]:
        with Image.open(larger / "images" / SPLITS[split] / image["file_name"]) as opened:
            assert (opened.mode, opened.size, opened.format) == ("RGB", (160, 160), "PNG")


def test_ink_stands_out_from_what_is_around_it(larger):
    from pycocotools.coco import COCO

    coco = COCO(str(larger / "annotations" / "instances_val.json"))
    contrasts = []
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        path = larger / "images" / "validation" / image["file_name"]
        grey = np.asarray(Image.open(path).convert("L"), dtype=float)
        mask = coco.annToMask(annotation).astype(bool)
        x, y, width, height = (int(value) for value in annotation["bbox"])
        box = (slice(y, y + height), slice(x, x + width))
        if (~mask[box]).any():
            contrasts.append(abs(grey[mask].mean() - grey[box][~mask[box]].mean()))
    assert np.median(contrasts) > 50


def test_a_finished_set_is_not_made_again(make_data, tmp_path, capsys):
    out = tmp_path / "set"
    assert make_data.main(["--out", str(out), *FEW]) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert make_data.main(["--out", str(out), *FEW]) == 0
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_arguments_replace_a_set_of_its_own(make_data, tmp_path):
    out = tmp_path / "set"
    assert make_data.main(["--out", str(out), *FEW]) == 0
    assert make_data.main(["--out", str(out), "--num-train", "2", "--num-val", "1"]) == 0
    assert len(list((out / "images" / "training").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("stranger", ["photo.jpg", "manifest.json"])
def test_a_folder_of_somebody_else_is_left_alone(make_data, tmp_path, capsys, stranger):
    out = tmp_path / "mine"
    out.mkdir()
    (out / stranger).write_text('{"tool": "another"}')
    assert make_data.main(["--out", str(out), *FEW]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert tree(tmp_path) == {f"mine/{stranger}": b'{"tool": "another"}'}


def test_a_set_that_somebody_added_to_is_left_alone(make_data, tmp_path, capsys):
    out = tmp_path / "set"
    assert make_data.main(["--out", str(out), *FEW]) == 0
    (out / "notes.txt").write_text("mine")
    assert make_data.main(["--out", str(out), *FEW, "--seed", "5"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (out / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_left_alone(make_data, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert make_data.main(["--out", str(tmp_path / "file"), *FEW]) == 2
    assert make_data.main(["--out", str(tmp_path / "file" / "below"), *FEW]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert tree(tmp_path) == {"file": b"mine"}


def test_an_interrupted_build_leaves_nothing(make_data, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_data, "manifest_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_data.main(["--out", str(tmp_path / "set"), *FEW])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--num-train", "0"), "--num-train"),
        (("--num-val", "-3"), "--num-val"),
        (("--size", "8"), "--size"),
        (("--size", "100000"), "--size"),
        (("--size", "big"), "--size"),
        (("--seed", "-1"), "--seed"),
        (("--colour", "red"), "--colour"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(make_data, tmp_path, capsys, arguments, named):
    with pytest.raises(SystemExit) as exit_:
        make_data.main(["--out", str(tmp_path / "set"), *arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert len(error.splitlines()) == 1
    assert named in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.openmmlab
def test_mmseg_reads_background_and_digits_as_eleven_classes(digits):
    pytest.importorskip("mmseg")
    from mmengine.config import Config
    from mmengine.registry import DATASETS, DefaultScope

    import convnext_backbone  # noqa: F401  (mmseg needs mmcv's operations)

    cfg = Config.fromfile(ROOT / "configs" / "_base_" / "datasets" / "quickstart_semantic.py")
    cfg.val_dataloader.dataset.data_root = str(digits)
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 4
    for item in range(4):
        labels = dataset[item]["data_samples"].gt_sem_seg.data[0].numpy()
        path = digits / "annotations" / "validation" / f"{item + 1:06d}.png"
        np.testing.assert_array_equal(labels, np.asarray(Image.open(path)).astype(int) - 1)
        assert labels.max() < len(dataset.metainfo["classes"]) == 11
