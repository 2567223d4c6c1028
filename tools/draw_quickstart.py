#!/usr/bin/env python
"""Draw what a quickstart model predicts beside the truth, on the first validation images."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from PIL import Image, ImageDraw, ImageFont

from convnext_backbone.openmmlab.launch import (
    BUILD_ERRORS,
    EXIT_USAGE,
    NEEDED,
    ConfigOptions,
    OneLineParser,
    described,
    load_config,
)
from convnext_backbone.openmmlab.preflight import UsageError, check_checkpoint, check_data

# H, W height and width of an image in pixels

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
ZOOM = 2  # the images are small
GAP, MARGIN = 10, 24  # between a pair's halves, and around everything, in pixels
PAIRS_PER_ROW = 2
MIN_SCORE = 0.5
OPACITY = 0.55


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = OneLineParser(prog="draw_quickstart.py", description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", required=True, help="picture to write, .png or .jpg")
    parser.add_argument("--num", type=int, default=6, help="validation images to draw")
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions, metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    if args.num < 1:
        parser.error(f"argument --num: must be at least 1, got {args.num}")
    if Path(args.out).suffix.lower() not in (".png", ".jpg", ".jpeg"):
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


def tint(image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Lay a colour with a bright edge over the pixels of a mask.

    Args:
        image: The enlarged image; changed.
        mask: Bool `(H, W)` of the image as it was before enlarging.
        colour: Colour of the mask.
    """
    soft = enlarge(Image.fromarray(mask.astype(np.uint8) * 255), Image.Resampling.BICUBIC)
    inside = np.asarray(soft) > 127
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = np.asarray(image).astype(np.float64)
    pixels[inside] += OPACITY * (np.array(colour) - pixels[inside])
    pixels[inside & ~core] = colour
    image.paste(Image.fromarray(pixels.round().astype(np.uint8)))


def draw_instances(image: Image.Image, instances: Any, classes: tuple[str, ...]) -> None:
    """Draw boxes, masks, class names and, if there are any, scores.

    Args:
        image: The enlarged image; changed.
        instances: mmdet's `gt_instances` or `pred_instances`.
        classes: Names of the classes.
    """
    scores = instances.get("scores")
    kept = [i for i in range(len(instances)) if scores is None or scores[i] >= MIN_SCORE]
    masks = instances.masks
    masks = masks.masks.astype(bool) if hasattr(masks, "masks") else masks.numpy()
    labels, boxes = instances.labels.tolist(), torch.as_tensor(corners(instances.bboxes)).tolist()
    for i in kept:
        tint(image, masks[i], COLOURS[labels[i] % len(COLOURS)])
    draw = ImageDraw.Draw(image)
    for i in kept:
        colour = COLOURS[labels[i] % len(COLOURS)]
        box = [ZOOM * value for value in boxes[i]]
        draw.rectangle(box, outline=colour, width=2)
        text = classes[labels[i]] + ("" if scores is None else f" {scores[i]:.2f}")
        draw_tag(draw, (box[0], box[1]), text, colour)


def corners(boxes: Any) -> Any:
    """Return the `(K, 4)` tensor of corners inside mmdet's box type, or the tensor itself."""
    return getattr(boxes, "tensor", boxes)


def draw_tag(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, int, int]
) -> None:
    """Write a name on a patch of its colour, above `at` where there is room."""
    font = ImageFont.load_default(14)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x, y = max(at[0], 0), max(at[1] - height, 0)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 3 - left, y + 3 - top), text, font=font, fill=INK if bright else PAPER)


def draw_labels(image: Image.Image, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Tint every class but the first, the background.

    Args:
        image: The enlarged image; changed.
        labels: Class of each pixel, `(H, W)`.
        classes: Names of the classes.
    """
    for index in range(1, len(classes)):
        if (labels == index).any():
            tint(image, labels == index, COLOURS[(index - 1) % len(COLOURS)])


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


DRAW_PAIR: Mapping[str, Callable[[Any, Image.Image, tuple[str, ...]], list[Image.Image]]]
DRAW_PAIR = MappingProxyType({"mmdet": detection_pair, "mmseg": label_pair})
# Only label maps need a legend: a detection bears its class.
FIRST_IN_LEGEND = MappingProxyType({"mmseg": 1})


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
    head, foot = 92, 44 if legend else 0
    pair_width = 2 * width + GAP
    size = (
        2 * MARGIN + columns * pair_width + (columns - 1) * MARGIN,
        head + rows * height + (rows - 1) * GAP + foot + MARGIN,
    )
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 20), title, font=ImageFont.load_default(26), fill=INK)
    for column in range(columns):
        x = MARGIN + column * (pair_width + MARGIN)
        for half, name in enumerate(("ground truth", "prediction")):
            at = (x + half * (width + GAP), 64)
            draw.text(at, name, font=ImageFont.load_default(16), fill=FAINT)
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        for half, image in enumerate(pair):
            x = MARGIN + column * (pair_width + MARGIN) + half * (width + GAP)
            page.paste(image, (x, head + row * (height + GAP)))
    for index, name in enumerate(legend):
        x, y = MARGIN + 64 * index, size[1] - MARGIN - 24
        draw.rectangle((x, y, x + 20, y + 20), fill=COLOURS[index % len(COLOURS)])
        draw.text((x + 28, y + 1), name, font=ImageFont.load_default(16), fill=INK)
    return page


def headline(cfg: Config) -> str:
    """Name the model of a quickstart config."""
    parts = [cfg.model.type, cfg.model.backbone.get("arch", cfg.model.backbone.type)]
    if "decode_head" in cfg.model:
        parts[0] = cfg.model.decode_head.type
    return f"{parts[0]} on {parts[1]}, trained from scratch: the first validation images"


def save(page: Image.Image, out: str) -> None:
    """Write the picture whole or not at all."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    page.save(partial)
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Draw the picture.

    Returns:
        Exit code: 0, or 2 for a mistake in what the user gave.
    """
    args = parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options, NEEDED["test"])
        check_checkpoint(args.checkpoint, "checkpoint")
        check_data(cfg, ("test",))
        try:
            samples = predict(cfg, args.checkpoint, args.num)
        except BUILD_ERRORS as error:
            raise UsageError(f"config {args.config!r}: {described(error)}") from error
    except UsageError as error:
        print(f"draw_quickstart.py: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    classes = tuple(cfg.test_dataloader.dataset.metainfo.classes)
    pairs = []
    for sample in samples:
        image = enlarge(Image.open(sample.img_path).convert("RGB"), Image.Resampling.LANCZOS)
        pairs.append(DRAW_PAIR[cfg.default_scope](sample, image, classes))
    first = FIRST_IN_LEGEND.get(cfg.default_scope, len(classes))
    save(sheet(pairs, headline(cfg), classes[first:]), args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
