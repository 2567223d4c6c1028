"""Pictures of features: components, activations and similarities mean what they say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.decomposition import PCA

from convnext_backbone import ConvNextBackbone, cli
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.features.pictures import (
    METHODS,
    activation_map,
    colour,
    draw_figure,
    draw_panels,
    make_scene,
    pca_maps,
    similarity_map,
    visualize,
)
from convnext_backbone.images.files import name_images

SHAPE = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
STAGES = ("stage1", "stage2", "stage3", "stage4")


@pytest.fixture
def extractor():
    backbone = ConvNextBackbone(**SHAPE, out_features=STAGES)
    return FeatureExtractor(backbone, size="native", norm=False)


def _noise(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_components_are_those_of_scikit_learn_over_all_images_together():
    maps = [torch.randn(6, 9, 7), torch.randn(6, 5, 11) * 2 + 1]
    pixels = torch.cat([x.flatten(1).T for x in maps]).double().numpy()
    expected = PCA(3, svd_solver="full").fit_transform(pixels)
    got = torch.cat([x.flatten(1).T for x in pca_maps(maps)]).double().numpy()
    for component in range(3):
        low, high = np.quantile(expected[:, component], (0.01, 0.99))
        one_way = np.clip((expected[:, component] - low) / (high - low), 0, 1)
        low, high = np.quantile(-expected[:, component], (0.01, 0.99))
        other_way = np.clip((-expected[:, component] - low) / (high - low), 0, 1)
        difference = [np.abs(got[:, component] - way).max() for way in (one_way, other_way)]
        assert min(difference) < 1e-5


def test_components_do_not_depend_on_chance_or_order():
    maps = [torch.randn(8, 6, 6), torch.randn(8, 4, 5)]
    first, second = pca_maps(maps)
    swapped = pca_maps(maps[::-1])
    torch.testing.assert_close(swapped[1], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(swapped[0], second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_few_channels_leave_the_other_components_black(channels):
    (components,) = pca_maps([torch.randn(channels, 4, 4)])
    assert components.shape == (3, 4, 4)
    assert components[channels:].abs().max() == 0


def test_a_constant_map_gives_no_nan():
    (components,) = pca_maps([torch.ones(5, 3, 3)])
    assert torch.isfinite(components).all()
    assert np.isfinite(colour(torch.ones(2, 2), 1.0, 1.0)).all()


def test_similarity_is_the_cosine():
    x = torch.randn(5, 4, 6)
    got = similarity_map(x, 2, 3)
    expected = F.cosine_similarity(x, x[:, 2:3, 3:4].expand_as(x), dim=0)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    assert got[2, 3] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"must lie in the map of 4x6, got \(4, 0\)"):
        similarity_map(x, 4, 0)


def test_activation_is_the_length_of_the_vector():
    x = torch.randn(5, 4, 6)
    torch.testing.assert_close(activation_map(x), x.square().sum(dim=0).sqrt())


def test_colours_run_from_the_first_to_the_last_of_viridis():
    shown = colour(torch.tensor([[-1.0, 0.0, 0.5, 1.0, 2.0]]), 0.0, 1.0)[0]
    assert shown[0].tolist() == shown[1].tolist() == [68, 1, 84]
    assert shown[3].tolist() == shown[4].tolist() == [253, 231, 37]
    assert shown[2].tolist() == [33, 144, 141]


def test_the_shown_image_is_the_image(extractor):
    image = _noise(45, 61)
    scene = make_scene(extractor, image, "noise")
    assert scene.size == (45, 61)
    assert np.abs(scene.shown.pixels.astype(int) - np.array(image)).max() <= 1


def test_panels_lie_over_the_image_cell_by_cell(extractor):
    scene = make_scene(extractor, _noise(45, 61), "noise")
    (panel,) = draw_panels([scene], "stage2", "similarity", (60, 44))
    assert panel.pixels.shape == (6, 8, 3)  # ceil(45 / 8), ceil(61 / 8)
    assert panel.pixels[5, 7].tolist() == [253, 231, 37]  # the cell that was asked for
    enlarged = panel.enlarged()
    assert enlarged.shape == (45, 61, 3)
    assert np.array_equal(enlarged[44, 60], panel.pixels[5, 7])
    assert np.array_equal(enlarged[8, 15], panel.pixels[1, 1])


def test_scales_are_shared_among_images(extractor):
    scenes = [make_scene(extractor, _noise(40, 40, seed), str(seed)) for seed in range(3)]
    panels = draw_panels(scenes, "stage1", "activation")
    low = min(float(activation_map(s.features["stage1"]).min()) for s in scenes)
    high = max(float(activation_map(s.features["stage1"]).max()) for s in scenes)
    for panel in panels:
        assert panel.scale == pytest.approx((low, high))


def test_a_figure_holds_every_panel(extractor):
    images = {"first": _noise(45, 61), "second": _noise(90, 30)}
    figure = visualize(extractor, images, METHODS, point=(5, 7))
    assert figure.width > 5 * 240
    assert figure.height > 3 * (round(240 * 45 / 61) + round(240 * 90 / 30))
    assert len(np.unique(np.array(figure).reshape(-1, 3), axis=0)) > 500


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda fx, s: draw_panels([s], "stage9", "pca"), "feature must be one of"),
        (lambda fx, s: draw_panels([s], "stage1", "x-ray"), "method must be one of"),
        (lambda fx, s: draw_panels([s], "stage1", "similarity"), "needs a point"),
        (
            lambda fx, s: draw_panels([s], "stage1", "similarity", (61, 0)),
            r"must lie in the image of 61x45, got \(61, 0\)",
        ),
        (lambda fx, s: visualize(fx, {}), "images must not be empty"),
        (lambda fx, s: draw_figure([], ""), "at least one panel"),
        (lambda fx, s: pca_maps([torch.ones(2, 1, 1), torch.ones(3, 1, 1)]), "of one feature"),
    ],
)
def test_wrong_requests_are_named(extractor, call, error):
    scene = make_scene(extractor, _noise(45, 61), "noise")
    with pytest.raises(ValueError, match=error):
        call(extractor, scene)


def test_an_image_of_no_use_is_named_once(extractor, tmp_path):
    values = Image.fromarray(np.full((40, 40), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"^nan\.tiff: an image of mode F has no known range"):
        make_scene(extractor, values, "nan.tiff")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"^cannot read image '.*text\.jpg': not an image"):
        make_scene(extractor, tmp_path / "text.jpg", "text.jpg")
    with pytest.raises(TypeError, match=r"^a number: an image must be a path"):
        make_scene(extractor, 3, "a number")


def test_pooled_features_cannot_be_drawn():
    fx = FeatureExtractor(ConvNextBackbone(**SHAPE), size="native", pool="avg")
    with pytest.raises(ValueError, match="pictures need maps"):
        make_scene(fx, _noise(40, 40), "noise")


def test_command_line_writes_a_png(tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    save_file(ConvNextBackbone(**SHAPE, out_features=STAGES).state_dict(), weights)
    _noise(45, 61).save(tmp_path / "noise.png")
    out = tmp_path / "new" / "features.png"
    base = ["visualize", str(tmp_path / "noise.png"), "--weights", str(weights)]
    assert cli.main([*base, "--point", "10", "20", "--out", str(out)]) == 0
    assert "pca, activation, similarity" in capsys.readouterr().out
    with Image.open(out) as figure:
        assert figure.format == "PNG"
        assert figure.width > 5 * 240
    assert cli.main([*base, "--point", "70", "20", "--out", str(out)]) == 2
    assert "point must lie in the image of 61x45" in capsys.readouterr().err
    assert cli.main(["visualize", "--weights", str(weights)]) == 2
    assert "give an image, or --serve" in capsys.readouterr().err


def test_equal_file_names_in_two_folders_are_two_images(tmp_path, capsys, monkeypatch):
    weights = tmp_path / "model.safetensors"
    save_file(ConvNextBackbone(**SHAPE, out_features=STAGES).state_dict(), weights)
    for folder, seed in (("b", 0), ("a", 1)):
        (tmp_path / folder).mkdir()
        _noise(40, 60, seed).save(tmp_path / folder / "x.png")
    monkeypatch.chdir(tmp_path)
    base = ["--weights", str(weights), "--method", "activation", "--out", "out.png"]
    heights = []
    for images in (["b/x.png"], ["b/x.png", "a/x.png"], ["b", "a"], ["b/x.png", "b/x.png"]):
        assert cli.main(["visualize", *images, *base]) == 0
        with Image.open("out.png") as figure:
            heights.append(figure.height)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" by ")[0] for line in printed] == [
        "1 images drawn", "2 images drawn", "2 images drawn", "1 images drawn"
    ]  # fmt: skip
    one, two, folders, again = heights
    assert two == folders > one + 40
    assert again == one


def test_images_keep_the_order_in_which_they_were_given(tmp_path):
    for name in ("b.png", "a.png"):
        _noise(40, 60).save(tmp_path / name)
    names = name_images([tmp_path / "b.png", tmp_path / "a.png"])
    assert list(names) == ["b.png", "a.png"]


@pytest.mark.parametrize(("name", "format"), [("a.jpg", "JPEG"), ("a.PNG", "PNG"), ("a", "PNG")])
def test_the_suffix_of_a_picture_is_its_format(name, format, tmp_path):
    command = _visualize(tmp_path)
    assert cli.main([*command, str(tmp_path / name)]) == 0
    with Image.open(tmp_path / name) as image:
        assert image.format == format


def test_a_picture_of_another_format_is_refused(tmp_path, capsys):
    assert cli.main([*_visualize(tmp_path), str(tmp_path / "a.gif")]) == 2
    assert "the suffix of --out must be one of" in capsys.readouterr().err
    assert not (tmp_path / "a.gif").exists()


def _visualize(folder):
    backbone = ConvNextBackbone(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    backbone.save_pretrained(folder / "weights")
    Image.new("RGB", (40, 50)).save(folder / "image.png")
    weights = ["--weights", str(folder / "weights"), "--method", "activation"]
    return ["visualize", str(folder / "image.png"), *weights, "--out"]
