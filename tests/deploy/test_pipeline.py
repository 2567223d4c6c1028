"""A test pipeline becomes rules, or an error that names the step."""

import pytest

from convnext_backbone.deploy.pipeline import fixed_size, read_pipeline

LOAD, PACK = {"type": "LoadImageFromFile", "backend_args": None}, {"type": "PackDetInputs"}


def test_the_pipeline_of_coco():
    steps = [LOAD, {"type": "Resize", "scale": (1333, 800), "keep_ratio": True}, PACK]
    assert read_pipeline(steps) == {
        "resize": {"scale": [1333, 800], "keep_ratio": True},
        "pad": None,
    }


def test_padding_is_in_rgb_and_height_comes_first():
    steps = [{"type": "mmdet.Pad", "size": (640, 480), "pad_val": {"img": (1, 2, 3)}}]
    assert read_pipeline(steps)["pad"] == {"size": [480, 640], "divisor": None, "value": [3, 2, 1]}


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"type": "TestTimeAug"}, "TestTimeAug"),
        ({"type": "Resize", "scale": (4, 4), "interpolation": "bicubic"}, "bicubic"),
        ({"type": "Pad", "pad_to_square": True}, "pad_to_square"),
        ({"type": "LoadImageFromFile", "color_type": "grayscale"}, "grayscale"),
    ],
)
def test_what_predict_py_does_not_do_is_refused_by_name(step, named):
    with pytest.raises(ValueError, match=named):
        read_pipeline([step])


def test_a_second_pad_is_refused_as_a_second_resize_is():
    pad = {"type": "Pad", "size": (640, 640)}
    with pytest.raises(ValueError, match="Pad must come once"):
        read_pipeline([LOAD, pad, {"type": "mmdet.Pad", "size_divisor": 128}])
    resize = {"type": "Resize", "scale": (64, 64)}
    with pytest.raises(ValueError, match="Resize must come once"):
        read_pipeline([LOAD, resize, resize])


def test_a_fixed_size_fits_images_into_it():
    rules = fixed_size(read_pipeline([LOAD]), (480, 640), [1.0, 2.0, 3.0])
    assert rules["resize"] == {"scale": [640, 480], "keep_ratio": True, "fit": True}
    assert rules["pad"] == {"size": [480, 640], "divisor": None, "value": [1.0, 2.0, 3.0]}
