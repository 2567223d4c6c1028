# DINO with four scales, DINOv3 ConvNeXt-T. Not published: the schedule of mmdet's
# dino-4scale_r50_8xb2-12e_coco, which gives the backbone a tenth of the rate.
_base_ = "./dino-4scale_convnext-t_8xb2-12e_coco.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="convnext_tiny.dinov3_lvd1689m")))
