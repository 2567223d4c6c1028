#!/usr/bin/env python
"""Draw what a quickstart model predicts beside the truth, on the first validation images."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import nms

from convnext_backbone.openmmlab.tools.arguments import ConfigOptions
from convnext_backbone.openmmlab.tools.checks.checkpoint import check_checkpoint
from convnext_backbone.openmmlab.tools.checks.files import check_files
from convnext_backbone.openmmlab.tools.config import NEEDED, load_config
from convnext_backbone.openmmlab.tools.errors import BUILD_ERRORS, UsageError, describe_error
from convnext_backbone.utils.commandline import OneLineParser, print_error
from convnext_backbone.utils.files import atomic_write

# H, W height and width of an image in pixels

PROGRAM = "draw_quickstart.py"
COLOURS = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (0, 128, 128),
)
PAPER, INK, FAINT = (255, 255, 255), (33, 37, 41), (108, 117, 125)
ZOOM = 3  # the images are small
GAP, MARGIN = 12, 36  # between a pair's halves, and around everything, in pixels
TITLE_SIZE, NAME_SIZE, TAG_SIZE = 40, 26, 20  # of the letters, in pixels
LINE = 3  # width of a box, in pixels
PAIRS_PER_ROW = 2
METHODS: Mapping[str, str] = {"MaskRCNN": "Mask R-CNN", "UPerHead": "UperNet"}
FORMATS: Mapping[str, str] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MIN_SCORE = 0.5
MAX_OVERLAP = 0.6  # IoU of two predictions that may both be drawn
# Digits have colours of their own: a class without a tag must be read from the tint alone.
INSTANCE_OPACITY, LABEL_OPACITY = 0.55, 0.85


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", required=True, help="picture to write, .png or .jpg")
    parser.add_argument("--num", type=int, default=6, help="validation images to draw")
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions, metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    if args.num < 1:
        parser.error(f"argument --num: must be at least 1, got {args.num}")
    if Path(args.out).suffix.lower() not in FORMATS:
        parser.error(f"argument --out: must end in .png or .jpg, got {args.out!r}")
    return args


def predict(cfg: Config, checkpoint: str, number: int) -> list[Any]:
    """Run the model on the first validation images.

    Returns:
        mmdet's or mmseg's data samples, each with its truth and its prediction.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        load_checkpoint(model, checkpoint, map_location="cpu")
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        samples = (dataset[i] for i in range(min(number, len(dataset))))
        return [model.test_step(pseudo_collate([sample]))[0] for sample in samples]


def enlarge(image: Image.Image, method: Image.Resampling) -> Image.Image:
    """Enlarge an image by `ZOOM`."""
    return image.resize((image.width * ZOOM, image.height * ZOOM), method)


def tint(
    image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int], opacity: float
) -> None:
    """Lay a colour with a bright edge over the pixels of a mask.

    Args:
        image: The enlarged image; changed.
        mask: Bool `(H, W)` of the image as it was before enlarging.
        colour: Colour of the mask.
        opacity: Share of the colour, 0 to 1.
    """
    soft = enlarge(Image.fromarray(mask.astype(np.uint8) * 255), Image.Resampling.BICUBIC)
    inside = np.asarray(soft) > 127
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = np.asarray(image).astype(np.float64)
    pixels[inside] += opacity * (np.array(colour) - pixels[inside])
    pixels[inside & ~core] = colour
    image.paste(Image.fromarray(pixels.round().astype(np.uint8)))


def draw_instances(image: Image.Image, instances: Any, classes: tuple[str, ...]) -> None:
    """Draw boxes, masks, class names and, if there are any, scores.

    Args:
        image: The enlarged image; changed.
        instances: mmdet's `gt_instances` or `pred_instances`.
        classes: Names of the classes.
    """
    scores, boxes = instances.get("scores"), corners(instances.bboxes)
    kept = range(len(boxes)) if scores is None else most_certain(boxes, scores)
    masks = instances.masks
    masks = masks.masks.astype(bool) if hasattr(masks, "masks") else masks.numpy()
    labels = instances.labels.tolist()
    for i in kept:
        tint(image, masks[i], COLOURS[labels[i] % len(COLOURS)], INSTANCE_OPACITY)
    draw = ImageDraw.Draw(image)
    for i in kept:
        colour = COLOURS[labels[i] % len(COLOURS)]
        box = [round(ZOOM * value) for value in boxes[i].tolist()]
        draw.rectangle(box, outline=colour, width=LINE)
        text = classes[labels[i]] + ("" if scores is None else f" {scores[i]:.2f}")
        draw_tag(draw, box, text, colour)


def most_certain(boxes: torch.Tensor, scores: torch.Tensor) -> list[int]:
    """Choose the predictions to draw: those above `MIN_SCORE`, without overlaps.

    mmdet suppresses overlaps within a class only: COCO's metrics count the second-best class too.
    """
    return [i for i in nms(boxes, scores, MAX_OVERLAP).tolist() if scores[i] >= MIN_SCORE]


def corners(boxes: Any) -> Any:
    """Return the `(K, 4)` tensor of corners inside mmdet's box type, or the tensor itself."""
    return getattr(boxes, "tensor", boxes)


def draw_tag(
    draw: ImageDraw.ImageDraw, box: list[int], text: str, colour: tuple[int, int, int]
) -> None:
    """Write a name on a patch of its colour, above its box or, at the upper edge, below it."""
    font = ImageFont.load_default(TAG_SIZE)
    left, top, right, bottom = (round(value) for value in draw.textbbox((0, 0), text, font=font))
    width, height = right - left + 8, bottom - top + 8
    x, y = max(box[0], 0), box[1] - height
    if y < 0:
        y = box[3]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 4 - left, y + 4 - top), text, font=font, fill=INK if bright else PAPER)


def draw_labels(image: Image.Image, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Tint every class but the first, the background.

    Args:
        image: The enlarged image; changed.
        labels: Class of each pixel, `(H, W)`.
        classes: Names of the classes.
    """
    for index in range(1, len(classes)):
        if (labels == index).any():
            colour = COLOURS[(index - 1) % len(COLOURS)]
            tint(image, labels == index, colour, LABEL_OPACITY)


def detection_pair(sample: Any, image: Image.Image, classes: tuple[str, ...]) -> list[Image.Image]:
    """Draw the truth and the prediction of a detector."""
    truth, predicted = image.copy(), image.copy()
    draw_instances(truth, sample.gt_instances.cpu(), classes)
    draw_instances(predicted, sample.pred_instances.cpu(), classes)
    return [truth, predicted]


def label_pair(sample: Any, image: Image.Image, classes: tuple[str, ...]) -> list[Image.Image]:
    """Draw the truth and the prediction of a segmentor."""
    truth, predicted = image.copy(), image.copy()
    draw_labels(truth, sample.gt_sem_seg.data[0].numpy(), classes)
    draw_labels(predicted, sample.pred_sem_seg.data[0].numpy(), classes)
    return [truth, predicted]


DRAW_PAIR: Mapping[str, Callable[[Any, Image.Image, tuple[str, ...]], list[Image.Image]]] = {
    "mmdet": detection_pair,
    "mmseg": label_pair,
}
# Only label maps need a legend: each box is drawn with the name of its class.
FIRST_IN_LEGEND: Mapping[str, int] = {"mmseg": 1}


def sheet(pairs: list[list[Image.Image]], title: str, legend: tuple[str, ...]) -> Image.Image:
    """Lay pairs out on a titled sheet.

    Args:
        pairs: Truth and prediction of each image, all of one size.
        title: The headline.
        legend: Names of classes to list below, in the order of `COLOURS`.

    Returns:
        The picture.
    """
    width, height = pairs[0][0].size
    columns = min(PAIRS_PER_ROW, len(pairs))
    rows = -(-len(pairs) // columns)
    head, foot = 2 * MARGIN + TITLE_SIZE + NAME_SIZE, 2 * NAME_SIZE if legend else 0
    pair_width = 2 * width + GAP
    size = (
        2 * MARGIN + columns * pair_width + (columns - 1) * MARGIN,
        head + rows * height + (rows - 1) * GAP + foot + MARGIN,
    )
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 8), title, font=ImageFont.load_default(TITLE_SIZE), fill=INK)
    font = ImageFont.load_default(NAME_SIZE)
    for column in range(columns):
        x = MARGIN + column * (pair_width + MARGIN)
        for half, name in enumerate(("ground truth", "prediction")):
            draw.text(
                (x + half * (width + GAP), head - NAME_SIZE - 12), name, font=font, fill=FAINT
            )
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        for half, image in enumerate(pair):
            x = MARGIN + column * (pair_width + MARGIN) + half * (width + GAP)
            page.paste(image, (x, head + row * (height + GAP)))
    for index, name in enumerate(legend):
        x, y = MARGIN + 100 * index, size[1] - MARGIN - NAME_SIZE
        draw.rectangle((x, y, x + NAME_SIZE, y + NAME_SIZE), fill=COLOURS[index % len(COLOURS)])
        draw.text((x + NAME_SIZE + 12, y - 2), name, font=font, fill=INK)
    return page


def headline(cfg: Config) -> str:
    """Name the model of a quickstart config."""
    method = cfg.model.get("decode_head", cfg.model).type
    arch = cfg.model.backbone.get("arch", "ConvNeXt")
    return f"{METHODS.get(method, method)} on {arch}, trained from scratch: validation images"


def main(argv: list[str] | None = None) -> int:
    """Draw the picture.

    Returns:
        Exit code: 0, or 2 for a mistake in what the user gave.
    """
    args = parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options, NEEDED["test"])
        check_checkpoint(args.checkpoint, "checkpoint")
        check_files(cfg, ("test",))
        try:
            samples = predict(cfg, args.checkpoint, args.num)
        except BUILD_ERRORS as error:
            raise UsageError(f"config {args.config!r}: {describe_error(error)}") from error
    except UsageError as error:
        return print_error(PROGRAM, error)
    classes = tuple(cfg.test_dataloader.dataset.metainfo.classes)
    pairs = []
    for sample in samples:
        image = enlarge(Image.open(sample.img_path).convert("RGB"), Image.Resampling.LANCZOS)
        pairs.append(DRAW_PAIR[cfg.default_scope](sample, image, classes))
    first = FIRST_IN_LEGEND.get(cfg.default_scope, len(classes))
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as partial:
        page = sheet(pairs, headline(cfg), classes[first:])
        page.save(partial, FORMATS[out.suffix.lower()])
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
