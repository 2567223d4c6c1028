"""Whole models of the shipped configs give as ONNX what mmdet and mmsegmentation predict."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import json
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
pytestmark = pytest.mark.openmmlab

from mmengine.config import Config

from convnext_backbone import cli
from convnext_backbone.deploy import DisagreementError, deploy_model, folder, segmentor, targets
from convnext_backbone.deploy.inputs import pad_for_neck
from convnext_backbone.openmmlab.tools.config import build_model
from convnext_backbone.openmmlab.trained_model import load_trained_model, predict

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTHS = (8, 16, 24, 32)
FPN = {"model.neck.in_channels": list(WIDTHS), "model.neck.out_channels": 16}
BOXES = {
    **FPN,
    "model.rpn_head.in_channels": 16,
    "model.rpn_head.feat_channels": 16,
    "model.roi_head.bbox_roi_extractor.out_channels": 16,
    "model.test_cfg.rpn.nms_pre": 100,
    "model.test_cfg.rpn.max_per_img": 60,
    "model.test_cfg.rcnn.max_per_img": 30,
}
ROI = {
    **BOXES,
    "model.roi_head.mask_roi_extractor.out_channels": 16,
    "model.roi_head.mask_head.in_channels": 16,
    "model.roi_head.mask_head.conv_out_channels": 16,
    "model.roi_head.mask_head.num_classes": 5,
}
BOX_HEAD = {"in_channels": 16, "conv_out_channels": 16, "fc_out_channels": 32, "num_classes": 5}
DENSE_WIDTHS = ("model.bbox_head.in_channels", "model.bbox_head.feat_channels")
DENSE = {
    "model.neck.in_channels": list(WIDTHS[1:]),
    "model.neck.out_channels": 16,
    **dict.fromkeys(DENSE_WIDTHS, 16),
    "model.bbox_head.num_classes": 5,
    "model.test_cfg.nms_pre": 100,
    "model.test_cfg.max_per_img": 40,
}
DEFORMABLE = {
    "model.neck.in_channels": list(WIDTHS[1:]),
    "model.num_queries": 60,
    "model.bbox_head.num_classes": 5,
    "model.encoder.num_layers": 1,
    "model.decoder.num_layers": 2,
    "model.test_cfg.max_per_img": 40,
}
# A segmentor's head on the last map, and its second one on the map before.
LAST_MAP = {
    "model.decode_head.in_channels": WIDTHS[3],
    "model.decode_head.channels": 16,
    "model.auxiliary_head.in_channels": WIDTHS[2],
    "model.auxiliary_head.channels": 16,
}
# Shipped configs, with narrow layers in the place of their own.
FAMILIES = {
    "retinanet/retinanet_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py": DENSE,
    "fcos/fcos_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py": {
        **DENSE,
        # Its norms have 32 groups, of which each needs two values on a map of one pixel.
        **dict.fromkeys((*DENSE_WIDTHS, "model.neck.out_channels"), 64),
    },
    "faster_rcnn/faster-rcnn_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py": {
        **BOXES,
        "model.roi_head.bbox_head.in_channels": 16,
        "model.roi_head.bbox_head.fc_out_channels": 32,
        "model.roi_head.bbox_head.num_classes": 5,
    },
    "mask_rcnn/mask-rcnn_convnext-t_fpn_8xb2-amp-ms-crop-3x_coco.py": {
        **ROI,
        **{f"model.roi_head.bbox_head.{name}": value for name, value in BOX_HEAD.items()},
    },
    "cascade_rcnn/cascade-mask-rcnn_convnext-t_fpn_4conv1fc-giou_8xb2-amp-ms-crop-3x_coco.py": {
        **ROI,
        **{
            f"model.roi_head.bbox_head.{stage}.{name}": value
            for stage in range(3)
            for name, value in BOX_HEAD.items()
        },
    },
    "rtmdet/rtmdet-l_convnext-b_4xb32-100e_coco.py": {
        **DENSE,
        "model.neck.norm_cfg.num_groups": 4,
        "model.bbox_head.norm_cfg.num_groups": 4,
    },
    "dino/dino-4scale_convnext-t_8xb2-12e_coco.py": DEFORMABLE,
    "upernet/upernet_convnext-t_8xb2-amp-160k_ade20k-512x512.py": {
        "model.decode_head.in_channels": list(WIDTHS),
        "model.decode_head.channels": 16,
        "model.auxiliary_head.in_channels": WIDTHS[2],
        "model.auxiliary_head.channels": 16,
    },
    "linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py": {
        "model.decode_head.in_channels": WIDTHS[3],
        "model.decode_head.num_classes": 5,
    },
    "segformer/segformer_convnext-t_8xb2-amp-160k_ade20k-512x512.py": {
        "model.decode_head.in_channels": list(WIDTHS),
        "model.decode_head.channels": 16,
    },
    "deeplabv3plus/deeplabv3plus_convnext-t_8xb2-amp-160k_ade20k-512x512.py": {
        **LAST_MAP,
        "model.decode_head.c1_in_channels": WIDTHS[0],
        "model.decode_head.c1_channels": 8,
    },
    "mask2former/mask2former_convnext-t_8xb2-160k_ade20k-512x512.py": {
        "model.decode_head.in_channels": list(WIDTHS),
        "model.decode_head.num_queries": 20,
        "model.decode_head.pixel_decoder.encoder.num_layers": 1,
        "model.decode_head.transformer_decoder.num_layers": 3,
    },
}
DENSE_4 = {
    **DENSE,
    "model.neck.in_channels": list(WIDTHS),
    **dict.fromkeys((*DENSE_WIDTHS, "model.neck.out_channels"), 64),
    "model.test_cfg.nms.iou_threshold": 0.8,  # most boxes overlap
}
DILATED = {"model.pretrained": None, **LAST_MAP}
# Heads without a shipped config, with those of mmdet and mmsegmentation; variants of shipped ones.
OTHERS = {
    "mmdet:atss/atss_r50_fpn_1x_coco.py": DENSE_4,
    "mmdet:gfl/gfl_r50_fpn_1x_coco.py": DENSE_4,
    "mmdet:deformable_detr/deformable-detr_r50_16xb2-50e_coco.py": DEFORMABLE,
    "mmdet:deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py": DEFORMABLE,
    "mmseg:pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py": DILATED,
    "mmseg:fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py": DILATED,
    "mmseg:deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512.py": DILATED,
    "deeplabv3plus/deeplabv3plus_convnext-t-os16_8xb2-amp-160k_ade20k-512x512.py": FAMILIES[
        "deeplabv3plus/deeplabv3plus_convnext-t_8xb2-amp-160k_ade20k-512x512.py"
    ],
    "linear/linear_dinov3-convnext-t-os8_8xb2-40k_ade20k-512x512.py": FAMILIES[
        "linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py"
    ],
}


def read_config(name):
    """Read a shipped config, or one that mmdet or mmsegmentation bring with them."""
    library, _, path = name.rpartition(":")
    if not library:
        cfg = Config.fromfile(CONFIGS / name)
        kept = ("out_features", "output_stride")
        return cfg, {key: cfg.model.backbone[key] for key in kept if key in cfg.model.backbone}
    folder = Path(find_spec(library).submodule_search_locations[0], ".mim", "configs")
    cfg = Config.fromfile(folder / path)
    cfg.default_scope = library
    return cfg, {"out_indices": [index + 1 for index in cfg.model.backbone.out_indices]}


def write_model(folder, name, options):
    """Write a config and a checkpoint of random weights whose scores are far apart."""
    cfg, features = read_config(name)
    cfg.model.backbone = {
        "type": "ConvNextBackbone",
        "hidden_sizes": WIDTHS,
        "depths": (1, 1, 1, 1),
        **features,
    }
    cfg.merge_from_dict(options)
    if cfg.default_scope == "mmseg":
        cfg.merge_from_dict({"model.data_preprocessor.size": (64, 64)})
    cfg.dump(folder / "config.py")
    model = build_model(cfg, "cpu")
    model.init_weights()
    for key, parameter in model.named_parameters():
        if parameter.ndim == 4 and "head" in key:
            torch.nn.init.kaiming_normal_(parameter)
        if any(part in key for part in LAST):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            torch.nn.init.normal_(parameter, std=SPREAD / fan_in**0.5)
    meta = {"dataset_meta": {"classes": tuple("abcde")}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "model.pth")
    return folder / "config.py", folder / "model.pth"


SPREAD = 1.5
# The last layers of the heads: as they begin, all scores are alike.
LAST = (
    *("retina_cls", "retina_reg", "conv_cls", "conv_reg", "rpn_cls", "rpn_reg"),
    *("fc_cls", "fc_reg", "conv_logits", "conv_seg", "cls_branches", "cls_embed", "mask_embed"),
    *("atss_cls", "atss_reg", "atss_centerness", "gfl_cls", "gfl_reg"),
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two images with shapes in them."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for index in range(2):
        coarse = rng.integers(0, 256, (6 + index, 9, 3), np.uint8)
        paths.append(str(folder / f"{index}.png"))
        Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch):
    monkeypatch.setattr(folder, "_CHECK_SIZES", ((128, 128), (135, 181), (160, 224)))


def family(name):
    return name.partition("/")[0]


def identifier(name):
    return family(name) if name in FAMILIES else Path(name).stem


def load_images(photographs, size):
    images = [np.array(Image.open(path).resize(size)) for path in photographs]
    return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def assert_agrees(got, expected, task):
    """Compare the outputs for one image with the library's own."""
    if task == "segmentation":
        labels = expected["logits"].argmax(0).numpy()
        assert len(np.unique(labels)) > 1
        assert (got["label_map"] == labels).mean() > 0.999
        return
    count = len(expected["boxes"])
    assert count >= 20
    assert (got["labels"][count:] == -1).all()
    assert (got["scores"][count:] == 0).all()
    for key, tolerance in (("boxes", 0.1), ("scores", 1e-4), ("labels", 0), ("masks", 1e-3)):
        if key in expected:
            np.testing.assert_allclose(got[key][:count], expected[key].numpy(), atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*num_anchors")  # of mmdet, about its own GFL and ATSS
@pytest.mark.parametrize("name", FAMILIES | OTHERS, ids=identifier)
def test_the_graph_of_a_family_computes_what_the_library_predicts(name, photographs, tmp_path):
    trained = load_trained_model(*write_model(tmp_path, name, (FAMILIES | OTHERS)[name]))
    pad_for_neck(trained.model)
    network = folder.build_deployed(trained, False)
    for size in ((181, 135), (128, 160)):  # width and height
        images = load_images(photographs, size)
        with torch.inference_mode():
            outputs = network(torch.stack(images).float())
        for index, expected in enumerate(predict(trained, images)):
            pairs = zip(network.output_names, outputs, strict=True)
            assert_agrees({key: x[index].numpy() for key, x in pairs}, expected, trained.task)


# The exporter takes ten seconds for each, and a minute for a transformer.
EXPORTED = [name for name in FAMILIES if family(name) in ("cascade_rcnn", "upernet")]


@pytest.mark.parametrize("name", EXPORTED, ids=family)
def test_the_file_of_a_family_agrees_at_three_sizes_and_two_batches(name, photographs, tmp_path):
    config, checkpoint = write_model(tmp_path, name, FAMILIES[name])
    done = deploy_model(config, checkpoint, tmp_path / "out", images=photographs)
    written = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert written == json.loads(json.dumps(done.description))
    assert len(written["check"]["shapes"]) == 6
    if written["task"] == "detection":
        assert written["check"]["compared_boxes"] >= 9 * 20  # images
        assert written["check"]["ties"] <= 3
    assert written["input"]["batch"] == written["input"]["size"] == "free"
    # Independently of the check, at a size of its own.
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("image", ["batch", 3, "height", "width"])
    (image, _) = load_images(photographs, (203, 150))
    names = [output.name for output in session.get_outputs()]
    assert names == list(written["outputs"])
    outputs = session.run(names, {"image": image[None].float().numpy()})
    got = {name: values[0] for name, values in zip(names, outputs, strict=True)}
    (expected,) = predict(load_trained_model(config, checkpoint), [image])
    assert_agrees(got, expected, written["task"])


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """The smallest of all: a config and a checkpoint."""
    folder = tmp_path_factory.mktemp("linear")
    name = "linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py"
    options = {"model.test_cfg.crop_size": (256, 320), "model.test_cfg.stride": (192, 240)}
    return write_model(folder, name, {**FAMILIES[name], **options})


def test_predict_py_slides_over_images_without_torch(linear, photographs, tmp_path):
    deploy_model(*linear, tmp_path / "out", images=photographs)
    # Nothing but what the file names may be imported: None in sys.modules refuses the rest.
    refused = ("torch", "torchvision", "mmengine", "mmcv", "mmseg", "cv2", "convnext_backbone")
    program = tmp_path / "out" / "predict.py"
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({refused})); "
        f"runpy.run_path({str(program)!r}, run_name='__main__')"
    )
    images = Path(photographs[0]).parent
    command = (sys.executable, "-c", code, str(images), "--out", str(tmp_path / "results"))
    subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads((tmp_path / "results" / "predictions.json").read_text())
    assert [result["file"] for result in results] == photographs
    trained = load_trained_model(*linear, {"test_pipeline": []})
    for path, result in zip(photographs, results, strict=True):
        got = np.array(Image.open(tmp_path / "results" / result["label_map"]))
        # The config's pipeline resizes to 512 pixels, and mmsegmentation resizes logits back.
        image = np.array(Image.open(path).convert("RGB"))
        rules = {"resize": {"scale": [2048, 512], "keep_ratio": True}, "pad": None}
        resized, _ = program_module(program).prepare(image, rules)
        image_tensor = torch.from_numpy(resized).permute(2, 0, 1)
        (expected,) = predict(trained, [image_tensor], whole=False)
        logits = torch.nn.functional.interpolate(
            expected["logits"][None], size=image.shape[:2], mode="bilinear"
        )[0]
        assert (got == logits.argmax(0).numpy()).mean() > 0.999
        assert Image.open(tmp_path / "results" / f"{result['label_map'][:-11]}.png").size == (
            200,
            150,
        )


def program_module(path):
    """What a written predict.py defines."""
    return SimpleNamespace(**runpy.run_path(str(path)))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_size_batch_and_dtype_are_fixed_on_request(linear, photographs, tmp_path, dtype):
    options = {"size": (256, 320), "batch": 3, "input_dtype": dtype}
    done = deploy_model(*linear, tmp_path / "out", images=photographs, **options)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (given,) = session.get_inputs()
    assert given.shape == [3, 3, 256, 320]
    assert given.type == {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[dtype]
    assert done.description["input"]["size"] == [256, 320]
    assert done.description["check"]["shapes"] == [[3, 256, 320]]


def test_a_segmentor_of_one_channel_is_compared_by_its_probabilities(photographs, tmp_path):
    name = "linear/linear_dinov3-convnext-t_8xb2-40k_ade20k-512x512.py"
    binary = {"num_classes": 2, "out_channels": 1, "threshold": 0.4}
    binary["loss_decode"] = {"use_sigmoid": True}
    options = {f"model.decode_head.{key}": value for key, value in binary.items()}
    files = write_model(tmp_path, name, {**FAMILIES[name], **options})
    fixed = {"size": (96, 128), "batch": 1}
    options = {"model.test_cfg.mode": "whole"}
    done = deploy_model(*files, tmp_path / "out", images=photographs, options=options, **fixed)
    check = done.description["check"]
    assert check["compared_classes"] == 2
    assert check["largest_difference"].keys() == {"logits", "label_map"}
    assert check["largest_difference"]["logits"] < 1e-4


def test_a_detector_in_float16_keeps_its_boxes(photographs, tmp_path):
    name = "retinanet/retinanet_convnextv2-atto_fpn_8xb2-amp-ms-crop-3x_coco.py"
    files = write_model(tmp_path, name, FAMILIES[name])
    fixed = {"size": (128, 160), "batch": 2, "precision": "float16"}
    done = deploy_model(*files, tmp_path / "out", images=photographs, **fixed)
    check = done.description["check"]
    assert check["compared_boxes"] >= 2 * 20
    assert check["ties"] <= 4
    weights = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    half = {w.name for w in weights if w.data_type == onnx.TensorProto.FLOAT16}
    assert any(name.startswith("features.backbone.") for name in half)
    assert not any(name.startswith("heads.") for name in half)
    assert 0 < check["largest_difference"]["scores"] < 2e-2


@pytest.mark.parametrize("spoil", [torch.nn.init.normal_, lambda weight: weight.mul_(1.1)])
def test_nothing_is_written_where_the_network_differs(
    linear, photographs, tmp_path, monkeypatch, spoil
):
    build = folder.build_deployed

    def build_wrong(trained, *options):
        network = build(trained, *options)
        spoil(network.heads.conv_seg.weight)
        return network

    monkeypatch.setattr(folder, "build_deployed", build_wrong)
    with pytest.raises(DisagreementError, match="of the pixels logits differ by more"):
        deploy_model(*linear, tmp_path / "out", images=photographs)
    assert list(tmp_path.iterdir()) == []


def test_short_names_of_precisions_are_taken(linear, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--out", str(out), "--no-check", "--precision", "fp16"]
    assert cli.main(["deploy", *map(str, linear), *options]) == 0
    assert json.loads((out / "deploy.json").read_text())["precision"] == "float16"


def test_without_a_check_the_description_says_so(linear, tmp_path):
    done = deploy_model(*linear, tmp_path / "out", check=False)
    assert done.description["check"] == "not done"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--size", "90", "128"], "crop_size"),
        (["--size", "0", "128"], "size must be an integer of at least 32"),
        (["--cfg-options", "model.decode_head.num_classes=7"], "does not fit"),
        (["--cfg-options", "nonsense"], "key=value"),
        (["--images", "missing.png"], "missing.png"),
    ],
)
def test_mistakes_are_one_line(linear, extra, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folder, "write_onnx", lambda *_, **__: None)
    assert cli.main(["deploy", *map(str, linear), "--out", str(tmp_path / "out"), *extra]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert named in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--images", "--calibration"])
def test_an_image_that_cannot_be_read_is_named_before_anything_is_written(
    option, linear, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(folder, "write_onnx", None)
    monkeypatch.setattr(targets.Target, "require", lambda *_: None)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    options = {
        "--images": ["--images", str(bad)],
        "--calibration": ["--to", "openvino", "--precision", "int8", "--no-check"],
    }[option]
    options = [*options, *(["--calibration", str(bad)] if option == "--calibration" else [])]
    assert cli.main(["deploy", *map(str, linear), "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(f"cannot read image {str(bad)!r}: not an image")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]


def test_a_head_that_is_not_in_the_table_is_named(linear, tmp_path, monkeypatch):
    monkeypatch.delitem(segmentor.DECODE_HEADS, "LinearHead")
    with pytest.raises(ValueError, match=r"model\.decode_head 'LinearHead' cannot be deployed"):
        deploy_model(*linear, tmp_path / "out", check=False)


def test_a_detectors_config_is_sent_from_export_to_deploy(linear, tmp_path, capsys):
    assert cli.main(["export", str(linear[0]), str(tmp_path / "x.onnx"), "--to", "onnx"]) == 2
    assert "convnext-backbone deploy CONFIG CHECKPOINT --out DIR" in capsys.readouterr().err


def test_a_runtime_is_one_row_of_the_table(linear, photographs, tmp_path, monkeypatch):
    def write(onnx_path, path, calibration):
        assert calibration is None
        shutil.copyfile(onnx_path, path)

    row = targets.Target("none", {"float32": ()}, files=("copy.onnx",), write=write)
    monkeypatch.setitem(targets.TARGETS, "copy", row)
    out = tmp_path / "out"
    options = ["--to", "copy", "--size", "256", "320", "--batch", "1", "--images", *photographs]
    assert cli.main(["deploy", *map(str, linear), "--out", str(out), *options]) == 0
    written = json.loads((out / "deploy.json").read_text())
    assert written["file"] == "copy.onnx"
    assert written["check_copy"]["compared_pixels"] == written["check"]["compared_pixels"]
    image = np.array(Image.open(photographs[0]))
    model = program_module(out / "predict.py").Model(out)
    assert model(image)["label_map"].shape == image.shape[:2]
    with pytest.raises(ValueError, match=r"'float16' is for to='onnx' or to='openvino'$"):
        deploy_model(*linear, out, to="copy", precision="float16")


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_openvino_runs_the_same_network(linear, photographs, tmp_path, precision):
    pytest.importorskip("openvino", reason="openvino is not in the test extra")
    pytest.importorskip("nncf", reason="nncf is not in the test extra")
    options = {"calibration": photographs} if precision == "int8" else {}
    out = tmp_path / "out"
    done = deploy_model(
        *linear, out, images=photographs, to="openvino", precision=precision, **options
    )
    assert {path.name for path in out.iterdir()} == {
        *("deploy.json", "model.bin", "model.onnx", "model.xml", "predict.py")
    }
    different = done.description["check_openvino"]["largest_difference"]["label_map"]
    assert different < {"float16": 0.01, "int8": 0.2}[precision]
    types = re.findall(r'element_type="(\w+)"', (out / "model.xml").read_text())
    assert ("i8" in types) == (precision == "int8")
    model = program_module(out / "predict.py").Model(out)
    image = np.array(Image.open(photographs[0]))
    assert model(image)["label_map"].shape == image.shape[:2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"precision": "int8"}, "to='openvino', and needs images as calibration"),
        ({"calibration": ["x.png"]}, "got precision 'float32'"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"to": "tensorrt"}, "tensorrt"),
        ({"batch": 0}, "batch"),
    ],
)
def test_options_that_do_not_fit_are_refused(linear, tmp_path, options, named):
    with pytest.raises(ValueError, match=named):
        deploy_model(*linear, tmp_path / "out", **options)
