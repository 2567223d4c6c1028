# Cascade Mask R-CNN, DINOv3 ConvNeXt-S.
# No detector on these weights has been published: the settings are those of V1 in the same size.
_base_ = "./cascade-mask-rcnn_convnext-s_fpn_4conv1fc-giou_8xb2-amp-ms-crop-3x_coco.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="convnext_small.dinov3_lvd1689m")))
