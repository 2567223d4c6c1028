"""Shipped detectors and segmentors train and predict on the CPU through these operations.

Each takes its config as it comes, with a small ConvNextBackbone (or a narrow ResNet, where the
operation sits in the backbone), and must call the operations that it is here for.
"""

import functools
import importlib
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from convnext_backbone.openmmlab.mmcv_ops.table import OPS
from convnext_backbone.openmmlab.patches.apply import apply_compat

apply_compat()
pytestmark = pytest.mark.openmmlab

SIZE = 64
WIDTHS = [8, 16, 24, 32]
CONVNEXT = {
    "type": "ConvNextBackbone",
    "hidden_sizes": WIDTHS,
    "depths": [1, 1, 1, 1],
    "out_indices": [1, 2, 3, 4],
    "layer_scale_init_value": 1.0,
}
NARROW_RESNET = {"base_channels": 4, "stem_channels": 4, "init_cfg": None, "frozen_stages": -1}
NARROW_WIDTHS = [16, 32, 64, 128]
# 32 is what the groups and heads of the configs divide.
SMALLER = {1024: 64, 512: 32, 256: 32, 128: 16}
WIDTH_KEYS = {
    "channels",
    "conv_out_channels",
    "embed_dims",
    "fc_out_channels",
    "feat_channels",
    "feedforward_channels",
    "in_channels",
    "num_feats",
    "out_channels",
    "output_channels",
}
FEW_ROIS = {
    "model.train_cfg.rpn_proposal.max_per_img": 50,
    "model.test_cfg.rpn.max_per_img": 10,
    "model.test_cfg.rcnn.score_thr": 0.0,
}
ALIGN = {"roi_align_forward", "roi_align_backward", "nms"}


@dataclass(frozen=True)
class Case:
    """A shipped config, what to make small in it, and the operations it must call."""

    library: str
    path: str
    ops: set
    changes: dict = field(default_factory=dict)
    resnet: bool = False


def rcnn(path, ops, changes=None, **options):
    few = {"model.train_cfg.rcnn.sampler.num": 16} if changes is None else changes
    return Case("mmdet", path, ALIGN | ops, FEW_ROIS | few, **options)


CASES = {
    "mask_rcnn": rcnn("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", set()),
    "cascade": rcnn("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", set(), {}),
    "soft_nms": rcnn("faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py", {"softnms"}),
    "pisa": rcnn(
        "pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py",
        {"nms_match"},
        {
            "model.train_cfg.rcnn.sampler.num": 16,
            "model.train_cfg.rcnn.sampler.score_thr": 0.0,
        },
    ),
    "dcn": rcnn(
        "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
        {"deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"},
        resnet=True,
    ),
    "dcnv2": rcnn(
        "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
        {"modulated_deform_conv_forward", "modulated_deform_conv_backward"},
        resnet=True,
    ),
    "carafe": rcnn(
        "carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py",
        {"carafe_forward", "carafe_backward"},
    ),
    "deform_roi_pool": Case(
        "mmdet",
        "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py",
        {"deform_roi_pool_forward", "deform_roi_pool_backward", "nms"},
        FEW_ROIS
        | {
            "model.roi_head.bbox_roi_extractor.roi_layer.deform_fc_channels": 16,
            "model.train_cfg.rcnn.sampler.num": 16,
        },
    ),
    "retinanet": Case(
        "mmdet",
        "retinanet/retinanet_r50_fpn_1x_coco.py",
        {"nms"},  # on the CPU mmdet has its own focal loss
        {"model.test_cfg.score_thr": 0.0},
    ),
    "guided_anchoring": Case(
        "mmdet",
        "guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py",
        {"deform_conv_forward", "deform_conv_backward_input", "masked_im2col_forward", "nms"},
        {"model.test_cfg.score_thr": 0.0},
    ),
    "deformable_detr": Case(
        "mmdet",
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
        set(),  # on the CPU mmcv attends by itself
        {
            "model.num_queries": 10,
            "model.bbox_head.embed_dims": 32,
            "model.backbone.out_indices": [2, 3, 4],
            "model.neck.in_channels": WIDTHS[1:],
            "model.neck.norm_cfg.num_groups": 8,
            "model.encoder.num_layers": 1,
            "model.decoder.num_layers": 1,
        },
    ),
    "mask2former": Case(
        "mmdet",
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
        set(),
        {
            "model.panoptic_head.in_channels": WIDTHS,
            "model.panoptic_head.num_queries": 10,
            "model.panoptic_head.pixel_decoder.encoder.num_layers": 1,
            "model.panoptic_head.transformer_decoder.num_layers": 1,
            "model.data_preprocessor.batch_augments": None,
            "model.train_cfg.num_points": 100,
            "model.test_cfg.max_per_image": 10,
        },
    ),
    "upernet": Case(
        "mmseg",
        "upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
        set(),
        {
            "model.decode_head.in_channels": WIDTHS,
            "model.decode_head.channels": 16,
            "model.auxiliary_head.in_channels": WIDTHS[2],
            "model.auxiliary_head.channels": 8,
        },
    ),
    "psanet": Case(
        "mmseg",
        "psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py",
        {"psamask_forward", "psamask_backward"},
        {
            "model.backbone.out_indices": [1, 2, 3, 4],
            "model.decode_head.in_channels": WIDTHS[3],
            "model.decode_head.channels": 8,
            "model.decode_head.mask_size": [3, 3],
            "model.auxiliary_head.in_channels": WIDTHS[2],
            "model.auxiliary_head.channels": 8,
        },
    ),
    "ccnet": Case(
        "mmseg",
        "ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512.py",
        set(),  # criss-cross attention is plain torch
        {
            "model.decode_head.in_channels": WIDTHS[3],
            "model.decode_head.channels": 8,
            "model.auxiliary_head.in_channels": WIDTHS[2],
            "model.auxiliary_head.channels": 8,
        },
    ),
    "point_rend": Case(
        "mmseg",
        "point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py",
        set(),  # point sampling is plain torch
        {"model.neck.in_channels": WIDTHS},
    ),
}


@pytest.fixture
def called(monkeypatch):
    """The names of the operations that were called."""
    names = set()
    module = sys.modules["mmcv._ext"]
    for name, function in OPS.items():

        @functools.wraps(function)
        def recording(*args, _name=name, _function=function, **kwargs):
            names.add(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(module, name, recording)
    return names


def shrink(node):
    """Make every width in a config a small one; what fits together still does."""
    for key, value in node.items():
        if isinstance(value, dict):
            shrink(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                shrink(item)
        elif key in WIDTH_KEYS and isinstance(value, list):
            node[key] = [SMALLER.get(item, item) for item in value]
        elif key in WIDTH_KEYS and isinstance(value, int):
            node[key] = SMALLER.get(value, value)


def load(case):
    root = Path(find_spec(case.library).submodule_search_locations[0], ".mim", "configs")
    config = Config.fromfile(root / case.path)
    model = config.model
    shrink(model)
    model.pop("pretrained", None)
    if case.resnet:
        model.backbone.update(NARROW_RESNET)
    else:
        model.backbone = dict(CONVNEXT)
    if model.get("neck", {}).get("in_channels"):
        model.neck.in_channels = NARROW_WIDTHS if case.resnet else WIDTHS
    if case.library == "mmseg":
        model.data_preprocessor.size = (SIZE, SIZE)  # the size that images are padded to
    config.merge_from_dict(case.changes, allow_list_keys=False)
    return config


def detection_sample(size):
    """Two boxes with their whole area as masks."""
    boxes = torch.tensor([[4.0, 8.0, 30.0, 32.0], [30.0, 24.0, 60.0, 62.0]])
    masks = np.zeros((2, size, size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    sample = DetDataSample(
        metainfo={
            "img_shape": (size, size),
            "ori_shape": (size, size),
            "scale_factor": (1.0, 1.0),
            "img_id": 1,
            "img_path": "",
        }
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 1]), masks=BitmapMasks(masks, size, size)
    )
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0).long())
    return sample


def segmentation_sample(size):
    labels = torch.zeros(1, size, size, dtype=torch.long)
    labels[:, : size // 2, : size // 2] = 3
    labels[:, -8:] = 255  # to be ignored
    shape = {"img_shape": (size, size), "ori_shape": (size, size), "pad_shape": (size, size)}
    return SegDataSample(
        metainfo=shape | {"padding_size": [0] * 4}, gt_sem_seg=PixelData(data=labels)
    )


SAMPLES = {"mmdet": detection_sample, "mmseg": segmentation_sample}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_shipped_model_trains_and_predicts(name, called):
    case = CASES[name]
    importlib.import_module(f"{case.library}.utils").register_all_modules()
    init_default_scope(case.library)
    model = MODELS.build(load(case).model)
    model.init_weights()

    def batch(count):
        images = [torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8) for _ in range(count)]
        return {"inputs": images, "data_samples": [SAMPLES[case.library](SIZE) for _ in images]}

    model.train()
    data = model.data_preprocessor(batch(2), training=True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    assert loss.isfinite(), parts
    assert loss > 0
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)
    # What comes first must be reached from what comes last.
    first = next(n for n in grads if n.startswith("backbone."))
    assert grads[first].abs().sum() > 0

    model.eval()
    with torch.no_grad():  # of one image: masked convolution takes no more
        (prediction,) = model(**model.data_preprocessor(batch(1)), mode="predict")
    if case.library == "mmseg":
        assert prediction.pred_sem_seg.data.shape == (1, SIZE, SIZE)
    else:
        assert len(prediction.pred_instances) > 0
        assert prediction.pred_instances.scores.isfinite().all()
        assert prediction.pred_instances.bboxes.shape[1] == 4
    assert case.ops <= called
