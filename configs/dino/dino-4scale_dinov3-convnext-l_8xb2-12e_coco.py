# DINO with four scales, DINOv3 ConvNeXt-L. Not published: the schedule of T, and the stochastic
# depth of V1's detectors in the same size.
_base_ = "./dino-4scale_dinov3-convnext-t_8xb2-12e_coco.py"
from convnext_backbone.archs import arch_fields

arch = "convnext_large"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.7,
        init_cfg=dict(checkpoint="convnext_large.dinov3_lvd1689m"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"][1:])),
)
