# UperNet, ConvNeXt-S, ImageNet-1K. Published: facebookresearch/ConvNeXt, semantic_segmentation.
_base_ = [
    "../_base_/models/upernet_convnext.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/default_runtime_seg.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnext_small"
channels = list(arch_fields(arch)["hidden_sizes"])
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=arch,
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="convnext_small.fb_in1k_noema"),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
