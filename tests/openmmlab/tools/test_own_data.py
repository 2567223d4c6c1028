"""Data and habits of users: what is told, what is refused with both values named, what is left."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import contextlib
import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytestmark = [
    pytest.mark.openmmlab,
    # Of the first import of mmdet's Mask2Former.
    pytest.mark.filterwarnings("ignore:.*has been moved:ImportWarning"),
]

from helpers.own_data import (
    BOX_DETECTOR,
    CONFIGS,
    DETECTOR,
    MASK2FORMER,
    SEGMENTOR,
    annotation,
    checked,
    coco,
    typed,
    write_detection,
    write_segmentation,
)
from mmengine.config import Config
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, init_default_scope

from convnext_backbone.openmmlab.tools import processes
from convnext_backbone.openmmlab.tools.arguments import train_parser
from convnext_backbone.openmmlab.tools.check_data import main
from convnext_backbone.openmmlab.tools.checks import images
from convnext_backbone.openmmlab.tools.checks.files import check_files
from convnext_backbone.openmmlab.tools.checks.model import check_model
from convnext_backbone.openmmlab.tools.checks.schedule import check_length
from convnext_backbone.openmmlab.tools.errors import UsageError
from convnext_backbone.openmmlab.tools.launch import check_before_run, train
from convnext_backbone.openmmlab.tools.typed import TypedOptions

RETINANET = CONFIGS / "retinanet/retinanet_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py"
FCOS = CONFIGS / "fcos/fcos_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py"
QUICK_DETECTOR = CONFIGS / "quickstart/mask-rcnn_convnext-atto_fpn_quickstart.py"
QUICK_SEGMENTOR = CONFIGS / "quickstart/upernet_convnext-atto_quickstart.py"
SMALL_DETECTOR = CONFIGS / "small_data/mask-rcnn_convnextv2-atto_fpn_1xb4-amp-40e_own-data.py"
SMALL_SEGMENTOR = CONFIGS / "small_data/upernet_convnextv2-atto_1xb8-amp-4k_own-data.py"
SOLO_STRIDES = [8, 8, 16, 32, 32]


def detection(root, **changes):
    """Options for a training set of three annotations, the first of which is changed."""
    values = coco(annotations=[annotation(1, **changes), annotation(2), annotation(3, image_id=2)])
    return write_detection(root, train=values)


def write_maps(root, split, *maps):
    """Replace the label maps of a split by these values, repeated over the image."""
    for path, values in zip(sorted((root / split / "maps").iterdir()), maps, strict=True):
        Image.fromarray(np.resize(np.array(values, np.uint8), (30, 40))).save(path)


# --------------------------------------------------------------------------- what was typed wins


def test_a_typed_test_set_is_not_replaced_by_the_val_split(tmp_path):
    data = write_detection(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps(coco()))
    cfg = typed(DETECTOR, data, test_dataloader__dataset__ann_file="other.json")
    assert cfg.test_dataloader.dataset.ann_file == "other.json"
    assert cfg.test_evaluator.ann_file == str(tmp_path / "other.json")
    assert cfg.val_dataloader.dataset.ann_file == "val.json"
    cfg = typed(DETECTOR, {**data, "test_ann": "other.json", "test_img": "train"})
    assert cfg.test_dataloader.dataset.data_prefix.img == "train"
    assert cfg.test_evaluator.ann_file == str(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"val_dataloader__dataset__ann_file": "a.json"}, ("a.json", "val.json")),
        ({"train_dataloader__batch_size": 3, "custom_dataset__batch_size": 2}, ("=3", "=2")),
        ({"train_cfg__max_epochs": 5, "custom_dataset__epochs": 7}, ("=5", "=7")),
        ({"custom_dataset__epochs": 5, "custom_dataset__iters": 7}, ("epochs or iters",)),
        ({"model__neck__in_channels": [1, 2, 3, 4]}, ("[1, 2, 3, 4]", "[96, 192, 384, 768]")),
    ],
)
def test_two_settings_that_disagree_are_refused_with_both_values(options, named, tmp_path):
    with pytest.raises(UsageError) as error:
        typed(DETECTOR, write_detection(tmp_path), **options)
    assert all(value in str(error.value) for value in named)


def test_a_typed_number_of_classes_is_kept_and_compared(tmp_path):
    cfg = typed(BOX_DETECTOR, write_detection(tmp_path), model__bbox_head__num_classes=5)
    with pytest.raises(UsageError, match="num_classes is 5, but the data set has 3"):
        checked(cfg)


@pytest.mark.parametrize("path", [QUICK_SEGMENTOR, SEGMENTOR, MASK2FORMER])
def test_weights_of_other_classes_do_not_stay(path, tmp_path):
    data = {**write_segmentation(tmp_path), "classes": [f"c{i}" for i in range(11)]}
    head = typed(path, data).model.decode_head
    losses = [head.loss_cls] if "loss_cls" in head else [head.loss_decode]
    weights = [loss.get("class_weight") for loss in losses]
    assert weights in ([None], [[1.0] * 11 + [0.1]])
    kept = typed(path, data, **{"model.decode_head.loss_decode.class_weight": [2.0] * 11})
    assert kept.model.decode_head.loss_decode.class_weight == [2.0] * 11


# --------------------------------------------------------------------------- strides and channels


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (DETECTOR, {"out_indices": [0, 1, 2, 3]}),
        (DETECTOR, {"out_features": ["stage2", "stage3", "stage4"]}),
        (BOX_DETECTOR, {"out_indices": [1, 2, 3]}),
        (FCOS, {"out_indices": [0, 1, 2]}),
        (SEGMENTOR, {"out_indices": [0, 1, 2, 3]}),
        (SEGMENTOR, {"out_features": ["stage3", "stage4"]}),
        (MASK2FORMER, {"out_indices": [0, 1, 2, 3]}),
        (DETECTOR, {"output_stride": 16}),
    ],
)  # fmt: skip
def test_maps_of_other_strides_are_refused_with_the_index_base(path, options):
    options = {f"model.backbone.{key}": value for key, value in options.items()}
    with pytest.raises(UsageError, match=r"stage\d \(stride \d+\)"):
        typed(path, **options)


def test_typed_outputs_replace_those_of_the_config(tmp_path):
    cfg = typed(DETECTOR, **{"model.backbone.out_indices": [1, 2, 3, 4]})
    assert "out_features" not in cfg.model.backbone
    both = tmp_path / "both.py"
    both.write_text(f"_base_ = '{DETECTOR}'\nmodel = dict(backbone=dict(out_indices=[0, 1, 2, 3]))")
    with pytest.raises(UsageError, match=r"got out_features=.* 0 is the stem"):
        typed(both)


@pytest.mark.parametrize(
    ("neck", "given", "filled"),
    [
        ("YOLOV3Neck", [1024, 512, 256], [320, 160, 80]),
        ("YOLOV3Neck", [80, 160, 320], [320, 160, 80]),
        ("OwnNeck", [320, 160, 80], [320, 160, 80]),
        ("OwnNeck", [8, 16, 32], [8, 16, 32]),
        ("FPN", [320, 160, 80], [80, 160, 320]),
    ],
)
def test_a_neck_that_counts_from_the_deepest_map_gets_the_channels_in_its_order(
    neck, given, filled, tmp_path
):
    path = tmp_path / "own.py"
    settings = {"_delete_": True, "type": neck, "in_channels": given, "num_outs": 5}
    path.write_text(f"_base_ = {str(FCOS)!r}\nmodel = dict(neck={settings!r})\n")
    options = {"model.backbone.arch": "convnextv2_atto"}
    assert list(typed(path, **options).model.neck.in_channels) == filled


@pytest.mark.parametrize(
    "options",
    [
        {"model.neck.num_outs": 4},
        {"model.rpn_head.anchor_generator.strides": [8, 16, 32, 64, 128]},
        {"model.roi_head.mask_roi_extractor.featmap_strides": [8, 16, 32, 64]},
    ],
)
def test_levels_and_strides_that_disagree_are_refused(options):
    with pytest.raises(UsageError, match="the levels that it reads have the strides"):
        typed(DETECTOR, **options)


def test_the_defaults_of_a_head_are_compared_too():
    fcos = typed(FCOS)
    check_model(fcos)
    del fcos.model.bbox_head.strides
    with pytest.raises(UsageError, match=r"prior_generator\.strides is \[4, 8, 16, 32, 64\], but"):
        check_model(fcos)
    retinanet = typed(RETINANET)
    del retinanet.model.bbox_head.anchor_generator  # 8 to 128 by default, as it says
    check_model(retinanet)
    retinanet.model.backbone.out_features = ["stage1", "stage2", "stage3"]
    retinanet.model.neck.in_channels = [40, 80, 160]
    with pytest.raises(UsageError, match=r"is \[8, 16, 32, 64, 128\], but .* \[4, 8, 16, 32, 64\]"):
        check_model(retinanet)


@pytest.mark.parametrize(
    "name",
    [
        "htc/htc_r50_fpn_1x_coco.py",
        "scnet/scnet_r50_fpn_1x_coco.py",
        "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    ],
)
def test_what_stands_on_a_map_of_its_own_is_not_compared(name, tmp_path):
    """As the semantic branch of HTC, which has one of stride 8."""
    (tmp_path / "own.py").write_text(f"""
_base_ = "mmdet::{name}"
model = dict(backbone=dict(_delete_=True, type="ConvNextBackbone", arch="convnext_atto",
                           out_indices=(1, 2, 3, 4)))
""")
    check_model(typed(tmp_path / "own.py"))


@pytest.mark.parametrize("name", ["r50-d8_deeplabv3", "r50-d8_upernet"])
def test_a_head_inside_a_head_gets_the_channels(name, tmp_path):
    (tmp_path / "own.py").write_text(f"""
_base_ = "mmseg::knet/knet-s3_{name}_8xb2-adamw-80k_ade20k-512x512.py"
model = dict(pretrained=None, backbone=dict(
    _delete_=True, type="ConvNextBackbone", arch="convnext_atto", out_indices=(1, 2, 3, 4)))
""")
    cfg = typed(tmp_path / "own.py")
    channels = cfg.model.decode_head.kernel_generate_head.in_channels
    assert channels == ([40, 80, 160, 320] if name.endswith("upernet") else 320)
    assert cfg.model.decode_head.kernel_update_head[0].in_channels == 512  # of its own
    check_model(cfg)


def test_a_mask2former_of_instances_gets_the_classes(tmp_path):
    (tmp_path / "own.py").write_text("""
_base_ = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
model = dict(backbone=dict(_delete_=True, type="ConvNextBackbone", arch="convnext_atto",
                           out_indices=(1, 2, 3, 4)))
""")
    cfg = typed(tmp_path / "own.py", write_detection(tmp_path))
    head, fusion = cfg.model.panoptic_head, cfg.model.panoptic_fusion_head
    for part in (head, fusion):
        assert (part.num_things_classes, part.num_stuff_classes) == (3, 0)
    assert list(head.loss_cls.class_weight) == [1.0, 1.0, 1.0, 0.1]
    checked(cfg, "train")
    check_model(cfg)
    head.num_things_classes = 80
    with pytest.raises(UsageError, match=r"panoptic_head\.num_things_classes is 80, .* 3 classes"):
        checked(cfg, "train")


def test_levels_that_fit_are_left_alone():
    """SOLO resizes its levels, an unknown neck may do anything: neither is compared."""
    for options in (
        {"model.mask_head": {"type": "SOLOHead", "strides": SOLO_STRIDES}},
        {"model.neck.type": "SSDNeck", "model.backbone.out_features": ["stage3", "stage4"]},
    ):
        assert typed(DETECTOR, **options).model.type == "MaskRCNN"
    cfg = typed(
        SEGMENTOR, **{"model.backbone.out_features": ["stem", "stage1", "stage2", "stage3"]}
    )
    assert cfg.model.decode_head.in_channels == [96, 96, 192, 384]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("in_channels", "num_channels"), ("gap_before_final_norm", "norms feature maps")],
)
def test_an_argument_of_another_implementation_is_answered_with_the_names(name, hint):
    with pytest.raises(UsageError, match=rf"model\.backbone: .*{name}.*{hint}"):
        typed(DETECTOR, **{f"model.backbone.{name}": 3})


def test_a_model_that_computes_with_tensors_while_it_is_built_passes(tmp_path):
    # Swin asks tensors for their values, which the meta device does not have.
    backbone = {"type": "mmdet.SwinTransformer", "embed_dims": 32, "_delete_": True}
    cfg = typed(DETECTOR, **{"model.backbone": backbone})
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    with pytest.raises(RuntimeError), torch.device("meta"):
        torch.linspace(0, 1, 2)[0].item()
    check_model(cfg)


# --------------------------------------------------------------------------- annotations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [0.1, 0.1, float("nan"), 0.3]}, r"annotation 1 has the bbox .*four finite"),
        ({"bbox": [1, 2, float("inf"), 3]}, "four finite"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\]"),
        ({"segmentation": [4, 4, 24, 4, 24, 16]}, "annotation 1 has a 'segmentation'"),
        ({"segmentation": [[4, 4, 24, None]]}, "annotation 1 has a 'segmentation'"),
        ({"segmentation": {"size": [60, 80], "counts": [None]}}, "annotation 1 has a 'segment"),
        ({"segmentation": {"size": 80, "counts": [4800]}}, "annotation 1 has a 'segmentation'"),
    ],
)
def test_a_broken_annotation_is_named_with_file_and_id(changes, message, tmp_path):
    with pytest.raises(UsageError, match=rf"train\.json'.*{message}"):
        checked(typed(DETECTOR, detection(tmp_path, **changes)), "train")


@pytest.mark.parametrize(
    ("kind", "change"),
    [("images", {"width": None}), ("annotations", {"category_id": [7]}), ("images", {"id": None})],
)
def test_a_field_of_another_type_is_named(kind, change, tmp_path):
    data = write_detection(tmp_path)
    values = coco()
    values[kind][1] |= change
    (tmp_path / "train.json").write_text(json.dumps(values))
    ((name, _),) = change.items()
    with pytest.raises(UsageError, match=rf"train\.json': the {name} of {kind}, position 1, is "):
        typed(DETECTOR, data)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_id": 77}, "1 annotations whose image_id is none of its images, such as 77"),
        ({"category_id": 70}, "1 annotations whose category_id is none of its categories"),
        ({"ignore": 1, "bbox": None, "area": None}, ""),
        ({"ignore": 1, "bbox": [0, 0, 0, 0], "area": -1}, ""),
        ({"area": -1}, "drops 1 of 3"),
        ({"category_id": 3, "bbox": [4, 4, float("nan"), 9]}, ""),
    ],
)
def test_what_mmdet_passes_over_is_told_and_not_refused(changes, told, tmp_path):
    data = {**detection(tmp_path, **changes), "classes": ["bolt"]}
    cfg = typed(DETECTOR, data)
    assert mmdet_reads(cfg) == 2
    warnings = [text for text in checked(cfg, "train").warnings if "train.json" in text]
    assert (len(warnings) == 1 and told in warnings[0]) if told else not warnings


def mmdet_reads(cfg):
    """The number of boxes that mmdet's own data set holds to train on."""
    init_default_scope("mmdet")
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": []})
    return sum(len(dataset.get_data_info(i)["instances"]) for i in range(len(dataset)))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_that_count_from_0_beside_others_from_1_are_refused(key, tmp_path):
    values = coco(
        categories=[{"id": i, "name": name} for i, name in enumerate(("nut", "bolt"), 1)],
        annotations=[
            annotation(i, **{"image_id": 1, "category_id": 1, key: number})
            for i, number in enumerate((0, 1), 1)
        ],
    )
    data = write_detection(tmp_path, values)
    with pytest.raises(UsageError, match=rf"1 annotations whose {key} .* as 0; .* count from 0"):
        checked(typed(DETECTOR, data), "train")


def test_a_box_of_another_category_is_unpacked_too(tmp_path):
    data = {**detection(tmp_path, category_id=3, bbox=None), "classes": ["bolt"]}
    with pytest.raises(TypeError):
        mmdet_reads(typed(DETECTOR, data))
    with pytest.raises(UsageError, match="annotation 1 has the bbox None"):
        checked(typed(DETECTOR, data), "train")


def test_categories_of_one_name_may_be_left_out(tmp_path):
    others = [{"id": i, "name": "N/A"} for i in (1, 2)]
    values = coco(categories=[*others, *coco()["categories"]])
    data = {**write_detection(tmp_path, values, values), "classes": ["bolt"]}
    checked(typed(DETECTOR, data))


def test_normalised_boxes_are_recognised(tmp_path):
    boxes = [annotation(i, image_id=i, bbox=[0.1, 0.2, 0.5, 0.4]) for i in (1, 2)]
    with pytest.raises(UsageError, match=r"drops 2 of 2 .* normalised"):
        checked(typed(DETECTOR, write_detection(tmp_path, coco(annotations=boxes))), "train")


def test_a_few_boxes_that_mmdet_drops_are_counted(tmp_path):
    report = checked(typed(DETECTOR, detection(tmp_path, bbox=[4, 4, 0.5, 9])), "train")
    assert "drops 1 of 3" in report.warnings[0]


def test_images_that_the_filter_leaves_out_are_counted(tmp_path):
    values = coco()
    values["images"][0] |= {"width": 80, "height": 31}
    data = write_detection(tmp_path, values)
    Image.new("RGB", (80, 31)).save(tmp_path / "train" / "1.jpg")
    warnings = checked(typed(DETECTOR, data), "train").warnings
    assert any("1 of 2 images are left out" in warning for warning in warnings)
    with pytest.raises(UsageError, match=r"2 of 2 images .*min_size is 99"):
        checked(typed(DETECTOR, data, train_dataloader__dataset__filter_cfg__min_size=99), "train")


def test_an_instance_without_a_polygon_trains_and_is_refused_for_masks_in_evaluation(tmp_path):
    empty = coco(annotations=[annotation(1, segmentation=[[]]), annotation(2, image_id=2)])
    cfg = typed(DETECTOR, write_detection(tmp_path, empty, empty))
    assert "without a polygon" in checked(cfg, "train").warnings[0]
    with pytest.raises(UsageError, match=r"val\.json': 1 annotations without a polygon"):
        checked(cfg, "val")


@pytest.mark.parametrize("ids", [(0, 1), (1, 2), (-1, 0), ("a", "b"), ("0", "1")])
@pytest.mark.parametrize("crowd", [{"iscrowd": 0}, {"iscrowd": None}, {}])
@pytest.mark.filterwarnings("ignore:.*(ids (begin at 0|are strings)|have no 'iscrowd')")
def test_perfect_detections_score_one_whatever_the_ids(ids, crowd, tmp_path):
    from mmdet.datasets.api_wrappers import COCO, COCOeval

    kept = {k: v for k, v in annotation().items() if k != "iscrowd"}
    objects = [{**kept, **crowd, "id": i, "image_id": n} for n, i in enumerate(ids, 1)]
    (tmp_path / "val.json").write_text(json.dumps(coco(annotations=objects)))
    truth = COCO(str(tmp_path / "val.json"))
    keys = ("image_id", "category_id", "bbox")
    found = truth.loadRes([{**{k: o[k] for k in keys}, "score": 0.9} for o in objects])
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert json.loads((tmp_path / "val.json").read_text())["annotations"][0]["id"] == ids[0]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("size", "image", "message"),
    [
        ([60, 80], (80, 60), ""),
        ([60, 80, 4801], (80, 60), r"annotation 1 .* of 4801 pixels, but its image has 60 x 80"),
        ([80, 60], (80, 60), r"annotation 1 has a run-length mask .* \[80, 60\], .* \[60, 80\]"),
        ([60, 80], (80, 61), r"1\.jpg' is 80 x 61 pixels, but .* width 80 and height 60"),
    ],
)
def test_a_run_length_mask_has_the_size_of_its_image(size, image, message, split, tmp_path):
    mask = {"size": size[:2], "counts": [0, *(size[2:] or [4800])]}
    values = coco(annotations=[annotation(1, segmentation=mask), annotation(2, image_id=2)])
    cfg = typed(DETECTOR, write_detection(tmp_path, values, values))
    Image.new("RGB", image).save(tmp_path / split / "1.jpg")
    if message:
        with pytest.raises(UsageError, match=message):
            checked(cfg, split)
    else:
        checked(cfg, split)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("annotations", {"iscrowd": ""}, r"annotation 1 has the iscrowd ''"),
        ("annotations", {"iscrowd": None}, ""),
        ("annotations", {"iscrowd": True}, ""),
        ("annotations", {"segmentation": {"size": [60, 80], "counts": "abc"}}, "cannot be read"),
        ("categories", {"id": "a"}, "ids of its categories some are numbers and some strings"),
        ("images", {"id": "a"}, "ids of its images some are numbers and some strings"),
    ],
)
def test_what_would_end_an_evaluation_is_named_before_the_training(kind, change, message, tmp_path):
    data = write_detection(tmp_path)
    values = coco()
    values[kind][0] |= change
    values["annotations"][0] |= {f"{kind[:-1]}_id": "a"} if "id" in change else {}
    values["annotations"][0]["category_id"] = "a" if kind == "categories" else 7
    (tmp_path / "val.json").write_text(json.dumps(values))
    cfg = typed(DETECTOR, {**data, "classes": ["nut", "bolt", "gear"]})
    if message:
        with pytest.raises(UsageError, match=message):
            checked(cfg, "val")
    else:
        checked(cfg, "val")


@pytest.mark.parametrize("other", [{}, {"license": 4}, {"file_name": "2.jpg"}])
def test_an_image_that_is_listed_twice_is_one(other, tmp_path):
    images = coco()["images"]
    values = coco(images=[*images, images[0] | other])
    cfg = typed(DETECTOR, write_detection(tmp_path, values))
    if "file_name" in other:
        with pytest.raises(UsageError, match=r"1 ids of its images occur more than once"):
            checked(cfg, "train")
    else:
        assert mmdet_reads(cfg) == 2
        checked(cfg, "train")


def test_an_image_that_is_listed_twice_counts_once(tmp_path):
    images = coco()["images"]
    data = write_detection(tmp_path, coco(images=[*images, dict(images[0])]))
    cfg = typed(DETECTOR, {**data, "epochs": 40, "batch_size": 1})
    init_default_scope("mmdet")
    assert len(DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": []})) == 2
    assert cfg.param_scheduler[1].end == 80
    (summary,) = checked(cfg, "train").summaries
    assert "2 images" in summary.splitlines()[0]
    assert "left out" not in summary


def test_images_to_predict_on_need_no_annotations(tmp_path):
    data = write_detection(tmp_path)
    unlabelled = {k: v for k, v in coco().items() if k != "annotations"}
    (tmp_path / "test.json").write_text(json.dumps(unlabelled))
    cfg = typed(DETECTOR, {**data, "test_ann": "test.json", "test_img": "val"})
    with pytest.raises(UsageError, match="no 'annotations'"):
        checked(cfg, "test")
    cfg.test_evaluator.format_only = True
    checked(cfg, "test")


# --------------------------------------------------------------------------- images


def test_a_size_that_is_not_the_images_is_refused(tmp_path):
    values = coco()
    values["images"][0] |= {"width": 60, "height": 80}
    with pytest.raises(UsageError, match=r"1\.jpg' is 80 x 60 .* width 60 and height 80 .*swapped"):
        checked(typed(DETECTOR, write_detection(tmp_path, values)), "train")


@pytest.mark.parametrize("turned", [True, False])
def test_an_orientation_in_exif_counts_as_the_loader_reads_it(turned, tmp_path):
    values = coco()
    if turned:
        values["images"][0] |= {"width": 60, "height": 80}
    data = write_detection(tmp_path, values)
    image = Image.new("RGB", (80, 60), "gray")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "train" / "1.jpg", exif=exif)
    cfg = typed(DETECTOR, data)
    if turned:
        checked(cfg, "train")
    else:
        with pytest.raises(UsageError, match=r"60 x 80 pixels.* EXIF"):
            checked(cfg, "train")
        load = "train_dataloader.dataset.pipeline.0.color_type"
        checked(typed(DETECTOR, data, **{load: "unchanged"}), "train")


@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_a_png_is_not_decoded_for_its_orientation(orientation, tmp_path, monkeypatch):
    import mmcv

    image, path = Image.new("RGB", (80, 60), "gray"), tmp_path / "1.png"
    exif = image.getexif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    expected = mmcv.imread(path).shape[1::-1]
    decoded, load = [], PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda file: decoded.append(file) or load(file))
    assert images.ImageReader([{"type": "LoadImageFromFile"}]).check(str(path)) == expected
    assert not decoded


def test_what_the_loader_of_the_pipeline_reads_is_not_refused(tmp_path):
    import cv2

    data = write_detection(tmp_path)
    cv2.imwrite(str(tmp_path / "radiance.hdr"), np.ones((60, 80, 3), np.float32))
    os.replace(tmp_path / "radiance.hdr", tmp_path / "train" / "1.jpg")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "train" / "1.jpg")
    checked(typed(DETECTOR, data), "train")
    (tmp_path / "train" / "1.jpg").write_bytes(b"five bands")
    with pytest.raises(UsageError, match=r"1\.jpg'"):
        checked(typed(DETECTOR, data), "train")
    backend = "train_dataloader.dataset.pipeline.0.imdecode_backend"
    checked(typed(DETECTOR, data, **{backend: "tifffile"}), "train")


@pytest.mark.parametrize("kind", ["bmp", "gif", "ico", "jp2", "pcx", "png", "tga", "tif", "webp"])
def test_an_image_is_refused_where_the_loader_does_not_read_its_kind(kind, tmp_path):
    import mmcv

    data = write_detection(tmp_path)
    path = tmp_path / "train" / "1.jpg"
    Image.new("RGB", (80, 60), "gray").save(tmp_path / f"1.{kind}", sizes=[(80, 60)])
    os.replace(tmp_path / f"1.{kind}", path)
    try:
        reads = mmcv.imread(path) is not None
    except Exception:
        reads = False
    with (
        contextlib.nullcontext() if reads else pytest.raises(UsageError, match=r"1\.jpg' cannot be")
    ):
        checked(typed(DETECTOR, data), "train")


def test_steps_that_are_not_known_are_passed_over(tmp_path):
    data = write_detection(tmp_path)
    (tmp_path / "train" / "1.jpg").write_bytes(b"bands")
    cfg = typed(DETECTOR, data)
    cfg.train_dataloader.dataset.pipeline[0].type = "LoadBands"
    checked(cfg, "train")


def test_images_that_the_filter_leaves_out_need_not_be_there(tmp_path):
    data = write_detection(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(coco(annotations=[annotation()])))
    (tmp_path / "train" / "2.jpg").unlink()
    cfg = typed(DETECTOR, data)
    assert mmdet_reads(cfg) == 1
    checked(cfg, "train")
    name = "train_dataloader__dataset__filter_cfg__filter_empty_gt"
    cfg = typed(DETECTOR, data, **{name: False})
    with pytest.raises(UsageError, match=r"1 of 2 files .* such as '2\.jpg'"):
        checked(cfg, "train")


def test_images_that_are_no_files_are_not_looked_for(tmp_path):
    """In an archive that a step of the user's opens, or in a database."""
    data = write_detection(tmp_path)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").write_bytes(b"an archive")
    load = "train_dataloader__dataset__pipeline__0"
    with pytest.raises(UsageError, match=r"folder .*train' not found"):
        check_files(typed(DETECTOR, data), ["train"])
    for options in (
        {f"{load}__type": "LoadFromArchive"},
        {f"{load}__backend_args": {"backend": "lmdb", "db_path": "images.lmdb"}},
    ):
        cfg = typed(DETECTOR, data, **options)
        check_files(cfg, ["train"])
        checked(cfg, "train")


def test_annotations_of_a_storage_backend_are_not_looked_for(tmp_path):
    data = {**write_detection(tmp_path), "classes": ["nut", "bolt", "gear"]}
    (tmp_path / "train.json").unlink()
    with pytest.raises(UsageError, match=r"annotation file .* not found"):
        check_files(typed(DETECTOR, data), ["train"])
    settings = {"backend": "petrel", "path_mapping": {str(tmp_path): "s3://bucket"}}
    options = {"train_dataloader__dataset__backend_args": settings}
    options["train_dataloader__dataset__pipeline__0__backend_args"] = settings
    cfg = typed(DETECTOR, data, **options)
    check_files(cfg, ["train"])
    assert not checked(cfg, "train").warnings


@pytest.mark.parametrize("kind", ["link", "absolute", "parent"])
def test_files_outside_the_folder_are_found_as_mmdet_finds_them(kind, tmp_path):
    data = write_detection(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for number in (1, 2):
        os.replace(tmp_path / "train" / f"{number}.jpg", tmp_path / "elsewhere" / f"{number}.jpg")
    (tmp_path / "train" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    folder = {"link": "linked", "absolute": tmp_path / "elsewhere", "parent": "../elsewhere"}[kind]
    images = [{**image, "file_name": f"{folder}/{image['id']}.jpg"} for image in coco()["images"]]
    (tmp_path / "train.json").write_text(json.dumps(coco(images=images)))
    checked(typed(DETECTOR, data), "train")


# --------------------------------------------------------------------------- label maps


def test_binary_maps_of_0_and_255_are_refused(tmp_path):
    data = {**write_segmentation(tmp_path, 1), "reduce_zero_label": False}
    write_maps(tmp_path, "train", [0, 255], [0, 255])
    with pytest.raises(UsageError, match=r"no pixel of 'sky'; their values are 0, 255"):
        checked(typed(SEGMENTOR, data), "train")


@pytest.mark.parametrize("reduce", [False, True])
def test_void_may_be_any_value_that_heads_and_metric_ignore(reduce, tmp_path):
    data = {**write_segmentation(tmp_path, 1 + reduce), "reduce_zero_label": reduce}
    for split in ("train", "val"):
        write_maps(tmp_path, split, [reduce, 1 + reduce, 200 + reduce], [reduce, 1 + reduce])
    heads = {f"model__{head}__ignore_index": 200 for head in ("decode_head", "auxiliary_head")}
    cfg = typed(SEGMENTOR, data, **heads)
    checked(cfg, "train")
    with pytest.raises(UsageError, match=rf"the value {200 + reduce}, .* 255 is void"):
        checked(cfg, "val")  # it would count as a mistake of the model
    checked(typed(SEGMENTOR, data, **heads, val_evaluator__ignore_index=200), "val")
    del heads["model__auxiliary_head__ignore_index"]
    with pytest.raises(UsageError, match="no value that all ignore is void"):
        checked(typed(SEGMENTOR, data, **heads), "train")


def test_labels_from_0_under_the_default_ask_for_the_option(tmp_path):
    data = write_segmentation(tmp_path)
    data["classes"] = ["road", "sky", "tree"]
    with pytest.raises(UsageError, match=r"custom_dataset\.reduce_zero_label=False"):
        checked(typed(SEGMENTOR, data), "train")
    report = checked(typed(SEGMENTOR, {**data, "reduce_zero_label": True}), "train")
    assert any("no pixel of 'tree'" in warning for warning in report.warnings)
    checked(typed(SEGMENTOR, {**data, "reduce_zero_label": False}), "train")


def test_void_maps_and_other_suffixes_are_told(tmp_path):
    data = write_segmentation(tmp_path)
    write_maps(tmp_path, "train", [0, 1, 2], [0])
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "c.PNG")
    warnings = " ".join(checked(typed(SEGMENTOR, data), "train").warnings)
    assert "1 label maps are void throughout" in warnings
    assert "1 .PNG are left out" in warnings
    assert "custom_dataset.img_suffix" in warnings


@pytest.mark.parametrize(
    ("classes", "message"), [(["a", "a"], "names 'a' twice"), (["a"], "one class.*softmax")]
)
def test_classes_that_cannot_be_told_apart_are_refused(classes, message, tmp_path):
    data = write_segmentation(tmp_path, highest=len(classes))
    with pytest.raises(UsageError, match=rf"custom_dataset\.classes .*{message}"):
        checked(typed(SEGMENTOR, {**data, "classes": classes}), "train")


def test_one_class_is_enough_where_there_is_one_for_no_object(tmp_path):
    data = {**write_segmentation(tmp_path, highest=1), "classes": ["road"]}
    checked(typed(MASK2FORMER, data), "train")


def test_class_weights_stand_beside_void_pixels_and_one_is_needed_for_each_class(tmp_path):
    data = write_segmentation(tmp_path)
    option = "model.decode_head.loss_decode.class_weight"
    checked(typed(SEGMENTOR, data, **{option: [1.0, 2.0]}), "train")
    with pytest.raises(UsageError, match=rf"{option} has 3 weights, but .*classes has 2 classes"):
        checked(typed(SEGMENTOR, data, **{option: [1.0, 2.0, 3.0]}), "train")


def test_a_weight_for_no_object_is_not_one_of_a_class(tmp_path):
    (tmp_path / "own.py").write_text(
        "_base_ = 'mmseg::san/san-vit-b16_coco-stuff164k-640x640.py'\n"
    )
    cfg = typed(tmp_path / "own.py", {**write_segmentation(tmp_path), "img_suffix": ".jpg"})
    assert list(cfg.model.decode_head.loss_decode[0].class_weight) == [1.0, 1.0, 0.1]
    checked(cfg, "train")


def test_images_of_several_sizes_do_not_stack_in_an_evaluation(tmp_path):
    data = write_segmentation(tmp_path)
    Image.new("RGB", (44, 30)).save(tmp_path / "val" / "b.jpg")
    Image.new("L", (44, 30), 1).save(tmp_path / "val" / "maps" / "b.png")
    told = {}
    for batch, pads in ((1, None), (2, None), (2, 32)):
        options = {"val_dataloader__batch_size": batch}
        options |= {"model__data_preprocessor__test_cfg__size_divisor": pads} if pads else {}
        warnings = checked(typed(SEGMENTOR, data, **options), "val").warnings
        told[batch, pads] = any("2 sizes only stack" in text for text in warnings)
    assert told == {(1, None): False, (2, None): True, (2, 32): False}


def test_a_label_map_of_another_size_is_named(tmp_path):
    data = write_segmentation(tmp_path)
    Image.new("L", (20, 30), 1).save(tmp_path / "val" / "maps" / "b.png")
    with pytest.raises(UsageError, match=r"b\.png' is 20 x 30 .*image is 40 x 30"):
        checked(typed(SEGMENTOR, data))


def test_label_maps_of_half_the_resolution_can_be_trained_on(tmp_path):
    data = {**write_segmentation(tmp_path), "image_size": 64}
    for split in ("train", "val"):
        for name in ("a", "b"):
            path = tmp_path / split / "maps" / f"{name}.png"
            Image.open(path).resize((20, 15), Image.Resampling.NEAREST).save(path)
    cfg = typed(SMALL_SEGMENTOR, {**data, "img_suffix": ".jpg"})
    warnings = " ".join(checked(cfg, "train").warnings)
    assert "2 label maps have another resolution" in warnings
    init_default_scope("mmseg")
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for item in (dataset[0], dataset[1]):
        assert item["inputs"].shape[1:] == item["data_samples"].gt_sem_seg.data.shape[1:]
    with pytest.raises(UsageError, match=r"a\.png' is 20 x 15 pixels, but its image is 40 x 30"):
        checked(cfg, "val")


def test_labels_of_16_bits_that_would_wrap_are_refused(tmp_path):
    data = write_segmentation(tmp_path)
    path = tmp_path / "train" / "maps" / "a.png"
    Image.fromarray(np.full((30, 40), 257, np.uint16)).save(path)
    with pytest.raises(UsageError, match=r"a\.png' holds values from 257 to 257"):
        checked(typed(SEGMENTOR, data), "train")


def test_a_label_map_of_too_many_pixels_for_its_backend_is_named(tmp_path, monkeypatch):
    data = write_segmentation(tmp_path)
    for split in ("train", "val"):
        for path in (tmp_path / split).glob("*.jpg"):
            Image.new("RGB", (4, 4)).save(path)
        for path in (tmp_path / split / "maps").iterdir():
            Image.fromarray(np.array([[0, 1, 2]] * 8, np.uint8)).resize((8, 8), 0).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UsageError, match=r"label map .*maps/a\.png' cannot be read: .*bomb"):
        checked(typed(SEGMENTOR, data), "train")
    backend = "train_dataloader.dataset.pipeline.1.imdecode_backend"
    checked(typed(SEGMENTOR, data, **{backend: "cv2"}), "train")


@pytest.mark.parametrize("backend", ["pillow", "cv2", None])
def test_a_palette_is_refused_where_the_backend_reads_its_colours(backend, tmp_path):
    data = write_segmentation(tmp_path)
    for path in (tmp_path / "train" / "maps").iterdir():
        with Image.open(path) as image:
            labels = np.asarray(image)
        indexed = Image.fromarray(labels, "L").convert("P")
        indexed.putdata(labels.ravel().tolist())
        indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        indexed.save(path)
    option = "train_dataloader.dataset.pipeline.1.imdecode_backend"
    cfg = typed(SEGMENTOR, data, **{option: backend})
    message = rf"label map .*a\.png' has 3 channels with imdecode_backend={backend!r}"
    reads = backend == "pillow"
    with contextlib.nullcontext() if reads else pytest.raises(UsageError, match=message):
        checked(cfg, "train")


def test_a_label_map_damaged_in_the_middle_is_named(tmp_path):
    data = write_segmentation(tmp_path)
    path = tmp_path / "val" / "maps" / "b.png"
    content = bytearray(path.read_bytes())
    content[50:60] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"b\.png' cannot be read"):
        checked(typed(SEGMENTOR, data))


# --------------------------------------------------------------------------- schedule and size


def learning_rates(cfg, steps):
    """The rate of each iteration, by mmengine's own schedulers."""
    init_default_scope(cfg.default_scope)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s), default_args={"optimizer": optimizer})
        for s in cfg.param_scheduler
    ]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def test_steps_keep_their_place_in_a_training_of_other_length(tmp_path):
    cfg = typed(DETECTOR, write_detection(tmp_path), custom_dataset__epochs=180)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (180, 5)
    rates = learning_rates(cfg, 180)  # two images, batches of two: an iteration an epoch
    # The warm-up of 9 iterations, 5 %, ends with its last.
    assert next(i for i, rate in enumerate(rates) if rate > 0.999) == 8
    assert rates[134] == pytest.approx(1.0)
    assert rates[135] == pytest.approx(0.1)  # 27 of 36
    assert rates[164] == pytest.approx(0.1)
    assert rates[165] == pytest.approx(0.01)  # 33 of 36


@pytest.mark.parametrize("launcher", ["none", "pytorch", "slurm", "mpi"])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_the_processes_that_the_launcher_started_share_an_epoch(
    launcher, name, tmp_path, monkeypatch
):
    own = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}
    for variable in own.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "2")
    data = {**write_detection(tmp_path), "epochs": 40, "batch_size": 1}  # of two images
    processes = 2 if own.get(launcher) == name else 1
    cfg = typed(DETECTOR, data, launcher)
    assert cfg.param_scheduler[1].end == 80 / processes
    assert cfg.launcher == launcher


@pytest.mark.parametrize(("drop_last", "iterations"), [(False, 2), (True, 1)])
def test_an_epoch_ends_with_its_last_batch(drop_last, iterations, tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 80, "height": 60} for i in (1, 2, 3)]
    annotations = [annotation(i, image_id=i) for i in (1, 2, 3)]
    data = write_detection(tmp_path, train=coco(images=images, annotations=annotations))
    data |= {"epochs": 40, "batch_size": 2}
    cfg = typed(DETECTOR, data, train_dataloader__drop_last=drop_last)
    assert cfg.param_scheduler[1].end == 40 * iterations


@pytest.mark.parametrize("path", [SEGMENTOR, QUICK_SEGMENTOR, SMALL_SEGMENTOR])
@pytest.mark.parametrize("length", [{"iters": 400}, {"epochs": 400}])
def test_a_curve_ends_with_the_training(path, length, tmp_path):
    data = {**write_segmentation(tmp_path), **length, "batch_size": 2, "img_suffix": ".jpg"}
    cfg = typed(path, data)
    assert cfg.train_cfg.max_iters == 400
    rates = learning_rates(cfg, 401)
    assert rates.index(max(rates)) <= 20  # 5 %
    assert max(rates) > 0.99
    assert 0.4 < rates[205] < 0.6
    assert rates[400] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "StepLR", "step_size": 9, "gamma": 0.5},
        {"type": "ExponentialLR", "gamma": 0.9},
        {"type": "ExponentialLR", "gamma": 0.8, "begin": 18},
        {"type": "CosineAnnealingLR", "T_max": 18, "begin": 18, "end": 36},
        {"type": "CosineRestartLR", "periods": [12, 24], "restart_weights": [1, 0.5], "eta_min": 0},
        {"type": "OneCycleLR", "eta_max": 1.0, "total_steps": 36},
        {"type": "PolyLR", "power": 2.0, "eta_min": 0.1, "end": 36},
    ],
    ids=lambda scheduler: scheduler["type"],
)
def test_every_kind_of_scheduler_keeps_its_curve(scheduler, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"_base_ = {str(DETECTOR)!r}\nparam_scheduler = [{scheduler!r}]\n")
    data = {**write_detection(tmp_path), "epochs": 360, "batch_size": 1}  # of two iterations each
    published = learning_rates(Config.fromfile(path), 36)
    rates = learning_rates(typed(path, data), 720)
    # A step of the old schedule is twenty of the new one; schedulers differ in which of theirs is
    # the first.
    for epoch in range(1, 36):
        steps = rates[20 * epoch - 20 : 20 * epoch + 21]
        assert min(steps) - 1e-6 <= published[epoch] <= max(steps) + 1e-6, epoch


def test_a_scheduler_that_waits_for_a_metric_stays_and_hooks_follow(tmp_path):
    plateau = {"type": "ReduceOnPlateauLR", "monitor": "coco/bbox_mAP", "patience": 3}
    hook = {"type": "mmdet.YOLOXModeSwitchHook", "num_last_epochs": 6}
    path = tmp_path / "own.py"
    path.write_text(
        f"_base_ = {str(DETECTOR)!r}\nparam_scheduler = [{plateau!r}]\ncustom_hooks = [{hook!r}]\n"
        "train_cfg = dict(val_begin=30)\n"
    )
    cfg = typed(path, write_detection(tmp_path), custom_dataset__epochs=12)
    assert dict(cfg.param_scheduler[0]) == plateau
    assert (cfg.custom_hooks[0].num_last_epochs, cfg.train_cfg.val_begin) == (2, 10)


def test_a_typed_length_is_applied_or_refused(tmp_path):
    few = {"train_dataloader__dataset__indices": 1, "custom_dataset__epochs": 3}
    cfg = typed(DETECTOR, write_detection(tmp_path), **few)
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].end) == (3, 3)
    elsewhere = {
        "train_dataloader__dataset__ann_file": "s3://bucket/train.json",
        "train_dataloader__dataset__data_prefix__img": str(tmp_path / "train"),
    }
    cfg = typed(DETECTOR, custom_dataset__epochs=3, **elsewhere)
    assert cfg.train_cfg.max_epochs == 36
    with pytest.raises(UsageError, match=r"epochs=3: .* \(CocoDataset\) is not known"):
        check_length(cfg, TypedOptions({"custom_dataset.epochs": 3}))
    # A recipe's own length is that of its schedule.
    check_length(typed(SMALL_DETECTOR, **elsewhere), TypedOptions())


def test_a_training_too_short_for_a_warm_up_has_none(tmp_path):
    data = {**write_segmentation(tmp_path), "iters": 24, "batch_size": 2}
    assert learning_rates(typed(SMALL_SEGMENTOR, data), 24)[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "warm_up",
    [
        {"type": "LinearLR", "start_factor": 0.1},
        {"type": "ConstantLR", "factor": 0.1},
        {"type": "mmdet.QuadraticWarmupLR"},
        {"type": "LinearLR", "start_factor": 0.1, "end_factor": 0.5},
    ],
    ids=lambda scheduler: scheduler["type"],
)
def test_no_warm_up_is_left_in_a_training_of_few_iterations(warm_up, tmp_path):
    import mmdet.engine.schedulers  # noqa: F401 - registers one of them

    warm_up = {**warm_up, "by_epoch": False, "begin": 0, "end": 500}
    step = {"type": "MultiStepLR", "milestones": [18], "end": 36}
    path = tmp_path / "own.py"
    path.write_text(f"_base_ = {str(DETECTOR)!r}\nparam_scheduler = [{warm_up!r}, {step!r}]\n")
    data = {**write_detection(tmp_path), "iters": 10}
    rates = learning_rates(typed(path, data), 10)
    expected = warm_up.get("end_factor", 1.0)
    assert rates == pytest.approx([expected] * 5 + [0.1 * expected] * 5)


def own_loop(tmp_path):
    path = tmp_path / "loop.py"
    loop = {"_delete_": True, "type": "OwnLoop", "rounds": 3}
    path.write_text(f"_base_ = {str(SMALL_DETECTOR)!r}\ntrain_cfg = {loop!r}\n")
    return path


def test_a_loop_of_another_kind_keeps_its_length(tmp_path):
    path, data = own_loop(tmp_path), write_detection(tmp_path)
    cfg = typed(path, data)
    checked(cfg, "train")
    check_length(cfg, TypedOptions())
    assert dict(cfg.train_cfg) == {"type": "OwnLoop", "rounds": 3}
    asked = {"custom_dataset.iters": 9}
    with pytest.raises(UsageError, match=r"iters=9: train_cfg \(OwnLoop\) has neither max_epochs"):
        check_length(typed(path, data, **asked), TypedOptions(asked))


def test_a_loader_without_a_batch_size_takes_one_image(tmp_path):
    path = tmp_path / "own.py"
    dataset = Config.fromfile(DETECTOR).train_dataloader.dataset.to_dict()
    path.write_text(
        f"_base_ = {str(DETECTOR)!r}\n"
        f"train_dataloader = dict(_delete_=True, num_workers=0, dataset={dataset!r})\n"
    )
    cfg = typed(path, write_detection(tmp_path), custom_dataset__epochs=40)  # of two images
    assert cfg.param_scheduler[1].end == 80
    checked(cfg, "train")


@pytest.mark.parametrize(("most", "end"), [(1, 40), (3, 80), (None, 80)])
def test_an_epoch_ends_after_num_batch_per_epoch(most, end, tmp_path):
    data = {**write_detection(tmp_path), "epochs": 40, "batch_size": 1}  # of two images
    cfg = typed(DETECTOR, data, train_dataloader__num_batch_per_epoch=most)
    assert cfg.param_scheduler[1].end == end


def test_a_typed_length_wins_over_the_configs_own(tmp_path):
    cfg = typed(SMALL_DETECTOR, write_detection(tmp_path), train_cfg__max_epochs=100)
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.param_scheduler[1]["end"] == 100  # two images, a batch of four


def test_a_typed_scheduler_stays_as_it_is(tmp_path):
    options = {"param_scheduler.1.milestones": [8, 11], "custom_dataset.epochs": 12}
    scheduler = typed(DETECTOR, write_detection(tmp_path), **options).param_scheduler[1]
    assert (scheduler.milestones, scheduler.by_epoch) == ([8, 11], True)


def test_an_odd_schedule_is_told(tmp_path):
    cfg = typed(DETECTOR, write_detection(tmp_path), train_cfg__max_epochs=20)
    warnings = checked(cfg, "train").warnings
    assert any("warm-up takes 1000 of the 20 iterations" in warning for warning in warnings)
    assert any("at iteration 33, is after the end" in warning for warning in warnings)
    cfg = typed(DETECTOR, write_detection(tmp_path / "b"), custom_dataset__epochs=20)
    assert not any("iteration" in warning for warning in checked(cfg, "train").warnings)


@pytest.mark.parametrize("path", [DETECTOR, QUICK_DETECTOR, SMALL_DETECTOR])
def test_images_fit_into_the_size_that_was_asked_for(path, tmp_path):
    data = {**write_detection(tmp_path), "image_size": [64, 48]}
    cfg = typed(path, data)
    init_default_scope("mmdet")
    val = DATASETS.build(cfg.val_dataloader.dataset)[0]
    assert tuple(val["inputs"].shape[1:]) == (48, 64)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    largest = max(max(train[0]["inputs"].shape[1:]) for _ in range(20))
    assert 32 <= largest <= 64 * 1.25


def test_a_side_for_a_scale_follows_and_a_scale_of_another_kind_stays(tmp_path):
    steps = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": 1024}]
    steps.append({"type": "OwnScale", "scale": None})
    path = tmp_path / "own.py"
    path.write_text(
        f"_base_ = {str(DETECTOR)!r}\ntrain_dataloader = dict(dataset=dict(pipeline={steps!r}))\n"
    )
    cfg = typed(path, {**write_detection(tmp_path), "image_size": 400})
    _, resize, own = cfg.train_dataloader.dataset.pipeline
    assert resize.scale == (512, 512)  # a half, as 800 of the config's test becomes 400
    assert own.scale is None


@pytest.mark.parametrize("path", [SEGMENTOR, QUICK_SEGMENTOR, SMALL_SEGMENTOR])
def test_crops_follow_the_size_of_the_images(path, tmp_path):
    data = {**write_segmentation(tmp_path), "image_size": [128, 96], "img_suffix": ".jpg"}
    cfg = typed(path, data)
    init_default_scope("mmseg")
    assert tuple(DATASETS.build(cfg.val_dataloader.dataset)[0]["inputs"].shape[1:]) == (96, 128)
    crop = DATASETS.build(cfg.train_dataloader.dataset)[0]["inputs"].shape[1:]
    size = cfg.model.data_preprocessor["size"]
    assert size[0] % 32 == size[1] % 32 == 0
    assert all(side <= whole <= 96 for side, whole in zip(crop, size, strict=True))


def test_rates_for_random_weights_apply_without_weights_only():
    cfg = typed(SMALL_DETECTOR)
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.7
    cfg = typed(SMALL_DETECTOR, model__backbone__init_cfg=None)
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 1.0
    assert "from_scratch" not in cfg
    options = {"model.backbone.init_cfg": None, "optim_wrapper.optimizer.lr": 7.0}
    assert typed(SMALL_DETECTOR, **options).optim_wrapper.optimizer.lr == 7.0


@pytest.mark.parametrize("path", [DETECTOR, SMALL_DETECTOR])
def test_the_config_that_a_run_dumps_is_the_same_config_without_the_data(path, tmp_path):
    data = {**write_detection(tmp_path), "image_size": 64, "epochs": 7, "batch_size": 1}
    cfg = typed(path, data)
    cfg.dump(tmp_path / "dumped.py")
    (tmp_path / "train.json").unlink()
    again = typed(tmp_path / "dumped.py")
    assert again.to_dict() == cfg.to_dict()
    (tmp_path / "train.json").write_text(json.dumps(coco()))
    longer = typed(tmp_path / "dumped.py", {"epochs": 14})
    for before, after in zip(cfg.param_scheduler[1:], longer.param_scheduler[1:], strict=True):
        assert after["end"] == 2 * before["end"]


def one_of_each_kind():
    paths = sorted(CONFIGS.glob("[!_]*/*.py"))
    return list({(p.parent.name, p.name.split("_")[0]): p for p in paths}.values())


@pytest.mark.parametrize("path", one_of_each_kind(), ids=lambda path: path.stem)
def test_every_recipe_takes_every_option(path, tmp_path):
    """Loaded, sized and scheduled by options alone; the first images come out as asked for."""
    cfg = Config.fromfile(path)
    segments = cfg.default_scope == "mmseg"
    data = write_segmentation(tmp_path) if segments else write_detection(tmp_path)
    data |= {"image_size": 128, "batch_size": 1, "epochs": 40}
    if segments:
        data["img_suffix"] = ".jpg"
    cfg = typed(path, data)
    checked(cfg)
    init_default_scope(cfg.default_scope)
    images = DATASETS.build(cfg.val_dataloader.dataset)[0]["inputs"]
    assert max(images.shape[1:]) == 128
    assert DATASETS.build(cfg.train_dataloader.dataset)[0]["inputs"].shape[0] == 3
    ends = [scheduler["end"] for scheduler in cfg.param_scheduler]
    assert max(ends) == 80  # two images, an iteration each
    assert all(scheduler["by_epoch"] is False for scheduler in cfg.param_scheduler)


def test_published_recipes_stay_as_they_are_without_the_options(tmp_path):
    own = Config.fromfile(DETECTOR)
    cfg = typed(DETECTOR, write_detection(tmp_path))
    for key in ("param_scheduler", "train_cfg", "optim_wrapper", "train_pipeline"):
        assert cfg[key] == own[key]


# --------------------------------------------------------------------------- when it is checked


def options_of(data):
    return ["--cfg-options", *(f"custom_dataset.{key}={value}" for key, value in data.items())]


def test_check_data_prints_what_a_data_set_holds(tmp_path, capsys):
    data = write_detection(tmp_path)
    assert main([str(DETECTOR), *options_of(data)]) == 0
    printed = capsys.readouterr().out
    assert "train.json, 2 images, 2 instances" in printed
    assert "80 x 60" in printed
    line = next(line for line in printed.splitlines() if "bolt" in line)
    assert line.split()[:2] == ["bolt", "2"]
    assert "warning: train_dataloader.dataset: annotation file" in printed  # without a nut
    (tmp_path / "val" / "2.jpg").unlink()
    assert main([str(DETECTOR), *options_of(data)]) == 2
    assert capsys.readouterr().err.startswith("check_data.py: error: 1 of 2 files")


def test_each_annotation_file_is_parsed_once(tmp_path, monkeypatch):
    parsed = []
    load = json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.append(file.name) or load(file))
    checked(typed(DETECTOR, {**write_detection(tmp_path), "epochs": 3}))
    assert sorted(parsed) == [str(tmp_path / "train.json"), str(tmp_path / "val.json")]


@pytest.mark.parametrize(
    ("rank", "flags", "refused"), [("0", [], True), ("1", [], False), ("0", ["--no-check"], False)]
)
def test_the_main_process_checks_unless_told_not_to(rank, flags, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(processes, "_launcher", "pytorch")
    cfg = typed(DETECTOR, write_detection(tmp_path))
    (tmp_path / "val" / "2.jpg").unlink()
    args = train_parser().parse_args([str(DETECTOR), *flags])
    with pytest.raises(UsageError) if refused else contextlib.nullcontext():
        check_before_run(cfg, args, "train")


def test_a_slow_check_shows_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr(images, "_QUIET", 0.05)
    for _ in images.show_progress(range(3), "checking the images"):
        time.sleep(0.1)
    assert "checking the images" in capsys.readouterr().err


# --------------------------------------------------------------------------- settings of any kind


@pytest.mark.parametrize(
    "option",
    [
        "from_scratch.optim_wrapper=[]",
        "param_scheduler.0.end=never",
        "param_scheduler.1.T_max=[0,1]",
        "custom_hooks=3",
        "custom_hooks=(1,2)",
        "default_hooks.visualization=x",
        "val_dataloader.dataset.pipeline.1.type=''",
        "custom_dataset.reduce_zero_label=x",
        "model.decode_head.in_index=x",
        "train_dataloader.batch_size=None",
    ],
)
def test_a_setting_of_another_kind_is_one_line_that_names_it(option, tmp_path, capsys):
    data = {**write_segmentation(tmp_path), "img_suffix": ".jpg", "epochs": 2}
    data["classes"] = "('road','sky')"
    options = [f"custom_dataset.{key}={value}" for key, value in data.items()]
    options += ["model.backbone.init_cfg=None", option]
    arguments = [str(SMALL_SEGMENTOR), "--work-dir", str(tmp_path / "run"), "--cfg-options"]
    assert train([*arguments, *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train.py: error: ")
    assert option.partition("=")[0].split(".")[0] in lines[0]
    assert not (tmp_path / "run").exists()
