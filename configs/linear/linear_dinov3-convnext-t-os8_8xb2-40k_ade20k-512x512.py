# A linear layer on frozen DINOv3 ConvNeXt-T, dilated to a stride of 8: the same weights give a map
# with sixteen times as many pixels. Not published.
_base_ = "./linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py"

model = dict(backbone=dict(output_stride=8))
