# ADE20K for ConvNeXt V2, whose multi-scale test takes other scales (arXiv 2301.00808, A.4).
_base_ = "./ade20k_640x640.py"

img_ratios = (0.75, 0.875, 1.0, 1.125, 1.25)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(
        type="Resize",
        scale=(int(_base_.image_scale[0] * r), int(_base_.image_scale[1] * r)),
        keep_ratio=True,
    )
    for r in img_ratios
]
