# Mask R-CNN, DINOv3 ConvNeXt-L. No detector on these weights has been published: the settings are
# those of V1 in the same size from ImageNet-22K.
_base_ = "./mask-rcnn_convnext-l-in22k_fpn_8xb2-ms-crop-3x_coco.py"

model = dict(backbone=dict(init_cfg=dict(checkpoint="convnext_large.dinov3_lvd1689m")))
# V1-L was published in full precision; here bfloat16 where the GPU has it.
optim_wrapper = dict(type="AutoAmpOptimWrapper")
