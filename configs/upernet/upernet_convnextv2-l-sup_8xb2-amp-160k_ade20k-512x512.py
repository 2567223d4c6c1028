# UperNet, ConvNeXt V2-L without FCMAE: supervised on ImageNet-1K from the start.
# Published: arXiv 2301.00808, table 7 and A.4.
_base_ = "./upernet_convnextv2-l_8xb2-amp-160k_ade20k-512x512.py"

# Never released: a file of your own training (A.1).
model = dict(backbone=dict(init_cfg=dict(checkpoint="checkpoints/convnextv2_large_sup_in1k.pth")))
