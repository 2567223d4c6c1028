"""What makes the backbone a citizen of mmengine, mmdet and mmsegmentation.

The only room of the package that imports an OpenMMLab package.
"""

from ..backbone import ConvNextBackbone


def register() -> None:
    """Register the backbone in mmengine's root registry, which mmdet and mmseg both look into."""
    from mmengine.registry import MODELS

    if MODELS.get("ConvNextBackbone") is None:
        MODELS.register_module(module=ConvNextBackbone)
