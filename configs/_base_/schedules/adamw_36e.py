# The detection schedule of both papers (A.3): AdamW, 36 epochs, steps at 27 and 33, and a linear
# warm-up of 1000 iterations. The rates are for 16 images per step.
max_epochs = 36
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type="MultiStepLR", begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1
    ),
]
optim_wrapper = dict(
    type="AutoAmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="ConvNextLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.95, decay_type="layer_wise", num_layers=None),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
