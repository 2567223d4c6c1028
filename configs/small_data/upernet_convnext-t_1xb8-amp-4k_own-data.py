# UperNet, ConvNeXt-T, for some hundreds of images; not published. docs/own_data.md.
_base_ = "./upernet_convnextv2-atto_1xb8-amp-4k_own-data.py"
from convnext_backbone.archs import arch_fields

arch = "convnext_tiny"
channels = list(arch_fields(arch)["hidden_sizes"])
width = 128
model = dict(
    backbone=dict(
        arch=arch,
        layer_scale_init_value=1.0,
        init_cfg=dict(checkpoint="convnext_tiny.fb_in1k"),
    ),
    decode_head=dict(in_channels=channels, channels=width),
    auxiliary_head=dict(in_channels=channels[2], channels=width),
)
