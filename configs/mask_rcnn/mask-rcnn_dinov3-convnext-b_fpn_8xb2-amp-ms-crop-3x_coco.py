# Mask R-CNN, DINOv3 ConvNeXt-B. No detector on these weights has been published: the settings are
# those of V1 in the same size from ImageNet-22K.
_base_ = [
    "../_base_/models/mask-rcnn_convnext_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_36e.py",
    "../_base_/default_runtime_det.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnext_base"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.6,
        init_cfg=dict(type="Pretrained", checkpoint="convnext_base.dinov3_lvd1689m"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.8),
)
