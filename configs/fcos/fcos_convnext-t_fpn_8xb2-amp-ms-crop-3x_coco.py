# FCOS, ConvNeXt-T, ImageNet-1K. Not published: the schedule of Mask R-CNN on the same weights.
_base_ = [
    "../_base_/models/fcos_convnext_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/adamw_36e.py",
    "../_base_/default_runtime_det.py",
]

model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="convnext_tiny.fb_in1k_noema"))
)
