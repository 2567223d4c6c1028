"""One real step of training on the CPU for one config of every kind of model."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
pytestmark = pytest.mark.openmmlab

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from convnext_backbone.openmmlab.tools.config import register_models
from convnext_backbone.openmmlab.tools.config_options import apply_options

CONFIGS = Path(__file__).parents[2] / "configs"
SIDE = 64
# As published, a two-stage head runs on 512 boxes per image, which takes a CPU a minute.
FEW = {
    "model.train_cfg.rpn_proposal.max_per_img": 50,
    "model.test_cfg.rpn.max_per_img": 20,
}
# One config of each kind, with a small backbone in place of its own, and what else is made small.
KINDS = {
    "mask_rcnn/mask-rcnn_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py": FEW,
    "mask_rcnn/mask-rcnn_convnextv2-b-fcmae_fpn_8xb4-amp-lsj-3x_coco.py": FEW,
    "cascade_rcnn/cascade-mask-rcnn_convnext-t_fpn_4conv1fc-giou_8xb2-amp-ms-crop-3x_coco.py": FEW,
    "faster_rcnn/faster-rcnn_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py": FEW,
    "retinanet/retinanet_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py": {},
    "fcos/fcos_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py": {},
    # A small image has fewer points than the published number of queries.
    "dino/dino-4scale_convnext-t_8xb2-12e_coco.py": {"model.num_queries": 50},
    # Its norms take groups of 32 channels.
    "rtmdet/rtmdet-l_convnext-b_4xb32-100e_coco.py": {"model.backbone.arch": "convnext_tiny"},
    "upernet/upernet_convnext-t_8xb2-amp-160k_ade20k-512x512.py": {},
    "upernet/upernet_convnextv2-atto_8xb2-amp-160k_ade20k-512x512.py": {},
    "linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py": {},
    "mask2former/mask2former_convnext-t_8xb2-160k_ade20k-512x512.py": {},
    "segformer/segformer_convnext-t_8xb2-amp-160k_ade20k-512x512.py": {},
    "deeplabv3plus/deeplabv3plus_convnext-t_8xb2-amp-160k_ade20k-512x512.py": {},
    "small_data/mask-rcnn_convnextv2-atto_fpn_1xb4-amp-40e_own-data.py": FEW,
    "small_data/retinanet_convnextv2-atto_fpn_1xb4-amp-40e_own-data.py": {},
    "small_data/upernet_convnextv2-atto_1xb8-amp-4k_own-data.py": {},
}


def small(name, options):
    cfg = Config.fromfile(CONFIGS / name)
    family = "v2" if "convnextv2" in name else ""
    cfg.merge_from_dict({"model.backbone.arch": f"convnext{family}_atto", **options})
    if cfg.default_scope == "mmseg":
        cfg.merge_from_dict({"model.data_preprocessor.size": (SIDE, SIDE)})
    del cfg.model.backbone["init_cfg"]
    apply_options(cfg)
    return cfg


def detection_batch(with_mask):
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for _ in range(2):
        boxes = torch.tensor([[4.0, 4, 28, 36], [20, 15, 60, 55]])
        masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        shape = (SIDE, SIDE)
        sample = DetDataSample(
            metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
        )
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(boxes),
            labels=torch.tensor([1, 17]),
        )
        if with_mask:
            sample.gt_instances.masks = BitmapMasks(masks.numpy(), SIDE, SIDE)
        sample.ignored_instances = InstanceData(bboxes=HorizontalBoxes(torch.zeros(0, 4)))
        samples.append(sample)
    return samples


def segmentation_batch():
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = torch.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) // (SIDE * SIDE // 4)
        shape = (SIDE, SIDE)
        sample = SegDataSample(metainfo={"img_shape": shape, "ori_shape": shape})
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return samples


@pytest.mark.parametrize(("name", "options"), KINDS.items(), ids=lambda v: str(v).split("/")[0])
def test_a_step_moves_every_part_that_trains(name, options):
    cfg = small(name, options)
    register_models(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    grads = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The wrapper clears the gradients after the step.
            parameter.register_post_accumulate_grad_hook(
                lambda p, key=parameter_name: grads.__setitem__(key, p.grad.isfinite().all())
            )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if cfg.default_scope == "mmdet":
        samples = detection_batch(model.with_mask)
    else:
        samples = segmentation_batch()
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in samples]
    logged = model.train_step({"inputs": images, "data_samples": samples}, wrapper)
    assert torch.isfinite(logged["loss"])
    assert logged["loss"] > 0
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == {n.removeprefix("backbone.") for n in grads if n.startswith("backbone.")}
    assert all(grads.values())
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    parts = {n for n, m in model.named_children() if any(p.requires_grad for p in m.parameters())}
    # A linear probe leaves the backbone alone.
    still = {"backbone"} if name.startswith("linear/") else set()
    assert moved & {n for n, _ in model.named_children()} == parts - still
    model.eval()
    with torch.no_grad():
        results = model.test_step({"inputs": images, "data_samples": samples})
    assert len(results) == 2
