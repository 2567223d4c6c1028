#!/usr/bin/env python
"""Run the network of this folder on images: python predict.py IMAGE_OR_FOLDER ... --out DIR

Needs numpy, Pillow and onnxruntime, and no PyTorch. It reads deploy.json and model.onnx beside it,
and writes a picture of each image and one predictions.json, a list with an entry for each image:

- of a detector `boxes` (x1, y1, x2, y2) in pixels, `scores`, `labels` (indices into `classes` of
  deploy.json) and `masks`, if it has them, as COCO's run lengths (column by column, 0 first);
- of a segmentor `label_map`, the name of a PNG whose pixels are the indices of the classes;
- of an image that cannot be read or predicted `error`; the exit code is then 1.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CPU = "CPUExecutionProvider"
Array = np.ndarray


def main() -> None:
    """Read the command line, and predict; an error is one line and the exit code 2."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path, help="images, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write")
    parser.add_argument("--min-score", type=float, default=0.3, help="lowest score of a drawn box")
    parser.add_argument("--provider", default=CPU, help="onnxruntime's provider, openvino's device")
    parser.add_argument("--no-pictures", action="store_true", help="write the predictions only")
    try:
        parser.exit(1 if predict_files(parser.parse_args()) else 0)
    except Exception as error:
        parser.exit(2, f"predict.py: error: {' '.join(str(error).split())}\n")


def predict_files(args: argparse.Namespace) -> int:
    """Write the predictions of all images, and return how many of them failed."""
    paths = list_images(args.images)
    if not paths:
        raise ValueError(f"no images in {[*map(str, args.images)]}")
    # A file name has at most 255 bytes.
    stems = [path.stem.encode(errors="ignore")[:200].decode(errors="ignore") for path in paths]
    targets = [args.out / f"{index:05d}_{stem}" for index, stem in enumerate(stems)]
    written = {os.path.realpath(f"{x}{end}") for x in targets for end in (".png", "_labels.png")}
    if replaced := written & {os.path.realpath(path) for path in paths}:
        raise ValueError(f"--out would replace the input {min(replaced)!r}")
    model = Model(Path(__file__).parent, args.provider)
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    try:
        for path, target in zip(paths, targets, strict=True):
            try:
                result = model(image := read_image(path))
                if not args.no_pictures:
                    draw(image, result, model.info, args.min_score).save(f"{target}.png")
                entry = to_json(result, Path(f"{target}_labels.png"))
            except Exception as error:  # Pillow and onnxruntime raise what they like
                entry = {"error": str(error) or repr(error)}
            results.append({"file": str(path), **entry})
    finally:  # an interrupted run leaves what it has
        partial = args.out / ".predictions.json.part"
        partial.write_text(json.dumps(results))
        partial.replace(args.out / "predictions.json")
    failed = sum("error" in result for result in results)
    print(f"{args.out}: {len(results) - failed} images, {failed} failed")
    return failed


def list_images(paths: list[Path]) -> list[Path]:
    """Return the files among paths, and the images in the folders among them, in order."""
    found = [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [p for p in found if not p.is_dir() and (p.suffix.lower() in SUFFIXES or p in paths)]


def read_image(path: Path) -> Array:
    """Return an upright image (H, W, 3), RGB in 8 bits; of 16-bit grey the high byte is kept."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")  # a pipe would be waited for
    with open(path, "rb") as file:  # given a path, Pillow misreads rotated TIFFs
        image = ImageOps.exif_transpose(Image.open(file))
    if image.mode[0] in "FI":
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey must have 8 or 16 bits, got {grey.min()} .. {grey.max()}")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


class Model:
    """The network of a folder; call it with an RGB image (H, W, 3) uint8."""

    def __init__(self, folder: Path, provider: str = CPU) -> None:
        self.info: dict[str, Any] = json.loads((Path(folder) / "deploy.json").read_text())
        self.network = load_network(str(Path(folder) / self.info["file"]), provider)

    def __call__(self, image: Array) -> dict[str, Any]:
        """Return the predictions in pixels of the image."""
        (padded, inner), size = prepare(image, self.info["preprocessing"]), image.shape[:2]
        if self.info["task"] == "segmentation":
            return {"label_map": self.segment(padded, inner, size)}
        outputs = self.run(padded)
        found = outputs["labels"] >= 0
        result: dict[str, Any] = {name: values[found] for name, values in outputs.items()}
        result["boxes"] /= np.array([inner[1] / size[1], inner[0] / size[0]] * 2, np.float32)
        if "masks" in result:
            pasted = map(paste_mask, result["masks"], result["boxes"], [size] * found.sum())
            result["masks"] = [mask >= self.info["mask_threshold"] for mask in pasted]
        return result

    def run(self, image: Array) -> dict[str, Array]:
        """Return the outputs by name for one image (H, W, 3)."""
        expected = self.info["input"]
        count = 1 if expected["batch"] == "free" else expected["batch"]
        batch = image.transpose(2, 0, 1)[None].repeat(count, axis=0).astype(expected["dtype"])
        return {name: x[0] for name, x in self.network({expected["name"]: batch}).items()}

    def segment(self, image: Array, inner: tuple[int, ...], size: Any) -> Array:
        """Return the label map of a size; `inner` is the part of the image that is no padding."""
        if "probabilities" not in self.info["outputs"]:
            labels = self.run(image)["label_map"][: inner[0], : inner[1]].astype(np.int32)
            return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
        rule = {"crop": image.shape[:2], "stride": image.shape[:2], **self.info["inference"]}
        logits = self.slide(image, *rule["crop"], *rule["stride"])[:, : inner[0], : inner[1]]
        logits = resize(logits, size, rule["align_corners"])
        if len(logits) == 1:
            return (logits[0] > np.log(rule["threshold"] / (1 - rule["threshold"]))) * 1
        return logits.argmax(0)

    def slide(self, image: Array, crop_y: int, crop_x: int, step_y: int, step_x: int) -> Array:
        """Return the mean of the logits (C, H, W) of overlapping windows."""
        h, w = image.shape[:2]
        total, count = np.float32(0), np.zeros((h, w), np.float32)
        for y in range(0, max(h - crop_y, 0) + step_y, step_y):
            for x in range(0, max(w - crop_x, 0) + step_x, step_x):
                bottom, right = min(y + crop_y, h), min(x + crop_x, w)
                top, left = max(bottom - crop_y, 0), max(right - crop_x, 0)
                logits = to_logits(self.run(image[top:bottom, left:right])["probabilities"])
                total = total + np.pad(logits, ((0, 0), (top, h - bottom), (left, w - right)))
                count[top:bottom, left:right] += 1
        return total / count


def load_network(path: str, provider: str = CPU) -> Any:
    """Return a network as a function from inputs to outputs, both by name."""
    if path.endswith(".xml"):
        import openvino

        device = provider.removesuffix("ExecutionProvider")
        compiled = openvino.compile_model(path, device, {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda inputs: {out.any_name: values for out, values in compiled(inputs).items()}
    import onnxruntime

    if provider not in (found := onnxruntime.get_available_providers()):
        raise ValueError(f"provider must be one of {found}, got {provider!r}")
    session = onnxruntime.InferenceSession(path, providers=[provider])
    if provider not in session.get_providers():  # one that does not start is left out
        raise ValueError(f"provider {provider!r} does not start, only {session.get_providers()}")
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def to_logits(probabilities: Array) -> Array:
    """Return logits (C, H, W), up to a summand of each pixel that all classes share."""
    others = 1 - probabilities if len(probabilities) == 1 else np.float32(1)
    return np.log(np.maximum(probabilities / np.maximum(others, 1.2e-38), 1.2e-38))


def prepare(image: Array, rules: dict[str, Any]) -> tuple[Array, tuple[int, ...]]:
    """Resize and pad as the test pipeline does; return the image and its size without padding."""
    if rule := rules["resize"]:
        (height, width), scale = image.shape[:2], rule["scale"]  # width and height
        if rule["keep_ratio"]:
            if not rule.get("fit"):  # the frame is turned as the image is
                scale = sorted(scale, reverse=width > height)
            factor = min(scale[0] / width, scale[1] / height)
            scale = [max(int(side * factor + 0.5), 1) for side in (width, height)]
        planes = resize(image.transpose(2, 0, 1).astype(np.float32), scale[::-1])
        image = np.rint(planes).astype(np.uint8).transpose(1, 2, 0)
    inner = image.shape[:2]
    if rule := rules["pad"]:  # at the right and the bottom, to a size or to multiples
        size = rule["size"] or [-(-side // rule["divisor"]) * rule["divisor"] for side in inner]
        padded = np.full((*map(max, size, inner), 3), np.rint(rule["value"]), np.uint8)
        padded[: inner[0], : inner[1]] = image
        image = padded
    return image, inner


def resize(planes: Array, size: Any, align_corners: bool = False) -> Array:
    """Resize (C, H, W) by bilinear interpolation without smoothing, as OpenCV and torch do."""
    sides = [*zip(planes.shape[1:], size, strict=True)]
    y, x = ((old - 1) / max(new - 1, 1) if align_corners else old / new for old, new in sides)
    top, left = (0.5 - y / 2, 0.5 - x / 2) if align_corners else (0, 0)
    how = size[::-1], Image.Transform.AFFINE, (x, 0, left, 0, y, top), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(plane).transform(*how)) for plane in planes])


def paste_mask(mask: Array, box: Array, size: tuple[int, ...]) -> Array:
    """Stretch a mask (S, S) over its box in an image of a size; 0 outside."""
    (x1, y1, x2, y2), (rows, columns) = box, mask.shape
    y, x, row, column = (np.arange(n, dtype=np.float32) + 0.5 for n in (*size, *mask.shape))
    y, x = (y - y1) / max(y2 - y1, 1e-6) * rows, (x - x1) / max(x2 - x1, 1e-6) * columns
    y, x = 1 - np.abs(y[:, None] - row), 1 - np.abs(x[:, None] - column)
    return np.maximum(y, 0) @ mask @ np.maximum(x, 0).T


def run_lengths(mask: Array) -> dict[str, list[int]]:
    """Return a mask (H, W) as COCO's uncompressed run lengths."""
    flat = mask.ravel(order="F")
    counts = np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def to_json(result: dict[str, Any], label_path: Path) -> dict[str, Any]:
    """Return a result as what json can hold; a label map is written as a PNG."""
    if "label_map" in result:
        labels = result["label_map"]
        Image.fromarray(labels.astype("uint8" if labels.max() < 256 else "uint16")).save(label_path)
        return {"label_map": label_path.name}
    values = {name: result[name].tolist() for name in ("boxes", "scores", "labels")}
    if "masks" in result:
        values["masks"] = [run_lengths(mask) for mask in result["masks"]]
    return values


def draw(image: Array, result: dict[str, Any], info: dict[str, Any], min_score: float) -> Any:
    """Return a picture of the image with what was found in it."""
    palette = np.array(info["palette"], np.uint8)
    if "label_map" in result:
        return Image.fromarray((image * 0.5 + palette[result["label_map"]] * 0.5).astype(np.uint8))
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for row in np.flatnonzero(result["scores"] >= min_score):
        label, score = int(result["labels"][row]), result["scores"][row]
        colour = tuple(palette[label].tolist())
        if "masks" in result:
            picture.paste(colour, mask=Image.fromarray(result["masks"][row] * np.uint8(128)))
        x1, y1, x2, y2 = result["boxes"][row].tolist()
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        pen.text((x1 + 3, y1 + 1), f"{info['classes'][label]} {score:.2f}", colour)
    return picture


if __name__ == "__main__":
    main()
