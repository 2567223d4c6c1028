# Cascade Mask R-CNN, ConvNeXt-XL, ImageNet-22K. Published: facebookresearch/ConvNeXt,
# object_detection. Published in full precision, without mixed precision.
_base_ = [
    "../_base_/models/cascade-mask-rcnn_convnext_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_36e.py",
    "../_base_/default_runtime_det.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnext_xlarge"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.8,
        init_cfg=dict(type="Pretrained", checkpoint="convnext_xlarge.fb_in22k"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.7),
)
