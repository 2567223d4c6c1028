"""What an image file may claim: its pixels, and that it is no program."""

import warnings

import numpy as np
import pytest
from PIL import Image

from convnext_backbone import ConvNextBackbone
from convnext_backbone.cli.main import main
from convnext_backbone.images.reading import load_image

FORMATS = ("png", "jpg", "webp", "bmp", "tiff", "gif")


@pytest.fixture(params=FORMATS)
def image(request, tmp_path):
    path = tmp_path / f"image.{request.param}"
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(path)
    return path


def test_an_image_beyond_pillows_limit_is_refused_before_it_is_decoded(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    assert load_image(image).size == (200, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19_999)
    monkeypatch.setattr(Image.Image, "load", None)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r"image\.\w+': it has 20,000 pixels; the limit is 19,999"),
    ):
        load_image(image)


def test_no_limit_is_none(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(image).size == (200, 100)


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_the_command_line_sets_the_limit_for_a_command(image, tmp_path, capsys):
    before = Image.MAX_IMAGE_PIXELS
    module = ConvNextBackbone(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    module.save_pretrained(tmp_path / "weights")
    command = ["visualize", str(image), "--weights", str(tmp_path / "weights")]
    command += ["--out", str(tmp_path / "out.png"), "--max-pixels"]
    assert main([*command, "19999"]) == 2
    error = capsys.readouterr().err
    assert "20,000 pixels; the limit is 19,999" in error
    assert len(error.splitlines()) == 1
    assert main([*command, "20000"]) == 0
    assert main([*command, "0"]) == 2
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["image.eps", "image.jpg"])
def test_postscript_is_not_given_to_ghostscript(name, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / name, "EPS")
    monkeypatch.setattr("subprocess.check_call", None)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    with pytest.raises(ValueError, match="PostScript is not read"):
        load_image(tmp_path / name)


def test_where_warnings_are_errors_a_large_image_is_still_one_that_cannot_be_read(
    image, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19_999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"cannot read image .*19999"):
            load_image(image)
