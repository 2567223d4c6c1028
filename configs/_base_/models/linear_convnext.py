# A linear layer on the last map of a frozen ConvNeXt: what the features are worth by themselves.
# The head is DINOv3's (arXiv 2508.10104): batch norm and a 1x1 convolution.
_base_ = []
from convnext_backbone.archs import arch_fields

arch = "convnext_tiny"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(type="ConvNextBackbone", arch=arch, out_features=["stage4"], frozen_stages=4),
    decode_head=dict(
        type="LinearHead",
        in_channels=arch_fields(arch)["hidden_sizes"][3],
        in_index=0,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
