# UperNet, ConvNeXt V2-H, FCMAE and then ImageNet-1K. Published: arXiv 2301.00808, table 7 and A.4.
# The paper sweeps layer decay {0.8, 0.9}, lr {1e-4, 2e-4, 3e-4} and drop path {0.1 to 0.4} and does
# not say which won: these are the values of V1.
_base_ = "./upernet_convnextv2-b_8xb2-amp-160k_ade20k-512x512.py"
from convnext_backbone.archs import arch_fields

arch = "convnextv2_huge"
channels = list(arch_fields(arch)["hidden_sizes"])
model = dict(
    backbone=dict(arch=arch, init_cfg=dict(checkpoint="convnextv2_huge.fcmae_ft_in1k")),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
