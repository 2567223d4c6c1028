# Cascade Mask R-CNN, ConvNeXt-T, ImageNet-1K. Published: facebookresearch/ConvNeXt,
# object_detection.
_base_ = [
    "../_base_/models/cascade-mask-rcnn_convnext_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_36e.py",
    "../_base_/default_runtime_det.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnext_tiny"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint="convnext_tiny.fb_in1k_noema"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(decay_rate=0.7),
)
