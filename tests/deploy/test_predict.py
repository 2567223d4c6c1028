"""predict.py, which runs without torch, prepares images and reads results as the libraries do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from convnext_backbone.deploy import predict
from convnext_backbone.deploy.folder import Given, calibration_inputs
from convnext_backbone.images.reading import load_image, to_eight_bits, to_rgb


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(41, 30), (13, 90), (20, 31), (1, 1), (40, 1), (1, 62)])
def test_resize_is_torchs_bilinear_interpolation(rng, size, align_corners):
    image = rng.normal(size=(3, 20, 31)).astype(np.float32)
    expected = F.interpolate(
        torch.from_numpy(image)[None], size=size, mode="bilinear", align_corners=align_corners
    )[0]
    ours = predict.resize(image, size, align_corners)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def _resized(image, rule):
    resized, inner = predict.prepare(image, {"resize": rule, "pad": None})
    assert inner == resized.shape[:2]
    return resized


@pytest.mark.parametrize("scale", [[1333, 800], [60, 40], [32, 200]])
def test_an_image_is_resized_as_mmcv_does(rng, scale):
    mmcv = pytest.importorskip("mmcv")
    # Smooth, as photographs are: OpenCV rounds its weights to 11 bits.
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize((90, 61)))
    for keep_ratio, resize in ((True, mmcv.imrescale), (False, mmcv.imresize)):
        expected = resize(image, tuple(scale))
        ours = _resized(image, {"scale": scale, "keep_ratio": keep_ratio})
        assert ours.shape == expected.shape
        assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1


def test_an_image_fits_into_a_frame_with_sides_of_its_own():
    rule = {"scale": [100, 50], "keep_ratio": True, "fit": True}
    tall, wide = np.zeros((200, 100, 3), np.uint8), np.zeros((100, 200, 3), np.uint8)
    assert _resized(tall, rule).shape == (50, 25, 3)
    assert _resized(wide, rule).shape == (50, 100, 3)


@pytest.mark.parametrize("shape", [(3000, 1), (1, 3000), (1, 1)])
def test_a_sliver_of_an_image_keeps_one_pixel(shape):
    rule = {"scale": [128, 128], "keep_ratio": True}
    resized = _resized(np.full((*shape, 3), 7, np.uint8), rule)
    assert resized.shape == (*(128 if side == max(shape) else 1 for side in shape), 3)
    assert (resized == 7).all()


def test_padding_is_at_the_right_and_the_bottom():
    image = np.full((5, 7, 3), 9, np.uint8)
    rule = {"size": None, "divisor": 4, "value": [1, 2, 3]}
    padded, inner = predict.prepare(image, {"resize": None, "pad": rule})
    assert inner == (5, 7)
    assert padded.shape == (8, 8, 3)
    assert (padded[:5, :7] == 9).all()
    assert (padded[5:] == [1, 2, 3]).all()
    padded, _ = predict.prepare(image, {"resize": None, "pad": {**rule, "size": [6, 7]}})
    assert padded.shape == (6, 7, 3)


def test_masks_are_pasted_as_mmdet_pastes_them(rng):
    mask_head = pytest.importorskip("mmdet.models.roi_heads.mask_heads.fcn_mask_head")
    masks = rng.random((3, 28, 28), np.float32)
    boxes = np.array([[3.2, 4.1, 30.7, 20.9], [-4, -2, 9, 50], [10, 10, 10.4, 10.3]], np.float32)
    size = (40, 36)
    expected, _ = mask_head._do_paste_mask(
        torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), *size, skip_empty=False
    )
    ours = np.stack([predict.paste_mask(*pair, size) for pair in zip(masks, boxes, strict=True)])
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("first", [False, True])
def test_run_lengths_are_cocos(rng, first):
    mask_api = pytest.importorskip("pycocotools.mask")
    mask = rng.random((9, 7)) > 0.6
    mask[0, 0] = first
    written = predict.run_lengths(mask)
    read = mask_api.decode(mask_api.frPyObjects(written, *written["size"]))
    np.testing.assert_array_equal(read, mask)


@pytest.mark.parametrize("channels", [1, 4])
def test_probabilities_give_logits_up_to_a_constant_of_each_pixel(rng, channels):
    logits = torch.from_numpy(rng.normal(size=(channels, 5, 6)).astype(np.float32))
    probabilities = logits.sigmoid() if channels == 1 else logits.softmax(0)
    difference = predict.to_logits(probabilities.numpy()) - logits.numpy()
    constant = 0 if channels == 1 else difference[:1]
    np.testing.assert_allclose(difference - constant, 0, atol=1e-5)


def _network(inputs):
    """A network of two classes whose probabilities depend on the pixel and on the window."""
    image = torch.from_numpy(inputs["image"]) / 255
    logits = torch.stack([image[:, 0] - image.mean(), image[:, 1]], dim=1)
    return {"probabilities": logits.softmax(1).numpy()}


def test_sliding_windows_are_mmsegs(rng):
    mmseg = pytest.importorskip("mmseg.models")
    image = rng.integers(0, 256, (50, 71, 3), np.uint8)
    crop, stride = (32, 40), (20, 24)
    model = predict.Model.__new__(predict.Model)
    model.network = _network
    model.info = {"input": {"name": "image", "dtype": "float32", "batch": "free"}}
    ours = model.slide(image, *crop, *stride)

    class Segmentor(mmseg.EncoderDecoder):
        out_channels = 2

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.test_cfg = type("Config", (), {"crop_size": crop, "stride": stride})

        def encode_decode(self, window, metas):
            return torch.from_numpy(_network({"image": window.numpy()})["probabilities"]).log()

    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = Segmentor().slide_inference(batch, [{}])[0]
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_read_as_images_reading_and_mmcv_do(suffix, tmp_path):
    mmcv = pytest.importorskip("mmcv")
    path = tmp_path / f"grey.{suffix}"
    grey = np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50)
    Image.fromarray(grey).save(path)
    ours = predict.read_image(path)
    np.testing.assert_array_equal(ours, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2))
    np.testing.assert_array_equal(ours, np.asarray(to_rgb(to_eight_bits(load_image(path)))))
    np.testing.assert_array_equal(ours, mmcv.imread(path))
    rules = {"resize": None, "pad": None}
    (calibrated,) = calibration_inputs([str(path)], rules, Given(None, 2, "uint8"))
    assert calibrated["image"].dtype == np.uint8
    np.testing.assert_array_equal(calibrated["image"], [ours.transpose(2, 0, 1)] * 2)


def test_a_rotated_grey_tiff_is_read_upright(tmp_path):
    grey = np.arange(40 * 50).reshape(40, 50).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "a.tif", exif=exif)
    ours = predict.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(ours, np.rot90(np.repeat(grey[..., None], 3, 2), -1))


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 20, dtype=np.float32),
        np.linspace(0, 255, 20, dtype=np.float32),
        np.linspace(0, 65536, 20).astype(np.int32),
        np.linspace(-1, 200, 20).astype(np.int32),
    ],
)
def test_grey_of_no_known_range_is_refused_as_mmcv_and_images_reading_do(values, tmp_path):
    mmcv = pytest.importorskip("mmcv")
    path = tmp_path / "grey.tif"
    Image.fromarray(values.reshape(4, 5)).save(path)
    assert mmcv.imread(path) is None
    with pytest.raises(ValueError, match=r"an image of mode [FI]"):
        to_eight_bits(load_image(path))
    with pytest.raises(ValueError, match=r"grey must have 8 or 16 bits, got .* \.\. "):
        predict.read_image(path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(ValueError, match="is not a regular file"):
            predict.read_image(tmp_path / name)


def test_suffixes_choose_among_the_files_of_folders_only(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder/b.jpg", "folder/notes.txt", "a.jfif", "scan"):
        (tmp_path / name).write_bytes(b"")
    given = [tmp_path / name for name in ("scan", "folder", "a.jfif", "nowhere")]
    named = [path.name for path in predict.list_images(given)]
    assert named == ["scan", "b.jpg", "a.jfif", "nowhere"]


def test_a_folder_with_the_suffix_of_an_image_is_none_and_a_broken_link_is_not_passed_over(
    tmp_path,
):
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "a.jpg").write_bytes(b"")
    (tmp_path / "link.png").symlink_to("nowhere")
    found = [path.relative_to(tmp_path).as_posix() for path in predict.list_images([tmp_path])]
    assert found == ["link.png", "sub.png/a.jpg"]


def _main(monkeypatch, capsys, *arguments, model=None):
    monkeypatch.setattr(predict, "Model", lambda *_: model or _Labels())
    return _run_main(monkeypatch, capsys, *arguments)


def _run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        predict.main()
    return stopped.value.code, capsys.readouterr()


class _Labels:
    info: ClassVar = {"palette": [[0, 0, 0]]}

    def __call__(self, image):
        return {"label_map": np.zeros(image.shape[:2], np.int64)}


def test_an_image_that_cannot_be_read_is_an_entry_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys
):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = ("a.png", "b.png", "missing.png", "loop.png")
    files, out = [tmp_path / name for name in names], tmp_path / "out"
    code, printed = _main(monkeypatch, capsys, *files, "--out", out)
    assert code == 1
    assert printed.out == f"{out}: 1 images, 3 failed\n"
    first, second, third, last = json.loads((out / "predictions.json").read_text())
    assert first["file"] == str(files[0])
    assert "cannot identify image file" in first["error"]
    assert second == {"file": str(files[1]), "label_map": "00001_b_labels.png"}
    assert "No such file" in third["error"]
    assert "Too many levels of symbolic links" in last["error"]
    code, printed = _main(monkeypatch, capsys, files[1], "--out", out)
    assert code == 0


def test_a_folder_without_images_is_one_line(tmp_path, monkeypatch, capsys):
    code, printed = _main(monkeypatch, capsys, tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert printed.err == f"predict.py: error: no images in {[str(tmp_path)]}\n"
    assert not (tmp_path / "out").exists()


class _Picky(_Labels):
    """Fails as a network, as drawing and as the user do, each on images of one width."""

    def __call__(self, image):
        if image.shape[1] == 1:
            raise RuntimeError("too small")
        if image.shape[1] == 3:
            raise KeyboardInterrupt
        labels = super().__call__(image)["label_map"]
        return {"label_map": labels + (image.shape[1] == 2) * 9}  # a class without a colour


def _save_images(folder, widths):
    for index, width in enumerate(widths):
        Image.new("RGB", (width, 8)).save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(len(widths))]


def test_an_image_that_the_network_cannot_take_is_an_entry_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys
):
    files, out = _save_images(tmp_path, (8, 1, 2, 9)), tmp_path / "out"
    code, printed = _main(monkeypatch, capsys, *files, "--out", out, model=_Picky())
    assert (code, printed.out) == (1, f"{out}: 2 images, 2 failed\n")
    first, second, third, last = json.loads((out / "predictions.json").read_text())
    assert first["label_map"] == "00000_0_labels.png"
    assert second == {"file": str(files[1]), "error": "too small"}
    assert "out of bounds" in third["error"]
    assert last["label_map"] == "00003_3_labels.png"
    pictures = {"00000_0.png", "00000_0_labels.png", "00003_3.png", "00003_3_labels.png"}
    assert set(os.listdir(out)) == {"predictions.json", *pictures}


def test_an_interrupted_run_leaves_the_results_that_it_has(tmp_path, monkeypatch):
    files, out = _save_images(tmp_path, (8, 3, 8)), tmp_path / "out"
    monkeypatch.setattr(predict, "Model", lambda *_: _Picky())
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, files), "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        predict.main()
    (entry,) = json.loads((out / "predictions.json").read_text())
    assert entry["file"] == str(files[0])


@pytest.mark.parametrize("stem", ["a" * 250, "\u6f22" * 83])
def test_a_long_file_name_is_shortened(stem, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / f"{stem}.png", tmp_path / "out"
    Image.new("RGB", (8, 8)).save(path)
    code, _ = _main(monkeypatch, capsys, path, "--out", out)
    (entry,) = json.loads((out / "predictions.json").read_text())
    assert code == 0
    assert (out / entry["label_map"]).is_file()
    assert entry["label_map"].startswith(f"00000_{stem[:60]}")


def test_what_is_given_is_not_replaced(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "00000_a.png", "00001_b_labels.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    for names in (("a.png", "00000_a.png"), ("a.png", "b.png", "00001_b_labels.png")):
        files = [tmp_path / name for name in names]
        code, printed = _main(monkeypatch, capsys, *files, "--out", tmp_path)
        assert code == 2
        assert f"--out would replace the input {str(files[-1])!r}" in printed.err
        assert Image.open(files[-1]).getpixel((0, 0)) == (255, 0, 0)
    assert not (tmp_path / "predictions.json").exists()


def _exported_identity(folder):
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, None, None]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:]
    )
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "m.onnx")
    return str(folder / "m.onnx")


def test_a_provider_that_is_not_there_is_named_instead_of_left_out(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    path, cpu = _exported_identity(tmp_path), "CPUExecutionProvider"
    x = np.ones((1, 3, 2, 2), np.float32)
    np.testing.assert_array_equal(predict.load_network(path, cpu)({"x": x})["y"], x)
    with pytest.raises(ValueError, match=rf"provider must be one of .*'{cpu}'.*, got 'Nope'"):
        predict.load_network(path, "Nope")
    # One that is installed and cannot start, such as CUDA's without a GPU.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["Cuda", cpu])
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, providers: session(path, providers=[cpu])
    )
    with pytest.raises(ValueError, match=rf"'Cuda' does not start, only \['{cpu}'\]"):
        predict.load_network(path, "Cuda")


def test_openvino_is_given_the_device_that_was_typed(monkeypatch):
    given = []
    compiled = {"compile_model": lambda path, device, config: given.append(device)}
    monkeypatch.setitem(sys.modules, "openvino", type("openvino", (), compiled))
    for provider in ("CPUExecutionProvider", "GPU", "CUDAExecutionProvider"):
        predict.load_network("model.xml", provider)
    assert given == ["CPU", "GPU", "CUDA"]


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nope"])
def test_a_folder_that_cannot_be_written_is_one_line(out, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    files = _save_images(tmp_path, (8,))
    code, printed = _main(monkeypatch, capsys, *files, "--out", tmp_path / out)
    assert code == 2
    assert printed.err.startswith("predict.py: error: [Errno ")
    assert printed.err.count("\n") == 1


def test_results_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "out" / "predictions.json").mkdir(parents=True)
    files = _save_images(tmp_path, (8,))
    code, printed = _main(monkeypatch, capsys, *files, "--out", tmp_path / "out")
    assert code == 2
    assert "predictions.json" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("description", "named"),
    [(None, "deploy.json"), ("{", "Expecting"), ('{"file": "model.onnx"}', "model.onnx")],
)
def test_a_folder_without_its_files_is_one_line(description, named, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    if description is not None:
        (tmp_path / "deploy.json").write_text(description)
    monkeypatch.setattr(predict, "__file__", str(tmp_path / "predict.py"))
    files = _save_images(tmp_path, (8,))
    code, printed = _run_main(monkeypatch, capsys, *files, "--out", tmp_path / "out")
    assert code == 2
    assert named in printed.err
    assert printed.err.count("\n") == 1


def test_it_is_short_and_needs_numpy_pillow_and_onnxruntime_only():
    path = predict.__file__
    assert len(Path(path).read_text(encoding="utf-8").splitlines()) < 250
    code = (
        "import sys, runpy\n"
        "before = set(sys.modules)\n"  # a distribution's sitecustomize, editable installations
        f"runpy.run_path({path!r})\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert {name for name in foreign if not name.startswith("_")} <= {"numpy", "PIL", "defusedxml"}
