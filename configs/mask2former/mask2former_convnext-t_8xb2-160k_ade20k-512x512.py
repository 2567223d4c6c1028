# Mask2Former, ConvNeXt-T, ImageNet-1K. Not published: the schedule of mmsegmentation's
# mask2former_swin-t_8xb2-160k_ade20k-512x512, which gives the backbone a tenth of the rate.
_base_ = [
    "../_base_/models/mask2former_convnext.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/default_runtime_seg.py",
]

# The `mmdet.` types of the head are registered by mmdet.models.
custom_imports = dict(imports=["convnext_backbone", "mmdet.models"], allow_failed_imports=False)
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="convnext_tiny.fb_in1k_noema")),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(
        type="RandomChoiceResize",
        scales=[int(512 * 0.1 * tenths) for tenths in range(5, 21)],
        resize_type="ResizeShortestEdge",
        max_size=2048,
    ),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

max_iters = 160000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="PolyLR", eta_min=0, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0),
            query_embed=embedding,
            query_feat=embedding,
            level_embed=embedding,
        ),
        norm_decay_mult=0.0,
    ),
)
default_hooks = dict(checkpoint=dict(interval=5000, save_best="mIoU"))
auto_scale_lr = dict(enable=False, base_batch_size=16)
