# UperNet, ConvNeXt V2-Pico. Not published: the schedule of V1-T, with less drop path.
_base_ = "./upernet_convnextv2-atto_8xb2-amp-160k_ade20k-512x512.py"
from convnext_backbone.archs import arch_fields

arch = "convnextv2_pico"
channels = list(arch_fields(arch)["hidden_sizes"])
model = dict(
    backbone=dict(arch=arch, init_cfg=dict(checkpoint="convnextv2_pico.fcmae_ft_in1k")),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
