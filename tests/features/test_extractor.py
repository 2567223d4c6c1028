"""FeatureExtractor: what goes in, what comes out, and what happens to images of no use."""

import dataclasses
import decimal
import inspect
import io
import json
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from convnext_backbone import ConvNextBackbone, ConvNextConfig
from convnext_backbone.features.extractor import Failure, FeatureExtractor
from convnext_backbone.features.options import POOLS, ImageOptions, OutputOptions, RunOptions
from convnext_backbone.images.files import ImageList
from convnext_backbone.images.items import expand, is_single
from convnext_backbone.images.processor import ConvNextImageProcessor
from convnext_backbone.models.classifier import ConvNextForImageClassification, ConvNextModel

SHAPE = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def _noise(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def backbone():
    model = ConvNextBackbone(**SHAPE, out_features=("stem", "stage2", "stage4"))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    sizes = [(40, 60), (64, 64), (33, 90), (40, 60), (64, 64), (40, 64), (7, 5)]
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for i, size in enumerate(sizes):
        place = tmp_path / "images" / ("sub" if i % 2 else "") / f"{i}.png"
        Image.fromarray(_noise(*size, seed=i)).save(place)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def _normalised(array):
    x = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    return (x - MEAN) / STD


def _by_hand(backbone, array, stride=32):
    """Pad, run and cut with plain torch."""
    x = _normalised(array)
    height, width = x.shape[1:]
    x = F.pad(x, (0, -width % stride, 0, -height % stride))
    with torch.no_grad():
        maps = backbone(x[None])
    cut = {}
    for name, stride_of, m in zip(backbone.out_features, backbone.strides, maps, strict=True):
        cut[name] = m[0, :, : -(-height // stride_of), : -(-width // stride_of)]
    return cut


def test_native_size_gives_the_maps_of_the_padded_image_cut_to_the_valid_part(backbone):
    fx = FeatureExtractor(backbone, size="native")
    for size in ((64, 96), (45, 61), (1, 1), (33, 100)):
        array = _noise(*size)
        features = fx(Image.fromarray(array))
        assert list(features) == ["stem", "stage2", "stage4"]
        assert features.image_size == size
        for name, expected in _by_hand(backbone, array).items():
            torch.testing.assert_close(features[name], expected, atol=1e-5, rtol=1e-5)


def test_default_size_is_the_processors(backbone):
    array = _noise(300, 400)
    features = FeatureExtractor(backbone)(array)
    peer = transformers.ConvNextImageProcessor(
        size={"shortest_edge": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with torch.no_grad():
        maps = backbone(peer(array, return_tensors="pt").pixel_values)
    for name, expected in zip(backbone.out_features, maps, strict=True):
        torch.testing.assert_close(features[name], expected[0], atol=1e-5, rtol=1e-5)


def test_a_fixed_size_warps_the_image(backbone):
    array = _noise(50, 80)
    fx = FeatureExtractor(backbone, size=(64, 96))
    warped = torchvision.transforms.v2.functional.resize(
        torch.from_numpy(array).permute(2, 0, 1),
        [64, 96],
        interpolation=torchvision.transforms.InterpolationMode.BICUBIC,
    )
    expected = _by_hand(backbone, warped.permute(1, 2, 0).numpy())
    for name, value in fx(array).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    assert FeatureExtractor(backbone, size=64)(array)["stage4"].shape == (32, 2, 2)


def test_without_padding_the_border_is_dropped(backbone):
    fx = FeatureExtractor(backbone, size="native", pad=False)
    array = _noise(70, 101)
    with torch.no_grad():
        maps = backbone(_normalised(array)[None])
    for name, expected in zip(backbone.out_features, maps, strict=True):
        torch.testing.assert_close(fx(array)[name], expected[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="20x40 is smaller than the stride 32"):
        fx(_noise(20, 40))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_mixed_sizes_come_out_in_order_and_equal_to_one_at_a_time(
    backbone, folder, workers, batch_size
):
    fx = FeatureExtractor(backbone, size="native", num_workers=workers, batch_size=batch_size)
    results = fx(folder)
    paths = sorted(p for p in folder.rglob("*.png"))
    assert [r.name for r in results] == [str(p) for p in paths]
    assert [r.index for r in results] == list(range(len(paths)))
    for path, result in zip(paths, results, strict=True):
        for name, expected in _by_hand(backbone, np.array(Image.open(path))).items():
            torch.testing.assert_close(result[name], expected, atol=1e-5, rtol=1e-5)


def test_every_kind_of_source_gives_the_same_features(backbone, folder):
    fx = FeatureExtractor(backbone, size="native", batch_size=2)
    paths = sorted(folder.rglob("*.png"))
    images = [Image.open(p).copy() for p in paths]
    expected = [fx(p) for p in paths]

    class Dataset(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index], index

    class OpenMMLabDataset:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            bgr = np.ascontiguousarray(np.array(images[index])[..., ::-1])
            return {"inputs": torch.from_numpy(bgr).permute(2, 0, 1), "data_samples": None}

    sources = [
        folder,
        str(folder / "**" / "*.png"),
        paths,
        tuple(map(str, paths)),
        (image for image in images),
        [np.array(image) for image in images],
        [{"image": image, "label": 3} for image in images],
        Dataset(),
        OpenMMLabDataset(),
    ]
    for source in sources:
        results = fx(source)
        assert len(results) == len(expected)
        for result, want in zip(results, expected, strict=True):
            for name in want:
                torch.testing.assert_close(result[name], want[name], atol=1e-6, rtol=1e-6)


@pytest.fixture
def packed(folder, tmp_path):
    """The images of the folder, in a tar and in lists as well."""
    paths = sorted(folder.rglob("*.png"))
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.relative_to(folder).as_posix())
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    (tmp_path / "list.txt").write_text("\n".join(names))
    (tmp_path / "list.csv").write_text("\n".join(["n,file", *(f"1,{name}" for name in names)]))
    return tmp_path


def test_what_the_command_line_reads_the_extractor_reads(backbone, folder, packed):
    fx = FeatureExtractor(backbone, size="native", batch_size=2)
    expected = fx(folder)
    relative = [result.name.removeprefix(f"{packed}/") for result in expected]
    in_tar = [f"s.tar/{name.removeprefix('images/')}" for name in relative]
    for source, names in {
        packed / "s.tar": [f"{packed}/{name}" for name in in_tar],
        str(packed / "*.tar"): [f"{packed}/{name}" for name in in_tar],
        packed / "list.txt": relative,
        str(packed / "list.csv"): relative,
        ImageList([folder, packed / "s.tar"]): [*relative, *in_tar],
    }.items():
        results = fx(source)
        assert [result.name for result in results] == names
        assert [result.index for result in results] == list(range(len(names)))
        for result, want in zip(results, [*expected, *expected], strict=False):
            torch.testing.assert_close(dict(result), dict(want), atol=1e-6, rtol=1e-6)
    entry = next(iter(ImageList([packed / "s.tar"])))
    assert torch.equal(fx(entry)["stage4"], fx([entry])[0]["stage4"])
    assert torch.equal(fx.prepare(entry), fx.prepare(folder / "0.png"))


def test_a_tilde_is_the_home_folder(backbone, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    fx = FeatureExtractor(backbone, size="native")
    torch.testing.assert_close(dict(fx("~/0.png")), dict(fx(folder / "0.png")))
    assert len(fx("~/sub")) == len(fx("~/sub/*.png")) == 3


def test_an_array_that_may_not_be_written_to_is_an_image(backbone, folder):
    fx = FeatureExtractor(backbone, size="native")
    with Image.open(folder / "0.png") as image:
        array = np.asarray(image)
    assert not array.flags.writeable
    torch.testing.assert_close(dict(fx(array)), dict(fx(folder / "0.png")))


def test_names_are_paths_as_they_were_given(backbone, folder, packed, monkeypatch):
    fx = FeatureExtractor(backbone, size=32)
    monkeypatch.chdir(folder)
    for source, name in {
        ".": "0.png",
        "./": "0.png",
        "./*.png": "0.png",
        "../images": "../images/0.png",
        "../s.tar": "../s.tar/0.png",
        "../list.txt": "images/0.png",
    }.items():
        assert fx(source)[0].name == name


def test_an_image_in_a_dict_is_named_as_it_is_alone(backbone, folder):
    fx = FeatureExtractor(backbone, size=32)
    path = str(folder / "0.png")
    for image, name in ((path, path), (Image.open(path), path), (_noise(32, 32), "1")):
        assert [r.name for r in fx([{"img": path}, {"img": image}])] == [path, name]
        assert [r.name for r in fx([path, image])] == [path, name]


def test_images_of_a_tar_that_cannot_be_read_are_skipped_and_named(backbone, packed):
    with tarfile.open(packed / "s.tar", "a") as tar:
        info = tarfile.TarInfo("bad.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    fx = FeatureExtractor(backbone, size=32, on_error="skip")
    failure = fx(packed / "s.tar")[-1]
    assert failure.reason == f"cannot read image '{packed}/s.tar/bad.png': not an image"
    with pytest.raises(ValueError, match=r"s\.tar/bad\.png': not an image"):
        FeatureExtractor(backbone, size=32)(packed / "s.tar")


def test_a_glob_of_images_takes_lists_and_tars_beside_them_for_images(backbone, packed):
    Image.fromarray(_noise(32, 32)).save(packed / "a.png")
    (packed / "s.tar.gz").write_bytes(b"")
    fx = FeatureExtractor(backbone, size=32, on_error="skip")
    results = fx(str(packed / "[als]*"))
    names = [result.name.rsplit("/", 1)[1] for result in results]
    assert names == ["a.png", "list.csv", "list.txt", "s.tar", "s.tar.gz"]
    assert [bool(result) for result in results] == [True, False, False, False, False]


def test_ready_pixel_values_and_batches_are_taken(backbone):
    processor = ConvNextImageProcessor(
        size=64, image_mean=MEAN.flatten().tolist(), image_std=STD.flatten().tolist()
    )
    arrays = np.stack([_noise(50, 50, seed) for seed in range(3)])
    fx = FeatureExtractor(backbone, processor=processor)
    from_batch = fx(arrays)
    ready = [{"pixel_values": processor(a, return_tensors="pt").pixel_values} for a in arrays]
    for a, b in zip(from_batch, fx(ready), strict=True):
        torch.testing.assert_close(a["stage4"], b["stage4"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        (torch.zeros(32, 32), r"must have shape \(3, H, W\), got \(32, 32\)"),
        (torch.zeros(2, 3, 32, 32), r"must have shape \(3, H, W\), got \(2, 3, 32, 32\)"),
        (torch.zeros(4, 32, 32), r"must have shape \(3, H, W\), got \(4, 32, 32\)"),
        (torch.zeros(3, 0, 32), r"must have shape \(3, H, W\), got \(3, 0, 32\)"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), "must be floating point, got torch.int64"),
        (torch.full((3, 32, 32), float("nan")), "must not hold NaN or infinite values"),
    ],
)
def test_ready_pixel_values_that_are_none_are_named(pixels, error, backbone):
    fx = FeatureExtractor(backbone, on_error="skip")
    good = {"pixel_values": torch.zeros(3, 32, 32)}
    results = fx([good, {"pixel_values": pixels}])
    assert [isinstance(result, Failure) for result in results] == [False, True]
    with pytest.raises(ValueError, match=f"^1: pixel_values {error}"):
        FeatureExtractor(backbone)([good, {"pixel_values": pixels}])


def test_how_the_callers_model_answers_does_not_matter(backbone):
    config = backbone.config.replace(return_dict=False, output_hidden_states=True)
    tuples = ConvNextBackbone(config)
    tuples.load_state_dict(backbone.state_dict())
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    expected = FeatureExtractor(backbone)(image)
    got = FeatureExtractor(tuples)(image)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor)
    assert tuples.config.return_dict is False


def _generalised_mean(x, p):
    """In numbers of any size and 60 digits."""
    with decimal.localcontext(decimal.Context(prec=60, Emax=10**15, Emin=-(10**15))):
        values = [max(decimal.Decimal(float(v)), decimal.Decimal("1e-6")) for v in x.flatten()]
        power = decimal.Decimal(p)
        return float((sum(v**power for v in values) / len(values)) ** (1 / power))


@pytest.mark.parametrize("p", [0.1, 1, 2.5, 30, 100, 1000, 1e6, 1e300])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e30])
def test_the_generalised_mean_neither_overflows_nor_underflows(p, scale):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * scale
    x[2] = -scale  # nothing above the smallest value that counts
    expected = torch.tensor([_generalised_mean(channel, min(p, 1e9)) for channel in x])
    torch.testing.assert_close(POOLS["gem"](x, p), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_generalised_mean_of_half_precision_is_that_of_the_values(dtype):
    x = torch.full((1, 4, 4), 60_000.0, dtype=dtype)
    assert torch.equal(POOLS["gem"](x, 100.0), x[:, 0, 0])


@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
def test_pooling_reduces_the_valid_part_of_each_map(backbone, pool):
    reduce = {
        "avg": lambda x: x.mean(dim=(1, 2)),
        "max": lambda x: x.flatten(1).max(dim=1).values,
        "gem": lambda x: (x.clamp(min=1e-6) ** 2.5).mean(dim=(1, 2)) ** (1 / 2.5),
    }[pool]
    array = _noise(45, 70)
    features = FeatureExtractor(backbone, size="native", pool=pool, gem_p=2.5)(array)
    for name, x in _by_hand(backbone, array).items():
        torch.testing.assert_close(features[name], reduce(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", [None, "avg"])
def test_a_head_can_be_trained_on_the_features(backbone, pool):
    feature = FeatureExtractor(backbone, pool=pool)(_noise(64, 64))["stage4"]
    assert not feature.requires_grad
    weight = torch.ones_like(feature, requires_grad=True)
    (feature * weight).sum().backward()
    assert torch.equal(weight.grad, feature)


def test_cls_is_the_pooled_output_of_transformers():
    config = transformers.ConvNextConfig(
        hidden_sizes=list(SHAPE["hidden_sizes"]), depths=list(SHAPE["depths"])
    )
    peer = transformers.ConvNextModel(config).eval()
    names = {
        "embeddings.patch_embeddings": "downsample_layers.0.0",
        "embeddings.layernorm": "downsample_layers.0.1",
    }
    model = ConvNextModel(ConvNextConfig(**SHAPE))
    theirs = {}
    for name, p in peer.state_dict().items():
        for theirs_part, ours_part in names.items():
            name = name.replace(theirs_part, ours_part)
        parts = name.replace("layer_scale_parameter", "gamma").replace("layernorm", "norm")
        parts = parts.replace("encoder.", "").split(".")
        if "downsampling_layer" in parts:
            parts = ["downsample_layers", parts[1], *parts[3:]]
        theirs[".".join(part for part in parts if part != "layers")] = p
    model.load_state_dict(theirs)
    array = _noise(80, 60)
    features = FeatureExtractor(model, pool="cls", size=64)(array)
    assert list(features) == ["cls"]
    processor = transformers.ConvNextImageProcessor(
        size={"shortest_edge": 64},
        image_mean=MEAN.flatten().tolist(),
        image_std=STD.flatten().tolist(),
    )
    with torch.no_grad():
        expected = peer(processor(array, return_tensors="pt").pixel_values).pooler_output[0]
    torch.testing.assert_close(features["cls"], expected, atol=1e-5, rtol=1e-5)


def test_a_model_gives_its_raw_maps():
    model = ConvNextForImageClassification(ConvNextConfig(**SHAPE)).eval()
    array = _noise(64, 64)
    fx = FeatureExtractor(model, out_features=["stem", "stage3"], size="native")
    with torch.no_grad():
        states = model(_normalised(array)[None], output_hidden_states=True).hidden_states
    features = fx(array)
    assert list(features) == ["stem", "stage3"]
    torch.testing.assert_close(features["stem"], states[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features["stage3"], states[3][0], atol=1e-5, rtol=1e-5)


def test_half_precision_and_channels_last_stay_close(backbone):
    array = _noise(64, 64)
    expected = FeatureExtractor(backbone, size="native")(array)
    half = FeatureExtractor(backbone, size="native", dtype="bfloat16", channels_last=True)(array)
    for name in expected:
        assert half[name].dtype == torch.bfloat16
        # bfloat16 has 8 bits of mantissa; the maps are of order 1 after their norm.
        torch.testing.assert_close(half[name].float(), expected[name], atol=0.1, rtol=0.1)


def test_the_callers_model_is_left_as_it_is(backbone):
    backbone.train()
    FeatureExtractor(backbone, out_features=["stage1"], dtype="bfloat16")
    assert backbone.training
    assert backbone.out_features == ("stem", "stage2", "stage4")
    assert next(backbone.parameters()).dtype == torch.float32
    assert all(p.requires_grad for p in backbone.norms.parameters())


def test_weights_files_bring_their_architecture_and_processor(backbone, tmp_path):
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    ConvNextImageProcessor(size=64, image_mean=0.25, image_std=0.5).save_pretrained(tmp_path)
    fx = FeatureExtractor(tmp_path / "model.safetensors", out_features=["stage2", "stage4"])
    assert fx.processor.size == {"shortest_edge": 64}
    assert fx.processor.image_mean == 0.25
    array = _noise(64, 64)
    features = fx(array)
    direct = FeatureExtractor(backbone, processor=fx.processor)(array)
    for name in ("stage2", "stage4"):
        torch.testing.assert_close(features[name], direct[name], atol=1e-6, rtol=1e-6)
    assert load_file(tmp_path / "model.safetensors").keys() == backbone.state_dict().keys()


@pytest.mark.parametrize("dinov3", [False, True])
def test_a_directory_of_transformers_gives_its_own_pooled_output(dinov3, tmp_path):
    shape = {name: list(value) for name, value in SHAPE.items()}
    if dinov3:
        peer = transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**shape))
        processor = transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    else:
        peer = transformers.ConvNextV2Model(transformers.ConvNextV2Config(**shape))
        processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, resample=2)
    peer.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(_noise(64, 64))
    with torch.no_grad():
        expected = peer(**processor(image, return_tensors="pt")).pooler_output[0]
    got = FeatureExtractor(tmp_path, pool="cls")(image)["cls"]
    torch.testing.assert_close(got, expected, atol=1e-3 if dinov3 else 1e-5, rtol=1e-4)


def test_channels_and_strides_are_those_of_the_features(backbone):
    fx = FeatureExtractor(backbone)
    assert fx.channels == {"stem": 8, "stage2": 16, "stage4": 32}
    assert fx.strides == {"stem": 4, "stage2": 8, "stage4": 32}


@pytest.fixture
def damaged(folder):
    (folder / "2b.jpg").write_bytes(b"this is text")
    (folder / "3b.png").write_bytes(b"")
    (folder / "sub" / "0b.png").write_bytes((folder / "0.png").read_bytes()[:900])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_skipped_and_named(backbone, damaged, workers):
    fx = FeatureExtractor(
        backbone, size="native", on_error="skip", batch_size=2, num_workers=workers
    )
    results = fx(damaged)
    bad = {"2b.jpg", "3b.png", "0b.png"}
    failures = [result for result in results if not result]
    assert all(isinstance(failure, Failure) for failure in failures)
    assert {failure.name.rsplit("/", 1)[1] for failure in failures} == bad
    assert all("\n" not in str(failure) for failure in failures)
    assert [result.index for result in results] == list(range(10))
    streamed = list(fx.stream(damaged))
    assert [r.name for r in streamed] == [r.name for r in results]
    assert [r for r in streamed if not r] == failures


def test_one_damaged_image_raises_also_where_others_are_skipped(backbone, damaged):
    fx = FeatureExtractor(backbone, size="native", on_error="skip")
    with pytest.raises(ValueError, match=r"^cannot read image .*2b\.jpg"):
        fx(damaged / "2b.jpg")
    (failure,) = fx([damaged / "2b.jpg"])
    assert str(failure).startswith("cannot read image ")


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_raise_with_their_name(backbone, damaged, workers):
    fx = FeatureExtractor(backbone, size="native", num_workers=workers)
    with pytest.raises(ValueError, match=r"cannot read image .*2b\.jpg"):
        fx(damaged)


def test_an_entry_that_fails_in_a_dataset_costs_no_other(backbone):
    class Dataset:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index == 2:
                raise OSError("disk on fire")
            return _noise(32, 32, index)

    fx = FeatureExtractor(backbone, size="native", on_error="skip")
    results = fx(Dataset())
    assert [bool(r) for r in results] == [True, True, False, True, True]
    assert str(results[2]) == "2: disk on fire"


def test_stream_does_not_run_ahead_of_its_reader(backbone):
    taken = []

    def images():
        for i in range(1000):
            taken.append(i)
            yield _noise(32, 32, i)

    fx = FeatureExtractor(backbone, size="native", batch_size=2, num_workers=1)
    stream = fx.stream(images())
    next(stream)
    assert len(taken) <= 3 * 8 * 2  # three windows of eight batches
    stream.close()


def test_batches_computed_side_by_side_are_those_computed_in_turn(backbone, folder):
    one = FeatureExtractor(backbone, size="native", batch_size=2)(folder)
    threads = torch.get_num_threads()
    many = FeatureExtractor(backbone, size="native", batch_size=2, compute_workers=3)(folder)
    assert torch.get_num_threads() == threads
    for a, b in zip(one, many, strict=True):
        for name in a:
            assert torch.equal(a[name], b[name])  # the tests run with one thread


def test_progress_is_shown_with_rate_and_remaining_time(backbone, capfd):
    FeatureExtractor(backbone, size="native", progress=True)([_noise(32, 32)] * 5)
    assert "5/5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pool": "median"}, "pool must be one of"),
        ({"pool": "cls"}, "pool='cls' needs the final norm"),
        ({"pool": "cls", "out_features": ["stage1"]}, "takes no choice of stages"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
        ({"size": "large"}, "size must be None, a number"),
        ({"size": (0, 3)}, "size must be an integer of at least 1, got 0"),
        ({"gem_p": 0}, "gem_p must be positive"),
        ({"gem_p": float("nan")}, "gem_p must be positive"),
        ({"gem_p": float("inf")}, "gem_p must be positive and finite, got inf"),
        ({"gem_p": 10**400}, "gem_p must be positive and finite, got 1000"),
        ({"gem_p": True}, "gem_p must be positive and finite, got True"),
        ({"gem_p": 1j}, "gem_p must be positive and finite, got 1j"),
        ({"size": np.array([32, 32])}, r"^size must be None, a number, .*, got array\(\[32, 32"),
        ({"device": 10**30}, "^device '10+' cannot be used: "),
        ({"gem_p": "3"}, "gem_p must be positive and finite, got '3'"),
        ({"out_features": ["stage9"]}, "out_features must be a subset"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"ema": True}, "a module has its weights already"),
    ],
)
def test_wrong_arguments_are_named(backbone, options, error):
    with pytest.raises(ValueError, match=error):
        FeatureExtractor(backbone, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"processor": "weights"}, "^processor must be a ConvNextImageProcessor, got str$"),
        ({"processor": {"size": 32}}, "^processor must be a ConvNextImageProcessor, got dict$"),
        ({"processor": ConvNextImageProcessor}, "^processor must be .*, got type$"),
        ({"processor": transformers.ConvNextImageProcessor()}, "^processor must be a ConvNext"),
        ({"device": 1.5}, "^device must be a name, an index or a torch.device, got 1.5$"),
        (
            {"device": ["cpu"]},
            r"^device must be a name, an index or a torch.device, got \['cpu'\]$",
        ),
    ],
)
def test_arguments_of_other_types_are_named(backbone, options, error):
    with pytest.raises(TypeError, match=error):
        FeatureExtractor(backbone, on_error="skip", **options)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_numbers_of_numpy_are_numbers(kind, backbone):
    options = {"batch_size": 2, "num_workers": 0, "compute_workers": 1, "size": 32, "gem_p": 3}
    given = {name: kind(value) for name, value in options.items()}
    given["gem_p"] = np.float32(3)
    fx = FeatureExtractor(backbone, pool="gem", **given)
    plain = FeatureExtractor(backbone, pool="gem", **options)
    assert json.dumps(fx.describe()) == json.dumps(plain.describe())
    image = _noise(40, 40)
    torch.testing.assert_close(fx(image), plain(image), atol=0, rtol=0)
    assert FeatureExtractor(backbone, size=(kind(32), kind(64)))(image).image_size == (32, 64)


def test_every_option_is_an_argument_and_of_one_group():
    groups = (OutputOptions, ImageOptions, RunOptions)
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    arguments = inspect.signature(FeatureExtractor).parameters
    assert sorted(["source", "checkpoint", "load_options", *names]) == sorted(arguments)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"out_features": ["stage1"]}, ["weights", "architecture", "features"]),
        ({"out_indices": [1]}, ["weights", "architecture", "features"]),
        ({"norm": False}, ["norm"]),
        ({"pool": "max"}, ["pool"]),
        ({"gem_p": 2}, []),
        ({"pool": "gem"}, ["pool", "gem_p"]),
        ({"processor": ConvNextImageProcessor(size=64)}, ["preprocessing"]),
        ({"size": (32, 64)}, ["preprocessing", "size"]),
        ({"pad": False}, ["pad"]),
        ({"dtype": "float16"}, ["weights", "dtype"]),
        ({"channels_last": True}, ["channels_last"]),
        ({"batch_size": 3}, ["batch_size"]),
        ({"num_workers": 0, "compute_workers": 2, "on_error": "skip", "progress": True}, []),
    ],
)
def test_what_changes_the_features_is_described(option, changed, backbone):
    before = FeatureExtractor(backbone, device="cpu").describe()
    after = FeatureExtractor(backbone, device="cpu", **option).describe()
    assert [k for k in {**before, **after} if before.get(k) != after.get(k)] == changed
    assert before["device"] == "cpu"


def test_no_images_give_no_features(backbone):
    fx = FeatureExtractor(backbone)
    assert fx([]) == fx(iter(())) == fx(np.zeros((0, 3, 8, 8), np.uint8)) == []


def test_an_optimized_module_is_refused(backbone):
    # Its weights are folded and packed: they can be neither cast nor told from those of another.
    model = ConvNextModel(ConvNextConfig(**SHAPE))
    for module, dtype in ((backbone, torch.float32), (model, torch.bfloat16)):
        optimized = module.optimize_for_inference(dtype=dtype)
        with pytest.raises(ValueError, match=r"not an optimized one.*dtype= is an argument"):
            FeatureExtractor(optimized)


@pytest.mark.parametrize("given", ["module", "weights", "config"])
def test_an_unknown_argument_is_named_with_those_there_are(given, backbone, tmp_path):
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    source = backbone if given == "module" else tmp_path / "model.safetensors"
    more = {"checkpoint": source} if given == "config" else {}
    with pytest.raises(TypeError, match=r"no argument 'bogus'; .*'ema', 'prefix', .*'fresh'"):
        FeatureExtractor(source, bogus=1, **more)


def test_too_little_memory_is_reported_with_what_to_change(backbone, monkeypatch):
    def full(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ConvNextBackbone, "forward", full)
    with pytest.raises(ValueError, match=r"1 images of 64x64 do not fit .* lower batch_size"):
        FeatureExtractor(backbone, size="native")(_noise(64, 60))


def test_wrong_sources_are_named(backbone, tmp_path):
    with pytest.raises(TypeError, match="source must be weights"):
        FeatureExtractor(3)
    with pytest.raises(TypeError, match="source must be a ConvNextBackbone"):
        FeatureExtractor(torch.nn.Linear(2, 2))
    fx = FeatureExtractor(backbone)
    with pytest.raises(ValueError, match="no images in "):
        fx(tmp_path)
    with pytest.raises(ValueError, match=r"no file matches .*\*\.jpg"):
        fx(str(tmp_path / "*.jpg"))
    with pytest.raises(ValueError, match="no such image"):
        fx(tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError, match=r"no such image or folder: .*missing\.tar"):
        fx(tmp_path / "missing.tar")
    (tmp_path / "s.tgz").touch()
    with pytest.raises(ValueError, match=r"s\.tgz is compressed"):
        fx(tmp_path / "s.tgz")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"no images in .*empty\.txt"):
        fx(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="must not hold NaN"):
        fx(torch.full((3, 40, 40), torch.nan))
    with pytest.raises(TypeError, match="images must be"):
        fx(object())
    with pytest.raises(TypeError, match="entry 0 holds no image"):
        fx([{"label": 3}])


def test_the_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="source must not be empty"):
        expand("")
    with pytest.raises(ValueError, match="source must not be empty"):
        is_single("")


class _Stream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 2

    def __iter__(self):
        return iter([torch.full((3, 40, 50), 7, dtype=torch.uint8)] * 2)


def test_an_iterable_dataset_that_knows_its_length_is_iterated_over(backbone):
    results = FeatureExtractor(backbone, size=32)(_Stream())
    assert [(result.index, result.original_size) for result in results] == [
        (0, (40, 50)),
        (1, (40, 50)),
    ]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"size": 300_000}, "^size must be at most .*, got 300000x300000"),
        ({"size": (1, 1 << 29)}, "^size must be at most .*, got 1x536870912"),
    ],
)
def test_what_no_machine_can_compute_is_refused_by_name(options, error, backbone):
    with pytest.raises(ValueError, match=error):
        FeatureExtractor(backbone, **options)
