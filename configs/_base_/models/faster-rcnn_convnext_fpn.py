# Faster R-CNN (arXiv 1506.01497) with an FPN on ConvNeXt-Tiny: Mask R-CNN without its mask branch.
_base_ = "./mask-rcnn_convnext_fpn.py"

roi_head = _base_.model.roi_head
rcnn = _base_.model.train_cfg.rcnn
rcnn.pop("mask_size")
rcnn.assigner.match_low_quality = False
model = dict(
    type="FasterRCNN",
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(
        _delete_=True,
        type="StandardRoIHead",
        bbox_roi_extractor=roi_head.bbox_roi_extractor,
        bbox_head=roi_head.bbox_head,
    ),
    train_cfg=dict(rcnn=dict(_delete_=True, **rcnn)),
    test_cfg=dict(
        rcnn=dict(
            _delete_=True,
            score_thr=0.05,
            nms=dict(type="nms", iou_threshold=0.5),
            max_per_img=100,
        )
    ),
)
del roi_head, rcnn
