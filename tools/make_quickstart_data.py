#!/usr/bin/env python
"""Build the quickstart data: real handwritten digits composed on real photographs.

scikit-learn ships 1,797 scans of handwritten digits (8x8 pixels; E. Alpaydin and C. Kaynak, UCI
"Optical Recognition of Handwritten Digits", CC BY 4.0) and two photographs (china.jpg and
flower.jpg, CC BY 2.0; credits in scikit-learn's datasets/images/README.txt). This tool draws
several digits on each crop of a photograph, so that a detector and a segmentor can be trained
where nothing can be downloaded::

    OUT/images/{training,validation}/000001.png
    OUT/annotations/instances_{train,val}.json       COCO: boxes and RLE masks, 10 classes
    OUT/annotations/{training,validation}/000001.png label maps in ADE20K's convention
    OUT/manifest.json                                 what the set was made from

Masks are the visible ink of each digit, encoded by pycocotools as RLE: unlike polygons, RLE
keeps the holes of 0, 6, 8 and 9 and agrees with the label maps pixel by pixel. In the label maps
0 is void (no pixel has it here), 1 the background and 2 + d the digit d, to be read with
`reduce_zero_label=True`.

Training and validation share no scan of a digit and no pixel of a photograph: a fifth of the
scans of every class is for validation, and so is the lower part of the photographs.
The same arguments give the same bytes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits, load_sample_images

from convnext_backbone.utils.commandline import OneLineParser, print_error

# H, W height and width of an image in pixels

PROGRAM = "make_quickstart_data.py"
FORMAT = 1  # raised whenever the same arguments would no longer give the same bytes
CLASSES = tuple(str(digit) for digit in range(10))
BACKGROUND_LABEL = 1
FIRST_DIGIT_LABEL = 2

VAL_SHARE = 5  # one scan in five
# Rows of the photographs (427x640), first and past the last.
PHOTO_ROWS: Mapping[str, tuple[int, int]] = {"train": (0, 250), "val": (257, 427)}
CROP_SIDE = (96, 168)  # side of a crop in the photograph, in pixels

DIMMING = (0.3, 0.7)  # of the photograph, so that bright ink stands out everywhere
DIGITS_PER_IMAGE = (3, 6)
DIGIT_SIDE = (0.36, 0.60)  # side of a digit's canvas as a share of the image's
TILT = 12.0  # largest rotation to either side, in degrees
MIN_VISIBLE = 0.95  # of a digit's ink that later digits must leave uncovered
MIN_CONTRAST = 80.0  # of luminance, by which ink is brighter than what lies under it, of 255
PLACEMENT_TRIES = 30
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
SIZE_LIMITS = (64, 1024)


@dataclass(frozen=True)
class Split:
    """One half of the set.

    Attributes:
        name: Key of the split, as in `instances_<name>.json`.
        folder: ADE20K's name of the split.
        scans: Indices into scikit-learn's digits.
        rows: First and past-the-last row of the photographs.
    """

    name: str
    folder: str
    scans: np.ndarray
    rows: tuple[int, int]


@dataclass
class Digit:
    """One digit of an image.

    Attributes:
        scan: Index into scikit-learn's digits.
        label: The digit itself, 0 to 9.
        mask: Visible ink, bool of shape (H, W).
        ink: Pixels of ink before anything covered it.
    """

    scan: int
    label: int
    mask: np.ndarray
    ink: int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = OneLineParser(
        prog=PROGRAM,
        description="Compose the quickstart data from what scikit-learn ships.",
    )
    parser.add_argument("--out", default="data/quickstart", help="folder to make")
    parser.add_argument("--num-train", type=int, default=800, help="training images")
    parser.add_argument("--num-val", type=int, default=200, help="validation images")
    parser.add_argument("--size", type=int, default=160, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    args = parser.parse_args(argv)
    for flag, value in (("--num-train", args.num_train), ("--num-val", args.num_val)):
        if value < 1:
            parser.error(f"argument {flag}: must be at least 1, got {value}")
    if not SIZE_LIMITS[0] <= args.size <= SIZE_LIMITS[1]:
        parser.error(
            f"argument --size: must be {SIZE_LIMITS[0]} to {SIZE_LIMITS[1]}, got {args.size}"
        )
    if args.seed < 0:
        parser.error(f"argument --seed: must not be negative, got {args.seed}")
    return args


def split_scans(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the scans of every class between training and validation.

    Args:
        targets: Digit of each scan, `(1797,)`.
        seed: Seed of the division.

    Returns:
        Indices of the training scans and of the validation scans.
    """
    rng = np.random.default_rng([seed, 0])
    train, val = [], []
    for label in range(len(CLASSES)):
        indices = rng.permutation(np.flatnonzero(targets == label))
        num_val = len(indices) // VAL_SHARE
        val.append(indices[:num_val])
        train.append(indices[num_val:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def draw_alpha(scan: np.ndarray, side: int, angle: float) -> np.ndarray:
    """Enlarge and tilt a scan.

    Args:
        scan: The 8x8 scan, 0 to 16.
        side: Side of the enlarged scan with its margin, in pixels.
        angle: Rotation in degrees.

    Returns:
        Opacity of the ink, 0 to 1, cropped to where there is any.
    """
    # A margin of two pixels, so that a tilted digit is not cut.
    canvas = Image.fromarray(np.pad(scan / 16.0, 2).astype(np.float32))
    canvas = canvas.resize((side, side), Image.Resampling.BICUBIC)
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC)
    # A steep ramp about the middle grey turns the blur of the enlargement into an edge.
    alpha = np.clip((np.asarray(canvas) - 0.25) / 0.30, 0.0, 1.0)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pick_ink(rng: np.random.Generator, under: np.ndarray) -> np.ndarray:
    """Draw a bright colour that stands out from what lies under the ink.

    Args:
        rng: Source of randomness.
        under: Colours under the ink, `(P, 3)`.

    Returns:
        The colour, `(3,)`, 0 to 255.
    """
    background = float((under @ LUMA).mean())
    for _ in range(PLACEMENT_TRIES):
        colour = rng.uniform(0.0, 255.0, 3)
        colour *= 255.0 / colour.max()
        if float(colour @ LUMA) - background >= MIN_CONTRAST:
            return colour
    return np.full(3, 255.0)


def cut_background(
    rng: np.random.Generator, photos: list[np.ndarray], rows: tuple[int, int], size: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Cut a random square from a random photograph and dim it.

    Returns:
        The crop as float `(size, size, 3)`, and where it came from.
    """
    index = int(rng.integers(len(photos)))
    side = int(rng.integers(CROP_SIDE[0], CROP_SIDE[1] + 1))
    left = int(rng.integers(0, photos[index].shape[1] - side + 1))
    top = int(rng.integers(rows[0], rows[1] - side + 1))
    crop = Image.fromarray(photos[index][top : top + side, left : left + side])
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return pixels * rng.uniform(*DIMMING), {"photo": index, "crop": [left, top, side, side]}


def place_digit(
    rng: np.random.Generator,
    canvas: np.ndarray,
    placed: list[Digit],
    scan: int,
    digits: Any,
) -> Digit | None:
    """Draw one digit on the canvas where it hides little of the others.

    Args:
        rng: Source of randomness.
        canvas: The image so far, `(H, W, 3)`; changed where the digit is drawn.
        placed: The digits so far; their masks lose what the new digit covers.
        scan: Index of the scan to draw.
        digits: What scikit-learn's `load_digits` returned.

    Returns:
        The new digit, or None when no free place was found.
    """
    size = canvas.shape[0]
    side = round(rng.uniform(*DIGIT_SIDE) * size)
    alpha = draw_alpha(digits.images[scan], side, rng.uniform(-TILT, TILT))
    ink = alpha >= 0.5
    for _ in range(PLACEMENT_TRIES):
        top, left = (int(rng.integers(0, size - extent + 1)) for extent in ink.shape)
        window = (slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
        if any(
            (d.mask[window] & ~ink).sum() + outside(d.mask, window) < MIN_VISIBLE * d.ink
            for d in placed
        ):
            continue
        colour = pick_ink(rng, canvas[window][ink])
        canvas[window] += alpha[..., None] * (colour - canvas[window])
        for digit in placed:
            digit.mask[window] &= ~ink
        mask = np.zeros((size, size), dtype=bool)
        mask[window] = ink
        return Digit(scan, int(digits.target[scan]), mask, int(ink.sum()))
    return None


def outside(mask: np.ndarray, window: tuple[slice, slice]) -> int:
    """Count the pixels of `mask` that are set outside `window`."""
    return int(mask.sum()) - int(mask[window].sum())


def compose(
    rng: np.random.Generator, split: Split, photos: list[np.ndarray], digits: Any, size: int
) -> tuple[np.ndarray, list[Digit], dict[str, Any]]:
    """Make one image.

    Returns:
        The image as uint8 `(size, size, 3)`, its digits, and where the background came from.
    """
    canvas, origin = cut_background(rng, photos, split.rows, size)
    wanted = int(rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1))
    placed: list[Digit] = []
    for scan in rng.choice(split.scans, wanted, replace=False):
        digit = place_digit(rng, canvas, placed, int(scan), digits)
        if digit is not None:
            placed.append(digit)
    return np.round(canvas).astype(np.uint8), placed, origin


def label_map(placed: list[Digit], size: int) -> np.ndarray:
    """Turn digits into an ADE20K-style label map, uint8 `(size, size)`."""
    labels = np.full((size, size), BACKGROUND_LABEL, dtype=np.uint8)
    for digit in placed:
        labels[digit.mask] = FIRST_DIGIT_LABEL + digit.label
    return labels


def annotations(placed: list[Digit], image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """Turn digits into COCO annotations; `scan` names the source of each."""
    for offset, digit in enumerate(placed):
        rle = coco_mask.encode(np.asfortranarray(digit.mask))
        yield {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": digit.label + 1,
            "bbox": [float(v) for v in coco_mask.toBbox(rle)],
            "area": int(coco_mask.area(rle)),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "iscrowd": 0,
            "scan": digit.scan,
        }


def write_split(
    root: Path,
    split: Split,
    photos: Mapping[str, np.ndarray],
    digits: Any,
    size: int,
    number: int,
    seed: int,
) -> int:
    """Write the images, label maps and COCO annotations of one split.

    Returns:
        The number of digits drawn.
    """
    image_dir = root / "images" / split.folder
    label_dir = root / "annotations" / split.folder
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    names, pixels = list(photos), list(photos.values())
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for image_id in range(1, number + 1):
        # A generator for every image: image k does not depend on how many images are made.
        rng = np.random.default_rng([seed, 1 + (split.name == "val"), image_id])
        image, placed, origin = compose(rng, split, pixels, digits, size)
        file_name = f"{image_id:06d}.png"
        Image.fromarray(image).save(image_dir / file_name)
        Image.fromarray(label_map(placed, size)).save(label_dir / file_name)
        images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "height": size,
                "width": size,
                "photo": names[origin["photo"]],
                "crop": origin["crop"],
            }
        )
        objects.extend(annotations(placed, image_id, len(objects) + 1))
    coco = {
        "info": {"description": "Handwritten digits on photographs, both from scikit-learn"},
        "licenses": [],
        "images": images,
        "annotations": objects,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    path = root / "annotations" / f"instances_{split.name}.json"
    path.write_text(json.dumps(coco), encoding="ascii")
    return len(objects)


def manifest_of(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the set that `args` give; two sets are the same if their manifests are."""
    return {
        "tool": "make_quickstart_data",
        "format": FORMAT,
        "num_train": args.num_train,
        "num_val": args.num_val,
        "size": args.size,
        "seed": args.seed,
        "classes": list(CLASSES),
    }


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Read the manifest of a folder that this tool made; None for any other folder."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("tool") == "make_quickstart_data"
    known = {"images", "annotations", "manifest.json"}
    # A folder with other files in it must not be deleted.
    return manifest if ours and {entry.name for entry in out.iterdir()} <= known else None


def build(args: argparse.Namespace, root: Path) -> None:
    """Write the whole set into the empty folder `root`."""
    digits = load_digits()
    samples = load_sample_images()
    photos = {
        Path(name).name: image
        for name, image in zip(samples.filenames, samples.images, strict=True)
    }
    train, val = split_scans(digits.target, args.seed)
    splits = (
        (Split("train", "training", train, PHOTO_ROWS["train"]), args.num_train),
        (Split("val", "validation", val, PHOTO_ROWS["val"]), args.num_val),
    )
    for split, number in splits:
        drawn = write_split(root, split, photos, digits, args.size, number, args.seed)
        print(f"{split.name}: {number} images, {drawn} digits from {len(split.scans)} scans")
    # Last, so that a folder with a manifest is a finished one.
    (root / "manifest.json").write_text(
        json.dumps(manifest_of(args), indent=2) + "\n", encoding="ascii"
    )


def main(argv: list[str] | None = None) -> int:
    """Build the set unless it is there.

    Returns:
        Exit code: 0, or 2 when the folder was not made by this tool or cannot be written.
    """
    args = parse_args(argv)
    out = Path(args.out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and read_manifest(out) is None):
        return print_error(
            PROGRAM, f"--out {out} exists and was not made by this tool; it is left as it is"
        )
    if out.is_dir() and read_manifest(out) == manifest_of(args):
        print(f"{out}: already there")
        return 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        return print_error(PROGRAM, f"--out {out} cannot be made: {error.strerror}")
    try:
        # A folder inside the temporary one, which only its owner may read.
        new = work / "set"
        new.mkdir()
        build(args, new)
        if out.exists():
            out.rename(work / "old")
        new.rename(out)
    except OSError as error:
        return print_error(PROGRAM, f"--out {out} cannot be written: {error.strerror}")
    finally:
        shutil.rmtree(work)
    print(f"{out}: done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
