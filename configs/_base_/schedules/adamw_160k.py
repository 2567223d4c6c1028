# The segmentation schedule of both papers (A.3): AdamW, 160000 iterations of 16 images, a linear
# warm-up of 1500 iterations from 1e-6 and then a straight line to zero.
max_iters = 160000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, begin=1500, end=max_iters, eta_min=0.0, by_epoch=False),
]
optim_wrapper = dict(
    type="AutoAmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="ConvNextLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.9, decay_type="stage_wise", num_layers=None),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
