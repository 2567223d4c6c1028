"""ConvNextImageProcessor against transformers' two backends, on photographs and odd images."""

import copy
import io
import json
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images

from convnext_backbone.images.processor import (
    BatchFeature,
    ConvNextImageProcessor,
    load_image,
)

PEERS = {
    "torchvision": transformers.ConvNextImageProcessor,
    "pil": transformers.ConvNextImageProcessorPil,
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def photos():
    return [Image.fromarray(array) for array in load_sample_images().images]


def _noise(height=45, width=61, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def _both(images, backend="torchvision", call=None, **fields):
    call = call or {}
    ours = ConvNextImageProcessor(backend=backend, **fields)(images, return_tensors="pt", **call)
    theirs = PEERS[backend](**fields)(images, return_tensors="pt", **call)
    return ours.pixel_values, theirs.pixel_values


@pytest.mark.parametrize("backend", PEERS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": {"shortest_edge": 224}, **IMAGENET},
        {"size": {"shortest_edge": 384}, "resample": 2},
        {"size": {"shortest_edge": 383}, "crop_pct": 0.95},
        {"size": {"shortest_edge": 160}, "crop_pct": 1.0, "resample": 0},
        {"size": {"shortest_edge": 64}, "do_normalize": False},
        {"size": {"shortest_edge": 64}, "do_rescale": False},
        {"size": {"shortest_edge": 64}, "do_rescale": False, "do_normalize": False},
        {"size": {"shortest_edge": 64}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
    ],
)
def test_photographs_come_out_equal_to_transformers(photos, backend, fields):
    ours, theirs = _both(photos, backend, **fields)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("resample", [2, 3])
def test_backends_agree_within_one_level(photos, size, resample):
    fields = {"size": {"shortest_edge": size}, "resample": resample, "do_normalize": False}
    results = [_both(photos, backend, **fields) for backend in PEERS]
    (ours_torch, slow_torch), (ours_pil, slow_pil) = results
    for a, b in ((ours_torch, slow_pil), (ours_pil, slow_torch)):
        # Bicubic overshoots, and the two libraries round between its passes: two levels at most.
        assert (a - b).abs().max() <= (2 if resample == 3 else 1) / 255 + 1e-6
        assert ((a - b).abs() > 1 / 255 + 1e-6).float().mean() < 1e-4


def test_every_filter_of_pillow_comes_out_equal_to_transformers(photos):
    for resample in Image.Resampling:
        ours, theirs = _both(photos, "pil", size={"shortest_edge": 64}, resample=int(resample))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", PEERS)
@pytest.mark.parametrize("height_width", [(1, 1), (2, 900), (900, 2), (223, 224), (256, 256)])
def test_odd_sizes_come_out_equal_to_transformers(backend, height_width):
    image = Image.fromarray(_noise(*height_width))
    ours, theirs = _both(image, backend, size={"shortest_edge": 32})
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", PEERS)
@pytest.mark.parametrize("kind", ["L", "LA", "P", "RGBA", "CMYK", "1", "P with transparency"])
def test_other_modes_come_out_equal_to_transformers_told_to_convert(backend, kind):
    image = Image.fromarray(_noise(channels=4), mode="RGBA")
    if kind == "P with transparency":
        image = image.convert("P")
        image.info["transparency"] = 3
    elif kind != "RGBA":
        image = image.convert("RGB").convert(kind)
    fields = {"size": {"shortest_edge": 32}}
    ours = ConvNextImageProcessor(backend=backend, **fields)(image, return_tensors="pt")
    theirs = PEERS[backend](**fields, do_convert_rgb=True)(image, return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


@pytest.mark.parametrize("backend", PEERS)
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_arrays_of_other_channels_come_out_equal_to_transformers(backend, channels, as_tensor):
    image = _noise(channels=channels)
    image = torch.from_numpy(image).permute(2, 0, 1) if as_tensor else image
    ours, theirs = _both(image, backend, size={"shortest_edge": 32}, do_convert_rgb=True)
    assert torch.equal(ours, theirs)
    default = ConvNextImageProcessor(backend=backend, size=32)(image, return_tensors="pt")
    assert torch.equal(default.pixel_values, theirs)


@pytest.mark.parametrize("backend", PEERS)
def test_four_channels_with_four_means_stay_four(backend):
    fields = {"image_mean": [0.1, 0.2, 0.3, 0.4], "image_std": [1.0, 2.0, 3.0, 4.0]}
    ours, theirs = _both(
        _noise(channels=4),
        backend,
        {"input_data_format": "channels_last"},
        size={"shortest_edge": 32},
        **fields,
    )
    assert ours.shape == (1, 4, 32, 32)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", PEERS)
def test_arrays_tensors_and_images_of_the_same_pixels_agree(backend):
    array = _noise()
    processor = ConvNextImageProcessor(backend=backend, size=32)
    kinds = [
        Image.fromarray(array),
        array,
        array.transpose(2, 0, 1),
        array.astype(">i4"),
        torch.from_numpy(array),
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array.astype(np.int64)),
        (array.astype(np.uint16) * 257),
    ]
    first, *others = [processor(kind, return_tensors="pt").pixel_values for kind in kinds]
    for other in others:
        assert torch.equal(other, first)


def test_batches_nested_lists_and_singles_agree():
    arrays = [_noise(seed=i) for i in range(4)]
    processor = ConvNextImageProcessor(size=32)
    expected = torch.cat([processor(a, return_tensors="pt").pixel_values for a in arrays])
    batch = torch.stack([torch.from_numpy(a) for a in arrays])
    for images in (arrays, tuple(arrays), [arrays[:1], arrays[1:]], np.stack(arrays), batch):
        assert torch.equal(processor(images, return_tensors="pt").pixel_values, expected)
    mixed = [arrays[0], Image.fromarray(arrays[1]), batch[2], arrays[3]]
    assert torch.equal(processor(mixed, return_tensors="pt").pixel_values, expected)


def test_images_of_many_sizes_keep_their_order():
    arrays = [_noise(height=40 + 7 * (i % 3), width=60, seed=i) for i in range(7)]
    processor = ConvNextImageProcessor(size=32)
    together = processor(arrays, return_tensors="np")["pixel_values"]
    for array, row in zip(arrays, together, strict=True):
        assert np.array_equal(processor(array, return_tensors="np").pixel_values[0], row)


def test_sixteen_bits_keep_their_high_byte(tmp_path):
    grey = _noise(channels=1)[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 256 + 17).save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I")
    processor = ConvNextImageProcessor(size=32)
    deep = processor(tmp_path / "deep.png", return_tensors="pt").pixel_values
    shallow = processor(Image.fromarray(grey), return_tensors="pt").pixel_values
    assert torch.equal(deep, shallow)


def _wide(values):
    """The same grey values in every container of more than 8 bits."""
    return {
        "I": Image.fromarray(values.astype(np.int32)),
        "I;16": Image.fromarray(values.astype(np.uint16)),
        "uint16": np.stack([values.astype(np.uint16)] * 3),
        "torch.uint16": torch.from_numpy(np.stack([values.astype(np.uint16)] * 3)),
    }


@pytest.mark.parametrize("container", _wide(np.zeros((1, 1))))
@pytest.mark.parametrize("backend", PEERS)
def test_eight_bits_in_a_wide_container_are_those_of_transformers_and_warn(backend, container):
    image = _wide(_noise(channels=1)[..., 0])[container]
    options = {"do_resize": False, "do_convert_rgb": isinstance(image, Image.Image)}
    with pytest.warns(UserWarning, match=r"16 bits holds no value above 255: .* 8-bit values"):
        ours, theirs = _both(image, backend, **options)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("container", _wide(np.zeros((1, 1))))
def test_twelve_bits_in_a_wide_container_warn_that_few_levels_are_left(container):
    grey = np.arange(4096).reshape(64, 64)
    processor = ConvNextImageProcessor(do_resize=False, do_normalize=False, do_rescale=False)
    with pytest.warns(
        UserWarning, match=r"no value above 4095, .* few levels: scale it to 16 bits"
    ):
        x = processor(_wide(grey)[container], return_tensors="pt").pixel_values
    assert x.unique().tolist() == list(range(16))


@pytest.mark.parametrize("container", _wide(np.zeros((1, 1))))
@pytest.mark.parametrize("values", [(0, 0), (0, 4096), (65535, 65535)])
def test_black_and_bright_images_of_sixteen_bits_do_not_warn(values, container):
    processor = ConvNextImageProcessor(do_resize=False, do_normalize=False, do_rescale=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = processor(_wide(np.array([values]))[container], return_tensors="pt").pixel_values
    assert x[0, 0].tolist() == [[value // 256 for value in values]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated_photographs_come_out_upright(orientation, tmp_path):
    # The orientation tag says how a viewer must turn the stored pixels: undo that first.
    inverse = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = Image.fromarray(_noise())
    stored = upright
    for step in inverse[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    processor = ConvNextImageProcessor(size=32)
    expected = processor(upright, return_tensors="pt").pixel_values
    for image in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)
    with Image.open(tmp_path / "photo.png") as opened:
        assert torch.equal(processor(opened, return_tensors="pt").pixel_values, expected)


def test_outputs_come_in_the_asked_form():
    processor = ConvNextImageProcessor(size=32)
    array = _noise()
    plain = processor(array)
    assert isinstance(plain["pixel_values"], list)
    assert plain.pixel_values[0].shape == (3, 32, 32)
    first = processor(array, return_tensors="pt").pixel_values
    last = processor(array, return_tensors="pt", data_format="channels_last").pixel_values
    assert torch.equal(last.permute(0, 3, 1, 2), first)
    moved = processor(array, return_tensors="pt").to(torch.bfloat16)
    assert isinstance(moved, BatchFeature)
    assert moved.pixel_values.dtype == torch.bfloat16
    assert dict(**moved).keys() == {"pixel_values"}


def test_call_time_overrides_do_not_stick():
    processor = ConvNextImageProcessor(size=32)
    before = processor.to_dict()
    assert processor(_noise(), size=16, return_tensors="pt").pixel_values.shape[-1] == 16
    assert processor.to_dict() == before


def test_settings_travel_to_transformers_and_back(tmp_path):
    ours = ConvNextImageProcessor(size=224, crop_pct=0.95, resample=2, **IMAGENET)
    ours.save_pretrained(tmp_path)
    array = _noise(300, 400)
    expected = ours(array, return_tensors="pt").pixel_values
    for loader in (transformers.ConvNextImageProcessor, transformers.AutoImageProcessor):
        theirs = loader.from_pretrained(tmp_path)
        assert torch.equal(theirs(array, return_tensors="pt").pixel_values, expected)
    theirs.save_pretrained(tmp_path)
    assert ConvNextImageProcessor.from_pretrained(tmp_path) == ours
    assert ConvNextImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json") == ours


def test_a_step_that_was_switched_off_stays_off(tmp_path):
    theirs = transformers.ConvNextImageProcessor(do_resize=False, do_normalize=None)
    theirs.save_pretrained(tmp_path)
    ours = ConvNextImageProcessor.from_pretrained(tmp_path)
    assert not ours.do_resize
    ours = ConvNextImageProcessor(do_normalize=None)
    ours.to_json_file(tmp_path / "own.json")
    assert ConvNextImageProcessor.from_json_file(tmp_path / "own.json").do_normalize is None


def test_settings_are_written_where_the_path_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = ConvNextImageProcessor(size=96)
    assert ours.save_pretrained("~/saved") == [str(tmp_path / "saved/preprocessor_config.json")]
    ours.to_json_file("~/own.json")
    assert ConvNextImageProcessor.from_json_file("~/own.json") == ours
    for write in (ours.save_pretrained, ours.to_json_file):
        with pytest.raises(ValueError, match="must not be empty"):
            write("")


def test_files_of_the_first_releases_are_read(tmp_path):
    old = {
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "resample": 3,
        "size": 224,
        **IMAGENET,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    ours = ConvNextImageProcessor.from_pretrained(tmp_path)
    theirs = transformers.ConvNextImageProcessor.from_pretrained(tmp_path)
    array = _noise(300, 400)
    a, b = ours(array, return_tensors="pt"), theirs(array, return_tensors="pt")
    assert torch.equal(a.pixel_values, b.pixel_values)


def test_dinov3_files_are_read(tmp_path, photos):
    theirs = transformers.DINOv3ViTImageProcessor()
    theirs.save_pretrained(tmp_path)
    ours = ConvNextImageProcessor.from_pretrained(tmp_path)
    a, b = ours(photos, return_tensors="pt"), theirs(photos, return_tensors="pt")
    torch.testing.assert_close(a.pixel_values, b.pixel_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 32, "width": 32}},
        {"resample": 3},  # overshoots 0 .. 255, where 8 bits would clip
        {"do_normalize": False},
        {"do_resize": False},
        {"do_rescale": False, "do_normalize": False},  # resized in 8 bits by both
    ],
)
def test_settings_of_dinov3_come_out_equal_to_transformers(fields, tmp_path):
    theirs = transformers.DINOv3ViTImageProcessor(**fields)
    theirs.save_pretrained(tmp_path)
    ours = ConvNextImageProcessor.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "again")
    again = ConvNextImageProcessor.from_pretrained(tmp_path / "again")
    assert again == ours
    image = _noise()
    expected = theirs(image, return_tensors="pt").pixel_values
    for processor in (ours, again):
        got = processor(image, return_tensors="pt").pixel_values
        tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, check_dtype=False)


def test_other_processors_resize_in_eight_bits_as_before():
    assert not ConvNextImageProcessor().rescale_first
    assert "rescale_first" not in ConvNextImageProcessor().to_dict()


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("backend", PEERS)
@pytest.mark.parametrize("shape", [(50, 70), (1, 70), (50, 1), (1, 1)])
def test_an_image_is_resized_to_one_pixel(shape, backend, resample):
    image = Image.fromarray(_noise(*shape))
    fields = {"size": {"shortest_edge": 1}, "crop_pct": 1.0, "resample": resample}
    processor = ConvNextImageProcessor(backend=backend, **fields)
    # transformers fails here with its torchvision backend.
    theirs = PEERS["pil"](**fields)(image, return_tensors="pt").pixel_values
    ours = processor([image, image], return_tensors="pt").pixel_values
    assert (ours - theirs).abs().max() <= 1 / 127.5 + 1e-6  # one level
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = torch.tensor(image.resize((1, 1), resample).getpixel((0, 0)))
    got = processor.warp(x, (1, 1)).flatten().int()
    assert (got - expected).abs().max() <= 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"size": {"height": 3, "width": 3}}, "must contain 'shortest_edge' key. Got"),
        ({"size": {"shortest_edge": -1}}, "shortest_edge must be an integer of at least 1, got -1"),
        ({"crop_pct": 1.5}, "crop_pct must lie above 0 and up to 1, got 1.5"),
        ({"resample": 9}, "resample must be one of"),
        ({"resample": 5}, r"resample must be one of \(0, 2, 3, 1\), got 5"),
        ({"backend": "cv2"}, "backend must be one of"),
        ({"data_format": "nchw"}, "data_format must be one of"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std must not hold 0"),
        ({"image_std": [1.0, math.nan, 1.0]}, "image_std must not hold 0 or NaN"),
        ({"image_mean": [0.5] * 4}, r"one a channel each, got \(0.5, .*0.5\)"),
        ({"rescale_factor": 0}, "rescale_factor must be positive, got 0"),
        ({"rescale_factor": math.nan}, "rescale_factor must be positive, got nan"),
    ],
)
def test_wrong_settings_are_named(fields, error):
    with pytest.raises(ValueError, match=error):
        ConvNextImageProcessor(**fields)


def test_numbers_of_numpy_are_taken():
    processor = ConvNextImageProcessor(size=np.int64(96), image_mean=np.float32(0.5), image_std=0.5)
    assert json.loads(processor.to_json_string())["size"] == {"shortest_edge": 96}
    assert processor.image_mean == 0.5


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (torch.full((3, 8, 8), torch.nan), "must not hold NaN"),
        (np.full((8, 8, 3), 300), "must lie within 0 .. 255, got 300 .. 300"),
        (np.zeros((8, 8, 5), np.uint8), "1, 3 or 4 channels on its first or last axis"),
        (np.zeros((0, 8, 3), np.uint8), "at least one pixel"),
        (np.zeros((8,), np.uint8), "2 or 3 axes, got shape"),
        (Image.new("F", (8, 8)), "mode F has no known range"),
        (np.zeros((2, 6000, 3), np.uint8), "too narrow to be resized"),
    ],
)
def test_useless_images_are_refused_in_one_line(image, error):
    with pytest.raises(ValueError, match=error) as info:
        ConvNextImageProcessor(size=320)(image)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("image", [None, 3, {"a": 1}, np.zeros((8, 8), bool), np.array(["a"])])
def test_what_is_no_image_is_a_type_error(image):
    with pytest.raises(TypeError, match="an image must"):
        ConvNextImageProcessor()(image)


def _cut_png():
    buffer = io.BytesIO()
    Image.fromarray(_noise()).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize("content", [b"", b"hello, I am text\n", _cut_png()])
def test_damaged_files_are_refused_with_their_name(content, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read image .*broken\.jpg") as info:
        load_image(path)
    assert "\n" not in str(info.value)
    with pytest.raises(FileNotFoundError, match="no such image"):
        load_image(tmp_path / "missing.jpg")


def test_sizes_that_differ_cannot_be_stacked():
    images = [_noise(8, 8), _noise(9, 8)]
    processor = ConvNextImageProcessor(do_resize=False)
    assert len(processor(images).pixel_values) == 2
    with pytest.raises(ValueError, match="must have one shape to be stacked"):
        processor(images, return_tensors="pt")


def test_floats_already_in_range_warn():
    image = torch.rand(3, 16, 16)
    with pytest.warns(UserWarning, match="do_rescale=False"):
        ConvNextImageProcessor(size=8)(image)


@pytest.mark.parametrize("backend", PEERS)
def test_floats_in_range_come_out_equal_to_transformers(backend):
    image = np.random.default_rng(0).random((3, 50, 40), dtype=np.float32)
    ours, theirs = _both(image, backend, size={"shortest_edge": 32}, do_rescale=False)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_batch_feature_can_be_copied_and_pickled(copied):
    batch = ConvNextImageProcessor(size=32)(Image.new("RGB", (40, 50)), return_tensors="pt")
    again = copied(batch)
    torch.testing.assert_close(again.pixel_values, batch.pixel_values)
    with pytest.raises(AttributeError, match="got 'labels'"):
        again.labels  # noqa: B018


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_network_of_one_channel_sees_white_where_an_image_is_transparent(mode):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    processor = ConvNextImageProcessor(image_mean=(0.5,), image_std=(0.5,))
    assert (processor.to_tensor(clear) == 255).all()


@pytest.mark.parametrize("backend", PEERS)
def test_signed_bytes_are_taken_and_negative_ones_refused(backend):
    """255 is no int8: compared as one, it is -1."""
    processor = ConvNextImageProcessor(size=32, backend=backend)
    array = _noise() // 2
    for x in (array.astype(np.int8), torch.from_numpy(array).to(torch.int8)):
        ours = processor(x, return_tensors="pt").pixel_values
        assert torch.equal(ours, processor(array, return_tensors="pt").pixel_values)
    for dtype in (np.int8, np.int16):
        with pytest.raises(ValueError, match=r"int\d+ must lie within 0 \.\. 255, got -1 \.\. 126"):
            processor(np.array([[-1, 126]], dtype))


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64, np.int64])
def test_wide_integers_are_taken_where_they_fit_into_eight_bits(dtype):
    processor = ConvNextImageProcessor(size=32)
    array = np.full((40, 50, 3), 100, dtype)
    assert (processor.to_tensor(array) == 100).all()
    array[0] = 256
    with pytest.raises(ValueError, match=r"must lie within 0 \.\. 255, got 100 \.\. 256"):
        processor.to_tensor(array)


@pytest.mark.parametrize("channels", [3, 4])
def test_the_pil_backend_takes_bfloat16(channels):
    processor = ConvNextImageProcessor(size=32, backend="pil", do_rescale=False)
    x = torch.rand(channels, 40, 50).round(decimals=1)
    x[3:] = 1.0
    got, expected = (
        processor(y, return_tensors="pt").pixel_values for y in (x.to(torch.bfloat16), x)
    )
    assert got.shape == (1, 3, 32, 32)
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("options", [{}, {"squash": True}, {"squash": False}])
@pytest.mark.parametrize("size", [300_000, 1_000_000_000])
def test_a_size_that_no_memory_holds_is_named(size, options):
    with pytest.raises(ValueError, match=f"^size must be at most .*, got {size}x{size}"):
        ConvNextImageProcessor(size=size, **options)
