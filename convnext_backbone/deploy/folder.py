"""`deploy_model`: a whole detector or segmentor as one folder that runs without PyTorch.

- `model.onnx`: from RGB images to boxes, masks or label maps; see `detector` and `segmentor`.
- `deploy.json`: what a program needs to know to prepare images and to read the outputs.
- `predict.py`: a program that does both, with numpy, Pillow and onnxruntime alone.

Axes: N batch, H height, W width, in pixels.
"""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from ..utils.files import atomic_files, check_outputs, expand_path, file_sha256, write_json
from ..weights.catalogue import WEIGHTS
from . import predict
from .boxes import Size
from .check import Comparison, Tolerance, load_images
from .detector import Detector
from .inputs import pad_for_neck
from .onnx_file import Run, load_with_logits, write_onnx
from .pipeline import fixed_size, read_pipeline
from .segmentor import Segmentor
from .targets import PRECISIONS, SHORT_NAMES, TARGETS, naming_extra

if TYPE_CHECKING:
    from ..openmmlab.trained_model import TrainedModel

INPUT = "image"
MODEL, DESCRIPTION, PROGRAM = "model.onnx", "deploy.json", "predict.py"
INPUT_DTYPES = ("float32", "uint8")
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
    out = expand_path(out, "out")
    check_choice("to", to, TARGETS)
    written = [Path(out, name) for name in (MODEL, DESCRIPTION, PROGRAM, *TARGETS[to].files)]
    check_outputs(written, [config, checkpoint, *(images or ()), *(calibration or ())])
    precision = SHORT_NAMES.get(precision, precision)
    check_choice("input_dtype", input_dtype, INPUT_DTYPES)
    given = Given(_check_size(size), batch, input_dtype)
    if batch is not None:
        check_min("batch", batch, 1)
    _check_precision(precision, to, calibration)
    target, kind = TARGETS[to], PRECISIONS[precision]
    target.require(precision)
    with naming_extra("openmmlab"):
        from ..openmmlab.trained_model import load_trained_model
    trained = load_trained_model(config, checkpoint, options)
    pad_for_neck(trained.model)
    network = build_deployed(trained, probabilities)
    network.features.to(kind.dtype)
    description = _describe(trained, network, given)
    description["precision"] = precision
    description["checkpoint"] = {
        "name": Path(checkpoint).name,
        "sha256": file_sha256(checkpoint),
        "config": Path(config).name,
    }
    paths = _check_images(trained, images) if check else []
    # An error of an image comes before the network is written, and is not one of the folder.
    for path in (*paths, *(calibration or ())):
        load_image(os.fspath(path))
    check_run = partial(_check, trained, network, given, paths)
    with atomic_files(out, DESCRIPTION) as folder:
        run = write_onnx(network, given.example(), given.free_sides(), folder / MODEL)
        if paths and isinstance(network, Segmentor):  # label maps alone show little
            run = load_with_logits(folder / MODEL)
        description["check"] = check_run(run, kind.tolerance)
        if target.write:
            rules = description["preprocessing"]
            inputs = calibration_inputs(calibration, rules, given) if calibration else None
            description["file"] = file = target.files[0]
            target.write(folder / MODEL, folder / file, inputs)
            run = predict.load_network(str(folder / file))
            description[f"check_{to}"] = check_run(run, kind.quantized or kind.tolerance)
        write_json(folder / DESCRIPTION, description)
        shutil.copyfile(Path(__file__).with_name(PROGRAM), folder / PROGRAM)
    return DeployResult(Path(out), description)


def _check_size(size: Sequence[int] | None) -> Size | None:
    if size is None:
        return None
    sides = tuple(check_min("size", side, 32) for side in size)
    if len(sides) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}")
    return sides[0], sides[1]


def _check_precision(precision: str, to: str, calibration: Sequence[Any] | None) -> None:
    check_choice("precision", precision, PRECISIONS)
    quantized = PRECISIONS[precision].quantized is not None
    if precision not in TARGETS[to].precisions or (quantized and not calibration):
        able = " or ".join(f"to={t!r}" for t in TARGETS if precision in TARGETS[t].precisions)
        needs = ", and needs images as calibration" if quantized else ""
        raise ValueError(f"precision {precision!r} is for {able}{needs}")
    if calibration and not quantized:
        raise ValueError(f"calibration is for precision 'int8', got precision {precision!r}")


@dataclass(frozen=True)
class Given:
    """What the user fixed of the input."""

    size: Size | None
    batch: int | None
    dtype: str  # one of `INPUT_DTYPES`

    def example(self) -> Tensor:
        """Return the images that the network is traced with."""
        n = 2 if self.batch is None else self.batch  # one would be taken for a constant
        height, width = self.size or (256, 320)
        return torch.zeros(n, 3, height, width, dtype=getattr(torch, self.dtype))

    def free_sides(self) -> dict[int, Any]:
        """Return the axes of the input that stay open, for torch.export."""
        sides = {0: ("batch", self.batch), 2: ("height", self.size), 3: ("width", self.size)}
        return {axis: name for axis, (name, fixed) in sides.items() if fixed is None}

    def check_shapes(self) -> list[tuple[int, Size]]:
        """Return the batches and sizes to compare at."""
        sizes = _CHECK_SIZES if self.size is None else (self.size,)
        batches = (1, 2) if self.batch is None else (self.batch,)
        return [(batch, size) for size in sizes for batch in batches]


def calibration_inputs(
    paths: Sequence[str | os.PathLike[str]], rules: dict[str, Any], given: Given
) -> list[dict[str, np.ndarray]]:
    """Return the network's inputs for images to quantize with, prepared as predict.py does.

    `rules` are "resize" and "pad" of deploy.json. With a fixed batch each image is repeated.
    """
    prepared = (predict.prepare(predict.read_image(Path(path)), rules)[0] for path in paths)
    return [
        {INPUT: x.transpose(2, 0, 1)[None].repeat(given.batch or 1, 0).astype(given.dtype)}
        for x in prepared
    ]


# ------------------------------------------------------------------------------ the network


def build_deployed(trained: "TrainedModel", probabilities: bool) -> Detector | Segmentor:
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
        raise ValueError("probabilities are for segmentors, and this model is a detector")
    return Detector(model).eval()


# ------------------------------------------------------------------------------ deploy.json


def _describe(trained: "TrainedModel", network: Any, given: Given) -> dict[str, Any]:
    """Return what deploy.json says of a network, but for the checkpoint and the check.

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
            "dtype": given.dtype,
            "layout": "NCHW",
            "channels": "RGB",
            "range": [0, 255],
            "batch": "free" if given.batch is None else given.batch,
            "size": "free" if given.size is None else list(given.size),
            "padded_in_graph_to_multiple_of": network.inputs.divisor,
        },
        "outputs": {name: OUTPUTS[name] for name in network.output_names},
        "preprocessing": rules,
        **network.description,
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
        with suppress(PackageNotFoundError):  # the other library, or the other family
            found[name] = version(name)
    return found


# ------------------------------------------------------------------------------ the check


def _check(
    trained: "TrainedModel",
    network: Detector | Segmentor,
    given: Given,
    paths: Sequence[str],
    run: Run,
    tolerance: Tolerance,
) -> dict[str, Any] | str:
    """Compare a written network with the model on images; return what deploy.json says of it.

    Raises:
        DisagreementError: They differ by more than the tolerance.
    """
    from ..openmmlab.trained_model import predict as predict_in_torch

    if not paths:
        return "not done"
    comparison = Comparison(tolerance, getattr(network.heads, "limits", None))
    for batch, size in given.check_shapes():
        comparison.compare_predictions(
            load_images([paths[index % len(paths)] for index in range(batch)], size),
            lambda images: run({INPUT: images.astype(given.dtype)}),
            lambda images: predict_in_torch(trained, list(images)),
        )
    return comparison.as_json()


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
        raise ValueError("found no image of the test set: give images to compare on (--images)")
    return paths
