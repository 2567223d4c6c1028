"""Reading is safe, and every damaged or foreign file gets its own clear error."""

import argparse
import collections
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.originals import ORIGINALS, V1, write_keras_v3
from PIL import Image
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone, load_weights
from convnext_backbone.cli.main import main
from convnext_backbone.weights import open_weights
from convnext_backbone.weights.read import read_checkpoint


class _Bomb:
    """A pickle of this runs a command when it is loaded without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


def _planted(path, mark, *, old_format=False):
    state = {"model": V1.state_dict(), "args": _Bomb(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    return path


def _convert(path):
    assert main(["convert", str(path), str(path.parent / "out.pth"), "--to", "timm"]) == 0


ENTRY_POINTS = {
    "read_checkpoint": read_checkpoint,
    "open_weights": open_weights,
    "from_pretrained": ConvNextBackbone.from_pretrained,
    "load_weights": lambda path: load_weights(ConvNextBackbone(arch="convnext_atto"), path),
    "init_cfg": lambda path: ConvNextBackbone(
        arch="convnext_atto", init_cfg={"type": "Pretrained", "checkpoint": str(path)}
    ).init_weights(),
}


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "tar"])
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_planted_command_is_refused_by_name_and_not_run(entry_point, old_format, tmp_path):
    mark = tmp_path / "was_here"
    path = _planted(tmp_path / "weights.pth", mark, old_format=old_format)
    with pytest.raises(ValueError, match=r"(?s)weights\.pth.*(posix|nt|os)\.system"):
        ENTRY_POINTS[entry_point](path)
    assert not mark.exists()


@pytest.mark.parametrize("command", ["info", "convert"])
def test_planted_command_is_refused_on_the_command_line(command, tmp_path, capsys):
    mark = tmp_path / "was_here"
    path = _planted(tmp_path / "weights.pth", mark)
    more = [str(tmp_path / "out.pth"), "--to", "timm"] if command == "convert" else []
    assert main([command, str(path), *more]) == 2
    assert "posix.system" in capsys.readouterr().err.replace("nt.system", "posix.system")
    assert not mark.exists()


def test_planted_command_in_a_shard_or_directory_is_refused(tmp_path):
    mark = tmp_path / "was_here"
    _planted(tmp_path / "pytorch_model.bin", mark)
    with pytest.raises(ValueError, match="system"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "part.bin")
    index = {"weight_map": {"a": "part.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="system"):
        read_checkpoint(tmp_path)
    assert not mark.exists()


def test_plain_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "was_here"
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(_Bomb(mark)))
    with pytest.raises(ValueError, match=r"weights\.pth"):
        read_checkpoint(tmp_path / "weights.pth")
    assert not mark.exists()


def test_pickled_module_is_refused_by_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "weights.pth")


def test_reading_leaves_torchs_allow_list_as_it_was(tmp_path):
    # argparse.Namespace is on the reader's list too: leaving must not take it off the user's.
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1.0)}, path)
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.add_safe_globals([argparse.Namespace])
        read_checkpoint(path)
        assert torch.load(path, weights_only=True)["args"].lr == 1.0
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_getattr_in_a_checkpoint_reaches_nothing(tmp_path):
    """mmengine's HistoryBuffer needs the name `getattr`; the real one must not come with it."""

    class Reach:
        def __reduce__(self):
            return (getattr, (collections.OrderedDict, "fromkeys"))

    torch.save({"model": {"w": torch.ones(1)}, "meta": Reach()}, tmp_path / "weights.pth")
    assert torch.equal(read_checkpoint(tmp_path / "weights.pth").tensors["w"], torch.ones(1))


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_namespace_and_numpy_values_beside_the_weights_are_allowed(wrapper, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, dims=[1, 2]),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "flags": np.array([True]),
        "epoch": 3,
    }
    torch.save({wrapper: {"w": torch.ones(2)}, **beside}, tmp_path / "weights.pth")
    assert list(read_checkpoint(tmp_path / "weights.pth").tensors) == ["w"]


# ------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    "name",
    ["facebook_v1", "huggingface-v1_classifier", "keras_h5", "keras_weights_h5", "keras_archive",
     "tf_v1"],
)  # fmt: skip
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_file_is_an_error_that_names_it(name, kept, tmp_path):
    path = ORIGINALS[name].write(tmp_path)
    path = path / "model.safetensors" if path.is_dir() else path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"{path.name}.*(truncated|damaged)"):
        ConvNextBackbone.from_pretrained(path)


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors", "tf_model.h5", "m.keras"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_empty_and_placeholder_files_are_said_to_be_so(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_checkpoint(tmp_path / name)


def test_text_is_said_to_be_text(tmp_path):
    (tmp_path / "weights.pth").write_text("<html><body>404 Not Found, and much more</body></html>")
    with pytest.raises(ValueError, match=r"weights\.pth.*text file.*<html>"):
        read_checkpoint(tmp_path / "weights.pth")


def test_picture_is_said_to_be_no_weights_and_nobody_is_told_to_load_it_unsafely(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "weights.png")
    with pytest.raises(ValueError, match=r"weights\.png: this is not a weights file"):
        read_checkpoint(tmp_path / "weights.png")


def test_pickle_that_is_damaged_is_said_to_be_so_and_nobody_is_told_to_load_it_unsafely(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02" + bytes(100))
    with pytest.raises(ValueError, match=r"weights\.pth.*damaged") as caught:
        read_checkpoint(tmp_path / "weights.pth")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors", "tf_model.h5"])
def test_noise_is_an_error_that_names_the_file(name, tmp_path):
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)


def test_zip_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        read_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}, [], 5])
def test_file_without_tensors_is_said_to_have_none(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: (there are no tensors|expected a dict)"):
        read_checkpoint(tmp_path / "weights.pth")


def test_keras_file_without_names_of_layers_is_refused_with_what_to_do(tmp_path):
    """Keras before 3.7 stored classes and counters alone."""
    write_keras_v3(V1, tmp_path / "m.weights.h5", named=False)
    with pytest.raises(ValueError, match=r"m\.weights\.h5.*does not name its layers.*3\.7"):
        read_checkpoint(tmp_path / "m.weights.h5")


def test_h5_without_h5py_names_the_extra(tmp_path, monkeypatch):
    path = ORIGINALS["keras_h5"].write(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"convnext_backbone\[keras\]"):
        read_checkpoint(path)


# ------------------------------------------------------------------------------ finding tensors


def test_missing_path_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        ConvNextBackbone.from_pretrained(tmp_path / "nothing_here.pth")


def test_directory_of_several_unnamed_files_lists_them(tmp_path):
    for name in ("a.pth", "b.pth"):
        torch.save(V1.state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=r"a\.pth, b\.pth"):
        read_checkpoint(tmp_path)
    (tmp_path / "a.pth").unlink()
    assert read_checkpoint(tmp_path).tensors.keys() == V1.state_dict().keys()


def test_missing_shard_is_named(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors"):
        read_checkpoint(tmp_path)


def test_index_cannot_reach_outside_its_directory(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match="must lie beside its index"):
        read_checkpoint(folder)


def test_trained_weights_are_taken_before_their_average_and_the_report_says_so(tmp_path):
    both = {"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}, "epoch": 1}
    torch.save(both, tmp_path / "both.pth")
    plain = read_checkpoint(tmp_path / "both.pth")
    averaged = read_checkpoint(tmp_path / "both.pth", ema=True)
    assert plain.tensors["w"].item() == 0
    assert averaged.tensors["w"].item() == 1
    assert "'model' used" in plain.notes[0]
    assert "'model_ema' used" in averaged.notes[0]


NAMES = ("model_state_dict", "model_state", "params", "weights", "student", "generator", "my net")


@pytest.mark.parametrize("beside", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_an_entry_of_any_name_is_found_by_its_tensors(name, beside, tmp_path):
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {name: V1.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": 3}
    content |= {"loss": beside, "means": {"a": torch.ones(2)}, 7: {"a": torch.ones(2)}}
    torch.save(content, tmp_path / "w.pth")
    expected = torch.load(tmp_path / "w.pth", weights_only=True)[name]
    read = read_checkpoint(tmp_path / "w.pth")
    assert read.notes == [f"{name!r} used, the entry with the most tensors"]
    assert read.tensors.keys() == expected.keys()
    assert all(torch.equal(read.tensors[key], expected[key]) for key in expected)


def test_of_two_entries_of_one_size_none_is_chosen(tmp_path):
    torch.save({"student": V1.state_dict(), "teacher": V1.state_dict()}, tmp_path / "w.pth")
    count = len(V1.state_dict())
    with pytest.raises(
        ValueError, match=rf"w\.pth: the entries student, teacher hold {count} tensors each"
    ):
        read_checkpoint(tmp_path / "w.pth")


def test_tensors_at_the_top_are_taken_before_an_entry_of_as_many(tmp_path):
    torch.save({"a": torch.zeros(1), "extra": {"b": torch.ones(1)}}, tmp_path / "w.pth")
    assert list(read_checkpoint(tmp_path / "w.pth").tensors) == ["a"]


def test_average_alone_is_taken_and_noted(tmp_path):
    torch.save({"ema_state_dict": {"w": torch.ones(1)}}, tmp_path / "ema.pth")
    checkpoint = read_checkpoint(tmp_path / "ema.pth")
    assert checkpoint.tensors["w"].item() == 1
    assert "'ema_state_dict' used" in checkpoint.notes[0]


def test_missing_average_is_noted(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "plain.pth")
    assert "no moving average" in read_checkpoint(tmp_path / "plain.pth", ema=True).notes[0]


def _trained_by_mmengine(folder):
    """A checkpoint of mmengine's own runner with EMAHook, its weights and their average."""
    pytest.importorskip("mmengine")
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader

    class Tiny(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = ConvNextBackbone(hidden_sizes=(8, 16), depths=(1, 1))

        def forward(self, inputs, mode="tensor"):
            return {"loss": self.backbone(inputs)[0].pow(3).mean()}

    runner = Runner(
        Tiny(), str(folder), train_cfg={"by_epoch": True, "max_epochs": 2},
        train_dataloader=DataLoader([{"inputs": torch.randn(3, 16, 16)}] * 4, batch_size=2),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1.0}}, log_level="ERROR",
        custom_hooks=[{"type": "EMAHook", "momentum": 0.3}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        experiment_name=folder.name, default_scope="mmengine",
    )  # fmt: skip
    runner.train()
    average = next(hook.ema_model for hook in runner.hooks if hasattr(hook, "ema_model"))
    return folder / "epoch_2.pth", runner.model.backbone, average.module.backbone


def test_of_mmengines_two_the_average_is_read_as_mmengine_does(tmp_path):
    path, trained, average = _trained_by_mmengine(tmp_path)
    key = "stages.0.0.pwconv1.weight"
    assert not torch.equal(trained.state_dict()[key], average.state_dict()[key])
    for ema in (False, True):
        ours = ConvNextBackbone.from_pretrained(path, ema=ema)
        for key, tensor in average.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor), key
        note = ours.load_report.notes[0]
        assert note == "the moving average used, which mmengine writes to 'state_dict'"


@pytest.mark.parametrize(
    "averaged",
    [
        {"w": torch.ones(1)},
        {"module.w": torch.ones(1)},
        {"module.w": torch.ones(1), "n_averaged": torch.tensor(3)},  # torch's AveragedModel
        {"module.w": torch.ones(1), "steps": torch.tensor(3), "decay": torch.ones(1)},
        {"steps": torch.ones(1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_other_averages_of_that_name_are_averages(averaged, name, tmp_path):
    torch.save({name: {"w": torch.zeros(1)}, "ema_state_dict": averaged}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").tensors["w"].item() == 0
    assert read_checkpoint(tmp_path / "w.pth", ema=True).tensors.keys() == averaged.keys()


PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.", "visual.trunk.",
            "timm_model.", "model.backbone.", "module.model.encoder.")  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["facebook_v1", "timm_v1", "torchvision"])
def test_any_prefix_is_stripped(name, prefix, tmp_path):
    state = read_checkpoint(ORIGINALS[name].write(tmp_path)).tensors
    torch.save({prefix + k: v for k, v in state.items()}, tmp_path / "wrapped.pth")
    plain = ConvNextBackbone.from_pretrained(tmp_path / "weights.pth").state_dict()
    wrapped = ConvNextBackbone.from_pretrained(tmp_path / "wrapped.pth").state_dict()
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[key], wrapped[key]) for key in plain)


def test_compiled_submodule_is_read_through(tmp_path):
    state = {k.replace("stages.", "stages._orig_mod."): v for k, v in V1.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth").tensors.keys() == V1.state_dict().keys()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mappings")
def test_large_files_are_mapped_not_copied(tmp_path):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "weights.pth")
    kept = read_checkpoint(tmp_path / "weights.pth")
    assert str(tmp_path / "weights.pth") in Path("/proc/self/maps").read_text()
    assert kept.tensors["w"].sum() == 0
