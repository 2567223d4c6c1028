# Mask R-CNN, ConvNeXt V2-Nano, for some hundreds of images; not published. docs/own_data.md.
_base_ = "./mask-rcnn_convnextv2-atto_fpn_1xb4-amp-40e_own-data.py"
from convnext_backbone.archs import arch_fields

arch = "convnextv2_nano"
width = 128
model = dict(
    backbone=dict(
        arch=arch,
        init_cfg=dict(checkpoint="convnextv2_nano.fcmae_ft_in1k"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"]), out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(in_channels=width, conv_out_channels=width),
    ),
)
