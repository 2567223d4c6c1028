# Mask R-CNN, ConvNeXt V2-Atto, for some hundreds of images; not published. docs/own_data.md.
_base_ = [
    "../_base_/models/mask-rcnn_convnext_fpn.py",
    "../_base_/datasets/small_instance.py",
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
        in_channels=list(arch_fields(arch)["hidden_sizes"]),
        out_channels=width,
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[4]),  # objects from 16 pixels on
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=width, roi_layer=dict(sampling_ratio=2), finest_scale=28
        ),
        bbox_head=dict(in_channels=width, fc_out_channels=256),
        mask_roi_extractor=dict(
            out_channels=width, roi_layer=dict(sampling_ratio=2), finest_scale=28
        ),
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=300),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=300), rcnn=dict(max_per_img=300)),
)
