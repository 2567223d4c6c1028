"""What is fuzzed: every container, image format and command line, each by a function of a `Random`.

A target makes one input in an empty folder and hands it to the package. It returns whether that was
read; ValueError and OSError are clear errors; whatever else is raised is a fault.
"""

import contextlib
import io
import json
import os
import pickle
import random
import re
import shlex
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from helpers.originals import ORIGINALS, V1
from PIL import Image, features
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone, ConvNextConfig, ConvNextImageProcessor
from convnext_backbone.cli.main import main
from convnext_backbone.weights import open_weights
from convnext_backbone.weights.native import describe
from convnext_backbone.weights.torch_files import CheckpointError

CLEAR = (ValueError, OSError)
Target = Callable[[random.Random, Path], bool]
NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
# ------------------------------------------------------------------------------ mutations


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Damage bytes in one to six places: cut, changed, numbers, moved, repeated or made up."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        if not out:
            break
        near = min(len(out), chance.choice([16, 256, 4096, len(out)]))
        place = chance.choice([chance.randrange(near), len(out) - 1 - chance.randrange(near)])
        size = chance.choice([1, 2, 4, 8, 64])
        kind = chance.randrange(7)
        if kind == 0:
            out[place] = chance.randrange(256)
        elif kind == 1:
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            form = chance.choice(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"])
            number = chance.choice(NUMBERS) % 256 ** struct.calcsize(form)
            out[place : place + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            del out[place : place + size]
        elif kind == 4:
            out[place:place] = out[place : place + size] * chance.choice([1, 2, 50])
        elif kind == 5:
            out[place:place] = chance.randbytes(size)
        elif chance.random() < 0.3:
            del out[place:]
    return bytes(out)


def mutate_zip(data: bytes, chance: random.Random) -> bytes:
    """Damage one entry of a zip file and pack it again, with a checksum that is right."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        entries = old.infolist()
        # The pickle or the weights most of the time; other entries are numbers.
        telling = [e for e in entries if e.filename.endswith((".pkl", ".h5", ".json"))]
        victim = chance.choice(telling if telling and chance.random() < 0.8 else entries)
        for entry in entries:
            content = old.read(entry)
            new.writestr(entry, mutate(content, chance) if entry is victim else content)
    return result.getvalue()


# ------------------------------------------------------------------------------ weights


@cache
def seeds(name: str) -> list[tuple[str, bytes]]:
    """Return the files of an original, by their names; the directory of shards has several."""
    with tempfile.TemporaryDirectory() as folder:
        path = ORIGINALS[name].write(Path(folder))
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(file.name, file.read_bytes()) for file in files]


@cache
def torch_seed(old: bool) -> list[tuple[str, bytes]]:
    stream = io.BytesIO()
    extra = {"epoch": 3, "lr": np.float64(0.1), "history": np.arange(3.0)}
    torch.save({"model": V1.state_dict(), **extra}, stream, _use_new_zipfile_serialization=not old)
    return [("w.pth", stream.getvalue())]


def read_weights(path: Path) -> bool:
    describe(open_weights(path))
    ConvNextBackbone.from_pretrained(path)
    return True


def container(make: Callable[[], list[tuple[str, bytes]]]) -> Target:
    def run(chance: random.Random, folder: Path) -> bool:
        files = make()
        victim = chance.randrange(len(files))
        for index, (name, data) in enumerate(files):
            if index == victim:
                is_zip = data.startswith(b"PK") and chance.random() < 0.6
                data = (mutate_zip if is_zip else mutate)(data, chance)
            (folder / name).write_bytes(data)
        return read_weights(folder if len(files) > 1 else folder / files[0][0])

    return run


def safetensors(chance: random.Random, folder: Path) -> bool:
    """Damage the header of a file whose length field is right."""
    save_file({k: v.contiguous() for k, v in V1.state_dict().items()}, folder / "w.safetensors")
    data = (folder / "w.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = mutate(data[8 : 8 + size], chance), data[8 + size :]
    if chance.random() < 0.3:
        rest = mutate(rest, chance)
    (folder / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + rest)
    return read_weights(folder / "w.safetensors")


def keys(chance: random.Random, folder: Path) -> bool:
    """Rename, reshape, repeat and drop tensors of a state dict."""
    state = dict(torch.load(io.BytesIO(torch_seed(False)[0][1]), weights_only=False)["model"])
    for _ in range(chance.randint(1, 6)):
        key = chance.choice(list(state))
        tensor = state[key] if chance.random() < 0.3 else state.pop(key)
        parts = key.split(".")
        place = chance.randrange(len(parts))
        odd = ("", "0", "-1", str(10 ** chance.randint(1, 30)), "stages", "weight", "\0", "é", "..")
        parts[place] = chance.choice((*odd, *chance.choice(list(state) or ["x"]).split(".")))
        shape = [chance.choice([0, 1, 2, 7, 8, 1000]) for _ in range(chance.randrange(6))]
        shape = shape if np.prod(shape, dtype=float) < 1e6 else []
        dtypes = (torch.float32, torch.int8, torch.bool, torch.complex64, torch.float8_e5m2)
        if chance.random() < 0.5:
            tensor = torch.zeros(shape, dtype=chance.choice(dtypes))
        state[".".join(parts)] = tensor
    torch.save({"state_dict": state}, folder / "w.pth")
    return read_weights(folder / "w.pth")


CALLABLES = (
    *("os.system", "builtins.eval", "builtins.exec", "builtins.getattr", "subprocess.Popen"),
    *("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy.load"),
    *("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"),
    *("torch.load", "torch.hub.load", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"),
    *("torch._utils._rebuild_parameter", "collections.OrderedDict", "collections.Counter"),
    *("argparse.Namespace", "builtins.bytearray", "builtins.set", "torch.Size", "torch.Tensor"),
    *("torch.serialization._get_layout", "torch._utils._rebuild_sparse_tensor", "io.open"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "builtins.bytes", "torch.device"),
)


def pickles(chance: random.Random, folder: Path) -> bool:
    """Write programs of pickle's machine: calls, states and arguments of every kind."""
    program = bytearray(b"\x80\x02}(")
    values: tuple[bytes, ...] = (
        *(b"N", b"\x88", b"K\x01", b"J\xff\xff\xff\xff", b"M\xff\xff", b"]", b"}", b")"),
        b"G" + b"\0" * 8,
        *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"X\x02\0\0\0O8", b"X\x01\0\0\0O", b"X\x02\0\0\0f8"),
        b"U\x08" + b"A" * 8,
        b"X\x18\0\0\0touch executed; open('x')"[: 5 + 24],
    )  # fmt: skip
    for index in range(chance.randint(1, 5)):
        key = f"k{index}".encode()
        program += b"X" + len(key).to_bytes(4, "little") + key
        name = chance.choice(CALLABLES)
        module, _, attribute = name.rpartition(".")
        program += f"c{module}\n{attribute}\n".encode()
        for _ in range(chance.randint(0, 2)):
            program += b"(" + b"".join(chance.choices(values, k=chance.randrange(5))) + b"t"
            program += chance.choice([b"R", b"R", b"b", b"\x81", b"R}b"])
    program += b"u."
    data = mutate(bytes(program), chance) if chance.random() < 0.2 else bytes(program)
    result = io.BytesIO()
    if chance.random() < 0.7:
        with zipfile.ZipFile(result, "w") as archive:
            archive.writestr("w/data.pkl", data)
            archive.writestr("w/byteorder", "little")
            archive.writestr("w/version", "3\n")
    else:
        magic = 0x1950A86A20F9469CFC6C
        for part in (magic, 1001, {"protocol_version": 1001, "little_endian": True}):
            result.write(pickle.dumps(part, protocol=2))
        result.write(data + pickle.dumps([], protocol=2))
    (folder / "w.pth").write_bytes(result.getvalue())
    return read_weights(folder / "w.pth")


def mmengine(chance: random.Random, folder: Path) -> bool:
    """Give a file to mmengine's own loader."""
    from mmengine.runner.checkpoint import _load_checkpoint

    make = chance.choice([pickles, container(lambda: torch_seed(False))])
    try:
        with contextlib.suppress(*CLEAR):
            make(chance, folder)
        with contextlib.redirect_stdout(io.StringIO()):
            _load_checkpoint(str(folder / "w.pth"))
    except CheckpointError:
        return False
    return True


def configs(chance: random.Random, folder: Path) -> bool:
    """Damage the config.json beside sound weights, as text and as values."""
    save_file({k: v.contiguous() for k, v in V1.state_dict().items()}, folder / "model.safetensors")
    config = {
        **{"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]},
        **{"id2label": {"0": "a"}, "label2id": {"a": 0}, "out_features": ["stage4"]},
        **{"layer_norm_eps": 1e-6, "hidden_act": "gelu", "torch_dtype": "float32"},
    }
    odd = (None, [], {}, "", "x", -1, 0, 1e999, [None], {"a": {}}, True, "9" * 30, [1] * 50, [[8]])
    for _ in range(chance.randint(0, 4)):
        config[chance.choice([*config, "x", "architectures"])] = chance.choice(odd)
    text = json.dumps(config).encode()
    text = mutate(text, chance) if chance.random() < 0.5 else text
    (folder / "config.json").write_bytes(text)
    try:
        ConvNextConfig.from_pretrained(folder)
        return read_weights(folder)
    except TypeError:  # of a field of another type than it must have
        return False


# ------------------------------------------------------------------------------ images

FORMATS = {
    **{"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"},
    **{"PPM": "ppm", "TGA": "tga", "ICO": "ico", "JPEG2000": "jp2", "EPS": "eps", "PCX": "pcx"},
    **{"SGI": "sgi", "DDS": "dds", "QOI": "qoi"},
    **({"AVIF": "avif"} if features.check("avif") else {}),
}


@cache
def image_seeds(kind: str) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    found = []
    for mode in ("RGB", "RGBA", "L", "P", "I;16", "1"):
        image = Image.fromarray(pixels)
        grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
        image = grey if mode == "I;16" else image.convert(mode)
        stream = io.BytesIO()
        with contextlib.suppress(OSError, KeyError, ValueError):
            image.save(stream, kind)
            found.append(stream.getvalue())
    return found


def image(kind: str) -> Target:
    processor = ConvNextImageProcessor(size={"shortest_edge": 32})

    def run(chance: random.Random, folder: Path) -> bool:
        path = folder / f"image.{FORMATS[kind]}"
        path.write_bytes(mutate(chance.choice(image_seeds(kind)), chance))
        processor(str(path))
        return True

    return run


# ------------------------------------------------------------------------------ command lines

WORDS = """
info convert extract visualize export w.pth w.safetensors image.png folder no.pth out.pth --to timm
huggingface native onnx --out out --weights --features stage4 stage9 --size 32 0x0 native
32x1000000 --device meta cpu cuda:9 --dtype float32 --pool avg --ema --prefix backbone.
--batch-size -1 0 2 --workers 1 --method pca --point 1 2 nan --max-pixels 10 --max-inflation --opset
99 --config broken.py --shard-mb --on-error raise --help --version --quiet ../ * - -- \u00e9
convnext_tiny.none
""".split()  # noqa: SIM905 - words are easier to read and to add to


@cache
def _network() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        ConvNextBackbone(hidden_sizes=(8, 16), depths=(1, 1)).save_pretrained(folder)
        return (Path(folder) / "model.safetensors").read_bytes()


def command_line(chance: random.Random, folder: Path) -> bool:
    """Run a made-up command in a folder of sound and broken files: one line, or a result."""
    folder = folder / "here"  # `../` leads no further
    folder.mkdir()
    (folder / "folder").mkdir()
    (folder / "w.safetensors").write_bytes(_network())
    (folder / "w.pth").write_bytes(mutate(torch_seed(False)[0][1], chance))
    (folder / "image.png").write_bytes(image_seeds("PNG")[0])
    (folder / "folder" / "b.png").write_bytes(mutate(image_seeds("PNG")[0], chance))
    (folder / "broken.py").write_text(chance.choice(["", "model = dict(", "model = 1"]))
    starts = {
        "info": "info w.safetensors",
        "convert": "convert w.safetensors out.pth --to timm",
        "extract": "extract folder --weights w.safetensors --out out --size 32 --quiet",
        "visualize": "visualize image.png --weights w.safetensors --out out.png",
    }
    words = shlex.split(chance.choice([*starts.values(), chance.choice(WORDS)]))
    for _ in range(chance.randint(0, 5)):
        place = chance.randrange(len(words) + 1)
        kind = chance.randrange(3)
        if kind == 0 or place == len(words):
            words.insert(place, chance.choice(WORDS))
        elif kind == 1:
            words[place] = chance.choice(WORDS)
        elif len(words) > 1:
            del words[place]
    errors = io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(words)
    except SystemExit as leave:
        code = leave.code
    finally:
        os.chdir(before)
    # Warnings, images that are passed over and a bar of progress may stand before the error.
    others = re.compile(r"$|.*(warning: |image/s)|unreadable: ")
    lines = [line for line in errors.getvalue().splitlines() if not others.match(line)]
    assert code in (0, 2), (words, code)
    assert code == 0 or len(lines) == 1, (words, lines)
    return code == 0


def tool_line(chance: random.Random, folder: Path) -> bool:
    """Run tools/test.py on a damaged checkpoint, with damaged options and configs."""
    from convnext_backbone.openmmlab.tools.launch import evaluate

    root = Path(__file__).resolve().parents[2]
    config = root / "configs/quickstart/mask-rcnn_convnext-atto_fpn_quickstart.py"
    if chance.random() < 0.3:
        (folder / "c.py").write_bytes(mutate(config.read_bytes(), chance))
        config = folder / "c.py"
    (folder / "w.pth").write_bytes(mutate(torch_seed(False)[0][1], chance)[:-30])
    odd = (
        "model=1",
        "a.b=[",
        "test_dataloader=x",
        "=",
        "model.backbone.arch=none",
        "x",
        "a=[dict(",
    )
    words = [str(config), str(folder / "w.pth"), "--work-dir", str(folder / "out")]
    if chance.random() < 0.7:
        words += ["--cfg-options", *chance.choices(odd, k=chance.randint(1, 3))]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = evaluate(words)
    except SystemExit as leave:
        code = leave.code
    assert code == 2, (words, code, errors.getvalue())
    return False


TARGETS: dict[str, Target] = {
    "PyTorch (zip)": container(lambda: torch_seed(False)),
    "PyTorch (before 1.6)": container(lambda: torch_seed(True)),
    "pickle programs": pickles,
    "safetensors": safetensors,
    "shards with an index": container(lambda: seeds("huggingface-v1_shards")),
    "Keras .h5": container(lambda: seeds("keras_h5")),
    "Keras .weights.h5": container(lambda: seeds("keras_weights_h5")),
    "Keras .keras": container(lambda: seeds("keras_archive")),
    "keys and shapes": keys,
    "config.json": configs,
    "mmengine's loader": mmengine,
    **{f"image {kind}": image(kind) for kind in FORMATS},
    "convnext-backbone ...": command_line,
    "tools/test.py ...": tool_line,
}  # fmt: skip

# ------------------------------------------------------------------------------ one input


class Forbidden(BaseException):
    """Something that an input must never bring about."""


_watching = False
_EVENTS = (
    "os.system",
    "subprocess.Popen",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "os.exec",
)


def _watch(event: str, args: tuple) -> None:
    if _watching and event in _EVENTS:
        raise Forbidden(f"{event} {args!r}")


sys.addaudithook(_watch)


def run_one(name: str, chance: random.Random) -> str:
    """Run one input of a target: "read" or "clear error"; what else happens is raised."""
    global _watching
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _watching = True
        try:
            return "read" if TARGETS[name](chance, Path(folder)) else "clear error"
        except CLEAR:
            return "clear error"
        finally:
            _watching = False
