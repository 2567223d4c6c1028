"""Which network and which preprocessing a source gives, for any number of channels."""

import io
import json
import shutil
from pathlib import Path

import huggingface_hub.constants as constants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from convnext_backbone import ConvNextBackbone, ConvNextImageProcessor, FeatureExtractor, cli
from convnext_backbone.features.pictures import visualize
from convnext_backbone.features.server import FeatureServer

SHAPE = {"hidden_sizes": (8, 16), "depths": (1, 1)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHANNELS = [1, 2, 4, 6]
PILLOW_MODES = {1: "L", 2: "LA", 4: "RGBA"}


def _backbone(num_channels):
    model = ConvNextBackbone(**SHAPE, num_channels=num_channels, out_indices=(1, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


def _pixels(channels, height=45, width=61, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _by_hand(backbone, pixels, mean, std):
    """Normalise, pad, run and cut with plain torch."""
    x = torch.from_numpy((pixels / 255 - mean) / std).float().permute(2, 0, 1)[None]
    height, width = x.shape[2:]
    with torch.no_grad():
        maps = backbone(F.pad(x, (0, -width % 8, 0, -height % 8)))
    strides = zip(maps, backbone.strides, strict=True)
    return [m[0, :, : -(-height // s), : -(-width // s)] for m, s in strides]


def _assert_equal(features, expected):
    for got, want in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------ channels


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_prepared_image_given_back_has_the_features_of_the_image(channels, backend):
    backbone, pixels = _backbone(channels), _pixels(channels)
    mean, std = np.linspace(0.3, 0.6, channels), np.linspace(0.2, 0.4, channels)
    processor = ConvNextImageProcessor(image_mean=mean, image_std=std, backend=backend)
    fx = FeatureExtractor(backbone, size="native", processor=processor)
    expected = _by_hand(backbone, pixels, mean, std)
    prepared = fx.prepare(pixels)
    assert prepared.shape == (channels, 45, 61)
    _assert_equal(fx(pixels), expected)
    _assert_equal(fx({"pixel_values": prepared}), expected)
    _assert_equal(fx({"pixel_values": prepared[None]}), expected)
    (in_a_list,) = fx([{"pixel_values": prepared}])
    _assert_equal(in_a_list, expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_without_values_of_their_own_other_channels_get_the_average_of_imagenets(channels):
    backbone, pixels = _backbone(channels), _pixels(channels)
    fx = FeatureExtractor(backbone, size="native")
    _assert_equal(fx(pixels), _by_hand(backbone, pixels, 0.449, 0.226))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_images_of_other_channels_are_resized_one_channel_like_another(channels, backend):
    pixels = _pixels(1).repeat(channels, axis=-1)
    processor = ConvNextImageProcessor(size=32, backend=backend, image_mean=0.5, image_std=0.25)
    fx = FeatureExtractor(_backbone(channels), processor=processor)
    first, *others = fx.prepare(pixels)
    assert first.shape == (32, 32)
    if (channels, backend) == (4, "pil"):
        return  # as in transformers, Pillow takes four channels for colours and their opacity
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("values", [0.5, (0.5,)])
def test_one_channel_takes_colour_images_in_grey(values, tmp_path):
    processor = ConvNextImageProcessor(image_mean=values, image_std=values)
    backbone, image = _backbone(1), Image.fromarray(_pixels(3))
    fx = FeatureExtractor(backbone, size="native", processor=processor)
    image.save(tmp_path / "colour.png")
    grey = np.array(image.convert("L"))[..., None]
    expected = _by_hand(backbone, grey, 0.5, 0.5)
    for source in (image, tmp_path / "colour.png", grey, grey[..., 0]):
        _assert_equal(fx(source), expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_an_image_that_is_prepared_for_other_channels_is_named(channels):
    processor = ConvNextImageProcessor(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    fx = FeatureExtractor(_backbone(channels), processor=processor)
    with pytest.raises(ValueError, match=rf"must have shape \({channels}, H, W\), got \(3, "):
        fx(Image.fromarray(_pixels(3)))


@pytest.mark.parametrize("channels", CHANNELS)
def test_pictures_show_networks_of_any_channels(channels):
    fx = FeatureExtractor(_backbone(channels), size="native", norm=False)
    figure = visualize(fx, {"image": _pixels(channels)}, ["pca", "similarity"], (10, 20))
    assert len(np.unique(np.array(figure).reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("channels", PILLOW_MODES)
def test_files_are_drawn_and_served_for_networks_of_their_channels(channels, tmp_path, capsys):
    image = Image.fromarray(_pixels(channels).squeeze())
    assert image.mode == PILLOW_MODES[channels]
    image.save(tmp_path / "image.png")
    _backbone(channels).save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "image.png"), "--weights", str(tmp_path / "model")]
    assert cli.main(["visualize", *arguments, "--out", str(tmp_path / "out.png")]) == 0
    assert "1 images drawn" in capsys.readouterr().out
    fx = FeatureExtractor(tmp_path / "model", size="native", out_features="stages", norm=False)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with FeatureServer(fx) as server:
        assert server.scene(server.add_bytes(buffer.getvalue(), "image.png")["key"]).size == (
            45,
            61,
        )


# ------------------------------------------------------------------------------ preprocessing


def _save(folder, side, mean):
    _backbone(3).save_pretrained(folder)
    processor = ConvNextImageProcessor(size=side, image_mean=mean, image_std=0.5)
    processor.save_pretrained(folder)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a model, one in a subfolder, and a hub cache with two revisions of both."""
    _save(tmp_path / "m", 64, 0.25)
    _save(tmp_path / "m" / "deep", 96, 0.75)
    repo = tmp_path / "cache" / "models--org--tiny"
    for number, revision in enumerate(("main", "v2")):
        commit = f"{number}{COMMIT[1:]}"
        shutil.copytree(tmp_path / "m", repo / "snapshots" / commit)
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
    _save(repo / "snapshots" / f"1{COMMIT[1:]}", 128, 0.125)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "options", "side", "mean"),
    [
        ("{home}/m", {}, 64, 0.25),
        ("~/m", {}, 64, 0.25),
        ("~/m/model.safetensors", {}, 64, 0.25),
        ("Path:~/m", {}, 64, 0.25),
        ("Path:~/m/model.safetensors", {}, 64, 0.25),
        ("~/m", {"subfolder": "deep"}, 96, 0.75),
        ("org/tiny", {}, 64, 0.25),
        ("org/tiny", {"subfolder": "deep"}, 96, 0.75),
        ("org/tiny", {"revision": "v2"}, 128, 0.125),
        ("org/tiny@v2", {}, 128, 0.125),
        ("org/tiny@v2", {"subfolder": "deep"}, 96, 0.75),
    ],
)
def test_preprocessing_lies_beside_the_weights(source, options, side, mean, home):
    source = Path(source[5:]) if source.startswith("Path:") else source.format(home=home)
    fx = FeatureExtractor(source, **options)
    assert fx.processor.size == {"shortest_edge": side}
    assert fx.processor.image_mean == mean
    loaded = ConvNextImageProcessor.from_pretrained(source, **options)
    assert loaded == fx.processor


def test_weights_without_preprocessing_take_imagenets(home):
    (home / "m" / "preprocessor_config.json").unlink()
    fx = FeatureExtractor("~/m")
    assert fx.processor.size == {"shortest_edge": 224}
    assert fx.processor.image_mean == (0.485, 0.456, 0.406)


def test_a_side_that_is_asked_for_resizes_also_where_the_processor_does_not():
    processor = ConvNextImageProcessor(do_resize=False)
    fx = FeatureExtractor(_backbone(3), processor=processor, size=64)
    assert fx.prepare(_pixels(3)).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("interpolation", "code"), [("lanczos", 1), ("random", 3), ("bilinear", 2), ("nearest", 0)]
)
def test_the_interpolation_of_timms_config_is_pillows_filter(interpolation, code, tmp_path):
    assert _with_interpolation(tmp_path, interpolation).processor.resample == code


@pytest.mark.parametrize("interpolation", ["box", "hamming"])
def test_a_filter_that_torchvision_lacks_is_refused_unless_a_processor_is_given(
    interpolation, tmp_path
):
    with pytest.raises(
        ValueError, match=rf"resample .*\({interpolation}\).* only backend='pil' has"
    ):
        _with_interpolation(tmp_path, interpolation)
    processor = ConvNextImageProcessor(size=64, resample=4, backend="pil")
    assert _with_interpolation(tmp_path, interpolation, processor=processor).processor == processor


def test_an_unknown_interpolation_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"interpolation must be one of .*got 'spline'"):
        _with_interpolation(tmp_path, "spline")


def _with_interpolation(folder, interpolation, **options):
    ConvNextBackbone(hidden_sizes=(2, 2, 2, 2), depths=(1, 1, 1, 1)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] = {
        "mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 64, 64],
        "interpolation": interpolation, "crop_pct": 0.9,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return FeatureExtractor(folder, **options)
