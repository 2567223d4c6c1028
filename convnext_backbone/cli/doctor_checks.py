"""The checks of `doctor`: a new one is a function that yields results, and one line of `CHECKS`.

They look for what users have reported: two families of OpenMMLab packages over each other, mmcv
beyond what mmdet and mmseg accept, torchvision built for another torch, NumPy that torch cannot
read, a GPU that torch does not see.
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from .._version import __version__
from ..utils.checks import IMPORT_ERRORS, first_line

OK, NOTE, PROBLEM = "ok", "note", "problem"
_TOLERANCE = 1e-3  # of a normed feature in fp32, on any device, against the CPU in fp64
_CORE = ("torch", "torchvision", "numpy", "Pillow", "safetensors", "huggingface_hub")
_EXTRAS = {"keras": ("h5py",), "export": ("onnx", "onnxruntime", "onnxscript")}
_UPSTREAM = ("mmengine", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation", "mmpretrain")
_ONEDL = tuple(
    f"onedl-{name}" for name in ("mmengine", "mmcv", "mmdetection", "mmsegmentation", "mmpretrain")
)
_FAMILIES = {"openmmlab": _UPSTREAM, "onedl": _ONEDL}
# distribution -> the version of mmcv from which on its last release cannot be imported
_MMCV_LIMITS = {"mmdet": (2, 2), "mmsegmentation": (2, 2)}
# distribution -> the module that a config imports, each after those that it needs
_MODULES = {
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
_PLAIN_MMCV = "pip install 'mmcv-lite>=2.1,<2.2'"
# module -> the distribution that holds it, where their names differ
_DISTRIBUTION_OF = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "pkg_resources": "'setuptools<81'",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# part of the message of a failed import -> what to type
_KNOWN_FAILURES = {
    "libGL": "pip uninstall -y opencv-python && pip install opencv-python-headless",
    "compiled using NumPy 1.x": "pip install 'numpy<2'",
    "_ARRAY_API not found": "pip install 'numpy<2'",
}


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check of one thing.

    Attributes:
        what: Its name.
        state: `OK`, `NOTE` or `PROBLEM`.
        detail: The version, or what is wrong.
        fix: The line to type, for a problem.
    """

    what: str
    state: str
    detail: str
    fix: str = ""


def installed_versions() -> dict[str, str]:
    """Return the version of every installed distribution that matters here, by name."""
    names = (*_CORE, *_UPSTREAM, *_ONEDL, *(n for group in _EXTRAS.values() for n in group))
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def check_core(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Report the versions of what every part needs."""
    yield CheckResult("convnext_backbone", OK, __version__)
    yield CheckResult("python", OK, f"{platform.python_version()} at {sys.executable}")
    for name in _CORE:
        if name in versions:
            yield CheckResult(name, OK, versions[name])
        else:
            yield CheckResult(name, PROBLEM, "not installed", f"pip install {name}")


def check_numpy_bridge(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """Pass an array to torch and back; a torch built for NumPy 1 cannot with NumPy 2."""
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        yield CheckResult(
            "numpy in torch", PROBLEM, first_line(error), "pip install --upgrade torch"
        )
    else:
        yield CheckResult("numpy in torch", OK, "arrays pass")


def check_torchvision(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """Run one of torchvision's own operations; they need the torch they were built for."""
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        fix = "pip install --upgrade --force-reinstall torch torchvision"
        yield CheckResult("torchvision's operations", PROBLEM, first_line(error), fix)
    else:
        yield CheckResult("torchvision's operations", OK, "run")


def check_families(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Report which family of OpenMMLab packages is installed, and whether its members fit."""
    found = {
        family: [name for name in names if name in versions] for family, names in _FAMILIES.items()
    }
    present = [family for family, names in found.items() if names]
    if not present:
        detail = (
            "not installed; `pip install 'convnext_backbone[openmmlab]'` brings mmdet and mmseg"
        )
        yield CheckResult("OpenMMLab", NOTE, detail)
        return
    detail = ", ".join(f"{name} {versions[name]}" for family in present for name in found[family])
    if len(present) == 2:
        detail = f"two families that overwrite each other: {detail}"
        yield CheckResult("OpenMMLab", PROBLEM, detail, _fix_of_two_families(versions))
        return
    yield CheckResult("OpenMMLab", OK, f"{present[0]}: {detail}")
    yield from _check_mmcv(versions)


def _check_mmcv(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    if {"mmcv", "mmcv-lite"} <= versions.keys():
        detail = "mmcv and mmcv-lite are both installed and overwrite each other"
        fix = f"pip uninstall -y mmcv mmcv-lite && {_PLAIN_MMCV}"
        yield CheckResult("mmcv", PROBLEM, detail, fix)
        return
    name = next((name for name in ("mmcv", "mmcv-lite") if name in versions), None)
    if name is None:
        return
    for user, limit in _MMCV_LIMITS.items():
        if user in versions and _major_minor(versions[name]) >= limit:
            below = ".".join(map(str, limit))
            detail = f"{user} {versions[user]} refuses {name} {versions[name]}: it wants < {below}"
            yield CheckResult("mmcv", PROBLEM, detail, f"pip install '{name}>=2.1,<{below}'")


def _major_minor(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts[:2] if part.isdecimal())


def _fix_of_two_families(versions: Mapping[str, str]) -> str:
    """Return what to type where there are two families, and nothing otherwise."""
    found = [[name for name in names if name in versions] for names in _FAMILIES.values()]
    if not all(found):
        return ""
    names = " ".join(name for family in found for name in family)
    return f"pip uninstall -y {names} && pip install 'convnext_backbone[openmmlab]'"


def check_openmmlab_imports(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Import what is installed, and report which package provides mmcv's operations."""
    names = [name for name in _MODULES if name in versions]
    if not any(_MODULES[name].startswith("mmengine") for name in names):
        if find_spec("mmengine") is None:
            return
        names.insert(0, "mmengine")  # a folder that pip did not install
    fixes: dict[str, str] = {}  # by error: what one package lacks, all that import it lack
    for name in names:
        error = _import_error(_MODULES[name])
        if error is None:
            yield CheckResult(name, OK, f"{_MODULES[name]} imports")
            continue
        detail = first_line(error)
        fix = fixes.setdefault(detail, _fix_of_import(error, name, versions))
        yield CheckResult(name, PROBLEM, f"import {_MODULES[name]}: {detail}", fix)
    yield _check_operations(versions)


def _check_operations(versions: Mapping[str, str]) -> CheckResult:
    from ..openmmlab import install_mmcv_ext, mmcv_ops_provider

    what = "mmcv's operations"
    install_mmcv_ext()  # what the import of this package left out where mmengine is broken
    provider = mmcv_ops_provider()
    if provider == "absent":
        return CheckResult(what, PROBLEM, "mmcv is not installed", _mmcv(versions))
    if provider == "torchvision":
        return CheckResult(what, OK, "this package's, on torchvision")
    error = _import_error("mmcv._ext")
    if error is None:
        return CheckResult(what, OK, "compiled")
    fix = f"pip uninstall -y {'onedl-mmcv' if _is_onedl(versions) else 'mmcv'} && {_mmcv(versions)}"
    return CheckResult(what, PROBLEM, f"compiled, but do not load: {first_line(error)}", fix)


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


def _fix_of_import(error: BaseException, name: str, versions: Mapping[str, str]) -> str:
    """Return the line that fixes an import of the distribution `name`."""
    known = [fix for part, fix in _KNOWN_FAILURES.items() if part in str(error)]
    both = _fix_of_two_families(versions)
    if known or both:
        return both or known[0]
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if missing == "mmcv":
        return _mmcv(versions)
    if missing and "." not in missing and missing != _MODULES[name].partition(".")[0]:
        return f"pip install {_DISTRIBUTION_OF.get(missing, missing)}"
    return f"pip install --upgrade --force-reinstall {name}"


def check_extras(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Report which packages the extras lack."""
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if name not in versions]
        if missing:
            detail = f"without {', '.join(missing)}; `pip install 'convnext_backbone[{extra}]'`"
            yield CheckResult(f"extra {extra}", NOTE, detail)
        else:
            detail = ", ".join(f"{name} {versions[name]}" for name in names)
            yield CheckResult(f"extra {extra}", OK, detail)


def check_caches(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check that downloaded weights can be kept."""
    from huggingface_hub.constants import HF_HOME

    folders = {"HF_HOME": Path(HF_HOME), "TORCH_HOME": Path(torch.hub.get_dir()).parent}
    for variable, folder in folders.items():
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if os.access(existing, os.W_OK):
            yield CheckResult(f"cache {variable}", OK, str(folder))
        else:
            detail = f"{folder} cannot be written"
            yield CheckResult(
                f"cache {variable}", PROBLEM, detail, f"export {variable}=$HOME/.weights"
            )


def check_devices(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """List the GPUs, and run one image through a small network on every device and dtype."""
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        detail = f"{properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}"
        yield CheckResult(f"cuda:{index}", OK, f"{detail}, CUDA {torch.version.cuda}")
    yield from _check_gpu()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    elif torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    for device in devices:
        yield self_test(device)


def _check_gpu() -> Iterator[CheckResult]:
    if torch.cuda.is_available():
        return
    if not Path("/proc/driver/nvidia/version").exists():
        yield CheckResult("GPU", NOTE, "none: everything runs on the CPU")
    elif torch.version.cuda is None:
        detail = "there is an NVIDIA driver, but this torch is built for the CPU"
        yield CheckResult("GPU", PROBLEM, detail, "pip install --force-reinstall torch torchvision")
    else:
        detail = (
            f"there is an NVIDIA driver, but torch built for CUDA {torch.version.cuda} sees no GPU"
        )
        yield CheckResult("GPU", PROBLEM, detail, "nvidia-smi")


def self_test(device: torch.device) -> CheckResult:
    """Compare the features of one image on a device with those of the CPU in fp64."""
    from ..features.extractor import FeatureExtractor
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
        features = fx.run_one(image)
    except RuntimeError as error:
        return CheckResult(what, PROBLEM, first_line(error), fix)
    with torch.inference_mode():
        exact = backbone.double()(fx.prepare(image).double()[None])
    pairs = zip(features.values(), exact, strict=True)
    off = max(float((got.double() - want[0]).abs().max()) for got, want in pairs)
    if not off <= _TOLERANCE:  # also when it is nan
        detail = f"features are off by {off:.2g}, allowed is {_TOLERANCE:g}"
        return CheckResult(what, PROBLEM, detail, fix)
    halves = ", ".join(name for name in ("bfloat16", "float16") if _runs(backbone, name, device))
    return CheckResult(what, OK, f"off by {off:.1e}; also runs in {halves or 'no half precision'}")


def _runs(backbone: torch.nn.Module, dtype: str, device: torch.device) -> bool:
    half = getattr(torch, dtype)
    try:
        with torch.inference_mode():
            maps = backbone.to(device, half)(torch.zeros(1, 3, 32, 32, device=device, dtype=half))
    except RuntimeError:
        return False
    return bool(torch.isfinite(maps[-1]).all())


# Each takes the installed versions by distribution.
CHECKS: tuple[Callable[[Mapping[str, str]], Iterator[CheckResult]], ...] = (
    check_core,
    check_numpy_bridge,
    check_torchvision,
    check_families,
    check_openmmlab_imports,
    check_extras,
    check_caches,
    check_devices,
)


def run_checks() -> list[CheckResult]:
    """Run every check. Takes a few seconds, most of them for importing mmdet and mmseg."""
    versions = installed_versions()
    return [result for check in CHECKS for result in check(versions)]
