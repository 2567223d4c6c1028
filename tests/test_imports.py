"""What importing the package brings, and when: nothing of torch until a name is asked for."""

import ast
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import convnext_backbone
import convnext_backbone.weights

PACKAGES = pytest.mark.parametrize("package", [convnext_backbone, convnext_backbone.weights])


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["list", "atto"]])
def test_the_first_answers_of_the_command_line_import_no_torch(arguments):
    code = f"""if True:
        import sys
        from convnext_backbone.cli.main import main
        try:
            main({arguments!r})
        except SystemExit as stopped:
            assert stopped.code == 0
        print("LOADED", *sorted({{"torch", "numpy", "PIL", "mmengine"}} & sys.modules.keys()))
    """
    assert run(code)[-1] == "LOADED"


def test_the_catalogue_imports_no_torch():
    code = "import sys, convnext_backbone as c; c.weights.catalogue; print('torch' in sys.modules)"
    assert run(code) == ["False"]


@PACKAGES
def test_the_names_of_type_checkers_are_those_of_the_running_package(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and n.test.id == "TYPE_CHECKING")
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(typed) == set(package.__all__) - {"__version__"}
    for name, module in typed.items():
        value = getattr(package, name)
        defined_in = sys.modules[f"{package.__name__}.{module}"]
        assert value is vars(defined_in)[name]


@PACKAGES
def test_names_are_listed_and_documented(package):
    assert set(package.__all__) <= set(dir(package))
    text = pydoc.plain(pydoc.render_doc(package))
    assert [name for name in package.__all__ if name[0] != "_" and name not in text] == []


@PACKAGES
def test_an_unknown_name_is_an_attribute_error_that_names_it(package):
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchName'"):
        package.NoSuchName  # noqa: B018
    assert not hasattr(package, "__wrapped__")


def test_a_star_import_and_pickling_give_the_same_objects():
    names: dict = {}
    exec("from convnext_backbone import *", names)
    assert set(convnext_backbone.__all__) <= set(names)
    assert pickle.loads(pickle.dumps(names["ConvNextConfig"])) is convnext_backbone.ConvNextConfig


def test_modules_are_found_as_attributes():
    code = "import convnext_backbone as c; print(c.archs.__name__, c.weights.load.__name__)"
    assert run(code) == ["convnext_backbone.archs", "convnext_backbone.weights.load"]


@pytest.mark.openmmlab
@pytest.mark.parametrize(
    "order",
    [
        "import convnext_backbone; from mmengine.registry import MODELS",
        "from mmengine.registry import MODELS; import convnext_backbone",
        "import convnext_backbone; import mmcv; from mmengine.registry import MODELS",
        "from convnext_backbone import list_archs; import sys;"
        "MODELS = sys.modules['mmengine.registry'].MODELS",
    ],
)
def test_the_backbone_is_registered_in_either_order_of_imports(order):
    code = (
        f"{order}; print(MODELS.get('ConvNextBackbone').__name__);"
        "from mmcv.ops import nms; print(nms.__name__)"
    )
    assert run(code) == ["ConvNextBackbone", "nms"]
