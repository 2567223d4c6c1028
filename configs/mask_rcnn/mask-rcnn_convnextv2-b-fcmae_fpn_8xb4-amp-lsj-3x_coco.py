# Mask R-CNN, ConvNeXt V2-B from FCMAE. Published: arXiv 2301.00808, table 6 and A.3.
# The paper sweeps layer decay {0.9, 0.95} and drop path {0.2, 0.3, 0.4, 0.5} and does not say
# which won.
# These are the values of mmdet's project ConvNeXt-V2, which reached 52.9 box AP with them.
_base_ = [
    "../_base_/models/mask-rcnn_convnext_fpn.py",
    "../_base_/datasets/coco_instance_lsj.py",
    "../_base_/schedules/adamw_36e.py",
    "../_base_/default_runtime_det.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnextv2_base"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.4,
        layer_scale_init_value=0.0,  # GRN takes its place
        init_cfg=dict(type="Pretrained", checkpoint="convnextv2_base.fcmae"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
    # The paper tests with soft-NMS, by mmdet's default: linear, to a score of 0.001.
    test_cfg=dict(rcnn=dict(nms=dict(type="soft_nms", iou_threshold=0.5))),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.95),
)
auto_scale_lr = dict(base_batch_size=32)
