# UperNet, ConvNeXt-B, ImageNet-22K. Published: facebookresearch/ConvNeXt, semantic_segmentation.
_base_ = [
    "../_base_/models/upernet_convnext.py",
    "../_base_/datasets/ade20k_640x640.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/default_runtime_seg.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnext_base"
channels = list(arch_fields(arch)["hidden_sizes"])
crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=arch,
        drop_path_rate=0.4,
        init_cfg=dict(type="Pretrained", checkpoint="convnext_base.fb_in22k"),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(426, 426)),
)
