# UperNet, DINOv3 ConvNeXt-L.
# No fine-tuned segmentor on these weights has been published: the settings are those of V1.
_base_ = "./upernet_dinov3-convnext-b_8xb2-amp-160k_ade20k-512x512.py"
from convnext_backbone.archs import arch_fields

arch = "convnext_large"
channels = list(arch_fields(arch)["hidden_sizes"])
model = dict(
    backbone=dict(arch=arch, init_cfg=dict(checkpoint="convnext_large.dinov3_lvd1689m")),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
