# SegFormer's head, ConvNeXt-T, ImageNet-1K. Not published: the schedule of UperNet on the same
# weights.
_base_ = [
    "../_base_/models/segformer_convnext.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/default_runtime_seg.py",
]

crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="convnext_tiny.fb_in1k_noema")),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
