# UperNet, DINOv3 ConvNeXt-B.
# No fine-tuned segmentor on these weights has been published: the settings are those of V1.
_base_ = "./upernet_convnext-b_8xb2-amp-160k_ade20k-512x512.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="convnext_base.dinov3_lvd1689m")))
