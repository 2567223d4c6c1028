"""Image files: what they may claim, and damage, one error of one kind whatever a decoder raises."""

import errno
import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image, features

from convnext_backbone import ConvNextBackbone
from convnext_backbone.cli.main import main
from convnext_backbone.features.extractor import Failure, FeatureExtractor, Features
from convnext_backbone.images.processor import ConvNextImageProcessor
from convnext_backbone.images.reading import image_size_of, load_image
from convnext_backbone.utils.files import IMAGE_SUFFIXES

FORMATS = ("png", "jpg", "webp", "bmp", "tiff", "gif")
SUFFIXES = sorted(IMAGE_SUFFIXES - ({".avif"} if not features.check("avif") else set()))


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


def _encoded(suffix):
    array = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    image = Image.fromarray(array).convert("L" if suffix == ".pgm" else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[suffix])
    return buffer.getvalue()


def _damaged(data):
    """Yield the data cut short, with bytes changed and with a stretch of zeros."""
    generator = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9, 0.99):
        yield data[: int(len(data) * share)]
    for _ in range(30):
        changed = bytearray(data)
        # Headers are where decoders go astray.
        for place in generator.integers(0, min(len(data), generator.choice([64, 400, 10**9])), 3):
            changed[place] = int(generator.integers(256))
        yield bytes(changed)
    yield data[:40] + bytes(len(data) - 40)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_of_any_format_is_one_failure(suffix, tmp_path):
    data = _encoded(suffix)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(data)
    assert load_image(path).size == (47, 33)
    fx = FeatureExtractor(
        ConvNextBackbone(hidden_sizes=(2, 2, 2, 2), depths=(1, 1, 1, 1)),
        size=(32, 32), on_error="skip", num_workers=0,
    )  # fmt: skip
    outcomes = set()
    for damaged in _damaged(data):
        path.write_bytes(damaged)
        image_size_of(path)
        (result,) = fx.stream([path])
        outcomes.add(type(result))
        assert result or "\n" not in result.reason
    assert Failure in outcomes
    assert outcomes <= {Failure, Features}


@pytest.mark.parametrize(
    "error",
    [RuntimeError("decoder"), AttributeError("'NoneType'"), MemoryError(), AssertionError()],
)
def test_whatever_a_decoder_raises_is_a_damaged_image(error, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)

    def fail(self):
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(ValueError, match=r"cannot read image .*a\.png': \S"):
        load_image(path)


def test_bytes_that_cannot_be_read_are_no_damage(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Input/output error") as info:
        load_image(path)
    assert info.value.errno == errno.EIO


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is a FIFO"):
        load_image(tmp_path / "pipe.png")
    assert image_size_of(tmp_path / "pipe.png") is None


TURNED = {0x0112: 6}  # EXIF orientation: rotate by 90 degrees to the right


def _exif(tags):
    exif = Image.Exif()
    exif.update(tags)
    return exif


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_rotated_grey_tiff_is_read_upright(dtype, compression, tmp_path):
    stored = np.arange(40 * 50).reshape(40, 50).astype(dtype)
    path = tmp_path / "a.tif"
    Image.fromarray(stored).save(path, exif=_exif(TURNED), compression=compression)
    np.testing.assert_array_equal(np.array(load_image(path)), np.rot90(stored, -1))
    assert image_size_of(path) == (50, 40)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_size_of_a_rotated_image_is_that_of_the_upright_one(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (50, 40)).save(path, exif=_exif(TURNED))
    assert load_image(path).size == (40, 50)
    assert image_size_of(path) == (50, 40)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_an_image_with_damaged_exif_is_taken_as_it_is_stored(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (50, 40), "red").save(path, exif=b"Exif\0\0no header of a TIFF")
    assert load_image(path).size == (50, 40)
    assert image_size_of(path) == (40, 50)
    processor = ConvNextImageProcessor(do_resize=False)
    assert processor.to_tensor(Image.open(path)).shape == (3, 40, 50)
