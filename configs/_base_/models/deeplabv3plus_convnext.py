# DeepLabV3+ (arXiv 1802.02611) on ConvNeXt-Tiny. The backbone is not dilated: the pyramid's rates
# are a quarter of those for a stride of 8, and the decoder brings the stride back to 4.
_base_ = "./upernet_convnext.py"
from convnext_backbone.archs import arch_fields

channels = list(arch_fields("convnext_tiny")["hidden_sizes"])
model = dict(
    # A stage that no head reads would leave its norm without a gradient.
    backbone=dict(out_features=["stage1", "stage3", "stage4"]),
    decode_head=dict(
        _delete_=True,
        type="DepthwiseSeparableASPPHead",
        in_channels=channels[3],
        in_index=2,
        channels=512,
        dilations=(1, 3, 6, 9),
        c1_in_channels=channels[0],
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(in_index=1),
)
