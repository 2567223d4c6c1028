"""A disk that fills up: one line and status 2 from each command, and the old file whole."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_backbone import ConvNextForImageClassification, load_features

resource = pytest.importorskip("resource")

LIMIT = 24_000  # bytes that a file may have, in place of a disk that has no more
# Runs commands in one interpreter and tells the status and the lines of each.
RUN = """
import contextlib, io, json, resource, sys
from convnext_backbone import cli
commands, limit = json.loads(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
answers = []
for arguments in commands:
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        with contextlib.redirect_stdout(io.StringIO()):
            status = cli.main(arguments)
    answers.append([status, errors.getvalue()])
print(json.dumps(answers))
"""


def _run(commands, limit):
    arguments = [sys.executable, "-c", RUN, json.dumps(commands), str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    torch.manual_seed(0)
    model = ConvNextForImageClassification(
        hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_labels=3
    )
    model.save_pretrained(folder / "weights")
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name, side in {"a": 32, "b": 64, "c": 800, "d": 800}.items():
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    return folder


def test_what_does_not_fit_is_one_line_and_leaves_the_old_file(folder):
    weights, images = str(folder / "weights"), str(folder / "images")
    out = folder / "out"
    out.mkdir()
    commands = {
        "v.png": ["visualize", f"{images}/b.png", "--weights", weights, "--out"],
        "x.onnx": ["export", weights, "--to", "onnx"],
        "x.pt2": ["export", weights, "--to", "torch-export"],
        "x.pth": ["convert", weights, "--to", "timm"],
        "x.safetensors": ["convert", weights, "--to", "timm"],
    }
    for name in commands:
        (out / name).write_text("old")
    answers = _run([[*start, str(out / name)] for name, start in commands.items()], LIMIT)
    for name, (status, errors) in zip(commands, answers, strict=True):
        assert status == 2, name
        assert errors.count("\n") == 1, errors
        assert "File too large" in errors
        assert str(out / name) in errors
        assert (out / name).read_text() == "old"
    assert sorted(p.name for p in out.iterdir()) == sorted(commands)


def test_shards_that_fit_stay_and_the_same_command_goes_on(folder):
    out = folder / "features"
    command = ["extract", str(folder / "images"), "--weights", str(folder / "weights"), "--quiet"]
    command += ["--size", "native", "--features", "stage1", "--out", str(out)]
    command += ["--shard-images", "2"]  # the maps of the second two take 1,280,000 bytes each
    ((status, errors),) = _run([command], 1_200_000)
    assert status == 2
    assert errors.count("\n") == 1
    assert "File too large; finished shards are kept" in errors
    (first,) = out.glob("*.safetensors")
    before = first.stat().st_mtime_ns
    assert not list(out.glob(".*"))
    ((status, errors),) = _run([command], 10_000_000)
    assert (status, errors) == (0, "")
    assert first.stat().st_mtime_ns == before
    assert sorted(load_features(out)) == ["a.png", "b.png", "c.png", "d.png"]
