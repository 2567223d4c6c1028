"""Repairs of the published OpenMMLab packages: for current torch, NumPy and setuptools, and of
faults of their own that stop a training or a prediction.

Each repair waits for the module that it concerns, so `apply_compat` imports nothing of OpenMMLab
itself. No installed file is touched; where a package has repaired itself, as the onedl family has
in part, nothing is done.

To add a repair, write a file with a function `repair(module)`, import the package that it repairs
nowhere but inside functions, state in its docstring which release makes it unnecessary, and name
the module that it waits for in `REPAIRS`.
"""

from collections.abc import Callable, Mapping
from types import ModuleType

from ...utils.post_import import after_import
from . import (
    mmcv_photometric,
    mmdet_coco,
    mmdet_iou_thrs,
    mmdet_masks,
    mmdet_palette,
    mmdet_ssd,
    mmengine_complexity,
    mmengine_loaders,
    mmengine_names,
    mmengine_packages,
    mmseg_class_weights,
    mmseg_focal,
    mmseg_metainfo,
    mmseg_visualizer,
    numpy_names,
)

REPAIRS: Mapping[str, Callable[[ModuleType], None]] = {
    "mmengine.analysis.print_helper": mmengine_complexity.repair,
    "mmengine.runner.checkpoint": mmengine_loaders.repair,
    "mmengine.utils.misc": mmengine_names.repair,
    "mmengine.utils.package_utils": mmengine_packages.repair,
    "mmcv.image.photometric": mmcv_photometric.repair,
    "mmdet.datasets.api_wrappers.coco_api": mmdet_coco.repair,
    "mmdet.evaluation.metrics.coco_metric": mmdet_iou_thrs.repair,
    "mmdet.models.dense_heads.ssd_head": mmdet_ssd.repair,
    "mmdet.models.roi_heads.mask_heads.fcn_mask_head": mmdet_masks.repair,
    "mmdet.visualization.palette": mmdet_palette.repair,
    "mmseg.datasets.basesegdataset": mmseg_metainfo.repair,
    "mmseg.models.losses.cross_entropy_loss": mmseg_class_weights.repair,
    "mmseg.models.losses.focal_loss": mmseg_focal.repair,
    "mmseg.visualization.local_visualizer": mmseg_visualizer.repair,
    **dict.fromkeys(
        (
            "mmdet.evaluation.functional.ytviseval",
            "lvis.eval",
            "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling",
            "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        ),
        numpy_names.repair,
    ),
}
_applied: set[str] = set()


def apply_compat() -> None:
    """Arrange for every repair, once: now where its module is imported, else right after."""
    for name, repair in REPAIRS.items():
        if name not in _applied:
            _applied.add(name)
            after_import(name, repair)
