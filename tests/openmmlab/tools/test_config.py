"""What the tools make of a config: whether it is mmdet's or mmseg's."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config

from convnext_backbone.openmmlab.tools import config as run_config
from convnext_backbone.openmmlab.tools.errors import UsageError


@pytest.mark.parametrize(
    ("config", "scope"),
    [
        ({"default_scope": "mmseg", "model": {"type": "MaskRCNN"}}, "mmseg"),
        ({"model": {"type": "MaskRCNN"}}, "mmdet"),
        ({"model": {"type": "EncoderDecoder"}}, "mmseg"),
        ({"model": {"type": "mmdet.Anything"}}, "mmdet"),
        (
            {"model": {"type": "Mine"}, "test_dataloader": {"dataset": {"type": "ADE20KDataset"}}},
            "mmseg",
        ),
        (
            {
                "model": {"type": "Mine"},
                "train_dataloader": {
                    "dataset": {"type": "RepeatDataset", "dataset": {"type": "CocoDataset"}}
                },
            },
            "mmdet",
        ),
    ],
)
def test_the_scope_is_found(config, scope):
    assert run_config.find_scope(Config(config), "c.py") == scope


def test_a_class_as_type_tells_the_scope():
    from mmdet.models import MaskRCNN

    assert run_config.scopes_of("MODELS", MaskRCNN) == ["mmdet"]


def test_a_type_of_both_packages_does_not_tell_the_scope():
    # Cityscapes is an instance set in mmdet and a label-map set in mmseg.
    assert run_config.scopes_of("DATASETS", "CityscapesDataset") == ["mmdet", "mmseg"]
    config = Config(
        {
            "model": {"type": "Mine"},
            "train_dataloader": {"dataset": {"type": "CityscapesDataset"}},
        }
    )
    with pytest.raises(UsageError, match="default_scope = 'mmdet'"):
        run_config.find_scope(config, "c.py")
