# SegFormer's all-MLP head (arXiv 2105.15203) on ConvNeXt-Tiny.
_base_ = "./upernet_convnext.py"

model = dict(
    decode_head=dict(
        _delete_=True,
        type="SegformerHead",
        in_channels=_base_.model.decode_head.in_channels,
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
