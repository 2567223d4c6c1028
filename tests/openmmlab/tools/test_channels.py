"""Maps that are not those which the model was written for are refused, whatever reads them."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import importlib

import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytestmark = [
    pytest.mark.openmmlab,
    # Of the first import of mmdet's Mask2Former.
    pytest.mark.filterwarnings("ignore:.*has been moved:ImportWarning"),
]

import torch

from convnext_backbone.openmmlab.tools.checks.model import check_model
from convnext_backbone.openmmlab.tools.config import build_model, load_config
from convnext_backbone.openmmlab.tools.errors import UsageError

WIDTHS = [8, 16, 24, 32]
# mmdet's own file, and the `out_indices` and `in_channels` of one whose stages count from 0.
FAMILIES = {
    "DINO": ("dino/dino-4scale_r50_8xb2-12e_coco.py", [1, 2, 3], [16, 24, 32]),
    "DINO of five levels": ("dino/dino-5scale_swin-l_8xb2-12e_coco.py", [0, 1, 2, 3], WIDTHS),
    "Deformable DETR": (
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", [1, 2, 3], [16, 24, 32],
    ),
    "DETR": ("detr/detr_r50_8xb2-150e_coco.py", [3], [32]),
    "YOLOF": ("yolof/yolof_r50-c5_8xb8-1x_coco.py", [3], 32),
    "YOLOv3": ("yolo/yolov3_d53_8xb8-320-273e_coco.py", [1, 2, 3], [32, 24, 16]),
    "YOLOX": ("yolox/yolox_s_8xb8-300e_coco.py", [1, 2, 3], [16, 24, 32]),
    "CenterNet": ("centernet/centernet_r18_8xb16-crop512-140e_coco.py", [3], 32),
    "NAS-FCOS": (
        "nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py", [0, 1, 2, 3], WIDTHS,
    ),
    "FPG": ("fpg/faster-rcnn_r50_fpg-chn128_crop640-50e_coco.py", [0, 1, 2, 3], WIDTHS),
    "SOLO": ("solo/solo_r50_fpn_1x_coco.py", [0, 1, 2, 3], WIDTHS),
    "SOLOv2": ("solov2/solov2_r50_fpn_1x_coco.py", [0, 1, 2, 3], WIDTHS),
    "Faster R-CNN": ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", [0, 1, 2, 3], WIDTHS),
    "Mask2Former": ("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", [0, 1, 2, 3], WIDTHS),
}  # fmt: skip
# Where `in_channels` stands in a model without a neck.
PARTS = {"Mask2Former": "panoptic_head"}
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def detector(tmp_path, name, indices, channels=None, *, scope="mmdet", **parts):
    """Write and load a config of mmdet with a small ConvNeXt in the place of its backbone."""
    backbone = {
        "_delete_": True, "type": "ConvNextBackbone", "hidden_sizes": WIDTHS,
        "depths": [1, 1, 1, 1], "out_indices": indices,
    }  # fmt: skip
    file, part = FAMILIES[name][0] if name in FAMILIES else name, PARTS.get(name, "neck")
    given = {} if channels is None else {part: {"in_channels": channels}}
    model = {"pretrained": None} if scope == "mmseg" else {}
    path = tmp_path / "own.py"
    path.write_text(
        f"_base_ = {f'{scope}::{file}'!r}\n"
        f"model = dict(backbone={backbone!r}, **{ {**model, **given, **parts}!r})\n"
    )
    return str(path)


def read_channels(cfg, name):
    part = cfg.model[PARTS.get(name, "neck")]
    return part.in_channels


@EVERY_FAMILY
def test_indices_that_count_from_0_beside_channels_that_say_so_are_refused(name, tmp_path):
    _, indices, channels = FAMILIES[name]
    path = detector(tmp_path, name, tuple(indices), channels)
    with pytest.raises(UsageError, match=r"stage\d \(stride \d+\).*out_indices 0 is the stem"):
        load_config(path, {}, ())


@EVERY_FAMILY
def test_typed_indices_that_count_from_0_are_refused_beside_channels_of_the_file(name, tmp_path):
    _, indices, channels = FAMILIES[name]
    path = detector(tmp_path, name, [i + 1 for i in indices], channels)
    assert read_channels(load_config(path, {}, ()), name) == channels
    with pytest.raises(UsageError, match="out_indices 0 is the stem"):
        load_config(path, {"model.backbone.out_indices": indices}, ())
    part = PARTS.get(name, "neck")
    typed = {"model.backbone.out_indices": indices, f"model.{part}.in_channels": channels}
    with pytest.raises(UsageError, match="out_indices 0 is the stem"):
        load_config(path, typed, ())


@EVERY_FAMILY
@pytest.mark.parametrize("as_written", [True, False])
def test_indices_that_are_right_give_any_neck_its_channels(name, as_written, tmp_path, capsys):
    """Whether its channels are written or left over from the ResNet of the base."""
    _, indices, channels = FAMILIES[name]
    path = detector(tmp_path, name, [i + 1 for i in indices], channels if as_written else None)
    cfg = load_config(path, {}, ())
    assert read_channels(cfg, name) == channels
    check_model(cfg)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["SOLO", "SOLOv2", "DINO of five levels"])
def test_the_stem_and_all_stages_but_the_last_are_a_count_from_0_in_any_model(name, tmp_path):
    with pytest.raises(UsageError, match=r"the last stage is not used; in out_indices 0 is the"):
        load_config(detector(tmp_path, name, [0, 1, 2, 3]), {}, ())
    named = {"model.backbone.out_features": ["stem", "stage1", "stage2", "stage3"]}
    cfg = load_config(detector(tmp_path, name, [0, 1, 2, 3]), named, ())
    assert read_channels(cfg, name) == [8, 8, 16, 24]


@pytest.mark.parametrize("name", ["YOLOF", "YOLOv3", "NAS-FCOS", "FPG"])
def test_strides_behind_necks_of_their_own_kind_are_compared(name, tmp_path):
    """`in_channels` of the ResNet stay in the file, and the anchors or points give it away."""
    _, indices, _ = FAMILIES[name]
    with pytest.raises(UsageError, match=r"out_indices 0 is the stem"):
        check_model(load_config(detector(tmp_path, name, indices), {}, ()))


@pytest.mark.parametrize("name", ["DINO", "Deformable DETR", "DETR", "CenterNet"])
def test_a_last_stage_that_nothing_reads_is_told_where_no_strides_show_it(name, tmp_path, capsys):
    _, indices, _ = FAMILIES[name]
    check_model(load_config(detector(tmp_path, name, indices), {}, ()))
    assert "warning: model.backbone has the maps stage" in capsys.readouterr().out
    names = [f"stage{i}" for i in indices]
    options = {"model.backbone.out_features": names}
    check_model(load_config(detector(tmp_path, name, indices), options, ()))
    assert "warning" not in capsys.readouterr().out


def test_named_stages_are_what_they_say(tmp_path):
    """`out_features` cannot be miscounted, so the channels of another choice are left over."""
    path = detector(tmp_path, "DINO", [2, 3, 4], [16, 24, 32])
    options = {"model.backbone.out_features": ["stage1", "stage2", "stage3"]}
    assert load_config(path, options, ()).model.neck.in_channels == [8, 16, 24]


def test_channels_of_a_smaller_architecture_are_left_over(tmp_path):
    path = detector(tmp_path, "DINO", [2, 3, 4], [8, 16, 24])
    assert load_config(path, {}, ()).model.neck.in_channels == [16, 24, 32]
    path = detector(tmp_path, "YOLOF", [-1], 24)
    assert load_config(path, {}, ()).model.neck.in_channels == 32


@pytest.mark.parametrize(("indices", "channels"), [([1, 2, 3], 32), ([3], 32), ((0, 1, 2, 3), 24)])
def test_a_head_of_a_segmentor_is_refused_alike(indices, channels, tmp_path):
    head = {"in_channels": channels, "in_index": -1 if channels == 32 else 2}
    path = detector(
        tmp_path, "fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py", indices, scope="mmseg",
        decode_head=head, auxiliary_head=None,
    )  # fmt: skip
    with pytest.raises(UsageError, match="out_indices 0 is the stem"):
        load_config(path, {}, ())


def test_a_neck_of_the_users_own_keeps_its_channels(tmp_path):
    """It may read some of the maps only."""
    neck = {"_delete_": True, "type": "OwnNeck", "in_channels": [24, 32]}
    path = detector(tmp_path, "retinanet/retinanet_r50_fpn_1x_coco.py", [1, 2, 3, 4], neck=neck)
    assert load_config(path, {}, ()).model.neck.in_channels == [24, 32]


@pytest.mark.parametrize("channels", [(16, 24, 32), (512, 1024, 2048)])
def test_channels_in_a_tuple_stay_in_one(channels, tmp_path):
    """mmsegmentation's JPU takes nothing else."""
    path = detector(
        tmp_path, "fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py", [2, 3, 4],
        scope="mmseg", neck={"in_channels": channels},
    )  # fmt: skip
    cfg = load_config(path, {}, ())
    assert cfg.model.neck.in_channels == (16, 24, 32)
    check_model(cfg)


def test_weights_of_another_network_in_a_base_are_named_with_their_setting(tmp_path):
    file = "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py"
    path = detector(tmp_path, file, [1, 2, 3, 4], scope="mmseg", pretrained="a://resnet50_v1c")
    with pytest.raises(UsageError, match=r"no argument 'pretrained'.*; set model\.pretrained=None"):
        check_model(load_config(path, {}, ()))


def test_a_norm_that_needs_the_processes_is_built_with_them(tmp_path):
    neck = {"norm_cfg": {"type": "MMSyncBN"}}
    path = detector(tmp_path, "retinanet/retinanet_r50_fpn_1x_coco.py", [1, 2, 3, 4], neck=neck)
    check_model(load_config(path, {}, (), "pytorch"))
    with pytest.raises(UsageError, match="process group"):
        check_model(load_config(path, {}, ()))


# --------------------------------------------------------------------------- without a neck


@pytest.mark.parametrize("name", ["faster-rcnn_r50-caffe-c4", "mask-rcnn_r50-caffe-c4"])
def test_a_detector_without_a_neck_gets_the_channels_of_its_map(name, tmp_path):
    roi_head = {"shared_head": None}
    path = detector(tmp_path, f"_base_/models/{name}.py", [3], roi_head=roi_head)
    with open(path, "a", encoding="utf-8") as file:
        file.write("default_scope = 'mmdet'\n")
    cfg = load_config(path, {}, ())
    model = cfg.model
    assert model.rpn_head.in_channels == model.roi_head.bbox_head.in_channels == 24
    assert model.roi_head.bbox_roi_extractor.out_channels == 24
    cfg.model.roi_head.bbox_head.roi_feat_size = 14  # which the shared head would halve
    check_model(cfg)
    detector_ = build_model(cfg, "cpu")
    features = detector_.extract_feat(torch.zeros(1, 3, 64, 64))
    assert features[0].shape == (1, 24, 4, 4)
    assert detector_.rpn_head(features)[0][0].shape[-2:] == (4, 4)
    rois = torch.tensor([[0.0, 0.0, 0.0, 32.0, 32.0]])
    assert detector_.roi_head._bbox_forward(features, rois)["cls_score"].shape == (1, 81)
    with pytest.raises(UsageError, match=r"rpn_head\.in_channels is 1024, but"):
        load_config(path, {"model.rpn_head.in_channels": 1024}, ())


def test_channels_left_over_are_those_of_no_other_stage_where_the_strides_fit(tmp_path):
    """1024 of ResNet-50's third stage are also the last stage's of a base model."""
    backbone = {"hidden_sizes": [128, 256, 512, 1024]}
    path = detector(
        tmp_path, "_base_/models/faster-rcnn_r50-caffe-c4.py", [3], roi_head={"shared_head": None}
    )
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"default_scope = 'mmdet'\nmodel['backbone'].update({backbone!r})\n")
    assert load_config(path, {}, ()).model.rpn_head.in_channels == 512


def test_a_detector_of_the_users_own_keeps_the_channels_of_its_heads(tmp_path, monkeypatch):
    """It may have layers between the maps and its heads."""
    (tmp_path / "own_channels_detector.py").write_text(
        "from mmdet.models import FasterRCNN\nfrom mmdet.registry import MODELS\n"
        "@MODELS.register_module(force=True)\nclass OwnChannelsDetector(FasterRCNN): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_channels_detector")
    path = detector(
        tmp_path, "_base_/models/faster-rcnn_r50-caffe-c4.py", [3], type="OwnChannelsDetector"
    )
    with open(path, "a", encoding="utf-8") as file:
        file.write("default_scope = 'mmdet'\n")
    assert load_config(path, {}, ()).model.rpn_head.in_channels == 1024
