"""What is installed, whether it fits together, and what to type where it does not.

The known breakages are those of users' threads: two families of OpenMMLab packages over each other,
mmcv beyond what mmdet and mmseg accept, torchvision built for another torch, NumPy that torch
cannot read, a GPU that torch does not see.
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch

from .._version import __version__
from ..utils.checks import IMPORT_ERRORS, first_line

OK, NOTE, PROBLEM = "ok", "note", "problem"
_TOLERANCE = 1e-3  # of a normed feature in fp32, on any device, against the CPU in fp64
_CORE = ("torch", "torchvision", "numpy", "Pillow", "safetensors", "huggingface_hub")
_EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"keras": ("h5py",), "export": ("onnx", "onnxruntime", "onnxscript")}
)
_UPSTREAM = ("mmengine", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation", "mmpretrain")
_ONEDL = tuple(
    f"onedl-{name}" for name in ("mmengine", "mmcv", "mmdetection", "mmsegmentation", "mmpretrain")
)
_FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"openmmlab": _UPSTREAM, "onedl": _ONEDL}
)
# distribution -> the version of mmcv from which on its last release refuses to be imported
_WANTS_MMCV: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"mmdet": (2, 2), "mmsegmentation": (2, 2)}
)
# distribution -> what a config makes of it, each after those that it needs
_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "mmengine": "mmengine.runner",
        "onedl-mmengine": "mmengine.runner",
        "mmcv": "mmcv",
        "mmcv-lite": "mmcv",
        "onedl-mmcv": "mmcv",
        "mmdet": "mmdet.models",
        "onedl-mmdetection": "mmdet.models",
        "mmsegmentation": "mmseg.models",
        "onedl-mmsegmentation": "mmseg.models",
    }
)
_PLAIN_MMCV = "pip install 'mmcv-lite>=2.1,<2.2'"
# module -> the distribution that brings it, where their names differ
_BRINGS: Mapping[str, str] = MappingProxyType(
    {
        "PIL": "pillow",
        "cv2": "opencv-python-headless",
        "pkg_resources": "'setuptools<81'",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }
)
# what the message of a failed import holds -> what to type
_KNOWN_FAILURES: Mapping[str, str] = MappingProxyType(
    {
        "libGL": "pip uninstall -y opencv-python && pip install opencv-python-headless",
        "compiled using NumPy 1.x": "pip install 'numpy<2'",
        "_ARRAY_API not found": "pip install 'numpy<2'",
    }
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        state: `OK`, `NOTE` or `PROBLEM`.
        told: What was found.
        fix: The line to type, for a problem.
    """

    what: str
    state: str
    told: str
    fix: str = ""


def installed() -> dict[str, str]:
    """Return the version of every installed distribution that matters here, by name."""
    names = (*_CORE, *_UPSTREAM, *_ONEDL, *(n for group in _EXTRAS.values() for n in group))
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def examine() -> list[Finding]:
    """Look at everything. Takes a few seconds, most of them for importing mmdet and mmseg."""
    versions = installed()
    checks: Sequence[Callable[[], Iterator[Finding]]] = (
        lambda: check_core(versions),
        check_numpy_bridge,
        check_torchvision,
        lambda: check_families(versions),
        lambda: check_openmmlab_imports(versions),
        lambda: check_extras(versions),
        check_caches,
        check_devices,
    )
    return [finding for check in checks for finding in check()]


def check_core(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Tell the versions of what every part needs."""
    yield Finding("convnext_backbone", OK, __version__)
    yield Finding("python", OK, f"{platform.python_version()} at {sys.executable}")
    for name in _CORE:
        if name in versions:
            yield Finding(name, OK, versions[name])
        else:
            yield Finding(name, PROBLEM, "not installed", f"pip install {name}")


def check_numpy_bridge() -> Iterator[Finding]:
    """Pass an array to torch and back; a torch built for NumPy 1 cannot with NumPy 2."""
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        yield Finding("numpy in torch", PROBLEM, first_line(error), "pip install --upgrade torch")
    else:
        yield Finding("numpy in torch", OK, "arrays pass")


def check_torchvision() -> Iterator[Finding]:
    """Run one of torchvision's own operations; they need the torch they were built for."""
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        fix = "pip install --upgrade --force-reinstall torch torchvision"
        yield Finding("torchvision's operations", PROBLEM, first_line(error), fix)
    else:
        yield Finding("torchvision's operations", OK, "run")


def check_families(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Tell which family of OpenMMLab packages is there, and whether its members fit together."""
    found = {
        family: [name for name in names if name in versions] for family, names in _FAMILIES.items()
    }
    present = [family for family, names in found.items() if names]
    if not present:
        told = "not installed; `pip install 'convnext_backbone[openmmlab]'` brings mmdet and mmseg"
        yield Finding("OpenMMLab", NOTE, told)
        return
    told = ", ".join(f"{name} {versions[name]}" for family in present for name in found[family])
    if len(present) == 2:
        told = f"two families that overwrite each other: {told}"
        yield Finding("OpenMMLab", PROBLEM, told, _one_family(versions))
        return
    yield Finding("OpenMMLab", OK, f"{present[0]}: {told}")
    yield from _check_mmcv(versions)


def _check_mmcv(versions: Mapping[str, str]) -> Iterator[Finding]:
    if {"mmcv", "mmcv-lite"} <= versions.keys():
        told = "mmcv and mmcv-lite are both installed and overwrite each other"
        fix = f"pip uninstall -y mmcv mmcv-lite && {_PLAIN_MMCV}"
        yield Finding("mmcv", PROBLEM, told, fix)
        return
    name = next((name for name in ("mmcv", "mmcv-lite") if name in versions), None)
    if name is None:
        return
    for user, limit in _WANTS_MMCV.items():
        if user in versions and _numbers(versions[name]) >= limit:
            below = ".".join(map(str, limit))
            told = f"{user} {versions[user]} refuses {name} {versions[name]}: it wants < {below}"
            yield Finding("mmcv", PROBLEM, told, f"pip install '{name}>=2.1,<{below}'")


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts[:2] if part.isdecimal())


def _one_family(versions: Mapping[str, str]) -> str:
    """Return what to type where there are two families, and nothing otherwise."""
    found = [[name for name in names if name in versions] for names in _FAMILIES.values()]
    if not all(found):
        return ""
    names = " ".join(name for family in found for name in family)
    return f"pip uninstall -y {names} && pip install 'convnext_backbone[openmmlab]'"


def check_openmmlab_imports(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Import what is there, and tell who provides mmcv's operations."""
    names = [name for name in _MODULES if name in versions]
    if not any(_MODULES[name].startswith("mmengine") for name in names):
        if find_spec("mmengine") is None:
            return
        names.insert(0, "mmengine")  # a folder that pip knows nothing of
    fixes: dict[str, str] = {}  # by what was told: what one package lacks, all above it lack
    for name in names:
        error = _import_error(_MODULES[name])
        if error is None:
            yield Finding(name, OK, f"{_MODULES[name]} imports")
            continue
        told = first_line(error)
        fix = fixes.setdefault(told, _what_to_type(error, name, versions))
        yield Finding(name, PROBLEM, f"import {_MODULES[name]}: {told}", fix)
    yield _check_operations(versions)


def _check_operations(versions: Mapping[str, str]) -> Finding:
    from ..openmmlab import install_mmcv_ext, mmcv_ops_provider

    what = "mmcv's operations"
    install_mmcv_ext()  # what the import of this package left out where mmengine is broken
    provider = mmcv_ops_provider()
    if provider == "absent":
        return Finding(what, PROBLEM, "mmcv is not installed", _mmcv(versions))
    if provider == "torchvision":
        return Finding(what, OK, "this package's, on torchvision")
    error = _import_error("mmcv._ext")
    if error is None:
        return Finding(what, OK, "compiled")
    fix = f"pip uninstall -y {'onedl-mmcv' if _is_onedl(versions) else 'mmcv'} && {_mmcv(versions)}"
    return Finding(what, PROBLEM, f"compiled, but do not load: {first_line(error)}", fix)


def _is_onedl(versions: Mapping[str, str]) -> bool:
    return "onedl-mmengine" in versions


def _mmcv(versions: Mapping[str, str]) -> str:
    return "pip install onedl-mmcv" if _is_onedl(versions) else _PLAIN_MMCV


def _import_error(module: str) -> BaseException | None:
    try:
        import_module(module)
    except IMPORT_ERRORS as error:
        return error
    return None


def _what_to_type(error: BaseException, name: str, versions: Mapping[str, str]) -> str:
    """Return the line that mends an import of the distribution `name`."""
    known = [fix for part, fix in _KNOWN_FAILURES.items() if part in str(error)]
    both = _one_family(versions)
    if known or both:
        return both or known[0]
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if missing == "mmcv":
        return _mmcv(versions)
    if missing and "." not in missing and missing != _MODULES[name].partition(".")[0]:
        return f"pip install {_BRINGS.get(missing, missing)}"
    return f"pip install --upgrade --force-reinstall {name}"


def check_extras(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Tell what optional parts lack."""
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if name not in versions]
        if missing:
            told = f"without {', '.join(missing)}; `pip install 'convnext_backbone[{extra}]'`"
            yield Finding(f"extra {extra}", NOTE, told)
        else:
            told = ", ".join(f"{name} {versions[name]}" for name in names)
            yield Finding(f"extra {extra}", OK, told)


def check_caches() -> Iterator[Finding]:
    """See whether downloaded weights can be kept."""
    from huggingface_hub.constants import HF_HOME

    places = {"HF_HOME": Path(HF_HOME), "TORCH_HOME": Path(torch.hub.get_dir()).parent}
    for variable, place in places.items():
        existing = next(p for p in (place, *place.absolute().parents) if p.exists())
        if os.access(existing, os.W_OK):
            yield Finding(f"cache {variable}", OK, str(place))
        else:
            told = f"{place} cannot be written"
            yield Finding(f"cache {variable}", PROBLEM, told, f"export {variable}=$HOME/.weights")


def check_devices() -> Iterator[Finding]:
    """Tell the GPUs, and run one image through a small network on every device and dtype."""
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        told = f"{properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}"
        yield Finding(f"cuda:{index}", OK, f"{told}, CUDA {torch.version.cuda}")
    yield from _blind_gpu()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    for device in devices:
        yield self_test(device)


def _blind_gpu() -> Iterator[Finding]:
    if torch.cuda.is_available():
        return
    if not Path("/proc/driver/nvidia/version").exists():
        yield Finding("GPU", NOTE, "none: everything runs on the CPU")
    elif torch.version.cuda is None:
        told = "there is an NVIDIA driver, but this torch is built for the CPU"
        yield Finding("GPU", PROBLEM, told, "pip install --force-reinstall torch torchvision")
    else:
        told = (
            f"there is an NVIDIA driver, but torch built for CUDA {torch.version.cuda} sees no GPU"
        )
        yield Finding("GPU", PROBLEM, told, "nvidia-smi")


def self_test(device: torch.device) -> Finding:
    """Compare the features of one image on a device with those of the CPU in fp64."""
    from ..features.extractor import FeatureExtractor, Features
    from ..models.backbone import ConvNextBackbone

    what = f"self-test on {device}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ConvNextBackbone(hidden_sizes=(16, 32), depths=(2, 2), out_indices=(1, 2)).eval()
    x, y = torch.arange(96.0)[:, None], torch.arange(128.0)[None]
    image = torch.stack([x + 0 * y, y + 0 * x, (x * y) % 256]).to(torch.uint8)
    fx = FeatureExtractor(backbone, device=device, size="native", num_workers=0)
    fix = "pip install --upgrade --force-reinstall torch torchvision"
    try:
        features = fx(image)
    except RuntimeError as error:
        return Finding(what, PROBLEM, first_line(error), fix)
    assert isinstance(features, Features)  # one image in, one out
    with torch.inference_mode():
        exact = backbone.double()(fx.prepare(image).double()[None])
    pairs = zip(features.values(), exact, strict=True)
    off = max(float((got.double() - want[0]).abs().max()) for got, want in pairs)
    if not off <= _TOLERANCE:  # also when it is nan
        told = f"features are off by {off:.2g}, allowed is {_TOLERANCE:g}"
        return Finding(what, PROBLEM, told, fix)
    halves = ", ".join(name for name in ("bfloat16", "float16") if _runs(backbone, name, device))
    return Finding(what, OK, f"off by {off:.1e}; also runs in {halves or 'no half precision'}")


def _runs(backbone: torch.nn.Module, dtype: str, device: torch.device) -> bool:
    half = getattr(torch, dtype)
    try:
        with torch.inference_mode():
            maps = backbone.to(device, half)(torch.zeros(1, 3, 32, 32, device=device, dtype=half))
    except RuntimeError:
        return False
    return bool(torch.isfinite(maps[-1]).all())


def report(findings: Sequence[Finding]) -> str:
    """Return the findings as text that ends with the line to type for each problem."""
    width = max(len(finding.what) for finding in findings)
    lines = [f"{f.state:<8} {f.what:<{width}}  {f.told}" for f in findings]
    fixes = list(dict.fromkeys(f.fix for f in findings if f.state == PROBLEM))
    if not fixes:
        return "\n".join([*lines, "", "No problems."])
    count = sum(f.state == PROBLEM for f in findings)
    head = f"{count} problem{'s' if count > 1 else ''}. To mend, type:"
    return "\n".join([*lines, "", head, *(f"  {fix}" for fix in fixes)])
