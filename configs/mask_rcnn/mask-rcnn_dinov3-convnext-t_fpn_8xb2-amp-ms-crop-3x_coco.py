# Mask R-CNN, DINOv3 ConvNeXt-T.
# No detector on these weights has been published: the settings are those of V1 in the same size.
_base_ = "./mask-rcnn_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="convnext_tiny.dinov3_lvd1689m")))
