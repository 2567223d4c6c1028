"""Run a trained detector or segmentor on image files: pictures, and one json or label maps."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS
from PIL import Image
from tqdm import tqdm

from ...images.files import name_images, output_names
from ...images.reading import load_image, to_eight_bits, to_rgb
from ...utils.checks import first_line
from ...utils.files import atomic_write, check_outputs, errors_naming, expand_path
from ..config_walk import iter_datasets
from .arguments import read_options
from .checks.checkpoint import check_checkpoint
from .config import load_config
from .errors import UsageError
from .loading import configs_beside, load_model
from .terminal import filter_log_noise

CONFIG_SUFFIXES = (".py", ".yml", ".yaml", ".json")
DRAWERS = {"mmdet": "DetLocalVisualizer", "mmseg": "SegLocalVisualizer"}
# Files that Pillow reads whole or not at all. OpenCV fills in what a damaged one lacks with grey.
_CHECKED = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_EIGHT_BITS = 256
_VOID = 255  # of mmsegmentation's `label_map`: a class that is not among the chosen ones
_ANNOTATIONS = "Annotations"  # in the type of each transform that loads a truth


def predict_files(
    inputs: Sequence[str],
    out: str,
    *,
    score: float = 0.3,
    on_error: str = "skip",
    device: str | None = None,
    pictures: bool = True,
    options: Sequence[str] = (),
) -> tuple[int, dict[str, str]]:
    """Write the predictions of a run's model for image files below the folder `out`.

    A detector gives `predictions.json` in COCO's form (images, categories, annotations with scores,
    masks as RLE); a segmentor `maps/`, PNG files with the values of the data set's own label maps.
    Both give `pictures/`.

    Args:
        inputs: A config, which may be left out where the checkpoint's folder holds the one of its
            run; a checkpoint; and image files, folders and globs.
        out: The folder to write.
        score: Objects below are left out.
        on_error: "skip" or "raise", about images that cannot be read or predicted.
        device: Where to compute; the GPU where there is one.
        pictures: Whether to draw.
        options: `key=value` pairs that override settings of the config.

    Returns:
        The number of images predicted, and the reason for each that failed, by name.

    Raises:
        UsageError: Config, checkpoint or data do not fit.
        ValueError: An image cannot be read or predicted and `on_error` is "raise"; there is none;
            `score` is out of range; or a file that is read would be replaced.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score must lie in 0 .. 1, got {score!r}")
    folder = Path(expand_path(out, "out"))
    filter_log_noise()
    config, checkpoint, sources = _split_inputs(inputs)
    images = name_images(sources)
    targets = output_names(images, ".png")
    cfg = load_config(config, read_options(options), ("model", "test_dataloader"))
    writer_class = WRITERS[cfg.default_scope]
    written = writer_class.files(folder, targets.values())
    drawn = [folder / "pictures" / target for target in targets.values() if pictures]
    check_outputs([*written, *drawn], [config, checkpoint, *sources, *images.values()])
    model, metainfo = load_model(cfg, checkpoint, device or get_device())
    dataset = next(iter_datasets(cfg.test_dataloader.dataset))[0]
    steps = [step for step in dataset.pipeline if _ANNOTATIONS not in str(step["type"])]
    pipeline = Compose(steps)
    with errors_naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    draw = _drawer(cfg, metainfo, score) if pictures else None
    writer = writer_class(folder, metainfo, score, dataset)
    failures: dict[str, str] = {}
    try:
        for name, path in tqdm(images.items(), unit="image"):
            try:
                data, image = read_image(pipeline, path)
                with torch.no_grad():
                    batch = {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}
                    sample = model.test_step(batch)[0].cpu()
                picture = None if draw is None or image is None else draw(image, sample)
            except Exception as error:  # any loader, any network: each raises what it likes
                if on_error == "raise":
                    text = f"cannot predict image {str(path)!r}: {first_line(error)}"
                    raise ValueError(text) from error
                failures[name] = first_line(error)
                continue
            writer.add(name, targets[name], sample)
            if picture is not None:
                _save_png(picture, folder / "pictures" / targets[name])
    finally:  # an interrupted run leaves what it has
        writer.close()
    return len(images) - len(failures), failures


def _split_inputs(inputs: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    has_config = inputs[0].endswith(CONFIG_SUFFIXES)
    checkpoint, *sources = inputs[has_config:] or [""]
    if not sources:
        raise UsageError("give a config (or none), a checkpoint and images")
    check_checkpoint(checkpoint, "checkpoint")
    if has_config:
        return inputs[0], checkpoint, sources
    beside = configs_beside(checkpoint)
    if len(beside) != 1:
        found = ", ".join(map(str, beside)) or "none"
        raise UsageError(f"give the config of {checkpoint!r}; beside it there is: {found}")
    return str(beside[0]), checkpoint, sources


def read_image(
    pipeline: Callable[[dict[str, Any]], dict[str, Any]], path: Path
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Run the config's pipeline on a file; return its result and the picture to draw on.

    The picture is RGB `(H, W, 3)`, upright, or None for files that Pillow does not read.
    """
    image = None
    accepted = () if path.suffix.lower() in _CHECKED else (ValueError,)
    with suppress(*accepted):
        image = np.array(to_rgb(to_eight_bits(load_image(path))))
    data = pipeline({"img_path": str(path), "img_id": 0, "seg_fields": []})
    if data is None:
        raise ValueError("the test pipeline returned None for it")
    return data, image


def _drawer(
    cfg: Config, metainfo: Mapping[str, Any], score: float
) -> Callable[[np.ndarray, Any], np.ndarray]:
    options = {"pred_score_thr": score} if cfg.default_scope == "mmdet" else {"with_labels": False}
    visualizer = VISUALIZERS.build({"type": DRAWERS[cfg.default_scope], "name": "predict"})
    visualizer.dataset_meta = metainfo

    def draw(image: np.ndarray, sample: Any) -> np.ndarray:
        visualizer.add_datasample("", image, sample, draw_gt=False, **options)
        return visualizer.get_image()

    return draw


# --------------------------------------------------------------------------- what is written


def _save_png(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        Image.fromarray(pixels).save(partial, "PNG")


class CocoWriter:
    """Collects detections, and writes them as one json in COCO's form."""

    NAME = "predictions.json"

    @classmethod
    def files(cls, folder: Path, targets: Iterable[str]) -> list[Path]:
        """Return what will be written."""
        return [folder / cls.NAME]

    def __init__(
        self, folder: Path, metainfo: Mapping[str, Any], score: float, dataset: Any
    ) -> None:
        self.path = folder / self.NAME
        self.score = score
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        names = metainfo.get("classes") or ()
        self.categories = [{"id": i, "name": str(name)} for i, name in enumerate(names, 1)]

    def add(self, name: str, target: str, sample: Any) -> None:
        """Take the objects of one image.

        Raises:
            UsageError: The model predicts no instances.
        """
        if "pred_instances" not in sample:
            raise UsageError(f"predictions of the kind {sample.keys()} cannot be written as COCO's")
        height, width = sample.ori_shape
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for annotation in iter_annotations(sample.pred_instances, self.score):
            annotation_id = len(self.annotations) + 1
            self.annotations.append({"id": annotation_id, "image_id": image_id, **annotation})

    def close(self) -> None:
        """Write the file."""
        keys = ("images", "categories", "annotations")
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps({key: getattr(self, key) for key in keys}))


def iter_annotations(instances: Any, score: float) -> Iterator[dict[str, Any]]:
    """Yield the objects of one image in COCO's form: boxes as (x, y, width, height) in pixels."""
    from pycocotools import mask as coco_mask

    for i in (instances.scores >= score).nonzero().flatten().tolist():
        x1, y1, x2, y2 = instances.bboxes[i].tolist()
        annotation = {
            "category_id": int(instances.labels[i]) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "score": float(instances.scores[i]),
            "iscrowd": 0,
        }
        if "masks" in instances:
            mask = np.asfortranarray(instances.masks[i].numpy(), dtype=np.uint8)
            encoded = coco_mask.encode(mask)
            encoded["counts"] = encoded["counts"].decode("ascii")
            annotation.update(segmentation=encoded, area=int(mask.sum()))
        yield annotation


class LabelMapWriter:
    """Writes a segmentor's label map of each image, with the data set's own values."""

    NAME = "maps"

    @classmethod
    def files(cls, folder: Path, targets: Iterable[str]) -> list[Path]:
        """Return what will be written."""
        return [folder / cls.NAME / target for target in targets]

    def __init__(
        self, folder: Path, metainfo: Mapping[str, Any], score: float, dataset: Any
    ) -> None:
        self.folder = folder / self.NAME
        # The value of each class. Of a type's own classes some may be chosen, in any order; and
        # where 0 means "not labelled" in the data set's files, the first class is 1.
        values = np.arange(max(_EIGHT_BITS, len(metainfo.get("classes") or ())))
        for value, label in (metainfo.get("label_map") or {}).items():
            if label != _VOID:
                values[label] = value
        self.values = values + bool(metainfo.get("reduce_zero_label"))

    def add(self, name: str, target: str, sample: Any) -> None:
        """Write one map."""
        labels = self.values[sample.pred_sem_seg.data[0].long().numpy()]  # floats of a threshold
        labels = labels.astype(np.uint8 if labels.max() < _EIGHT_BITS else np.uint16)
        _save_png(labels, self.folder / target)

    def close(self) -> None:
        """Do nothing: every map is written."""


WRITERS: Mapping[str, type[CocoWriter] | type[LabelMapWriter]] = {
    "mmdet": CocoWriter,
    "mmseg": LabelMapWriter,
}
