"""Commands write where they are told, and over nothing that they read."""

import shutil

import pytest
from PIL import Image

from convnext_backbone import ConvNextBackbone, cli


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    module = ConvNextBackbone(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    module.save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def _fails(capsys, *line):
    """Run a command that is to fail, and return its one line."""
    assert cli.main([*map(str, line)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("link", [False, True])
def test_a_picture_of_features_does_not_replace_its_image(link, image, weights, capsys):
    out = image
    if link:
        out = image.with_name("link.png")
        out.symlink_to(image)
    error = _fails(capsys, "visualize", image, "--weights", weights, "--out", out)
    assert f"{str(image)!r} is read, and would be replaced by {str(out)!r}" in error
    assert Image.open(image).size == (50, 40)
    assert out.is_symlink() == link


def test_a_picture_does_not_replace_the_weights(image, weights, tmp_path, capsys):
    file = tmp_path / "weights"
    shutil.copy(weights / "model.safetensors", file)
    error = _fails(capsys, "visualize", image, "--weights", file, "--out", file)
    assert "is read, and would be replaced" in error


def test_a_picture_too_high_for_jpeg_is_named_with_the_way_out(image, weights, capsys, monkeypatch):
    high = Image.new("1", (1, 65_501))
    monkeypatch.setattr("convnext_backbone.features.pictures.visualize", lambda *_: high)
    line = ["visualize", image, "--weights", weights, "--out"]
    error = _fails(capsys, *line, image.with_name("a.jpg"))
    assert "a JPEG has at most 65500 pixels a side, got 1x65501: write a .png" in error
    assert not image.with_name("a.jpg").exists()
    assert cli.main([*map(str, line), str(image.with_name("a.png"))]) == 0


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_an_export_does_not_replace_what_it_reads(to, weights, tmp_path, capsys):
    folder = tmp_path / "w"
    shutil.copytree(weights, folder)
    for source in (folder, folder / "model.safetensors"):
        out = folder / "model.safetensors"
        error = _fails(capsys, "export", source, out, "--to", to)
        assert "is read, and would be replaced" in error
    assert out.read_bytes() == (weights / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        ["export", "{weights}", "", "--to", "onnx"],
        ["export", "{weights}", "", "--to", "torch-export"],
        ["visualize", "{image}", "--weights", "{weights}", "--out", ""],
        ["deploy", "config.py", "epoch_1.pth", "--out", ""],
        ["predict", "config.py", "epoch_1.pth", "{image}", "--out", ""],
    ],
)
def test_an_empty_output_is_not_the_current_directory(line, image, weights, capsys, monkeypatch):
    pytest.importorskip("mmdet")
    monkeypatch.chdir(image.parent)
    error = _fails(capsys, *[part.format(weights=weights, image=image) for part in line])
    assert "must not be empty; the current directory is '.'" in error


@pytest.mark.parametrize(
    "line",
    [
        ["export", "{weights}", "~/f.pt2", "--to", "torch-export"],
        ["convert", "{weights}", "~/f", "--to", "huggingface"],
        ["visualize", "{image}", "--weights", "{weights}", "--out=~/f.png"],
        ["extract", "{image}", "--weights", "{weights}", "--out=~/f", "--size=32", "--quiet"],
    ],
    ids=lambda line: line[0],
)
def test_an_output_in_the_home_folder_is_written_there(line, image, weights, monkeypatch):
    (image.parent / "home").mkdir()
    monkeypatch.setenv("HOME", str(image.parent / "home"))
    monkeypatch.chdir(image.parent)
    assert cli.main([part.format(weights=weights, image=image) for part in line]) == 0
    assert [path.stem for path in (image.parent / "home").iterdir()] == ["f"]
    assert not (image.parent / "~").exists()


@pytest.mark.parametrize("name", ["model.onnx", "deploy.json", "predict.py", "model.bin"])
def test_a_deployed_folder_does_not_replace_what_it_is_made_of(name, tmp_path, capsys):
    pytest.importorskip("mmdet")
    (tmp_path / name).write_text("mine")
    line = ["deploy", "config.py", tmp_path / name, "--out", tmp_path, "--to", "openvino"]
    assert "is read, and would be replaced" in _fails(capsys, *line)
    assert (tmp_path / name).read_text() == "mine"
