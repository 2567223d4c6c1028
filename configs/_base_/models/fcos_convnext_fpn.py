# FCOS (arXiv 1904.01355) with an FPN on ConvNeXt-Tiny, with the later improvements of its head:
# centre sampling, normalised boxes, centreness on the box branch and GIoU.
_base_ = "./retinanet_convnext_fpn.py"

model = dict(
    type="FCOS",
    neck=dict(add_extra_convs="on_output", relu_before_extra_convs=True),
    bbox_head=dict(
        _delete_=True,
        type="FCOSHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        strides=[8, 16, 32, 64, 128],
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        conv_bias=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=None,
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
