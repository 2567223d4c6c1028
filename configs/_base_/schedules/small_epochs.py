# A detector on some hundreds of images: a cosine over the whole training. The lower layers learn
# slowly where they come with weights, and like all others where they do not.
_base_ = "../default_runtime_det.py"

max_epochs = 40
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=8)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type="AutoAmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="ConvNextLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.7, decay_type="layer_wise", num_layers=None),
)
# Merged into the config where the backbone starts from random weights (init_cfg=None).
from_scratch = dict(
    model=dict(backbone=dict(drop_path_rate=0.0)),
    optim_wrapper=dict(optimizer=dict(lr=1.5e-3), paramwise_cfg=dict(decay_rate=1.0)),
)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=8, max_keep_ckpts=1))
log_processor = dict(window_size=20)
auto_scale_lr = dict(enable=False, base_batch_size=4)
