"""Annotations, names, images and metrics that mmdet would take for something else, or stop at."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import contextlib
import json
import os

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytestmark = pytest.mark.openmmlab

from helpers.own_data import (
    BOX_DETECTOR,
    DETECTOR,
    SEGMENTOR,
    annotation,
    checked,
    coco,
    typed,
    write_detection,
    write_segmentation,
)
from mmengine.registry import DATASETS, METRICS, DefaultScope, init_default_scope

from convnext_backbone.openmmlab.tools.arguments import read_options, train_parser
from convnext_backbone.openmmlab.tools.checks.metrics import check_metrics
from convnext_backbone.openmmlab.tools.errors import UsageError
from convnext_backbone.openmmlab.tools.launch import prepare_training, train


def write(root, **changes):
    """A data set whose annotations are changed by what is given for each of their keys."""
    objects = [
        annotation(i, image_id=1 + i % 2, **{k: v[i - 1] for k, v in changes.items()})
        for i in range(1, 1 + max(map(len, changes.values())))
    ]
    values = coco(annotations=objects)
    return write_detection(root, values, values)


def read_by_mmdet(cfg):
    init_default_scope("mmdet")
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": []})
    return [i for n in range(len(dataset)) for i in dataset.get_data_info(n)["instances"]]


# --------------------------------------------------------------------------- crowds


@pytest.mark.parametrize("split", ["train", "val"])
def test_crowds_alone_are_refused_and_many_are_told(split, tmp_path):
    data = write(tmp_path / "all", iscrowd=[1, True, 1.0])
    with pytest.raises(UsageError, match=r"3 of 3 annotations are crowds .* id 1"):
        checked(typed(DETECTOR, data), split)
    data = write(tmp_path / "many", iscrowd=[0, 1, None])
    warnings = checked(typed(DETECTOR, data), split).warnings
    assert any("1 of 3 annotations are crowds" in text and "id 2" in text for text in warnings)
    data = write(tmp_path / "few", iscrowd=[0, 1, 0, 0, 0, 0])
    assert not any("are crowds" in text for text in checked(typed(DETECTOR, data), split).warnings)


@pytest.mark.parametrize("flag", ["0", "1", "false", [0], {"a": 0}, float("nan")])
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_flag_that_is_true_to_python_only_is_refused(flag, key, tmp_path):
    data = write(tmp_path, **{key: [flag, 0]})
    cfg = typed(DETECTOR, data)
    found = read_by_mmdet(cfg)
    assert len(found) == 1 or sum(i["ignore_flag"] for i in found) == 1  # as if it were 1
    with pytest.raises(UsageError, match=rf"annotation 1 has the {key} .* neither 0 nor 1"):
        checked(cfg, "train")


@pytest.mark.parametrize("flag", [None, 0, False, "", 0.0])
@pytest.mark.filterwarnings("ignore:.*have no 'iscrowd'")
def test_a_flag_that_is_not_true_can_be_trained_on(flag, tmp_path):
    data = write(tmp_path, iscrowd=[flag, 0], ignore=[flag, 0])
    cfg = typed(DETECTOR, data)
    assert [i["ignore_flag"] for i in read_by_mmdet(cfg)] == [0, 0]
    assert not any("are crowds" in text for text in checked(cfg, "train").warnings)


# --------------------------------------------------------------------------- masks

NORMALISED = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.2]]
OUTSIDE = [[104, 4, 124, 4, 124, 16]]
GOOD = [[4, 4, 24, 4, 24, 16]]
EMPTY = {"size": [60, 80], "counts": [4800]}


def test_normalised_polygons_beside_boxes_in_pixels_are_refused(tmp_path):
    data = write(tmp_path / "a", segmentation=[NORMALISED, NORMALISED])
    with pytest.raises(UsageError, match=r"id 1 has the bbox \[4, 4, 20, 12\]; they look normal"):
        checked(typed(DETECTOR, data), "train")
    checked(typed(BOX_DETECTOR, data), "train")  # which reads no masks
    # Objects of a pixel in the corner have such polygons.
    boxes = [[0, 0, 1, 1], [0, 0, 1.5, 1]]
    corner = [[[0, 0, 1, 0, 1, 1]], [[0, 0, 1.5, 0, 1.5, 1]]]
    data = write(tmp_path / "b", segmentation=corner, bbox=boxes, area=[1, 1.5])
    checked(typed(DETECTOR, data), "train")


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (NORMALISED, "1 masks lie outside their box or their image"),
        (OUTSIDE, "1 masks lie outside their box or their image"),
        (EMPTY, "1 masks have no pixel"),
        ({"size": [60, 80], "counts": ""}, "1 masks have no pixel"),
        ({"size": [60, 80], "counts": [4000, 10, 790]}, "1 masks lie outside"),
        ({"size": [60, 80], "counts": [250.0, 10.0, 4540.0]}, ""),
        ([[2.5, 2.5, 24, 4, 26, 18]], ""),
        (GOOD, ""),
    ],
)
def test_masks_beside_their_boxes_are_counted(mask, told, tmp_path):
    data = write(tmp_path, segmentation=[mask, GOOD])
    warnings = [
        text for text in checked(typed(DETECTOR, data), "train").warnings if " masks " in text
    ]
    assert (told in warnings[0] and "id 1" in warnings[0]) if told else not warnings


@pytest.mark.parametrize(
    ("counts", "reads"),
    [([240.0, 4560.0], True), ([-10, 4810], False), ([240.5, 4559.5], False), ([240, 4560], True)],
)
def test_run_lengths_are_whole_numbers_of_any_type(counts, reads, tmp_path):
    from pycocotools import mask

    segmentation = {"size": [60, 80], "counts": counts}
    cfg = typed(DETECTOR, write(tmp_path, segmentation=[segmentation, GOOD]))
    if reads:
        assert mask.area(mask.frPyObjects(segmentation, 60, 80)) == 4560
        checked(cfg, "train")
    else:
        with pytest.raises(UsageError, match="annotation 1 has a 'segmentation'"):
            checked(cfg, "train")


# --------------------------------------------------------------------------- categories


def test_two_categories_of_one_id_are_refused_with_both_names(tmp_path):
    categories = [{"id": 7, "name": "bolt"}, {"id": 7, "name": "nut"}, {"id": 9, "name": "N/A"}]
    values = coco(categories=categories)
    data = write_detection(tmp_path, values, values)
    for split in ("train", "val"):
        with pytest.raises(UsageError, match=r"'bolt' and 'nut' both have the id 7"):
            checked(typed(DETECTOR, data), split)
        with pytest.raises(UsageError, match=r"'bolt' and 'nut' both have the id 7"):
            checked(typed(DETECTOR, {**data, "classes": ["nut"]}), split)
    values["categories"][1]["id"] = 9  # of one that no class of ours has
    values["categories"][2:] = [{"id": 3, "name": "N/A"}, {"id": 3, "name": "n.a."}]
    data = write_detection(tmp_path / "other", values, values)
    checked(typed(DETECTOR, {**data, "classes": ["bolt", "nut"]}))


@pytest.mark.parametrize("classes", [None, (1, 2), ["1", 2]])
def test_names_that_are_numbers_are_names(classes, tmp_path):
    values = coco(categories=[{"id": 3, "name": 1}, {"id": 7, "name": 2}])
    data = write_detection(tmp_path, values, values)
    cfg = typed(DETECTOR, {**data, **({"classes": classes} if classes else {})})
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == ["1", "2"]
    checked(cfg)
    assert [i["bbox_label"] for i in read_by_mmdet(cfg)] == [1, 1]
    # Numbers in a config of the user's own, too.
    cfg.train_dataloader.dataset.metainfo.classes = (1, 2)
    checked(cfg)
    assert [i["bbox_label"] for i in read_by_mmdet(cfg)] == [1, 1]


@pytest.mark.parametrize("name", [None, ["a"], {"a": 1}])
def test_a_name_that_is_no_text_is_named_where_it_is_used(name, tmp_path):
    values = coco(categories=[{"id": 3, "name": name}, {"id": 7, "name": "bolt"}])
    data = write_detection(tmp_path, values, values)
    with pytest.raises(UsageError, match=r"train\.json' has a category whose name is "):
        typed(DETECTOR, data)
    checked(typed(DETECTOR, {**data, "classes": ["bolt"]}))


def test_a_class_named_true_is_spelt_as_in_the_file(tmp_path):
    values = coco(categories=[{"id": 3, "name": "false"}, {"id": 7, "name": "True"}])
    data = write_detection(tmp_path, values, values)
    options = read_options(["custom_dataset.classes=(false,true)"])
    cfg = typed(DETECTOR, {**data, "classes": options["custom_dataset.classes"]})
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == ["false", "True"]
    checked(cfg)


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "root=/data/a,b",
            r"custom_dataset\.root must be one .*'/data/a', 'b'.*root='/data/a,b'\"",
        ),
        ("train_ann=[a.json]", r"custom_dataset\.train_ann must be one path"),
        ("classes=2", r"custom_dataset\.classes must be names.* got 2"),
        ("classes=()", r"custom_dataset\.classes must be names.* got \(\)"),
    ],
)
def test_an_option_of_another_kind_is_named(option, message, tmp_path):
    options = read_options([f"custom_dataset.{option}"])
    ((name, value),) = options.items()
    with pytest.raises(UsageError, match=message):
        typed(DETECTOR, {**write_detection(tmp_path), name.rpartition(".")[2]: value})


def test_a_folder_may_be_named_by_a_number(tmp_path):
    data = write_detection(tmp_path)
    os.rename(tmp_path / "train", tmp_path / "2024")
    cfg = typed(DETECTOR, {**data, "train_img": 2024})
    assert cfg.train_dataloader.dataset.data_prefix.img == "2024"
    checked(cfg, "train")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("indices", [0, [], [7], [-3]])
def test_indices_that_leave_no_image_are_named(split, indices, tmp_path):
    name = f"{split}_dataloader.dataset.indices"
    with pytest.raises(UsageError, match=rf"{name}=.* leaves no image, or .* the 2 that"):
        checked(typed(DETECTOR, write_detection(tmp_path), **{name: indices}), split)
    segments = {**write_segmentation(tmp_path / "maps"), "img_suffix": ".jpg"}
    with pytest.raises(UsageError, match=rf"{name}=.* leaves no image, or .* the 2 that"):
        checked(typed(SEGMENTOR, segments, **{name: indices}), split)


def test_whole_batches_are_padded_to_the_size_that_was_asked_for(tmp_path):
    steps = [
        {"type": "BatchFixedSizePad", "size": (1024, 1024), "pad_mask": True},
        {"type": "BatchSyncRandomResize", "random_size_range": (480, 800), "size_divisor": 32},
    ]
    preprocessor = {"batch_augments": steps, "type": "DetDataPreprocessor"}
    (tmp_path / "own.py").write_text(
        f"_base_ = {str(DETECTOR)!r}\nmodel = dict(data_preprocessor={preprocessor!r})\n"
    )
    data = {**write_detection(tmp_path / "data"), "image_size": 400}  # half of the config's 800
    pad, resize = typed(tmp_path / "own.py", data).model.data_preprocessor.batch_augments
    assert tuple(pad["size"]) == (512, 512)
    assert tuple(resize["random_size_range"]) == (224, 384)  # multiples of 32


# --------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("bmp", {}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("ppm", {}),
    ],
)
def test_an_image_that_is_cut_short_is_named_whatever_its_format(kind, options, tmp_path):
    data = write_detection(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}", **options)
    content = (tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / "train" / "1.jpg"
    path.write_bytes(content)
    checked(typed(DETECTOR, data), "train")
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UsageError, match=r"1\.jpg' (is cut short|cannot be read)"):
        checked(typed(DETECTOR, data), "train")


def test_a_png_without_its_end_is_refused_where_the_loader_refuses_it(tmp_path):
    import mmcv

    data = write_detection(tmp_path)
    path = tmp_path / "train" / "1.jpg"
    Image.new("RGB", (80, 60), "gray").save(tmp_path / "a.png")
    path.write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    reads = mmcv.imread(str(path)) is not None
    with contextlib.nullcontext() if reads else pytest.raises(UsageError, match=r"1\.jpg'"):
        checked(typed(DETECTOR, data), "train")


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16, np.uint8])
@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_a_deep_tiff_is_refused_where_the_loader_refuses_it(dtype, backend, tmp_path):
    import mmcv

    data = write_detection(tmp_path)
    path = tmp_path / "train" / "1.jpg"
    Image.fromarray(np.ones((60, 80), dtype)).save(tmp_path / "a.tif")
    os.replace(tmp_path / "a.tif", path)
    try:
        reads = mmcv.imread(str(path), backend=backend) is not None
    except Exception:
        reads = False
    option = {"train_dataloader.dataset.pipeline.0.imdecode_backend": backend}
    cfg = typed(DETECTOR, data, **option)
    with contextlib.nullcontext() if reads else pytest.raises(UsageError, match="tifffile"):
        checked(cfg, "train")


# --------------------------------------------------------------------------- metrics


def evaluate(root, **settings):
    """mmdet's metric of perfect detections."""
    import torch
    from mmdet.evaluation import CocoMetric  # noqa: F401 - registers it

    (root / "val.json").write_text(json.dumps(coco()))
    with DefaultScope.overwrite_default_scope("mmdet"):
        metric = METRICS.build(
            {"type": "CocoMetric", "ann_file": str(root / "val.json"), **settings}
        )
    metric.dataset_meta = {"classes": ("nut", "bolt", "gear")}
    for number in (1, 2):
        found = {
            "bboxes": torch.tensor([[4.0, 4, 24, 16]]), "scores": torch.ones(1),
            "labels": torch.ones(1, dtype=torch.long),
        }  # fmt: skip
        metric.process({}, [{"pred_instances": found, "img_id": number, "ori_shape": (60, 80)}])
    return metric.evaluate(2)


@pytest.mark.parametrize("thresholds", [[0.5], (0.5, 0.75), 0.5, None])
def test_a_config_may_name_its_thresholds(thresholds, tmp_path):
    assert evaluate(tmp_path, iou_thrs=thresholds)["coco/bbox_mAP_50"] == 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"metric_items": ["mAP_50", "AR@100"]},
        {"prefix": "own", "metric": ["bbox", "proposal"]},
        {"metric": "proposal_fast", "proposal_nums": (10, 20)},
        {"classwise": True},
    ],
)
def test_a_metric_that_chooses_the_best_checkpoint_is_given(settings, tmp_path):
    options = {f"val_evaluator.{key}": value for key, value in settings.items()}
    cfg = typed(BOX_DETECTOR, **options)
    for name in evaluate(tmp_path, **settings):
        cfg.default_hooks.checkpoint.save_best = [name]
        check_metrics(cfg, ("train", "val"))
    cfg.default_hooks.checkpoint.save_best = "auto"
    check_metrics(cfg, ("train", "val"))
    for name in ("bbox_mAP", "coco/segm_mAP", "coco/mAP", "acc"):
        cfg.default_hooks.checkpoint.save_best = name
        with pytest.raises(UsageError, match=rf"save_best is '{name}', but val_evaluator gives "):
            check_metrics(cfg, ("train", "val"))


def test_a_metric_of_a_segmentor_or_of_the_users_is_looked_up_alike():
    for name in ("mIoU", "aAcc", "mAcc"):
        check_metrics(typed(SEGMENTOR, default_hooks__checkpoint__save_best=name), ("val",))
    with pytest.raises(UsageError, match=r"save_best is 'IoU', but .* aAcc, mIoU, mAcc"):
        check_metrics(typed(SEGMENTOR, default_hooks__checkpoint__save_best="IoU"), ("val",))
    own = {"val_evaluator.type": "OwnMetric", "default_hooks.checkpoint.save_best": "IoU"}
    check_metrics(typed(SEGMENTOR, **own), ("val",))
    several = typed(SEGMENTOR, default_hooks__checkpoint__save_best="city/mIoU")
    several.val_evaluator = {
        "type": "mmdet.MultiDatasetsEvaluator",
        "metrics": [several.val_evaluator],
        "dataset_prefixes": ["city"],
    }
    check_metrics(several, ("val",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric_items": ["mIoU"]}, r"metric_items has 'mIoU', which is none of mAP"),
        ({"ann_file": None}, r"val_evaluator\.ann_file is None.*'instances'"),
    ],
)
def test_what_would_end_a_validation_is_named(options, message):
    options = {f"val_evaluator.{key}": value for key, value in options.items()}
    with pytest.raises(UsageError, match=message):
        check_metrics(typed(DETECTOR, **options), ("train", "val"))


def test_masks_of_a_model_of_boxes_are_not_evaluated(tmp_path):
    (tmp_path / "own.py").write_text(
        f"_base_ = {str(DETECTOR)!r}\nmodel = dict(roi_head=dict(mask_head=None))\n"
    )
    with pytest.raises(UsageError, match=r"metric has 'segm', but .* predicts no masks"):
        check_metrics(typed(tmp_path / "own.py"), ("train", "val"))
    check_metrics(typed(DETECTOR), ("train", "val", "test"))


def test_truth_that_the_pipeline_packs_needs_no_file():
    cfg = typed(DETECTOR, val_evaluator__ann_file=None)
    cfg.val_dataloader.dataset.pipeline[-1].meta_keys = ("img_id", "ori_shape", "instances")
    check_metrics(cfg, ("val",))


# --------------------------------------------------------------------------- the start


@pytest.mark.parametrize("saved", [False, True])
def test_resume_starts_from_load_from_where_nothing_is_saved(saved, tmp_path, capsys):
    import torch

    states = {"state_dict": {}, "meta": {}, "optimizer": {}, "message_hub": {}}
    for name in ("start", "newest"):
        torch.save(states, tmp_path / f"{name}.pth")
    (tmp_path / "run").mkdir()
    if saved:
        (tmp_path / "run" / "last_checkpoint").write_text(str(tmp_path / "newest.pth"))
    start = str(tmp_path / "start.pth")
    cfg = typed(DETECTOR, load_from=start, work_dir=str(tmp_path / "run"))
    arguments = [str(DETECTOR), "--resume", "--work-dir", cfg.work_dir]
    prepare_training(cfg, train_parser().parse_args(arguments))
    assert cfg.resume == saved
    assert cfg.load_from == (str(tmp_path / "newest.pth") if saved else start)
    assert ("load_from is used" in capsys.readouterr().out) != saved


def test_state_that_holds_no_mapping_is_named(tmp_path):
    import torch

    torch.save({"state_dict": [1]}, tmp_path / "odd.pth")
    cfg = typed(DETECTOR, load_from=str(tmp_path / "odd.pth"), work_dir=str(tmp_path))
    with pytest.raises(UsageError, match=r"odd\.pth': its 'state_dict' is a list"):
        prepare_training(cfg, train_parser().parse_args([str(DETECTOR)]))


def test_a_step_that_refuses_to_be_built_is_one_line(tmp_path, capsys):
    """By a RuntimeError, as mmdet's Albu without albumentations does."""
    data = write_detection(tmp_path)
    step = {"type": "LoadMultiChannelImageFromFiles", "file_client_args": {}}
    (tmp_path / "own.py").write_text(
        f"_base_ = {str(DETECTOR)!r}\ntrain_dataloader = dict(dataset=dict(pipeline=[{step!r}]))\n"
    )
    options = [f"custom_dataset.{key}={value}" for key, value in data.items()]
    options += ["model.backbone.init_cfg=None", "model.backbone.arch=convnext_atto"]
    arguments = [str(tmp_path / "own.py"), "--work-dir", str(tmp_path / "run"), "--no-check"]
    assert train([*arguments, "--cfg-options", *options]) == 2
    assert "RuntimeError" in capsys.readouterr().err.splitlines()[-1]
