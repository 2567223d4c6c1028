# A linear layer on frozen DINOv3 ConvNeXt-B. Published: arXiv 2508.10104 and its MODEL_CARD.md.
_base_ = "./linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py"
from convnext_backbone.archs import arch_fields

arch = "convnext_base"
model = dict(
    backbone=dict(arch=arch, init_cfg=dict(checkpoint="convnext_base.dinov3_lvd1689m")),
    decode_head=dict(in_channels=arch_fields(arch)["hidden_sizes"][3]),
)
