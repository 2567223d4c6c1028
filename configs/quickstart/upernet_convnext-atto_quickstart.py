# The segmentor of `make train-segmentation`: from random weights in minutes on two CPU cores.
_base_ = [
    "../_base_/models/upernet_convnext.py",
    "../_base_/datasets/quickstart_semantic.py",
    "../_base_/default_runtime_seg.py",
]

# Synchronised batch norm needs several GPUs.
norm_cfg = dict(type="BN", requires_grad=True)
# Five pixels in six are background, which says nothing about digits.
class_weight = [0.2] + [1.0] * 10
head = dict(
    channels=48,
    dropout_ratio=0.0,
    num_classes=11,
    norm_cfg=norm_cfg,
    loss_decode=dict(class_weight=class_weight),
)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch="convnext_atto", drop_path_rate=0.0),
    decode_head=dict(in_channels=[40, 80, 160, 320], **head),
    auxiliary_head=dict(in_channels=160, **head),
)

max_iters = 1500
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    # The heads start from logits near zero; at the backbone's rate they take 200 steps to grow.
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(head=dict(lr_mult=5.0))
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=max_iters, T_max=max_iters),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=500, max_keep_ckpts=1),
)
log_processor = dict(window_size=20)
auto_scale_lr = dict(base_batch_size=8, enable=False)
randomness = dict(seed=0)
