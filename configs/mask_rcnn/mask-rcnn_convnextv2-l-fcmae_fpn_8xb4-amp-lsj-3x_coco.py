# Mask R-CNN, ConvNeXt V2-L from FCMAE. Published: arXiv 2301.00808, table 6 and A.3.
# The paper sweeps layer decay {0.9, 0.95} and drop path {0.2, 0.3, 0.4, 0.5} and does not say
# which won.
_base_ = "./mask-rcnn_convnextv2-b-fcmae_fpn_8xb4-amp-lsj-3x_coco.py"
from convnext_backbone.archs import arch_fields

arch = "convnextv2_large"
model = dict(
    backbone=dict(
        arch=arch, drop_path_rate=0.5, init_cfg=dict(checkpoint="convnextv2_large.fcmae")
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
)
