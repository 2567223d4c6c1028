# Boxes and masks of the user's own, some hundreds of images, named by options; docs/own_data.md.
_base_ = "./coco_instance.py"

# `image_size` is the box that images are fitted into; the schedule is as long as `epochs`.
custom_dataset = dict(image_size=512, batch_size=4, epochs=40)
scale = (512, 512)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=scale, ratio_range=(0.75, 1.25), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(
    batch_size=4,
    dataset=dict(filter_cfg=dict(_delete_=True, filter_empty_gt=True), pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
