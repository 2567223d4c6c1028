# Mask2Former, DINOv3 ConvNeXt-S. Not published: the settings of T, and the stochastic depth of
# V1's UperNet in the same size.
_base_ = "./mask2former_dinov3-convnext-t_8xb2-160k_ade20k-512x512.py"
from convnext_backbone.archs import arch_fields

arch = "convnext_small"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="convnext_small.dinov3_lvd1689m"),
    ),
    decode_head=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
)
