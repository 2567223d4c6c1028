"""The checks of `doctor`: a new one is a function that yields results, and one line of `CHECKS`.

They look for what users have reported: two families of OpenMMLab packages over each other, mmcv
beyond what mmdet and mmseg accept, torchvision built for another torch, NumPy that torch cannot
read, a GPU that torch does not see.
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch

from .._version import __version__
from ..utils.checks import IMPORT_ERRORS, first_line

OK, NOTE, PROBLEM = "ok", "note", "problem"
_TOLERANCE = 1e-3  # of a normed feature in fp32, on any device, against the CPU in fp64
_CORE = ("torch", "torchvision", "numpy", "Pillow", "safetensors", "huggingface_hub")
_EXTRAS = {"keras": ("h5py",), "export": ("onnx", "onnxruntime", "onnxscript")}
# Distributions of both families of OpenMMLab -> the module that a config imports, each after those
# that it needs. Those without one are only listed.
_MODULES = {
    "mmengine": "mmengine.runner",
    "mmcv": "mmcv",
    "mmcv-lite": "mmcv",
    "mmdet": "mmdet.models",
    "mmsegmentation": "mmseg.models",
    "mmpretrain": "",
    "onedl-mmengine": "mmengine.runner",
    "onedl-mmcv": "mmcv",
    "onedl-mmdetection": "mmdet.models",
    "onedl-mmsegmentation": "mmseg.models",
    "onedl-mmpretrain": "",
}
_REINSTALL_TORCH = "pip install --upgrade --force-reinstall torch torchvision"
_PLAIN_MMCV = "pip install 'mmcv-lite>=2.1,<2.2'"
_OTHER_MMCV = f"pip uninstall -y mmcv mmcv-lite && {_PLAIN_MMCV}"
_OPENMMLAB = "pip install 'convnext_backbone[openmmlab]'"
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
    "MMCV==": _OTHER_MMCV,  # mmdet and mmseg refuse mmcv from 2.2 on
}


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check of one thing."""

    what: str
    state: str  # `OK`, `NOTE` or `PROBLEM`
    detail: str  # the version, or what is wrong
    fix: str = ""  # the line to type, for a problem


def installed_versions() -> dict[str, str]:
    """Return the version of every installed distribution that matters here, by name."""
    versions = {}
    for name in chain(_CORE, _MODULES, *_EXTRAS.values()):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
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


def check_torch(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """Run what fails where torch was built for another NumPy, or torchvision for another torch."""

    def run_nms() -> None:
        import_module("torchvision.ops").nms(torch.zeros(1, 4), torch.ones(1), 0.5)

    for what, run, detail, fix in (
        ("numpy in torch", torch.zeros(1).numpy, "arrays pass", "pip install --upgrade torch"),
        ("torchvision's operations", run_nms, "run", _REINSTALL_TORCH),
    ):
        try:
            run()
        except (ImportError, RuntimeError, AttributeError) as error:
            yield CheckResult(what, PROBLEM, first_line(error), fix)
        else:
            yield CheckResult(what, OK, detail)


def check_families(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Report which family of OpenMMLab packages is installed, and whether its members fit."""
    detail = ", ".join(f"{name} {versions[name]}" for name in _MODULES if name in versions)
    if not detail:
        detail = f"not installed; `{_OPENMMLAB}` brings mmdet and mmseg"
        yield CheckResult("OpenMMLab", NOTE, detail)
    elif fix := _fix_of_two_families(versions):
        detail = f"two families that overwrite each other: {detail}"
        yield CheckResult("OpenMMLab", PROBLEM, detail, fix)
    else:
        family = "onedl" if detail.startswith("onedl-") else "openmmlab"
        yield CheckResult("OpenMMLab", OK, f"{family}: {detail}")
        if {"mmcv", "mmcv-lite"} <= versions.keys():
            detail = "mmcv and mmcv-lite are both installed and overwrite each other"
            yield CheckResult("mmcv", PROBLEM, detail, _OTHER_MMCV)


def _fix_of_two_families(versions: Mapping[str, str]) -> str:
    """Return what to type where there are two families, and nothing otherwise."""
    names = [name for name in _MODULES if name in versions]
    if len({name.startswith("onedl-") for name in names}) < 2:
        return ""
    return f"pip uninstall -y {' '.join(names)} && {_OPENMMLAB}"


def check_openmmlab_imports(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Import what is installed, and report which package provides mmcv's operations."""
    names = [name for name, module in _MODULES.items() if module and name in versions]
    if not {"mmengine", "onedl-mmengine"} & versions.keys():
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
        return CheckResult(what, PROBLEM, "mmcv is not installed", _install_mmcv(versions))
    if provider == "torchvision":
        return CheckResult(what, OK, "this package's, on torchvision")
    error = _import_error("mmcv._ext")
    if error is None:
        return CheckResult(what, OK, "compiled")
    name = "onedl-mmcv" if "onedl-mmengine" in versions else "mmcv"
    fix = f"pip uninstall -y {name} && {_install_mmcv(versions)}"
    return CheckResult(what, PROBLEM, f"compiled, but do not load: {first_line(error)}", fix)


def _install_mmcv(versions: Mapping[str, str]) -> str:
    return "pip install onedl-mmcv" if "onedl-mmengine" in versions else _PLAIN_MMCV


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
        return _install_mmcv(versions)
    if missing and "." not in missing and missing != _MODULES[name].partition(".")[0]:
        return f"pip install {_DISTRIBUTION_OF.get(missing, missing)}"
    return f"pip install --upgrade --force-reinstall {name}"


def check_extras(versions: Mapping[str, str]) -> Iterator[CheckResult]:
    """Report which packages the extras lack."""
    for extra, names in _EXTRAS.items():
        missing = ", ".join(name for name in names if name not in versions)
        detail = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
        if missing:
            detail = f"without {missing}; `pip install 'convnext_backbone[{extra}]'`"
        yield CheckResult(f"extra {extra}", NOTE if missing else OK, detail)


def check_caches(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check that downloaded weights can be kept."""
    from huggingface_hub.constants import HF_HOME

    folders = {"HF_HOME": Path(HF_HOME), "TORCH_HOME": Path(torch.hub.get_dir()).parent}
    for variable, folder in folders.items():
        what = f"cache {variable}"
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if os.access(existing, os.W_OK):
            yield CheckResult(what, OK, str(folder))
        else:
            fix = f"export {variable}=$HOME/.weights"
            yield CheckResult(what, PROBLEM, f"{folder} cannot be written", fix)


def check_devices(_: Mapping[str, str]) -> Iterator[CheckResult]:
    """List the GPUs, and run one image through a small network on every device and dtype."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            detail = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}"
            yield CheckResult(f"cuda:{index}", OK, f"{detail}, CUDA {torch.version.cuda}")
            devices.append(f"cuda:{index}")
    else:
        yield _explain_missing_gpu()
        if torch.backends.mps.is_available():
            devices.append("mps")
    for device in devices:
        yield self_test(torch.device(device))


def _explain_missing_gpu() -> CheckResult:
    if not Path("/proc/driver/nvidia/version").exists():
        return CheckResult("GPU", NOTE, "none: everything runs on the CPU")
    detail, fix = "this torch is built for the CPU", _REINSTALL_TORCH
    if torch.version.cuda is not None:
        detail, fix = f"torch built for CUDA {torch.version.cuda} sees no GPU", "nvidia-smi"
    return CheckResult("GPU", PROBLEM, f"there is an NVIDIA driver, but {detail}", fix)


def self_test(device: torch.device) -> CheckResult:
    """Compare the features of one image on a device with those of the CPU in fp64."""
    from ..features.extractor import FeatureExtractor
    from ..models.backbone import ConvNextBackbone

    what = f"self-test on {device}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ConvNextBackbone(hidden_sizes=(16, 32), depths=(2, 2), out_indices=(1, 2)).eval()
        image = torch.randint(256, (3, 96, 128), dtype=torch.uint8)
    fx = FeatureExtractor(backbone, device=device, size="native", num_workers=0)
    try:
        features = fx.run_one(image)
    except RuntimeError as error:
        return CheckResult(what, PROBLEM, first_line(error), _REINSTALL_TORCH)
    with torch.inference_mode():
        exact = backbone.double()(fx.prepare(image).double()[None])
    pairs = zip(features.values(), exact, strict=True)
    off = max(float((got.double() - want[0]).abs().max()) for got, want in pairs)
    if not off <= _TOLERANCE:  # also when it is nan
        detail = f"features are off by {off:.2g}, allowed is {_TOLERANCE:g}"
        return CheckResult(what, PROBLEM, detail, _REINSTALL_TORCH)
    return CheckResult(what, OK, f"off by {off:.1e}")


# Each takes the installed versions by distribution.
CHECKS: tuple[Callable[[Mapping[str, str]], Iterator[CheckResult]], ...] = (
    check_core,
    check_torch,
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


def format_report(results: Sequence[CheckResult]) -> str:
    """Return the results as text that ends with the line to type for each problem."""
    width = max(len(result.what) for result in results)
    lines = [f"{r.state:<8} {r.what:<{width}}  {r.detail}" for r in results]
    fixes = list(dict.fromkeys(r.fix for r in results if r.state == PROBLEM))
    if not fixes:
        return "\n".join([*lines, "", "No problems."])
    count = sum(r.state == PROBLEM for r in results)
    head = f"{count} problem{'s' if count > 1 else ''}. To fix, type:"
    return "\n".join([*lines, "", head, *(f"  {fix}" for fix in fixes)])
