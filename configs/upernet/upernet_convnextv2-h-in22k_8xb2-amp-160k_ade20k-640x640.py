# UperNet, ConvNeXt V2-H, FCMAE and then ImageNet-22K. Published: arXiv 2301.00808, table 7 and A.4.
# The paper sweeps layer decay {0.8, 0.9}, lr {1e-4, 2e-4, 3e-4} and drop path {0.1 to 0.4} and does
# not say which won: these are the values of V1.
_base_ = [
    "../_base_/models/upernet_convnext.py",
    "../_base_/datasets/ade20k_640x640_v2.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/default_runtime_seg.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnextv2_huge"
channels = list(arch_fields(arch)["hidden_sizes"])
crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=arch,
        drop_path_rate=0.4,
        layer_scale_init_value=0.0,  # GRN takes its place
        init_cfg=dict(type="Pretrained", checkpoint="convnextv2_huge.fcmae_ft_in22k_in1k_512"),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(426, 426)),
)
