"""Exported files compute what the network does, at sizes and batches of one's choice."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    cli,
)
from convnext_backbone.deploy import graph_export
from convnext_backbone.deploy.graph_export import export_onnx, export_program

SHAPE = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
V2 = {"use_grn": True, "layer_scale_init_value": 0.0}
SIZES = [(1, 64, 64), (4, 77, 131), (2, 160, 96)]


def _backbone(**fields):
    return _randomise(
        ConvNextBackbone(**SHAPE, out_features=("stem", "stage2", "stage4"), **fields)
    )


def _randomise(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("fields", [{}, V2])
def test_onnx_outputs_have_the_names_and_values_of_the_features(fields, tmp_path):
    model = _backbone(**fields)
    done = export_onnx(model, tmp_path / "model.onnx")
    assert done.error <= 1e-4
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["pixel_values"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [x.name for x in session.get_outputs()] == ["stem", "stage2", "stage4"]
    for n, height, width in SIZES:
        images = torch.randn(n, 3, height, width)
        with torch.no_grad():
            expected = model(images)
        got = session.run(["stem", "stage2", "stage4"], {"pixel_values": images.numpy()})
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize(("opset", "precision"), [(21, "float32"), (18, "float16"), (18, "fp16")])
def test_opset_and_precision_are_those_asked_for(opset, precision, tmp_path):
    done = export_onnx(_backbone(), tmp_path / "model.onnx", opset=opset, precision=precision)
    model = onnx.load(done.path)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    kinds = {initializer.data_type for initializer in model.graph.initializer}
    asked = getattr(onnx.TensorProto, "FLOAT" if precision == "float32" else "FLOAT16")
    assert asked in kinds
    if precision != "float32":
        large = [i for i in model.graph.initializer if np.prod(i.dims) > 1]
        assert {i.data_type for i in large} <= {asked, onnx.TensorProto.INT64}


def test_exported_programs_give_the_features(tmp_path):
    model = _backbone(**V2)
    done = export_program(model, tmp_path / "model.pt2")
    assert done.outputs == ("stem", "stage2", "stage4")
    module = torch.export.load(done.path).module()
    for n, height, width in SIZES:
        images = torch.randn(n, 3, height, width)
        with torch.no_grad():
            for ours, theirs in zip(module(images), model(images), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_classifiers_and_models_export_too(tmp_path):
    config = ConvNextConfig(**SHAPE, num_labels=5)
    classifier = _randomise(ConvNextForImageClassification(config))
    done = export_onnx(classifier, tmp_path / "classifier.onnx")
    assert done.outputs == ("logits",)
    model = _randomise(ConvNextModel(config))
    done = export_program(model, tmp_path / "model.pt2")
    assert done.outputs == ("last_hidden_state", "pooler_output")


def test_the_callers_model_is_left_as_it_is(tmp_path):
    model = _backbone().train()
    export_onnx(model, tmp_path / "model.onnx", precision="float16")
    assert model.training
    assert next(model.parameters()).dtype == torch.float32


def test_how_the_callers_model_answers_does_not_matter(tmp_path):
    model = _backbone()
    model.config.update({"return_dict": False, "output_hidden_states": True})
    assert export_program(model, tmp_path / "model.pt2").outputs == model.out_features
    assert model.config.output_hidden_states


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    (tmp_path / "x.pt2").mkdir()
    with pytest.raises(IsADirectoryError, match=r"'.*x\.pt2'$"):
        export_program(_backbone(), tmp_path / "x.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt2"]


def test_a_file_that_computes_something_else_is_refused_and_not_left(tmp_path, monkeypatch):
    compare = graph_export._compare

    def wrong(network, run, *rest):
        def off(images):
            outputs = run(images)
            return {**outputs, "stage4": outputs["stage4"] + 0.1}

        return compare(network, off, *rest)

    monkeypatch.setattr(graph_export, "_compare", wrong)
    for export in (export_onnx, export_program):
        with pytest.raises(RuntimeError, match=r"gives stage4 off by 0\.\d+ for images"):
            export(_backbone(), tmp_path / "model.file")
        assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"opset must be one of \(18, 19, 20, 21, 22, 23\), got 11"
    ):
        export_onnx(_backbone(), tmp_path / "x.onnx", opset=11)
    with pytest.raises(ValueError, match="precision must be one of"):
        export_onnx(_backbone(), tmp_path / "x.onnx", precision="int8")
    with pytest.raises(TypeError, match="model must be one of ConvNextBackbone"):
        export_program(torch.nn.Linear(2, 2), tmp_path / "x.pt2")


def test_a_missing_exporter_is_reported_with_the_line_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'convnext_backbone\[export\]'"):
        export_onnx(_backbone(), tmp_path / "x.onnx")


def test_command_line_exports_and_refuses_in_one_line(tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    save_file(_backbone().state_dict(), weights)
    headless = tmp_path / "headless.safetensors"
    save_file(_randomise(ConvNextModel(ConvNextConfig(**SHAPE))).state_dict(), headless)
    out = tmp_path / "out" / "model.pt2"
    base = ["export", str(weights), str(out), "--to", "torch-export"]
    assert cli.main([*base, "--features", "stage2", "stage4"]) == 0
    assert "outputs stage2, stage4; batch, height and width are free" in capsys.readouterr().out
    assert len(torch.export.load(out).module()(torch.randn(1, 3, 64, 64))) == 2
    wrong = {
        "--opset is for --to onnx": [*base, "--opset", "18"],
        "give --logits or --features": [*base, "--logits", "--features", "stem"],
        "missing: norm.weight": [*base, "--logits"],
        "missing: head.weight": ["export", str(headless), *base[2:], "--logits"],
        "out_features must be a subset": [*base, "--features", "stage5"],
    }
    for error, arguments in wrong.items():
        assert cli.main(arguments) == 2, error
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert error in lines[0]
