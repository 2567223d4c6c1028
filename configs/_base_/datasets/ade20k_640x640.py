# ADE20K, cropped to 640 x 640 for training; the rest as for 512 x 512.
_base_ = "./ade20k_512x512.py"

crop_size = (640, 640)
image_scale = (2560, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = image_scale
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_scale
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(
        type="Resize",
        scale=(int(image_scale[0] * r), int(image_scale[1] * r)),
        keep_ratio=True,
    )
    for r in _base_.img_ratios
]
