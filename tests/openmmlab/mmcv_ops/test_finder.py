"""The finder that serves mmcv._ext."""

import subprocess
import sys
import textwrap

import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops
from mmcv.utils import collect_env, ext_loader

from convnext_backbone.openmmlab.mmcv_ops.finder import (
    MmcvExtFinder,
    install_mmcv_ext,
    mmcv_ops_provider,
)
from convnext_backbone.openmmlab.mmcv_ops.missing import MissingMmcvOpError
from convnext_backbone.openmmlab.mmcv_ops.table import OPS

pytestmark = pytest.mark.openmmlab


def run(code, *paths):
    """Run code in a fresh interpreter with `paths` in front of its search path."""
    lines = [f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}", textwrap.dedent(code)]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def fake_mmcv(directory, *, compiled):
    package = directory / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("")
    if compiled:
        # What is found beside mmcv counts as its own, whatever it is made of.
        (package / "_ext.py").write_text("nms = 'the compiled one'\n")
    return directory


OWN = (
    "from convnext_backbone.openmmlab.mmcv_ops.finder import install_mmcv_ext, mmcv_ops_provider\n"
)


def test_a_compiled_extension_wins_whenever_it_is_there(tmp_path):
    code = OWN + "install_mmcv_ext(); before = mmcv_ops_provider(); import mmcv._ext as ext"
    code += "\nprint(before, mmcv_ops_provider(), ext.nms)"
    seen = run(code, fake_mmcv(tmp_path, compiled=True))
    assert seen == ["compiled", "compiled", "the", "compiled", "one"]


def test_the_torchvision_operations_are_served_where_there_is_no_compiled_one(tmp_path):
    code = OWN + "install_mmcv_ext(); before = mmcv_ops_provider(); import mmcv._ext as ext"
    code += "\nprint(before, mmcv_ops_provider(), ext.nms.__module__)"
    seen = run(code, fake_mmcv(tmp_path, compiled=False))
    assert seen == ["torchvision", "torchvision", "convnext_backbone.openmmlab.mmcv_ops.nms"]


def test_without_mmcv_nothing_provides_its_operations(tmp_path):
    code = """
        import importlib.abc

        class NoMmcv(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition('.')[0] in ('mmcv', 'mmengine'):
                    raise ModuleNotFoundError(name=name)

        import importlib.util
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = (
            lambda name, package=None: None if name in ('mmcv', 'mmengine') else find_spec(name)
        )
        sys.meta_path.insert(0, NoMmcv())
        from convnext_backbone.openmmlab.mmcv_ops.finder import install_mmcv_ext, mmcv_ops_provider
        install_mmcv_ext()
        print(mmcv_ops_provider())
    """
    assert run(code, tmp_path) == ["absent"]


def test_importing_the_package_imports_no_package_that_needs_operations():
    code = "import convnext_backbone; print(*({'mmcv', 'mmdet', 'mmseg'} & sys.modules.keys()))"
    assert run(code) == []


def test_installing_twice_leaves_one_finder_at_the_end():
    install_mmcv_ext()
    install_mmcv_ext()
    own = [finder for finder in sys.meta_path if isinstance(finder, MmcvExtFinder)]
    assert len(own) == 1
    assert mmcv_ops_provider() == "torchvision"


def test_the_finder_knows_no_other_name():
    assert MmcvExtFinder().find_spec("mmcv._extra", None) is None
    assert MmcvExtFinder().find_spec("_ext", None) is None


def test_every_operation_that_mmcv_asks_for_can_be_looked_up():
    names = ["nms", "no_such_operation_forward"]
    module = ext_loader.load_ext("_ext", names)
    assert module.nms is OPS["nms"]
    with pytest.raises(AttributeError, match="__path__"):
        _ = module.__path__


def test_calling_an_operation_that_is_not_carried_names_it_and_the_way_out():
    boxes = torch.tensor([[5.0, 5.0, 4.0, 2.0, 0.1]])
    with pytest.raises(MissingMmcvOpError, match=r"'box_iou_rotated'.*pip install") as caught:
        ops.box_iou_rotated(boxes, boxes)
    assert caught.value.op == "box_iou_rotated"
    assert isinstance(caught.value, RuntimeError)


def test_mmcv_reports_its_environment():
    environment = collect_env()
    assert "torchvision" in environment["MMCV Compiler"]
    assert environment["MMCV CUDA Compiler"] in (torch.version.cuda, "not available")


def test_mmcv_and_mmengine_believe_that_the_operations_are_there():
    from mmengine.utils.dl_utils import mmcv_full_available

    assert ext_loader.check_ops_exist()
    assert mmcv_full_available()
