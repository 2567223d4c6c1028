# A linear layer on frozen DINOv3 ConvNeXt-S. Published: arXiv 2508.10104 and its MODEL_CARD.md.
_base_ = [
    "../_base_/models/linear_convnext.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_40k_linear.py",
    "../_base_/default_runtime_seg.py",
]
from convnext_backbone.archs import arch_fields

# The head is this package's own.
custom_imports = dict(
    imports=["convnext_backbone", "convnext_backbone.openmmlab.linear_head"],
    allow_failed_imports=False,
)
arch = "convnext_small"
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        arch=arch,
        init_cfg=dict(type="Pretrained", checkpoint="convnext_small.dinov3_lvd1689m"),
    ),
    decode_head=dict(in_channels=arch_fields(arch)["hidden_sizes"][3]),
)
