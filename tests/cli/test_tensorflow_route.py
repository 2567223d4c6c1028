"""The way of a TensorFlow user: tf_model.h5 in, an ONNX file out that computes the same logits."""

import pytest
import torch
from helpers.originals import ORIGINALS

from convnext_backbone import cli

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("name", ["tf_v1", "tf_v2"])
def test_onnx_of_a_tensorflow_file_gives_the_original_logits(name, tmp_path, capsys):
    pytest.importorskip("h5py")
    source = ORIGINALS[name].write(tmp_path)
    out = tmp_path / "model.onnx"
    assert cli.main(["export", str(source), str(out), "--to", "onnx", "--logits"]) == 0
    assert "outputs logits; batch, height and width are free" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    for shape in ((1, 3, 64, 64), (3, 3, 96, 70)):
        images = torch.randn(shape)
        (got,) = session.run(["logits"], {"pixel_values": images.numpy()})
        expected = ORIGINALS[name].logits(images)
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)
