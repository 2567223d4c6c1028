"""Functions that wait for a module."""

import importlib
import inspect
import sys

import pytest

from convnext_backbone.utils.post_import import after_import


@pytest.fixture
def awaited(tmp_path, monkeypatch):
    """A package that nothing has imported yet."""
    name = f"awaited_{tmp_path.name.replace('-', '_')}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import value\n")
    (package / "inner.py").write_text("value = 'original'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_function_runs_after_the_module_and_before_whoever_imports_it(awaited):
    after_import(f"{awaited}.inner", lambda module: setattr(module, "value", "repaired"))
    assert awaited not in sys.modules
    assert importlib.import_module(awaited).value == "repaired"


def test_a_function_runs_at_once_if_the_module_is_there(awaited):
    module = importlib.import_module(awaited)
    seen = []
    after_import(awaited, seen.append)
    assert seen == [module]


def test_all_functions_run_in_order_and_once(awaited):
    seen = []
    after_import(awaited, lambda module: seen.append("first"))
    after_import(awaited, lambda module: seen.append("second"))
    module = importlib.import_module(awaited)
    importlib.reload(module)
    assert seen == ["first", "second"]


def test_the_module_looks_as_if_nothing_had_waited_for_it(awaited):
    after_import(f"{awaited}.inner", lambda module: None)
    inner = importlib.import_module(f"{awaited}.inner")
    assert isinstance(inner.__loader__, importlib.machinery.SourceFileLoader)
    assert inner.__spec__.loader is inner.__loader__
    assert "original" in inspect.getsource(inner)


def test_a_module_that_does_not_exist_is_still_not_found():
    after_import("no_such_module_anywhere", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        importlib.import_module("no_such_module_anywhere")
    assert importlib.util.find_spec("no_such_module_anywhere") is None


def test_a_module_that_fails_is_repaired_when_it_is_imported_again(awaited, tmp_path):
    inner = tmp_path / awaited / "inner.py"
    inner.write_text("raise RuntimeError('not today')\n")
    seen = []
    after_import(f"{awaited}.inner", seen.append)
    with pytest.raises(RuntimeError, match="not today"):
        importlib.import_module(awaited)
    assert seen == []
    inner.write_text("value = 'longer than before'\n")
    importlib.invalidate_caches()
    assert importlib.import_module(awaited).value == "longer than before"
    assert len(seen) == 1
