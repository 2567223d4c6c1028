"""`deploy_model`: a trained detector or segmentor as one folder that runs without PyTorch.

- `model.onnx`: from RGB images to boxes, masks or label maps; see `detector` and `segmentor`.
- `deploy.json`: what a program needs to know to prepare images and to read the outputs.
- `predict.py`: a program that does both, with numpy, Pillow and onnxruntime alone.

Axes: N batch, H height, W width, in pixels.
"""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .._version import __version__
from ..images.reading import load_image
from ..inference.optimize import fold_network
from ..models.backbone import ConvNextBackbone
from ..utils.checks import check_choice, check_min
from ..utils.files import atomic_files, check_outputs, check_path, file_sha256, write_json
from ..weights.catalogue import WEIGHTS
from .boxes import Limits, Size
from .check import Report, Run, Tolerance, compare, load_images
from .detector import Detector
from .inputs import pad_for_neck
from .onnx_file import DEFAULT_OPSET, SHORT_NAMES, read_before, require_onnx, write_onnx
from .openvino_file import MODEL as OPENVINO_MODEL
from .openvino_file import calibration_inputs, require_openvino, write_openvino
from .ops import onnx_translations
from .pipeline import fixed_size, read_pipeline
from .segmentor import Segmentor

if TYPE_CHECKING:
    from ..openmmlab.trained_model import TrainedModel

INPUT = "image"
MODEL, DESCRIPTION, PROGRAM = "model.onnx", "deploy.json", "predict.py"
INPUT_DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
FREE = "free"
# What `to` may be, and the files that it adds.
TARGETS: Mapping[str, tuple[str, ...]] = {"onnx": (), "openvino": (OPENVINO_MODEL, "model.bin")}
# What each precision is held to; a network in int8 is described, and judged by its accuracy.
PRECISIONS = {
    "float32": Tolerance(),
    "float16": Tolerance(
        boxes=2.0,
        scores=2e-2,
        masks=5e-2,
        overlaps=5e-2,
        ties=0.1,
        labels=1e-2,
        logits=2e-2,
        margin=1e-3,
    ),
    "int8": Tolerance(boxes=8.0, scores=0.1, refuse=False),
}
# Height and width of the comparison: square, odd, and wide.
_CHECK_SIZES: tuple[Size, ...] = ((256, 256), (287, 395), (320, 480))
_CHECK_IMAGES = 4
# Distributions of both families: the published one and onedl's forks.
_LIBRARIES = ("mmengine", "mmdet", "mmsegmentation")
_ONEDL = ("onedl-mmengine", "onedl-mmdetection", "onedl-mmsegmentation")
_VERSIONS = ("torch", "onnx", "onnxruntime", *_LIBRARIES, *_ONEDL)


@dataclass(frozen=True)
class DeployResult:
    """What was written.

    Attributes:
        folder: Holds model.onnx, deploy.json and predict.py.
        description: What deploy.json holds.
    """

    folder: Path
    description: Mapping[str, Any]


def deploy_model(
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: Size | None = None,
    batch: int | None = None,
    input_dtype: str = "float32",
    probabilities: bool = False,
    precision: str = "float32",
    to: str = "onnx",
    calibration: Sequence[str | os.PathLike[str]] | None = None,
    images: Sequence[str | os.PathLike[str]] | None = None,
    check: bool = True,
    options: Mapping[str, Any] | None = None,
) -> DeployResult:
    """Write a trained model of mmdet or mmsegmentation as a folder that runs without PyTorch.

    The network is compared with the library's own `predict` on real images at three sizes, and
    nothing is written unless they agree.

    Example:
        >>> done = deploy_model("mask-rcnn.py", "epoch_36.pth", "deployed")  # doctest: +SKIP
        >>> done.description["task"]  # doctest: +SKIP
        'detection'

    Args:
        config: The config file of the training.
        checkpoint: The checkpoint.
        out: The folder to write.
        size: Fix the input to this (height, width); free by default.
        batch: Fix the batch; free by default.
        input_dtype: "float32", or "uint8" for images as bytes.
        probabilities: Of a segmentor, whether to return probabilities (N, C, H, W) as well. Sliding
            inference needs them and always has them.
        precision: "float32"; "float16" for backbone and neck ("fp32" and "fp16" are the same);
            "int8", of OpenVINO only, for their convolutions and linear layers.
        to: "onnx", or "openvino" for model.xml and model.bin as well, which predict.py then runs.
        calibration: Files to quantize with, some tens of the kind that the model will see.
        images: Files to compare on; by default the first of the config's test set.
        check: Whether to compare; without, deploy.json says that it was not done.
        options: Changes to the config, by dotted names, as `--cfg-options`.

    Raises:
        ImportError: OpenMMLab's packages, onnx, onnxruntime or onnxscript are missing.
        ValueError: An argument is out of its range, the files are missing, broken or do not fit,
            or the model has a part or a setting that cannot be deployed; the message names it.
        DisagreementError: The network does not give what the model gives.
        OSError: The folder cannot be written.
    """
    check_path(out, "out")
    check_choice("to", to, TARGETS)
    written = [Path(out, name) for name in (MODEL, DESCRIPTION, PROGRAM, *TARGETS[to])]
    check_outputs(written, [config, checkpoint, *(images or ()), *(calibration or ())])
    precision = SHORT_NAMES.get(precision, precision)
    check_choice("input_dtype", input_dtype, INPUT_DTYPES)
    given = Given(_read_size(size), batch, INPUT_DTYPES[input_dtype])
    if batch is not None:
        check_min("batch", batch, 1)
    _check_engine(to, precision, calibration)
    try:
        from ..openmmlab.trained_model import load_trained_model
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: pip install 'convnext_backbone[openmmlab]'"
        ) from error
    trained = load_trained_model(config, checkpoint, options)
    pad_for_neck(trained.model)
    network = build_network(trained, probabilities)
    if precision == "float16":
        network.features.to(torch.float16)
    description = describe(trained, network, given)
    description["precision"] = precision
    description["checkpoint"] = {
        "name": Path(checkpoint).name,
        "sha256": file_sha256(checkpoint),
        "config": Path(config).name,
    }
    paths = _check_images(trained, images) if check else []
    to_calibrate = [os.fspath(path) for path in calibration or ()]
    # An error of an image comes before the network is written, and is not one of the folder.
    for path in (*paths, *to_calibrate):
        load_image(path)
    limits = getattr(network.heads, "limits", None)
    check_run = partial(_check, trained, given, paths, limits)
    with atomic_files(out, DESCRIPTION) as folder:
        run = _write_network(network, given, folder / MODEL)
        # An int8 network comes from the one in float32.
        tolerance = PRECISIONS["float32" if precision == "int8" else precision]
        checked = _with_logits(network, run, folder / MODEL) if paths else run
        description["check"] = check_run(checked, tolerance)
        if to == "openvino":
            inputs = None
            if to_calibrate:
                rules, repeat = description["preprocessing"], given.batch or 1
                inputs = calibration_inputs(to_calibrate, rules, repeat, given.dtype_name)
            run = write_openvino(folder / MODEL, folder / OPENVINO_MODEL, INPUT, inputs)
            description["check_openvino"] = check_run(run, PRECISIONS[precision])
            description["file"] = OPENVINO_MODEL
        write_json(folder / DESCRIPTION, description)
        shutil.copyfile(Path(__file__).with_name(PROGRAM), folder / PROGRAM)
    return DeployResult(Path(out), description)


def _read_size(size: Sequence[int] | None) -> Size | None:
    if size is None:
        return None
    sides = tuple(check_min("size", side, 32) for side in size)
    if len(sides) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}")
    return sides[0], sides[1]


def _check_engine(to: str, precision: str, calibration: Sequence[Any] | None) -> None:
    check_choice("precision", precision, PRECISIONS)
    int8 = precision == "int8"
    if int8 and (to != "openvino" or not calibration):
        raise ValueError("precision 'int8' is for to='openvino', and needs images as calibration")
    if calibration and not int8:
        raise ValueError(f"calibration is for precision 'int8', got precision {precision!r}")
    require_onnx()
    if to == "openvino":
        require_openvino(quantize=int8)


@dataclass(frozen=True)
class Given:
    """What the user fixed of the input."""

    size: Size | None
    batch: int | None
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """Its name in numpy and in deploy.json."""
        return str(self.dtype).rpartition(".")[2]

    def example(self) -> Tensor:
        """Return the images that the network is traced with."""
        n = 2 if self.batch is None else self.batch  # one would be taken for a constant
        height, width = self.size or (256, 320)
        return torch.zeros(n, 3, height, width).to(self.dtype)

    def free_sides(self) -> dict[int, Any]:
        """Return the axes of the input that stay open, for torch.export."""
        sides: dict[int, Any] = {}
        if self.batch is None:
            sides[0] = "batch"
        if self.size is None:
            sides |= {2: "height", 3: "width"}
        return sides

    def check_shapes(self) -> list[tuple[int, Size]]:
        """Return the batches and sizes to compare at."""
        sizes = _CHECK_SIZES if self.size is None else (self.size,)
        batches = (1, 2) if self.batch is None else (self.batch,)
        return [(batch, size) for size in sizes for batch in batches]


# ------------------------------------------------------------------------------ the network


def build_network(trained: "TrainedModel", probabilities: bool) -> nn.Module:
    """Return a copy of a model from images to results, with a folded backbone.

    Raises:
        ValueError: A part or a setting of it cannot be deployed; the message names it.
    """
    model = copy.deepcopy(trained.model)
    if isinstance(model.backbone, ConvNextBackbone):
        fold_network(model.backbone)
    if trained.task == "segmentation":
        return Segmentor(model, probabilities).eval()
    if probabilities:
        raise ValueError("probabilities are of a segmentor, and this model is a detector")
    return Detector(model).eval()


def _write_network(network: Any, given: Given, path: Path) -> Run:
    names = list(network.output_names)
    session = write_onnx(
        network,
        given.example(),
        str(path),
        input_name=INPUT,
        output_names=names,
        free_sides=given.free_sides(),
        opset=DEFAULT_OPSET,
        translations=onnx_translations(),
    )
    return lambda batch: dict(zip(names, session.run(names, {INPUT: batch}), strict=True))


def _with_logits(network: nn.Module, run: Run, path: Path) -> Run:
    """Let a segmentor's file give what its labels are chosen by, too: they alone show little."""
    if not isinstance(network, Segmentor):
        return run
    read = read_before(str(path), "label_map", ("ArgMax", "Greater"))
    return lambda batch: {**run(batch), "logits": read({INPUT: batch})}


# ------------------------------------------------------------------------------ deploy.json


def describe(trained: "TrainedModel", network: Any, given: Given) -> dict[str, Any]:
    """Return what deploy.json says of a network, but for its files and the check.

    Raises:
        ValueError: The test pipeline cannot be reproduced.
    """
    rules = read_pipeline(trained.image_steps())
    crop = network.crop if isinstance(network, Segmentor) else None
    if given.size is not None and crop not in (None, given.size):
        raise ValueError(f"size must be model.test_cfg.crop_size {crop}, got {given.size}")
    if given.size is not None:
        colour = network.inputs.mean_colour()
        rules = fixed_size(rules, given.size, colour, resize=crop is None)
    detector = isinstance(network, Detector)
    classes = list(trained.meta.get("classes") or ())
    count = _count_classes(trained.model)
    classes = [*classes[:count], *map(str, range(len(classes), count))]
    return {
        "format": 1,
        "task": trained.task,
        "file": MODEL,
        "classes": classes,
        "palette": _palette(trained.meta, count),
        "input": {
            "name": INPUT,
            "dtype": given.dtype_name,
            "layout": "NCHW",
            "channels": "RGB",
            "range": [0, 255],
            "batch": FREE if given.batch is None else given.batch,
            "size": FREE if given.size is None else list(given.size),
            "padded_in_graph_to_multiple_of": network.inputs.divisor,
        },
        "outputs": {name: OUTPUTS[name] for name in network.output_names},
        "preprocessing": rules,
        **(_describe_detector(network) if detector else _describe_segmentor(trained, network)),
        "licence": _licence(trained.trained_from),
        "versions": {"convnext_backbone": __version__, **_versions()},
    }


OUTPUTS = {
    "boxes": "(N, K, 4) float32: x1, y1, x2, y2 in pixels of the input",
    "scores": "(N, K) float32, the best first; 0 in rows without a box",
    "labels": "(N, K) int64, indices into classes; -1 in rows without a box",
    "masks": "(N, K, S, S) float32: probabilities within each box",
    "label_map": "(N, H, W) int64, indices into classes, at the size of the input",
    "probabilities": "(N, C, H, W) float32, at the size of the input",
}


def _describe_detector(network: Detector) -> dict[str, Any]:
    heads: Any = network.heads
    limits = heads.limits
    described = {
        "score_threshold": limits.score_threshold,
        "max_boxes": limits.max_per_image,
    }
    if "masks" in network.output_names:
        described["mask_threshold"] = heads.mask_threshold
    return described


def _describe_segmentor(trained: "TrainedModel", network: Segmentor) -> dict[str, Any]:
    rule = {
        "mode": "whole" if network.crop is None else "slide",
        "align_corners": bool(trained.model.align_corners),
        "threshold": getattr(network.heads, "threshold", None),
    }
    if network.crop is not None:
        rule |= {"crop": list(network.crop), "stride": list(trained.model.test_cfg.stride)}
    return {"inference": rule}


def _count_classes(model: Any) -> int:
    owner: Any = getattr(model, "roi_head", None) or model
    head: Any = getattr(owner, "bbox_head", None) or model.decode_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return int(head.num_classes)


def _palette(meta: Mapping[str, Any], count: int) -> list[list[int]]:
    """Return a colour for each class: the data set's, or hues evenly apart."""
    palette = meta.get("palette")
    if isinstance(palette, list | tuple) and len(palette) >= count > 0:
        return [[int(value) for value in colour] for colour in palette[:count]]
    hues = np.linspace(0, 2 * np.pi, max(count, 1), endpoint=False)[:, None]
    waves = 127.5 + 127.5 * np.cos(hues - np.array([0, 2, 4]) * np.pi / 3)
    return waves.astype(int).tolist()


def _licence(source: str | None) -> dict[str, str | None]:
    """Return the licence of the weights that the training began with, as far as it is known."""
    entry = WEIGHTS.get(source or "")
    return {"trained_from": source, "licence": entry.licence if entry else None}


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the other library, or the other family
            continue
    return found


# ------------------------------------------------------------------------------ the check


def _check(
    trained: "TrainedModel",
    given: Given,
    paths: Sequence[str],
    limits: Limits | None,
    run: Run,
    tolerance: Tolerance,
) -> dict[str, Any] | str:
    """Compare a written network with the model on images; return what deploy.json says of it.

    Raises:
        DisagreementError: They differ by more than the tolerance.
    """
    from ..openmmlab.trained_model import predict

    if not paths:
        return "not done"
    report = Report()
    for batch, size in given.check_shapes():
        chosen = [paths[index % len(paths)] for index in range(batch)]
        compare(
            report,
            load_images(chosen, size),
            lambda images: run(images.astype(given.dtype_name)),
            lambda images: predict(trained, list(images)),
            tolerance,
            limits,
        )
    return report.as_json()


def _check_images(
    trained: "TrainedModel", images: Sequence[str | os.PathLike[str]] | None
) -> list[str]:
    """Return the images to compare on: given ones, the test set's or scikit-learn's photographs.

    Raises:
        ValueError: There are none.
    """
    paths = [os.fspath(path) for path in images or ()] or trained.test_images(_CHECK_IMAGES)
    if not paths:
        # Its photographs come with the quickstart; the package is not imported.
        found = find_spec("sklearn")
        for place in (found and found.submodule_search_locations) or ():
            paths += map(str, sorted(Path(place, "datasets", "images").glob("*.jpg")))
    if not paths:
        raise ValueError("no image of the test set is there: give images to compare on (--images)")
    return paths
