# Mask2Former, DINOv3 ConvNeXt-T. Not published: the settings are those of V1.
_base_ = "./mask2former_convnext-t_8xb2-160k_ade20k-512x512.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="convnext_tiny.dinov3_lvd1689m")))
