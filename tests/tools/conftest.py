"""A small quickstart set and configs on it, shared by the tests of the tools."""

import importlib.util

import pytest
from helpers.tool_process import ROOT, write_config

NUM_TRAIN, NUM_VAL, SIZE = 12, 4, 64


@pytest.fixture(scope="session")
def make_data():
    """The module tools/make_quickstart_data.py."""
    pytest.importorskip("sklearn")
    pytest.importorskip("pycocotools")
    path = ROOT / "tools" / "make_quickstart_data.py"
    spec = importlib.util.spec_from_file_location("make_quickstart_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def digits(make_data, tmp_path_factory):
    """A folder with a set of 12 + 4 images of 64x64."""
    out = tmp_path_factory.mktemp("data") / "digits"
    numbers = ["--num-train", str(NUM_TRAIN), "--num-val", str(NUM_VAL), "--size", str(SIZE)]
    assert make_data.main(["--out", str(out), *numbers]) == 0
    return out


@pytest.fixture(scope="session")
def detector(digits, tmp_path_factory):
    """The quickstart detector on the small set: one epoch is three iterations."""
    text = f"""
        _base_ = ['{ROOT}/configs/quickstart/mask-rcnn_convnext-atto_fpn_quickstart.py']
        loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
        train_dataloader = dict(dataset=dict(data_root='{digits}'), **loader)
        val_dataloader = dict(dataset=dict(data_root='{digits}'), **loader)
        test_dataloader = val_dataloader
        val_evaluator = dict(ann_file='{digits}/annotations/instances_val.json')
        test_evaluator = val_evaluator
        train_cfg = dict(max_epochs=1, val_interval=1)
        default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
        """
    return write_config(tmp_path_factory.mktemp("configs") / "detector.py", text)


@pytest.fixture(scope="session")
def segmentor(digits, tmp_path_factory):
    """The quickstart segmentor on the small set, without anything random in model and data."""
    text = f"""
        _base_ = ['{ROOT}/configs/quickstart/upernet_convnext-atto_quickstart.py']
        norm_cfg = dict(type='SyncBN')
        # Weights are averaged over each process's own pixels, not over the batch.
        even = dict(class_weight=None)
        model = dict(
            data_preprocessor=dict(size=({SIZE}, {SIZE})),
            decode_head=dict(channels=16, norm_cfg=norm_cfg, loss_decode=even),
            auxiliary_head=dict(channels=16, norm_cfg=norm_cfg, loss_decode=even),
        )
        loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
        steps = ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')
        train_pipeline = [dict(type=step) for step in steps]
        train_dataloader = dict(
            dataset=dict(data_root='{digits}', pipeline=train_pipeline), **loader)
        val_dataloader = dict(dataset=dict(data_root='{digits}'), **loader)
        test_dataloader = val_dataloader
        train_cfg = dict(max_iters=4, val_interval=4)
        # Adam turns the rounding of a gradient near zero into a whole step.
        optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1, weight_decay=0.0))
        default_hooks = dict(
            logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=-1))
        """
    return write_config(tmp_path_factory.mktemp("configs") / "segmentor.py", text)
