"""What a small file may ask for in memory and time, in every container, and what is read as before.

`test_hostile_files` has the plain cases of each kind; these are the rarer ones.
"""

import io
import json
import os
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch
from helpers.originals import ORIGINALS, V1, write_keras_v3
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone, ConvNextConfig, FeatureExtractor
from convnext_backbone.cli.main import main
from convnext_backbone.weights import file_limits, open_weights
from convnext_backbone.weights.read import read_checkpoint
from convnext_backbone.weights.torch_files import read_torch_file

STATE = V1.state_dict()
LIMIT = ("100 times", "64 MiB")


def refused(path, *parts):
    """Read a file that must be refused, in one line that has the file's name and `parts`."""
    with pytest.raises(ValueError, match=path.name) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture(autouse=True)
def memory_is_not_filled():
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


# ------------------------------------------------------------------------------ HDF5


@pytest.fixture
def h5_file(tmp_path):
    path = tmp_path / "m.weights.h5"
    write_keras_v3(V1, path)
    return path


def test_h5_links_beside_the_variables_are_refused_too(h5_file):
    with h5py.File(h5_file, "r+") as root:
        root["extra/thing"] = h5py.ExternalLink("elsewhere.h5", "/")
    refused(h5_file, "/extra/thing is an external link")


def test_h5_rows_of_any_length_are_refused(h5_file):
    with h5py.File(h5_file, "r+") as root:
        root.create_dataset("ragged", (2,), dtype=h5py.vlen_dtype(np.float32))
    refused(h5_file, "/ragged holds objects")


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 32, 1 << 32)], ids=["long", "overflowing"])
def test_h5_data_without_storage_is_refused(shape, h5_file):
    with h5py.File(h5_file, "r+") as root:
        root.create_dataset("huge", shape, "f4", chunks=tuple(1 << 5 for _ in shape))
    refused(h5_file, "/huge", *LIMIT)


def test_h5_data_linked_many_times_counts_each_time(h5_file):
    with h5py.File(h5_file, "r+") as root:
        data = root.create_dataset("data", data=np.zeros(1 << 20, np.float32))
        for index in range(2000):
            root[f"copies/{index}"] = data
    refused(h5_file, *LIMIT)


def test_h5_groups_far_inside_each_other_are_refused(h5_file):
    with h5py.File(h5_file, "r+") as root:
        group = root
        for _ in range(3000):
            group = group.create_group("a")
    refused(h5_file, "/a/a/a", "too deep")


def test_h5_filter_that_would_load_a_plugin_is_refused(h5_file):
    with h5py.File(h5_file, "r+") as root:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(root.id, b"filtered", h5py.h5t.NATIVE_FLOAT, space, plist)
    refused(h5_file, "/filtered", "32015")


def test_compressed_h5_file_is_read_as_the_plain_one(h5_file, tmp_path):
    packed = tmp_path / "packed.weights.h5"
    with h5py.File(h5_file) as source, h5py.File(packed, "w") as target:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                target.require_group(name).attrs.update(item.attrs)
            else:
                target.create_dataset(name, data=item[()], compression="gzip", shuffle=True)

        source.visititems(copy)
    plain, again = read_checkpoint(h5_file).tensors, read_checkpoint(packed).tensors
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], again[key]) for key in plain)


def test_h5_variables_of_one_name_are_refused(tmp_path):
    path = ORIGINALS["keras_h5"].write(tmp_path)
    with h5py.File(path, "r+") as root:
        group = root.get("model_weights", root)
        layers = group.attrs["layer_names"]
        group.attrs["layer_names"] = np.concatenate([layers, layers])
    refused(path, "twice")


# ------------------------------------------------------------------------------ zip


@pytest.fixture(params=["m.keras", "weights.pth"])
def archive(request, tmp_path):
    if request.param == "m.keras":
        return ORIGINALS["keras_archive"].write(tmp_path)
    torch.save(STATE, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_small_entries_that_inflate_far_together_are_refused(archive):
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as target:
        for index in range(3):
            target.writestr(f"zeros/{index}", bytes(40 << 20))
    refused(archive, *LIMIT)


def test_compressed_checkpoint_is_read_as_the_plain_one(tmp_path):
    torch.save(STATE, tmp_path / "plain.pth")
    packed = tmp_path / "packed.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    for mmap in (False, True):
        tensors = read_checkpoint(packed, mmap=mmap).tensors
        assert tensors.keys() == STATE.keys()
        assert all(torch.equal(tensors[key], STATE[key]) for key in STATE)


def test_zip_with_two_entries_of_one_name_is_refused(archive):
    with zipfile.ZipFile(archive) as source:
        name = next(n for n in source.namelist() if n.endswith(("data.pkl", "weights.h5")))
        data = source.read(name)
    with warnings.catch_warnings(), zipfile.ZipFile(archive, "a") as target:
        warnings.simplefilter("ignore")
        target.writestr(name, data)
    refused(archive, name, "twice")


def test_pickle_that_does_not_fit_its_checksum_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    data = path.read_bytes()
    assert b"norm.bias" in data
    path.write_bytes(data.replace(b"norm.bias", b"norm.bios", 1))
    refused(path, "CRC-32", "data.pkl")


def test_checkpoint_without_checksums_is_read(tmp_path):
    options = pytest.importorskip("torch.utils.serialization.config")
    before = options.save.compute_crc32
    options.save.compute_crc32 = False
    try:
        torch.save(STATE, tmp_path / "weights.pth")
    finally:
        options.save.compute_crc32 = before
    assert read_checkpoint(tmp_path / "weights.pth").tensors.keys() == STATE.keys()


def test_archive_in_memory_is_checked_as_a_file_is():
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    buffer.seek(0)
    assert read_torch_file(buffer, "memory")["w"].sum() == 2
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr("zeros", bytes(100 << 20))
    buffer.seek(0)
    with pytest.raises(ValueError, match=r"memory.*64 MiB"):
        read_torch_file(buffer, "memory")


# ------------------------------------------------------------------------------ tensors and keys


def test_tensor_of_much_more_than_what_is_stored_is_refused(tmp_path):
    torch.save({**STATE, "mask_token": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "mask_token", *LIMIT)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(8, device="meta"),
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["meta", "sparse", "nested"],
)
def test_tensors_without_plain_values_are_refused(tensor, tmp_path):
    torch.save({**STATE, "norm.weight": tensor}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", *([] if tensor.is_nested else ["norm.weight"]))


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("count", [1 << 60, 1 << 70])
def test_more_memory_than_there_is_is_an_error_of_one_line(count, old_format, tmp_path):
    """torch itself admits bytearray, which cannot be taken off its list."""

    class Ask:
        def __reduce__(self):
            return bytearray, (count,)

    path = tmp_path / "w.pth"
    torch.save({"a": Ask()}, path, _use_new_zipfile_serialization=not old_format)
    refused(path)


@pytest.mark.parametrize("kind", ["sparse", "nested", "expanded", "meta"])
def test_tensors_of_other_modules_may_be_of_any_kind(kind, tmp_path):
    tensor = {
        "sparse": torch.eye(5).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "expanded": torch.ones(1, 1).expand(8192, 8192),
        "meta": torch.empty(8, device="meta"),
    }[kind]
    wrapped = {f"backbone.{key}": value for key, value in STATE.items()}
    path = tmp_path / "w.pth"
    torch.save({**wrapped, "graph.adjacent": tensor}, path)
    module = ConvNextBackbone.from_pretrained(path)
    assert "graph.adjacent" in module.load_report.dropped
    assert torch.equal(module.stages[0][0].gamma, STATE["stages.0.0.gamma"])
    torch.save({**wrapped, "backbone.mask_token": tensor}, path)
    refused(path, "backbone.mask_token")


def test_checkpoint_that_contains_itself_is_refused(tmp_path):
    state = {"w": torch.ones(1)}
    state["model"] = state
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "inside each other")


def test_one_dict_under_thousands_of_names_is_looked_into_once(tmp_path):
    inner = {}
    for _ in range(5):
        inner = dict.fromkeys(map(str, range(1000)), inner)
    torch.save({"model": inner, "state_dict": inner}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "there are no tensors in it")


@pytest.mark.parametrize("shape", [(), (8,), (8, 3), (8, 3, 4, 4, 1)])
@pytest.mark.parametrize("key", ["downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"])
def test_convolutions_of_another_rank_are_refused_by_name(key, shape, tmp_path):
    save_file({**STATE, key: torch.zeros(shape)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", key, str(shape))


def test_sparse_kernel_without_square_taps_is_refused_by_name(tmp_path):
    state = read_checkpoint(ORIGINALS["facebook_fcmae_sparse"].write(tmp_path)).tensors
    key = next(key for key in state if key.endswith("dwconv.kernel"))
    save_file({**state, key: torch.zeros(48, 8)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", key)


@pytest.mark.parametrize("key", ["stages.999999999.0.gamma", "stages.0.999999999.gamma"])
def test_load_state_dict_refuses_blocks_that_are_not_there(key):
    module = ConvNextBackbone(depths=(1, 2, 1, 1), hidden_sizes=(8, 16, 24, 32))
    state = {f"backbone.{k}": v for k, v in {**STATE, key: torch.zeros(8)}.items()}
    with pytest.raises(ValueError, match=rf"{key} counts"):
        module.load_state_dict(state)


@pytest.mark.timeout(120)  # seconds; of every key with every other they would take longer
@pytest.mark.parametrize(
    "key",
    [
        "stages.{}.0.gamma",
        "p{}.downsample_layers.0.0.weight",
        "no.such.key.{}",
        f"stages.{'1' * 500}{{}}",
    ],
)
def test_thousands_of_keys_are_refused(key, tmp_path):
    many = {key.format(index): torch.zeros(1) for index in range(10, 10_000)}
    path = tmp_path / "w.safetensors"
    save_file({**STATE, **many} if "no.such" not in key else many, path)
    with pytest.raises(ValueError, match=path.name):
        ConvNextBackbone.from_pretrained(path)


def test_number_of_more_digits_than_python_reads_is_an_unknown_key(tmp_path):
    key = f"stages.{'9' * 5000}.0.gamma"
    save_file({**STATE, key: torch.zeros(8)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="unexpected"):
        ConvNextBackbone.from_pretrained(tmp_path / "w.safetensors")


@pytest.mark.parametrize("old_format", [False, True])
def test_memory_for_nothing_is_not_allocated(old_format, tmp_path):
    class Ask:
        def __reduce__(self):
            return bytearray, (2**31,)

    path = tmp_path / "w.pth"
    torch.save({"a": Ask()}, path, _use_new_zipfile_serialization=not old_format)
    refused(path, "asks for builtins.bytearray")


# ------------------------------------------------------------------------------ the limits


def test_a_limit_can_be_raised_for_the_files_of_a_thread(tmp_path, capsys):
    path = tmp_path / "zeros.pth"
    torch.save({**STATE, "mask_token": torch.zeros(1 << 18).expand(100, -1)}, path)
    with file_limits(free_mib=1, ratio=2):
        refused(path, "the limit is 2 times", "file_limits(ratio=...)")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(read_checkpoint, path).result().tensors.keys() > STATE.keys()
        with file_limits(ratio=1000):
            assert read_checkpoint(path).tensors.keys() > STATE.keys()
    assert read_checkpoint(path).tensors.keys() > STATE.keys()


def test_the_command_line_raises_the_limit_of_memory(tmp_path, capsys):
    path = tmp_path / "zeros.pth"
    torch.save({**STATE, "mask_token": torch.zeros(1 << 10).expand(100_000, -1)}, path)
    assert main(["info", str(path)]) == 2
    assert "would need" in capsys.readouterr().err
    main(["info", str(path), "--max-inflation", "100000"])
    assert "would need" not in capsys.readouterr().err
    assert main(["info", str(path), "--max-inflation", "-1"]) == 2
    assert "ratio must be an integer of at least 0, got -1" in capsys.readouterr().err


def test_the_limit_of_absent_blocks_can_be_raised(tmp_path):
    save_file({**STATE, "stages.0.2000.gamma": torch.zeros(8)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "stages.0.2000.gamma", "the limit is 1000")
    with file_limits(absent_blocks=5000):
        assert open_weights(tmp_path / "w.safetensors").fields()["depths"][0] == 2001


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"ratio": -1}, ValueError), ({"ratio": "9"}, ValueError), ({"no_such": 1}, TypeError)],
)
def test_limits_that_are_none_are_refused(changes, error):
    with pytest.raises(error, match=next(iter(changes))), file_limits(**changes):
        pass


# ------------------------------------------------------------------------------ beside the weights


def test_pipes_for_shards_and_configs_are_refused_by_name(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    os.mkfifo(tmp_path / "preprocessor_config.json")
    for action in (open_weights, ConvNextConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"config\.json is a FIFO"):
            action(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is a FIFO"):
        FeatureExtractor(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "a.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.bin"}}))
    with pytest.raises(ValueError, match=r"a\.bin is a FIFO"):
        open_weights(tmp_path)
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(ValueError, match=r"index\.json is a FIFO"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_with_a_number_of_too_many_digits_is_an_error_of_one_line(name, tmp_path, capsys):
    if name == "config.json":
        save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / name).write_text('{"weight_map": ' + "9" * 5000 + "}")
    assert main(["info", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": ["convnext"]},
        {"model_type": "convnext", "id2label": 5},
        {"model_type": "convnext", "id2label": {"a": 1}},
        {"architecture": {}},
        {"model_type": "convnext", "norm_eps": "x", "out_features": 7},
        {"model_type": "convnext", "id2label": None, "label2id": 3, "layer_norm_eps": []},
    ],
)
def test_config_of_wrong_types_is_no_traceback(values, tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with suppress(ValueError, TypeError):
        ConvNextBackbone.from_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) in (0, 2)
