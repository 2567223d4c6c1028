# RetinaNet, ConvNeXt V2-Nano. Not published: the schedule of Mask R-CNN on ConvNeXt-T,
# with less drop path.
_base_ = "./retinanet_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py"
from convnext_backbone.archs import arch_fields

arch = "convnextv2_nano"
model = dict(
    backbone=dict(arch=arch, init_cfg=dict(checkpoint="convnextv2_nano.fcmae_ft_in1k")),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"][1:])),
)
