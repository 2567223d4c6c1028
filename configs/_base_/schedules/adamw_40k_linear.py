# The schedule of DINOv3's linear segmentation (dinov3/eval/segmentation): AdamW, 40000 iterations
# of 16 images. The warm-up and the cosine stand in for its one-cycle policy.
max_iters = 40000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=1500,
        end=max_iters,
        T_max=max_iters - 1500,
        eta_min=0.0,
    ),
]
# The stages are frozen by the model; the norm of the last map is the backbone's own and is frozen
# by a rate of zero, which also stops its weight decay.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.0, decay_mult=0.0))),
    clip_grad=dict(max_norm=35, norm_type=2),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
