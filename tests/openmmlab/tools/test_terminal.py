"""What of the log is printed, and which warnings are held back."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import logging
import warnings

import pytest
import torch

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from helpers.process_group import one_process
from mmengine.config import Config
from mmengine.fileio import FileClient
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.visualization import Visualizer

from convnext_backbone.openmmlab.tools import terminal
from convnext_backbone.openmmlab.tools.launch import build_runner


def is_printed(text, level=logging.INFO):
    record = logging.LogRecord("mmengine", level, "", 0, text, None, None)
    return terminal.TerminalFilter().filter(record)


@pytest.mark.parametrize(
    "text",
    ["Epoch(train) [1][1/3]  loss: 1.0", "Saving checkpoint at 1 epochs", "Config is odd", "file"],
)
def test_what_a_user_follows_is_printed(text):
    assert is_printed(text)


@pytest.mark.parametrize(
    "text",
    [
        "Config:\nmodel = dict()",
        "paramwise_options -- a.weight:lr=0.1",
        "Exp name: a_1",
        "Layer decay {'decay_rate': 0.7}:\ngroup  lr",
    ],
)
def test_what_is_for_the_file_is_not_printed(text):
    assert not is_printed(text)


def test_what_mmengine_says_of_its_own_code_is_not_printed(monkeypatch):
    # The texts are those of the installed mmengine, caught as it logs them.
    logged = []
    logger = MMLogger.get_instance("deprecations")
    monkeypatch.setattr(MMLogger, "callHandlers", lambda self, r: logged.append(r.getMessage()))
    monkeypatch.setattr(FileClient, "_instances", {}, raising=False)
    FileClient("disk")
    pytest.importorskip("mmseg.evaluation").IoUMetric()
    for part in ("FileClient", "prefix"):
        assert any(part in text for text in logged)
    assert not any(is_printed(text, logging.WARNING) for text in logged)
    assert logger.handlers


@pytest.mark.parametrize(("package", "options"), [("mmdet", {"ignore_index": 255}), ("mmseg", {})])
def test_a_warning_that_nobody_can_act_on_is_held_back_and_no_other(package, options):
    losses = pytest.importorskip(f"{package}.models.losses")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses.CrossEntropyLoss(**options)
        assert ["avg_non_ignore" in str(warning.message) for warning in caught] == [True]
        terminal.filter_log_noise()
        losses.CrossEntropyLoss(**options)
        warnings.warn("Default ``avg_non_ignore`` is False, and more", stacklevel=1)
    assert len(caught) == 2
    assert "and more" in str(caught[1].message)


def test_what_published_configs_and_the_runner_set_is_not_warned_about():
    hooks = pytest.importorskip("mmseg.engine.hooks")
    transforms = pytest.importorskip("mmseg.datasets.transforms")
    Visualizer.get_instance("unseen")

    def build():
        hooks.SegVisualizationHook(draw=False)
        transforms.LoadAnnotations(reduce_zero_label=True)
        with one_process():
            MMDistributedDataParallel(torch.nn.Linear(1, 1), broadcast_buffers=False)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
        assert len(caught) >= 2  # torch before 2.14 takes broadcast_buffers as it is
        caught.clear()
        terminal.filter_log_noise()
        build()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("runner", [{}, {"runner_type": "FlexibleRunner"}])
def test_config_and_environment_go_to_the_log_file_alone(runner, tmp_path, capsys):
    model = {"type": "ConvNextBackbone", "hidden_sizes": [8], "depths": [1]}
    env_cfg = {"dist_cfg": {"backend": "gloo"}}
    cfg = {"model": model, "work_dir": str(tmp_path), "env_cfg": env_cfg, **runner}
    # mmengine keeps a logger by this name, which is otherwise the second in which it was made.
    built = build_runner(Config({**cfg, "experiment_name": tmp_path.name}))
    built.logger.info("the first loss")
    printed = capsys.readouterr().out
    assert "the first loss" in printed
    (log,) = tmp_path.glob("*/*.log")
    for part in ("System environment:", "Config:", "Hooks will be executed"):
        assert part in log.read_text()
        assert part not in printed
