"""Every public name has an example, and the examples of all docstrings give what they show."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from helpers.documents import fill_folder

import convnext_backbone
from convnext_backbone.features.extraction import extract_features
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.images.files import ImageList

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FINDER = doctest.DocTestFinder(exclude_empty=True)


# These import other libraries, and have tests and examples of their own.
ELSEWHERE = ("openmmlab", "integrations", "__main__")


def _modules():
    for info in pkgutil.iter_modules(convnext_backbone.__path__, "convnext_backbone."):
        if not info.name.endswith(ELSEWHERE):
            yield info.name
            path = importlib.import_module(info.name).__path__ if info.ispkg else ()
            yield from (inner.name for inner in pkgutil.walk_packages(path, f"{info.name}."))


def _examples():
    for name in _modules():
        module = importlib.import_module(name)
        yield from (test for test in FINDER.find(module) if test.examples)


EXAMPLES = {test.name: test for test in _examples()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docstrings")
    fill_folder(folder)
    backbone = convnext_backbone.ConvNextBackbone("convnext_atto", out_features=["stage4"])
    backbone.save_pretrained(folder / "my-backbone")
    images = ImageList([folder / "photos"])
    extract_features(FeatureExtractor(backbone, pool="avg"), images, folder / "features")
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_shows(name, filled, monkeypatch):
    monkeypatch.chdir(filled)
    test = EXAMPLES[name]
    public = {n: getattr(convnext_backbone, n) for n in convnext_backbone.__all__}
    test.globs = {**public, **test.globs, "torch": torch, "ImageList": ImageList}
    output: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=output.append)
    assert output == [], "".join(output)


@pytest.mark.parametrize("name", [n for n in convnext_backbone.__all__ if n != "__version__"])
def test_a_public_name_has_an_example(name):
    value = getattr(convnext_backbone, name)
    assert ">>> " in value.__doc__
