# Mask R-CNN, ConvNeXt V2-B without FCMAE: supervised on ImageNet-1K from the start.
# Published: arXiv 2301.00808, table 6 and A.3.
_base_ = "./mask-rcnn_convnextv2-b-fcmae_fpn_8xb4-amp-lsj-3x_coco.py"

# Never released: a file of your own training (A.1).
model = dict(backbone=dict(init_cfg=dict(checkpoint="checkpoints/convnextv2_base_sup_in1k.pth")))
