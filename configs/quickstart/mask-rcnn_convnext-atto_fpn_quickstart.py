# The detector of `make train`: from random weights to a box mAP above 0.65 in minutes on two CPU
# cores. Everything after the backbone is made small, because on a CPU it would cost more than
# the backbone itself.
_base_ = [
    "../_base_/models/mask-rcnn_convnext_fpn.py",
    "../_base_/datasets/quickstart_instance.py",
    "../_base_/default_runtime_det.py",
]

# From scratch, heads without a norm take several times as long to start learning.
norm_cfg = dict(type="BN", requires_grad=True)
# One sample in each bin instead of four: this operation's backward pass has a single thread.
roi_layer = dict(sampling_ratio=1)
model = dict(
    backbone=dict(arch="convnext_atto", drop_path_rate=0.0),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Digits are 25 to 65 pixels high and never wider than high.
        anchor_generator=dict(scales=[6], ratios=[1.0, 2.0], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=roi_layer),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64, roi_layer=roi_layer),
        mask_head=dict(
            num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10, norm_cfg=norm_cfg
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(max_per_img=50),
    ),
)

max_epochs = 6
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(max_keep_ckpts=1),
)
log_processor = dict(window_size=20)
auto_scale_lr = dict(base_batch_size=8, enable=False)
randomness = dict(seed=0)
