"""Repairs of evaluation, drawing, heads and losses of mmdet, mmseg and their neighbours."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import sys
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest
import torch

import convnext_backbone  # noqa: F401 - applies the repairs

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.utils import get_object_from_string

from convnext_backbone.openmmlab.patches import numpy_names
from convnext_backbone.openmmlab.patches.apply import REPAIRS


def test_modules_get_the_names_that_numpy_dropped_and_numpy_does_not():
    module = ModuleType("old")
    exec("import numpy as np\ndef f(): return np.zeros(2).astype(dtype=np.float)", vars(module))
    exec("def g(a, b): return np.in1d(a, b, invert=True).reshape(a.shape)", vars(module))
    numpy_names.repair(module)
    assert module.f().dtype == np.float64
    values = np.array([[1, 2], [3, 1]])
    assert module.g(values, [1]).tolist() == [[False, True], [True, False]]
    assert not hasattr(np, "float")
    with pytest.raises(AttributeError):
        module.np.no_such_name  # noqa: B018


def test_the_video_evaluation_of_mmdet_gives_1_for_the_truth():
    from mmdet.evaluation.functional import YTVIS, YTVISeval

    box = [2.0, 3.0, 20.0, 10.0]
    truth = {
        "videos": [{"id": 1, "width": 64, "height": 48, "length": 2}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "length": 2, "height": 48,
             "width": 64, "bboxes": [box, box], "areas": [200.0, 200.0],
             "segmentations": [[[2, 3, 22, 3, 22, 13, 2, 13]]] * 2}
        ],
    }  # fmt: skip
    annotations = YTVIS()
    annotations.dataset = truth
    annotations.createIndex()
    found = annotations.loadRes(
        [{"video_id": 1, "category_id": 1, "score": 0.9,
          "segmentations": [annotations.annToRLE(truth["annotations"][0], i) for i in (0, 1)]}]
    )  # fmt: skip
    evaluation = YTVISeval(annotations, found, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name",
    [
        "lvis.eval",
        "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling",
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
    ],
)
def test_packages_that_need_no_installing_here_are_repaired_too(name):
    assert REPAIRS[name] is numpy_names.repair


def test_mmdets_palette_grows_with_the_classes():
    from mmdet.visualization import palette

    colours = [(i, i, i) for i in range(3)]
    grown = palette.get_palette(colours, 5)
    assert grown[:3] == colours
    assert len(grown) == 5
    assert grown == palette.get_palette(colours, 5)
    assert palette.get_palette(colours, 2) == colours
    visualizer = sys.modules["mmdet.visualization.local_visualizer"]
    assert visualizer.get_palette is palette.get_palette


def test_mmsegs_tools_find_the_classes_that_a_config_names():
    from mmseg.datasets import ADE20KDataset, BaseSegDataset

    options = {"lazy_init": True, "pipeline": []}
    dataset = BaseSegDataset(metainfo={"classes": ("road", "sky")}, **options)
    assert dataset.METAINFO["classes"] == ("road", "sky")
    assert len(dataset.METAINFO["palette"]) == 2
    assert "classes" not in BaseSegDataset.METAINFO
    assert len(ADE20KDataset(**options).METAINFO["classes"]) == 150


def test_a_float_image_for_pillow_is_the_error_that_mmcv_means():
    from mmcv import adjust_hue

    with pytest.raises(AssertionError, match="uint8"):
        adjust_hue(np.zeros((2, 2, 3), np.float32), 0.1, backend="pillow")


def test_mmseg_draws_on_pictures_of_any_memory_layout():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    planes = np.random.default_rng(0).integers(0, 255, (3, 48, 64), dtype=np.uint8)
    picture = planes.transpose(1, 2, 0)  # as mmseg's browse_dataset has it
    assert not picture.flags.c_contiguous
    labels = torch.arange(48 * 64).reshape(1, 48, 64) // 1600
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    drawn = []
    for layout in (picture, np.ascontiguousarray(picture)):
        visualizer = SegLocalVisualizer()
        visualizer.dataset_meta = {"classes": ("a", "b"), "palette": [[255, 0, 0], [0, 255, 0]]}
        visualizer.add_datasample("", layout, sample)
        drawn.append(visualizer.get_image())
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] != picture).any()


def test_operations_are_counted_for_an_input_and_its_shape():
    from mmengine.analysis import get_model_complexity_info

    layer, image = torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
    quiet = {"show_table": False, "show_arch": False}
    assert get_model_complexity_info(layer, (3, 8, 8), inputs=image, **quiet)["flops"] == (
        4 * 6 * 6 * 3 * 3 * 3  # outputs times the size of the kernel
    )
    with pytest.raises(ValueError, match="cannot be both set"):
        get_model_complexity_info(layer, (3, 9, 9), inputs=image, **quiet)


def test_ssd_predicts():
    from mmdet.models.dense_heads import SSDHead
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = SSDHead(
            num_classes=2,
            in_channels=[4],
            anchor_generator=ConfigDict(
                type="SSDAnchorGenerator", scale_major=False, input_size=64, strides=[16],
                ratios=[[2]], min_sizes=[16], max_sizes=[32],
            ),
            test_cfg=ConfigDict(
                nms_pre=100, nms=ConfigDict(type="nms", iou_threshold=0.5), min_bbox_size=0,
                score_thr=0.0, max_per_img=5,
            ),
        )  # fmt: skip
    meta = {"img_shape": (64, 64), "scale_factor": (1.0, 1.0)}
    with torch.no_grad():
        maps = head([torch.randn(1, 4, 4, 4)])
    (found,) = head.predict_by_feat(*maps, batch_img_metas=[meta])
    scores = maps[0][0][0].view(4, 3, 4, 4).softmax(1)[:, :2]  # the third is the background's
    assert len(found) == 5
    assert float(found.scores[0]) == pytest.approx(float(scores.max()))


@pytest.mark.parametrize(
    "box",
    [[-30, 2, -20, 9], [2, -30, 9, -20], [40, 2, 50, 9], [2, 40, 9, 50], [-3, 4, 5, 40],
     [2, 3, 9, 11], [21, 2, 25, 9], [-1.5, 2, -0.5, 9], [20.5, 2, 24, 9]],
)  # fmt: skip
def test_masks_of_boxes_outside_of_the_image_are_empty_on_the_cpu_as_on_a_gpu(box):
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    height, width = 16, 20
    masks, boxes = torch.ones(1, 1, 28, 28), torch.tensor([box], dtype=torch.float32)
    paste = fcn_mask_head._do_paste_mask
    whole, _ = paste(masks, boxes, height, width, skip_empty=False)  # as on a GPU
    part, place = paste(masks, boxes, height, width, skip_empty=True)
    pasted = torch.zeros(1, height, width)
    pasted[(slice(None), *place)] = part
    torch.testing.assert_close(pasted, whole)


@pytest.mark.parametrize("box", [[9, 2, 3, 9], [2, 12, 9, 3]])
def test_boxes_that_end_before_they_begin_have_empty_masks(box):
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    boxes = torch.tensor([box], dtype=torch.float32)
    part, _ = fcn_mask_head._do_paste_mask(torch.ones(1, 1, 28, 28), boxes, 16, 20)
    assert part.numel() == 0


@pytest.mark.parametrize("avg_non_ignore", [False, True])
def test_weights_of_classes_stand_beside_void_pixels_as_in_torch(avg_non_ignore):
    from mmseg.models.losses import CrossEntropyLoss

    torch.manual_seed(0)
    weights = [0.5, 2.0, 1.0]
    loss = CrossEntropyLoss(class_weight=weights, avg_non_ignore=avg_non_ignore)
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    for void in (0, 4, 40):  # pixels
        labels.view(-1)[:void] = 255
        expected = torch.nn.functional.cross_entropy(
            scores, labels, torch.tensor(weights), ignore_index=255, reduction="sum"
        ) / max(sum(weights[label] for label in labels.view(-1)[void:]), 1e-7)
        torch.testing.assert_close(loss(scores, labels, ignore_index=255), expected)


@pytest.mark.parametrize("package", ["mmdet", "mmseg"])
def test_every_class_is_found_by_the_whole_name_that_a_dumped_config_has(package):
    import_module(f"{package}.models")
    registered = import_module(f"{package}.registry").MODELS.module_dict.values()
    classes = [found for found in registered if found.__module__.startswith(f"{package}.")]
    assert len(classes) > 50
    for found in classes:
        assert get_object_from_string(f"{found.__module__}.{found.__name__}") is found
    assert get_object_from_string("mmdet.models.losses.smooth_l1_loss.NoLoss") is None
    assert get_object_from_string("NoLoss") is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", [None, True])
def test_the_focal_loss_of_mmseg_works_without_a_gpu(channels, weights):
    from mmseg.models.losses import FocalLoss
    from torchvision.ops import sigmoid_focal_loss

    pred = torch.randn(2, channels, 4, 5)
    labels = torch.randint(0, max(channels, 2), (2, 4, 5))
    labels[0, :2] = 255
    class_weight = [float(i + 1) for i in range(channels)] if weights else None
    found = FocalLoss(alpha=0.3, gamma=1.5, class_weight=class_weight)(pred, labels)
    truth = torch.stack([labels == k + (channels == 1) for k in range(channels)], dim=1)
    each = sigmoid_focal_loss(pred, truth.float(), alpha=0.3, gamma=1.5)
    each = each * torch.tensor(class_weight or [1.0] * channels).view(1, -1, 1, 1)
    assert found.item() == pytest.approx((each * (labels != 255)[:, None]).mean().item(), rel=1e-5)
