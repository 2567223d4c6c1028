# Label maps of the user's own, some hundreds of images, named by options; docs/own_data.md.
_base_ = "./ade20k_512x512.py"

# `image_size` is the box that images are fitted into; the schedule is as long as `iters`.
custom_dataset = dict(image_size=512, batch_size=8, iters=4000)
scale = (512, 512)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=scale, ratio_range=(0.5, 1.5))
train_pipeline[3].crop_size = (384, 384)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
