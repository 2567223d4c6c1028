# DINO with four scales, ConvNeXt-T, ImageNet-1K. Not published: the schedule of mmdet's
# dino-4scale_r50_8xb2-12e_coco, which gives the backbone a tenth of the rate.
_base_ = [
    "../_base_/models/dino_convnext.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/default_runtime_det.py",
]

model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="convnext_tiny.fb_in1k_noema"))
)
train_pipeline = _base_.train_pipeline
# Before the crop, sizes so long that the short side alone decides.
train_pipeline[3].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline)
)

max_epochs = 12
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="MultiStepLR", begin=0, end=max_epochs, by_epoch=True, milestones=[11], gamma=0.1)
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
