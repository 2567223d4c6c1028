"""What the tools make of a config: whether it is mmdet's or mmseg's."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from helpers.own_data import DETECTOR, write_detection
from mmengine.config import Config

from convnext_backbone.openmmlab.config_walk import type_name
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


# The types of a config of mask_rcnn, and where mmdet's new style of configs imports them from.
CLASSES = {
    "ConvNextBackbone": "convnext_backbone",
    "LoadImageFromFile": "mmcv.transforms",
    "CocoDataset": "mmdet.datasets",
    "LoadAnnotations": "mmdet.datasets.transforms",
    "PackDetInputs": "mmdet.datasets.transforms",
    "Resize": "mmdet.datasets.transforms",
    "CocoMetric": "mmdet.evaluation",
    "FPN": "mmdet.models",
    "L1Loss": "mmdet.models",
    "MaskRCNN": "mmdet.models",
    "RPNHead": "mmdet.models",
    "LinearLR": "mmengine.optim",
    "MultiStepLR": "mmengine.optim",
}


def in_new_style(config, path):
    """Write a config with classes in the place of their names."""
    text = Config.fromfile(config).pretty_text
    for name in CLASSES:
        assert f"type='{name}'" in text
        text = text.replace(f"type='{name}'", f"type={name}")
    imports = "".join(f"from {module} import {name}\n" for name, module in CLASSES.items())
    path.write_text(imports + text)
    return path


def named(value):
    """A config's values with the last part of a name for each type."""
    if isinstance(value, dict):
        return {k: type_name(value) if k == "type" else named(v) for k, v in value.items()}
    return [named(item) for item in value] if isinstance(value, list | tuple) else value


def test_a_config_of_classes_is_treated_as_one_of_their_names(tmp_path):
    new = in_new_style(DETECTOR, tmp_path / "new.py")
    data = write_detection(tmp_path)
    options = {f"custom_dataset.{key}": value for key, value in data.items()}
    options |= {"custom_dataset.epochs": 4, "custom_dataset.image_size": 128}
    by_name, by_class = (run_config.load_config(str(p), options, ()) for p in (DETECTOR, new))
    assert by_class.model.neck.type is not by_name.model.neck.type
    assert named(by_class.to_dict()) == named(by_name.to_dict())
    by_class.dump(tmp_path / "dumped.py")
    dumped = run_config.load_config(str(tmp_path / "dumped.py"), None, ())
    assert named(dumped.to_dict()) == named(by_name.to_dict())
    run_config.build_model(dumped)
    shifted = {"model.backbone.out_indices": [0, 1, 2, 3]}
    for path in (DETECTOR, new):
        with pytest.raises(UsageError, match="in out_indices 0 is the stem"):
            run_config.load_config(str(path), shifted, ())


def test_a_data_preprocessor_beside_the_model_is_taken_as_in_a_run():
    cfg = Config.fromfile(DETECTOR)
    cfg.model.backbone.init_cfg = None
    cfg.data_preprocessor = cfg.model.pop("data_preprocessor")
    cfg.data_preprocessor.mean = [1.0, 2.0, 3.0]
    model = run_config.build_model(cfg, "cpu")
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert "data_preprocessor" not in cfg.model
