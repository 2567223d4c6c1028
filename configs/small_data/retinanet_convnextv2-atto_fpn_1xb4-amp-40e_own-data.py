# RetinaNet, ConvNeXt V2-Atto, for some hundreds of images; not published. docs/own_data.md.
_base_ = [
    "../_base_/models/retinanet_convnext_fpn.py",
    "../_base_/datasets/small_detection.py",
    "../_base_/schedules/small_epochs.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnextv2_atto"
width = 64
# From scratch, layers without a norm take several times as long to start learning.
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.1,
        layer_scale_init_value=0.0,  # GRN takes its place
        init_cfg=dict(type="Pretrained", checkpoint="convnextv2_atto.fcmae_ft_in1k"),
    ),
    neck=dict(
        in_channels=list(arch_fields(arch)["hidden_sizes"][1:]),
        out_channels=width,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        in_channels=width,
        stacked_convs=2,
        feat_channels=width,
        norm_cfg=norm_cfg,
        anchor_generator=dict(octave_base_scale=2),  # objects from 16 pixels on
    ),
    test_cfg=dict(max_per_img=300),
)
