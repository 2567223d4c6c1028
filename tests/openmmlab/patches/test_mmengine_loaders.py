"""Checkpoints through mmengine's own doors: its own are read, foreign code never runs."""

import http.server
import io
import os
import pickle
import threading
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from convnext_backbone.openmmlab.patches.apply import apply_compat

apply_compat()

from mmengine.logging import HistoryBuffer, MessageHub  # noqa: E402
from mmengine.runner import checkpoint as mm  # noqa: E402

from convnext_backbone.openmmlab.patches import mmengine_loaders  # noqa: E402
from convnext_backbone.weights.torch_files import CheckpointError  # noqa: E402

pytestmark = pytest.mark.openmmlab

SCHEMES = (
    "",
    "http://",
    "https://",
    "pavi://",
    r"(\S+\:)?s3://",
    r"(\S+\:)?petrel://",
    "modelzoo://",
    "torchvision://",
    "open-mmlab://",
    "openmmlab://",
    "mmcls://",
)


class RunsCode:
    """Leaves a mark on the disk when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Foreign:
    """Harmless, but nobody has said so."""


def training_checkpoint():
    """What a run of mmengine writes, message hub and all."""
    hub = MessageHub("test_safe_loaders")
    hub.update_scalar("train/loss", np.float64(0.5))
    hub.update_scalar("train/loss", torch.tensor(0.25))
    hub.update_scalar("train/lr", 1e-3)
    hub.update_info("iter", 7)
    hub.update_info("best_score", np.float32(0.75))
    module = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "meta": {"epoch": 1, "dataset_meta": {"classes": ("cat",), "palette": [(1, 2, 3)]}},
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "message_hub": hub.state_dict(),
    }


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "code was run"


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def saved(request, tmp_path):
    """A function that writes an object as a checkpoint file."""

    def save(content, name="checkpoint.pth"):
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def test_a_training_checkpoint_is_read_whole(saved):
    written = training_checkpoint()
    read = mm._load_checkpoint(str(saved(written)), map_location="cpu")
    assert read["meta"] == written["meta"]
    torch.testing.assert_close(read["state_dict"], written["state_dict"], rtol=0, atol=0)
    loss = read["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(loss, HistoryBuffer)
    assert loss.mean() == 0.375
    assert loss.statistics("max") == 0.5
    hub = MessageHub("read back")
    hub.load_state_dict(read["message_hub"])
    assert hub.get_scalar("train/lr").current() == 1e-3
    assert hub.get_info("best_score") == np.float32(0.75)


def test_dicts_of_a_configuration_are_read(saved):
    """Of a dict in a configuration's metainfo, mmengine saves a ConfigDict."""
    from mmengine.config import Config, ConfigDict

    written = training_checkpoint()
    metainfo = Config({"metainfo": {"classes": ("cat",), "labels": {0: {"x": [1, {"y": 2}]}}}})
    written["meta"]["dataset_meta"] = dict(metainfo.metainfo)
    path = saved(written)
    expected = torch.load(path, weights_only=False)["meta"]["dataset_meta"]
    read = mm._load_checkpoint(str(path))["meta"]["dataset_meta"]
    assert read == expected
    assert type(read["labels"]) is type(read["labels"][0]) is type(expected["labels"]) is ConfigDict
    assert read["labels"][0].x[1].y == 2
    from convnext_backbone.weights.read import read_checkpoint

    assert set(read_checkpoint(path).tensors) == {"weight", "bias"}


def test_dicts_of_a_configuration_are_not_copied_at_every_level(tmp_path):
    """The class's own constructor takes 2 ** 40 copies for this."""

    class Level:
        def __init__(self, inside):
            self.inside = inside

        def __reduce__(self):
            from mmengine.config import ConfigDict

            return ConfigDict, ({"a": self.inside, "b": self.inside},)

    level = {}
    for _ in range(40):
        level = Level(level)
    torch.save({"state_dict": {}, "meta": level}, tmp_path / "w.pth")
    assert "b" in mm._load_checkpoint(str(tmp_path / "w.pth"))["meta"]
    plain = {}
    for _ in range(40):
        plain = {"a": plain, "b": plain}
    torch.save({"state_dict": {}, "meta": Level(plain)}, tmp_path / "w.pth")
    assert "b" in mm._load_checkpoint(str(tmp_path / "w.pth"))["meta"]


def test_torchs_list_of_safe_types_is_left_as_it_was(saved):
    before = set(torch.serialization.get_safe_globals())
    path = saved(training_checkpoint())
    mm._load_checkpoint(str(path))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="not an allowed global"):
        torch.load(path, weights_only=True)  # as without this package


def test_a_reader_that_cleans_up_after_itself_does_not_lock_mmengine_out(saved):
    path = saved(training_checkpoint())
    with torch.serialization.safe_globals([np.ndarray, np.dtype]):
        pass  # leaving it takes the two off the list for everybody
    assert mm._load_checkpoint(str(path))["meta"]["epoch"] == 1


def test_numpy_1_names_are_read_as_those_of_numpy_2(tmp_path):
    content = pickle.dumps({"scalar": np.float64(2.5), "array": np.arange(3.0)}, protocol=2)
    legacy = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    buffer = io.BytesIO()
    torch.save({"scalar": np.float64(2.5), "array": np.arange(3.0)}, buffer)
    assert legacy != content
    import zipfile

    source, path = zipfile.ZipFile(buffer), tmp_path / "numpy1.pth"
    with zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(item.filename, data)
    read = mm._load_checkpoint(str(path))
    assert read["scalar"] == 2.5
    assert read["array"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("door", ["load_checkpoint", "_load_checkpoint", "with_prefix"])
@pytest.mark.parametrize("forced", [False, True])
def test_code_in_a_checkpoint_never_runs(door, forced, saved, mark, monkeypatch):
    if forced:  # the switch by which people make torch 2.6 load as before
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = saved({"state_dict": {}, "payload": RunsCode(mark)})
    doors = {
        "load_checkpoint": lambda: mm.load_checkpoint(nn.Linear(1, 1), str(path)),
        "_load_checkpoint": lambda: mm._load_checkpoint(str(path)),
        "with_prefix": lambda: mm._load_checkpoint_with_prefix("backbone", str(path)),
    }
    with pytest.raises(CheckpointError, match=r"refused .*checkpoint\.pth: it asks for \S*mkdir"):
        doors[door]()
    assert not mark.exists()


def test_the_payload_of_these_tests_would_run(tmp_path, mark):
    torch.save(RunsCode(mark), tmp_path / "payload.pth")
    torch.load(tmp_path / "payload.pth", weights_only=False)
    assert mark.exists()


def test_resuming_a_run_never_runs_code(saved, mark, tmp_path):
    from mmengine.runner import Runner

    path = saved({"state_dict": OrderedDict(), "meta": {}, "payload": RunsCode(mark)})
    for resume in (True, False):
        runner = Runner(
            nn.Linear(1, 1),
            str(tmp_path / "work"),
            load_from=str(path),
            resume=resume,
            experiment_name=f"resume_{resume}",
            default_scope=None,
            default_hooks={"runtime_info": None, "checkpoint": None, "logger": None},
        )
        with pytest.raises(CheckpointError, match="refused"):
            runner.load_or_resume()
    assert not mark.exists()


def test_a_refused_type_is_named_and_can_be_allowed(saved):
    path = saved({"state_dict": {}, "extra": Foreign()})
    with pytest.raises(CheckpointError, match=rf"{path}.*asks for \S*Foreign,"):
        mm._load_checkpoint(str(path))
    with torch.serialization.safe_globals([Foreign]):
        assert isinstance(mm._load_checkpoint(str(path))["extra"], Foreign)


class Reach:
    """Pickles as `getattr(owner, name)`."""

    def __init__(self, owner, name):
        self.parts = owner, name

    def __reduce__(self):
        return getattr, self.parts


def test_getattr_reaches_nothing(saved):
    path = saved({"method": Reach(HistoryBuffer, "__init__")})
    assert mm._load_checkpoint(str(path)) == {"method": None}
    for owner, name in ((np.ndarray, "tofile"), (OrderedDict, "fromkeys")):
        path = saved({"method": Reach(owner, name)})
        with pytest.raises(CheckpointError, match=rf"asks for getattr\(.*{name}"):
            mm._load_checkpoint(str(path))


def test_a_buffer_from_a_file_brings_no_methods_with_it(saved, monkeypatch):
    shared = HistoryBuffer([1.0], [1])._statistics_methods
    with monkeypatch.context() as patch:
        patch.setitem(shared, "mean", OrderedDict)  # harmless by itself, and allowed
        path = saved({"buffer": HistoryBuffer([1.0, 3.0], [1, 1])})
    buffer = mm._load_checkpoint(str(path))["buffer"]
    assert type(buffer) is HistoryBuffer
    assert buffer.statistics("mean") == 2.0
    assert shared["mean"] is HistoryBuffer.mean


def test_a_reader_with_a_stand_in_for_buffers_leaves_the_real_ones_alone(saved):
    from convnext_backbone.weights.read import read_checkpoint

    path = saved(training_checkpoint())
    assert set(read_checkpoint(path).tensors) == {"weight", "bias"}
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics("mean") == 2.0
    assert mm._load_checkpoint(str(path))["message_hub"]["log_scalars"]["train/lr"].mean() == 1e-3


def test_every_scheme_of_mmengine_has_a_safe_loader():
    schemes = mm.CheckpointLoader._schemes
    assert set(schemes) == set(SCHEMES)
    assert {loader.__module__ for loader in schemes.values()} == {mmengine_loaders.__name__}
    assert all(loader.__name__.startswith("load_from_") for loader in schemes.values())


@pytest.fixture
def unsafe_release():
    """mmengine.runner.checkpoint of a release that falls back to unsafe loading, as onedl does."""
    module = types.ModuleType("checkpoint")

    class CheckpointLoader(mm.CheckpointLoader):
        _schemes = {}  # noqa: RUF012

    def safe_torch_load(file, map_location=None):
        return torch.load(file, map_location=map_location, weights_only=False)

    @CheckpointLoader.register_scheme(prefixes="")
    def load_from_local(filename, map_location=None):
        return module._safe_torch_load(filename, map_location=map_location)

    @CheckpointLoader.register_scheme(prefixes="odd://")
    def load_from_odd(filename, map_location=None):
        return torch.load(filename.removeprefix("odd://"), weights_only=False)

    module.CheckpointLoader, module._safe_torch_load = CheckpointLoader, safe_torch_load
    return module


@pytest.mark.parametrize("scheme", ["", "odd://"])
def test_a_loader_that_asks_for_unsafe_loading_does_not_get_it(
    scheme, unsafe_release, saved, mark, monkeypatch
):
    mmengine_loaders.repair(unsafe_release)
    load = unsafe_release.CheckpointLoader.load_checkpoint
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match=r"refused .*: it asks for \S*mkdir"):
        load(f"{scheme}{saved(RunsCode(mark))}")
    assert not mark.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert load(f"{scheme}{saved(training_checkpoint())}")["meta"]["epoch"] == 1


def test_a_loader_that_ends_leaves_another_one_safe(saved, mark):
    path = str(saved(RunsCode(mark)))

    def load():
        with pytest.raises(CheckpointError):
            mm._load_checkpoint(path)

    before = torch.load
    with mmengine_loaders._loads_by(mmengine_loaders.load):
        other = threading.Thread(target=load)
        other.start()
        other.join(0.2)  # it has ended, or waits until this one has
        with pytest.raises(CheckpointError):
            torch.load(path, weights_only=False)
    other.join()
    assert torch.load is before
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"PK\x03\x04 and no more", b"\x80\x02}q\x00.", bytes(range(256))]
)
def test_a_file_that_is_no_checkpoint_is_one_clear_error(content, tmp_path):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        mm._load_checkpoint(str(path))
    assert str(caught.value).startswith(f"cannot read checkpoint {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_is_one_clear_error(saved, fraction):
    path = saved(training_checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    # Where a class name is cut off, what is left of it is refused.
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint|asks for coll[a-z]*\."):
        mm._load_checkpoint(str(path))


def test_a_missing_file_or_a_directory_is_named(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"checkpoint {path}"):
            mm._load_checkpoint(str(path))


class Allocate:
    """Pickles as a call that takes memory."""

    def __reduce__(self):
        return bytearray, (2**31,)


@pytest.mark.parametrize("scheme", ["", "http"])
def test_what_claims_far_more_than_it_stores_is_refused(scheme, saved, server, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "bomb.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(100 << 20))
    saved({"state_dict": {}, "a": Allocate()}, "bytes.pth")
    place = f"{server}/" if scheme else f"{tmp_path}/"
    with pytest.raises(CheckpointError, match=r"bomb\.pth would need"):
        mm._load_checkpoint(f"{place}bomb.pth")
    with pytest.raises(CheckpointError, match=r"bytes\.pth.* asks for builtins.bytearray"):
        mm._load_checkpoint(f"{place}bytes.pth")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(FileNotFoundError, match=r"pipe\.pth"):
        mm._load_checkpoint(str(tmp_path / "pipe.pth"))


# ---------------------------------------------------------------- the other schemes


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine for the files in tmp_path, and an empty download cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_web_address_is_downloaded_and_read(saved, server):
    saved(training_checkpoint(), "good.pth")
    assert mm._load_checkpoint(f"{server}/good.pth")["meta"]["epoch"] == 1


@pytest.mark.parametrize("forced", [False, True])
def test_code_behind_a_web_address_never_runs(saved, server, mark, forced, monkeypatch):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    saved(RunsCode(mark), "bad.pth")
    with pytest.raises(
        CheckpointError, match=rf"refused .*{server}/bad\.pth: it asks for \S*mkdir"
    ):
        mm._load_checkpoint(f"{server}/bad.pth")
    assert not mark.exists()


def test_a_page_in_the_place_of_a_checkpoint_is_refused_and_not_kept(server, tmp_path):
    (tmp_path / "page.pth").write_text("<html>Please log in</html>" * 10)
    with pytest.raises(CheckpointError, match=rf"cannot fetch .*{server}/page\.pth: .*login page"):
        mm._load_checkpoint(f"{server}/page.pth")
    assert not [path for path in tmp_path.rglob("cache/**/page*") if path.suffix != ".lock"]


def test_a_directory_for_downloads_is_used(saved, server, tmp_path):
    saved({"state_dict": {}}, "good.pth")
    mm.load_from_http(f"{server}/good.pth", model_dir=str(tmp_path / "own"))
    assert (tmp_path / "own" / "good.pth").is_file()


def test_a_web_address_that_is_not_there_is_one_clear_error(server):
    with pytest.raises(CheckpointError, match=rf"{server}/none\.pth: the server answered 404"):
        mm._load_checkpoint(f"{server}/none.pth")


@pytest.mark.parametrize(
    ("scheme", "table"),
    [
        ("torchvision", "get_torchvision_models"),
        ("modelzoo", "get_torchvision_models"),
        ("open-mmlab", "get_external_models"),
        ("openmmlab", "get_external_models"),
        ("mmcls", "get_mmcls_models"),
    ],
)
def test_names_of_weights_are_looked_up_and_read_safely(
    scheme, table, saved, server, mark, monkeypatch
):
    saved({"state_dict": OrderedDict({"backbone.weight": torch.ones(2)})}, "good.pth")
    saved(RunsCode(mark), "bad.pth")
    names = {"good": f"{server}/good.pth", "bad": f"{server}/bad.pth"}
    monkeypatch.setattr(mm, table, lambda: names)
    state = mm._load_checkpoint(f"{scheme}://good")["state_dict"]
    # mmcls keeps the backbone alone and takes off its prefix.
    assert list(state) == (["weight"] if scheme == "mmcls" else ["backbone.weight"])
    with pytest.raises(CheckpointError, match="refused"):
        mm._load_checkpoint(f"{scheme}://bad")
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="no weight is named 'other'"):
        mm._load_checkpoint(f"{scheme}://other")


def test_a_deprecated_name_is_followed_and_a_listed_file_is_found(saved, tmp_path, monkeypatch):
    saved({"state_dict": {}}, "own.pth")
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
    monkeypatch.setattr(mm, "get_external_models", lambda: {"new": "own.pth"})
    monkeypatch.setattr(mm, "get_deprecated_model_names", lambda: {"old": "new"})
    assert mm._load_checkpoint("open-mmlab://old") == {"state_dict": {}}


def test_an_object_store_is_read_safely(saved, mark, monkeypatch):
    good = saved({"state_dict": {}}, "good.pth").read_bytes()
    bad = saved(RunsCode(mark), "bad.pth").read_bytes()
    files = {"s3://bucket/good.pth": good, "s3://bucket/bad.pth": bad}

    class Store:
        get = files.__getitem__

    monkeypatch.setattr(mm, "get_file_backend", lambda uri, backend_args: Store)
    assert mm._load_checkpoint("s3://bucket/good.pth") == {"state_dict": {}}
    with pytest.raises(CheckpointError, match=r"refused .*s3://bucket/bad\.pth"):
        mm._load_checkpoint("s3://bucket/bad.pth")
    assert not mark.exists()


class Tiny(nn.Module):
    """A model for a runner."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)


@pytest.mark.parametrize("place", ["config", "cfg", "hub"])
def test_a_config_in_a_checkpoint_is_never_executed(place, saved, mark, tmp_path):
    """What `Runner.resume` and inferencers without a config of their own would run."""
    from mmengine.infer.infer import BaseInferencer
    from mmengine.runner import Runner

    text = f"ran = __import__('os').mkdir({str(mark)!r})\nmodel = dict(type='Tiny')\n"
    checkpoint = training_checkpoint()
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint |= {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint["meta"] = {**checkpoint["meta"], "iter": 1, "seed": 0, "experiment_name": "x"}
    if place == "hub":
        checkpoint["message_hub"]["runtime_info"]["cfg"] = text
    else:
        checkpoint["meta"][place] = text
    path = str(saved(checkpoint))
    with pytest.raises((ValueError, KeyError), match="config"):
        BaseInferencer._init_model(object.__new__(_Inferencer), {}, path)
    runner = Runner(
        model,
        str(tmp_path / "work"),
        train_dataloader=torch.utils.data.DataLoader([torch.ones(1)]),
        train_cfg={"by_epoch": True, "max_epochs": 3},
        optim_wrapper={"optimizer": optimizer},
        experiment_name=f"executed_{place}",
        default_scope=None,
        default_hooks={"checkpoint": None, "logger": None},
    )
    runner.resume(path)
    assert not mark.exists()


class _Inferencer:
    """Stands for an inferencer without a model of its own."""

    scope = None


@pytest.mark.parametrize(
    "location",
    ["meta", torch.device("meta"), {"cpu": "meta"}, {"cuda:0": "meta"}, "cpu", None],
    ids=str,
)
def test_tensors_go_where_they_are_asked_to(location, saved):
    path = saved({"state_dict": {"w": torch.ones(2)}})
    read = mm._load_checkpoint(str(path), map_location=location)["state_dict"]["w"]
    expected = torch.load(path, map_location=location, weights_only=True)["state_dict"]["w"]
    assert read.device == expected.device


def test_a_function_decides_where_tensors_go(saved):
    path, asked = saved({"state_dict": {"w": torch.ones(2)}}), []
    read = mm._load_checkpoint(str(path), map_location=lambda s, of: asked.append(of) or s)
    assert torch.equal(read["state_dict"]["w"], torch.ones(2))
    assert asked == ["cpu"]
