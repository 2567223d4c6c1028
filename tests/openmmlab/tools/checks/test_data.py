"""What is said about a data set that does not fit, and how one is named by options alone."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import json

import pytest
from PIL import Image

pytest.importorskip("mmengine")
pytestmark = pytest.mark.openmmlab

from helpers.own_data import (
    BOX_DETECTOR,
    CASCADE,
    CONFIGS,
    DETECTOR,
    MASK2FORMER,
    NAMES,
    SEGMENTOR,
    checked,
    coco,
    prepared,
    write_detection,
    write_segmentation,
)
from mmengine.config import Config

from convnext_backbone.openmmlab.tools.errors import UsageError


@pytest.mark.parametrize("path", [DETECTOR, CASCADE], ids=["one box head", "three box heads"])
def test_a_custom_data_set_reaches_every_data_set_evaluator_and_head(path, tmp_path):
    cfg = prepared(path, custom_dataset=write_detection(tmp_path))
    checked(cfg)
    for part, split in (("train", "train"), ("val", "val"), ("test", "val")):
        dataset = cfg[f"{part}_dataloader"].dataset
        assert dataset.data_root == str(tmp_path)
        assert dataset.ann_file == f"{split}.json"
        assert dataset.data_prefix.img == split
        assert tuple(dataset.metainfo.classes) == tuple(NAMES)
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(tmp_path / "val.json")
    heads = cfg.model.roi_head.bbox_head
    heads = [heads] if isinstance(heads, dict) else heads
    assert [head.num_classes for head in [*heads, cfg.model.roi_head.mask_head]] == [3] * (
        len(heads) + 1
    )


def test_mmdet_reads_a_custom_data_set_as_it_was_named(tmp_path):
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    cfg.val_dataloader.dataset.pipeline = []
    init_default_scope("mmdet")
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert dataset.metainfo["classes"] == tuple(NAMES)
    labels = [i["bbox_label"] for n in range(2) for i in dataset.get_data_info(n)["instances"]]
    assert labels == [NAMES.index("bolt")] * 2


def test_a_moved_root_keeps_files_and_classes():
    cfg = prepared(DETECTOR, custom_dataset={"root": "/elsewhere"})
    assert cfg.train_dataloader.dataset.data_root == "/elsewhere"
    assert cfg.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"
    assert cfg.val_evaluator.ann_file == "/elsewhere/annotations/instances_val2017.json"
    assert "metainfo" not in cfg.train_dataloader.dataset
    assert cfg.model.roi_head.bbox_head.num_classes == 80


@pytest.mark.parametrize("path", [SEGMENTOR, MASK2FORMER], ids=["UperNet", "Mask2Former"])
def test_a_custom_segmentation_set_reaches_every_data_set_and_head(path, tmp_path):
    cfg = prepared(path, custom_dataset=write_segmentation(tmp_path))
    checked(cfg)
    for part in ("train", "val", "test"):
        dataset = cfg[f"{part}_dataloader"].dataset
        assert (dataset.type, dataset.reduce_zero_label) == ("BaseSegDataset", True)
        assert tuple(dataset.metainfo.classes) == ("road", "sky")
    assert cfg.model.decode_head.num_classes == 2
    if path == SEGMENTOR:
        assert cfg.model.auxiliary_head.num_classes == 2
    else:
        assert list(cfg.model.decode_head.loss_cls.class_weight) == [1.0, 1.0, 0.1]


def test_labels_that_start_at_zero_stay_as_they_are(tmp_path):
    options = write_segmentation(tmp_path, highest=1)
    cfg = prepared(SEGMENTOR, custom_dataset={**options, "reduce_zero_label": False})
    checked(cfg)
    loads = [s for s in cfg.train_dataloader.dataset.pipeline if s.type == "LoadAnnotations"]
    assert [step.reduce_zero_label for step in loads] == [False]


def test_a_config_without_options_is_left_as_it_is():
    for path in (DETECTOR, CASCADE, SEGMENTOR, MASK2FORMER):
        assert prepared(path)._cfg_dict == Config.fromfile(path)._cfg_dict


@pytest.mark.parametrize(
    ("path", "get", "expected"),
    [
        (DETECTOR, lambda m: m.neck.in_channels, [40, 80, 160, 320]),
        (SEGMENTOR, lambda m: m.decode_head.in_channels, [40, 80, 160, 320]),
        (SEGMENTOR, lambda m: m.auxiliary_head.in_channels, 160),
        (MASK2FORMER, lambda m: m.decode_head.in_channels, [40, 80, 160, 320]),
        (
            CONFIGS / "deeplabv3plus/deeplabv3plus_convnext-t_8xb2-amp-160k_ade20k-512x512.py",
            lambda m: (m.decode_head.in_channels, m.decode_head.c1_in_channels),
            (320, 40),
        ),
        (
            CONFIGS / "linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py",
            lambda m: m.decode_head.in_channels,
            320,
        ),
        (
            CONFIGS / "fcos/fcos_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py",
            lambda m: m.neck.in_channels,
            [80, 160, 320],
        ),
    ],
)
def test_another_architecture_by_one_option_gives_neck_and_heads_its_channels(path, get, expected):
    cfg = prepared(path, **{"model.backbone.arch": "convnextv2_atto"})
    assert get(cfg.model) == expected


# Mistakes: what is done to a good data set, and what the message must say.


def _detection_messages():
    image = {"id": 9, "file_name": "gone.jpg", "width": 80, "height": 60}
    its_own = {**coco()["annotations"][0], "id": 9, "image_id": 9}
    stray = {**coco()["annotations"][0], "category_id": 1}
    lost = {**coco()["annotations"][0], "image_id": 77}
    return [
        (coco(categories=[]), r"train\.json' has no categories"),
        (coco(annotations=[]), r"train\.json' has no annotation of the classes 'nut'"),
        (
            coco(annotations=[stray]),
            r"train\.json': 1 annotations whose category_id is .* such as 1",
        ),
        (coco(annotations=[lost]), r"train\.json': 1 annotations whose image_id is .* such as 77"),
        ({"images": [], "categories": []}, r"train\.json' is not in COCO's format: no 'annotat"),
        (coco(categories=coco()["categories"] + [{"id": 4, "name": "nut"}]), "names 'nut' twice"),
        (
            coco(images=[*coco()["images"], image], annotations=[*coco()["annotations"], its_own]),
            r"1 of 3 files .* such as 'gone\.jpg'",
        ),
    ]


def without(kind, key):
    """The good file, of which the first of its images, annotations or categories lacks a key."""
    first, *others = coco()[kind]
    return coco(**{kind: [{k: v for k, v in first.items() if k != key}, *others]})


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *(("images", key) for key in ("id", "file_name", "width", "height")),
        *(("annotations", key) for key in ("id", "image_id", "category_id", "bbox", "area")),
        *(("categories", key) for key in ("id", "name")),
    ],
)
def test_an_entry_without_what_mmdet_reads_is_named(kind, key, tmp_path):
    options = write_detection(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(without(kind, key)))
    with pytest.raises(UsageError, match=rf"train\.json': 1 of its {kind} .* no {key!r}"):
        checked(prepared(DETECTOR, custom_dataset=options))


BOXES_ONLY = [{k: v for k, v in a.items() if k != "segmentation"} for a in coco()["annotations"]]


def test_boxes_without_masks_are_refused_where_masks_are_learnt(tmp_path):
    options = write_detection(tmp_path, val=coco(annotations=BOXES_ONLY))
    message = r"val\.json': 2 annotations without 'segmentation'.*val_dataloader.*with_mask"
    with pytest.raises(UsageError, match=message):
        checked(prepared(DETECTOR, custom_dataset=options))


def test_boxes_without_masks_are_enough_for_a_detector_of_boxes(tmp_path):
    boxes = coco(annotations=BOXES_ONLY)
    checked(prepared(BOX_DETECTOR, custom_dataset=write_detection(tmp_path, boxes, boxes)))


@pytest.mark.parametrize(
    "change",
    [{"ignore": 1}, {"bbox": [4, 4, 0.5, 12]}, {"bbox": [80, 4, 9, 9]}, {"area": 0}],
    ids=["ignored", "no wider than half a pixel", "beside the image", "without an area"],
)
def test_an_annotation_that_mmdet_passes_over_needs_no_mask(change, tmp_path):
    passed = {**BOXES_ONLY[0], **change, "id": 3}
    values = coco(annotations=[*coco()["annotations"], passed])
    checked(prepared(DETECTOR, custom_dataset=write_detection(tmp_path, values)))


@pytest.mark.parametrize(("values", "message"), _detection_messages())
def test_a_mistake_in_an_annotation_file_names_the_file(values, message, tmp_path):
    options = write_detection(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=message):
        checked(prepared(DETECTOR, custom_dataset=options))


def test_classes_that_no_category_bears_are_named(tmp_path):
    options = {**write_detection(tmp_path), "classes": ["nut", "screw", "gear"]}
    with pytest.raises(UsageError, match=r"no category named 'screw'; .*'nut', 'bolt', 'gear'"):
        checked(prepared(DETECTOR, custom_dataset=options))


def test_classes_in_another_order_than_the_file_are_refused(tmp_path):
    # mmdet would give each class the label of another.
    options = {**write_detection(tmp_path), "classes": ["gear", "nut"]}
    with pytest.raises(UsageError, match=r"the order of .*train\.json'.* 'nut', 'gear', got"):
        checked(prepared(DETECTOR, custom_dataset=options))


def test_cocos_own_classes_on_other_data_point_to_the_option(tmp_path):
    options = write_detection(tmp_path)
    cfg = prepared(DETECTOR)
    cfg.train_dataloader.dataset.update(
        data_root=options["root"], ann_file="train.json", data_prefix={"img": "train"}
    )
    with pytest.raises(UsageError, match=r"no category named 'person'.* 75 more.*custom_dataset"):
        checked(cfg, "train")


def test_an_evaluator_of_other_images_is_refused(tmp_path):
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    other = coco(images=coco()["images"][:1], annotations=coco()["annotations"][:1])
    (tmp_path / "other.json").write_text(json.dumps(other))
    cfg.val_evaluator.ann_file = str(tmp_path / "other.json")
    with pytest.raises(UsageError, match=r"val_evaluator\.ann_file .*other\.json' lacks 1 images"):
        checked(cfg, "val")


def test_an_evaluator_of_the_images_that_the_indices_choose_passes(tmp_path):
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    cfg.val_dataloader.dataset.indices = 1
    other = coco(images=coco()["images"][:1], annotations=coco()["annotations"][:1])
    (tmp_path / "other.json").write_text(json.dumps(other))
    cfg.val_evaluator.ann_file = str(tmp_path / "other.json")
    checked(cfg, "val")


def test_evaluators_of_data_in_another_format_are_passed_over(tmp_path):
    """As those of mmdet's Mask2Former on COCO: panoptic data, and a metric of instances beside."""
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    panoptic = [{"image_id": 1, "file_name": "1.png", "segments_info": []}]
    (tmp_path / "panoptic.json").write_text(json.dumps(coco(annotations=panoptic)))
    cfg.val_dataloader.dataset.update(type="CocoPanopticDataset", ann_file="panoptic.json")
    checked(cfg, "val")


@pytest.mark.parametrize("key", ["annotations", None])
def test_images_without_objects_train_where_no_filter_leaves_them_out(key, tmp_path):
    """The unlabelled half of semi-supervised training."""
    from mmengine.registry import DATASETS, init_default_scope

    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    labelled = cfg.train_dataloader.dataset
    values = {k: [] if k == "annotations" else v for k, v in coco().items()}
    values = values if key else {k: v for k, v in values.items() if k != "annotations"}
    (tmp_path / "unlabelled.json").write_text(json.dumps(values))
    unlabelled = {**labelled, "ann_file": "unlabelled.json", "filter_cfg": {}}
    cfg.train_dataloader.dataset = {"type": "ConcatDataset", "datasets": [labelled, unlabelled]}
    init_default_scope("mmdet")
    assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 4
    report = checked(cfg, "train")
    assert any("has no instance of 'nut', 'bolt', 'gear'" in text for text in report.warnings)
    cfg.train_dataloader.dataset = {**unlabelled, "filter_cfg": {"filter_empty_gt": True}}
    message = "no annotation of the classes" if key else "no 'annotations'"
    with pytest.raises(UsageError, match=message):
        checked(cfg, "train")


def test_label_maps_of_mmdets_own_data_set_are_not_taken_for_mmsegmentations(tmp_path):
    folders = {"img_path": "train", "seg_map_path": "train/maps"}
    options = write_segmentation(tmp_path)
    dataset = {
        "type": "BaseSegDataset", "data_root": options["root"], "data_prefix": folders,
        "metainfo": {"classes": ("road", "sky")}, "pipeline": [],
    }  # fmt: skip
    values = {"default_scope": "mmdet", "model": {}, "train_cfg": {}}
    checked(Config({**values, "val_dataloader": {"dataset": dataset}}), "val")


def test_an_annotation_without_an_image_or_a_category_is_passed_over_as_mmdet_does(tmp_path):
    first, second = coco()["annotations"]
    strays = [{**first, "id": 3, "image_id": None}, {**first, "id": 4, "category_id": None}]
    options = write_detection(tmp_path, coco(annotations=[first, second, *strays]))
    warnings = checked(prepared(DETECTOR, custom_dataset=options), "train").warnings
    for key in ("image_id", "category_id"):
        assert any(f"1 annotations whose {key} is none" in text for text in warnings)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], r"1\.jpg' is cut short"),
        (lambda data: b"", r"1\.jpg' cannot be read"),
        (lambda data: b"\0" * len(data), r"1\.jpg' cannot be read: it is no image"),
        (lambda data: b"<html>not found</html>", r"1\.jpg' cannot be read: it is no image"),
    ],
    ids=["without its end", "nothing", "zeros", "a web page"],
)
def test_a_damaged_image_is_named(damage, message, tmp_path):
    options = write_detection(tmp_path)
    path = tmp_path / "train" / "1.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=message):
        checked(prepared(DETECTOR, custom_dataset=options))


def test_an_annotation_file_that_is_no_json_is_named(tmp_path):
    options = write_detection(tmp_path)
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(UsageError, match=r"train\.json' is not readable JSON"):
        prepared(DETECTOR, custom_dataset=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_ann": "a.json"}, "also needs train_img, val_ann, val_img"),
        ({"roots": "a"}, "takes root, .* got roots"),
    ],
)
def test_an_incomplete_custom_data_set_says_what_it_needs(options, message):
    with pytest.raises(UsageError, match=message):
        prepared(DETECTOR, custom_dataset=options)


def test_label_maps_need_the_names_of_their_classes(tmp_path):
    options = write_segmentation(tmp_path)
    del options["classes"]
    with pytest.raises(UsageError, match=r"custom_dataset\.classes is needed"):
        prepared(SEGMENTOR, custom_dataset=options)


def test_a_label_beyond_the_classes_is_named_with_its_file(tmp_path):
    options = write_segmentation(tmp_path, highest=4)
    with pytest.raises(UsageError, match=r"a\.png' holds the value 3, but there are 2 classes"):
        checked(prepared(SEGMENTOR, custom_dataset=options))


def test_a_colour_picture_for_a_label_map_is_refused(tmp_path):
    options = write_segmentation(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "maps" / "b.png")
    with pytest.raises(UsageError, match=r"b\.png' has 3 channels"):
        checked(prepared(SEGMENTOR, custom_dataset=options))


def test_an_image_without_its_label_map_is_named(tmp_path):
    options = write_segmentation(tmp_path)
    (tmp_path / "val" / "maps" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 files .* such as 'a\.png'"):
        checked(prepared(SEGMENTOR, custom_dataset=options))


def test_images_of_another_suffix_point_to_the_option(tmp_path):
    options = write_segmentation(tmp_path)
    for path in (tmp_path / "train").glob("*.jpg"):
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(UsageError, match=r"no image named \*\.jpg .*\.webp.* set .*img_suffix"):
        checked(prepared(SEGMENTOR, custom_dataset=options))


def test_a_head_with_another_number_of_classes_is_named(tmp_path):
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    cfg.model.roi_head.mask_head.num_classes = 80
    with pytest.raises(UsageError, match=r"model\.roi_head\.mask_head\.num_classes is 80.* 3 clas"):
        checked(cfg)
    cfg.model.roi_head.mask_head.class_agnostic = True  # one mask for all of them
    checked(cfg)
