# DeepLabV3+, ConvNeXt-T dilated to a stride of 16, as arXiv 1802.02611 has its backbones. Not
# published: weights and schedule of the undilated one.
_base_ = "./deeplabv3plus_convnext-t_8xb2-amp-160k_ade20k-512x512.py"

model = dict(
    backbone=dict(output_stride=16),
    decode_head=dict(dilations=(1, 6, 12, 18)),  # the paper's rates at this stride
)
