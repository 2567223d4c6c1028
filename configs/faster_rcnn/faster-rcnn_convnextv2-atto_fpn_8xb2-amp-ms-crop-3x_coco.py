# Faster R-CNN, ConvNeXt V2-Atto. Not published: the schedule of Mask R-CNN on ConvNeXt-T,
# with less drop path.
_base_ = [
    "../_base_/models/faster-rcnn_convnext_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/adamw_36e.py",
    "../_base_/default_runtime_det.py",
]
from convnext_backbone.archs import arch_fields

arch = "convnextv2_atto"
model = dict(
    backbone=dict(
        arch=arch,
        drop_path_rate=0.1,
        layer_scale_init_value=0.0,  # GRN takes its place
        init_cfg=dict(type="Pretrained", checkpoint="convnextv2_atto.fcmae_ft_in1k"),
    ),
    neck=dict(in_channels=list(arch_fields(arch)["hidden_sizes"])),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(decay_rate=0.95),
)
