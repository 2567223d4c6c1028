#!/usr/bin/env python
"""Run the network of this folder on images: python predict.py IMAGE_OR_FOLDER ... --out DIR

Needs numpy, Pillow and onnxruntime, and no PyTorch. It reads deploy.json and model.onnx beside it,
and writes a picture of each image and one predictions.json, a list with an entry for each image:

- of a detector `boxes` (x1, y1, x2, y2) in pixels, `scores`, `labels` (indices into `classes` of
  deploy.json) and `masks`, if it has them, as COCO's run lengths (column by column, 0 first);
- of a segmentor `label_map`, the name of a PNG whose pixels are the indices of the classes;
- of an image that cannot be read `error`; the exit code is then 1.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
Array = np.ndarray
Size = tuple[int, ...]  # height and width


def main() -> None:
    """Read the command line, predict, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path, help="images, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("predictions"))
    parser.add_argument("--min-score", type=float, default=0.3, help="of a box that is drawn")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime")
    parser.add_argument("--no-pictures", action="store_true")
    args = parser.parse_args()
    paths = list_images(args.images) or parser.exit(2, f"no images in {[*map(str, args.images)]}\n")
    model = Model(Path(__file__).parent, args.provider)
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for path in paths:
        try:
            image = read_image(path)
        except Exception as error:  # Pillow's decoders raise what they like
            results.append({"file": str(path), "error": str(error) or repr(error)})
            continue
        result = model(image)
        name = f"{len(results):05d}_{path.stem}"
        if not args.no_pictures:
            draw(image, result, model.info, args.min_score).save(args.out / f"{name}.png")
        results.append({"file": str(path), **to_json(result, args.out / f"{name}_labels.png")})
    (args.out / "predictions.json").write_text(json.dumps(results))
    failed = sum("error" in result for result in results)
    print(f"{args.out}: {len(results) - failed} images, {failed} unreadable")
    parser.exit(1 if failed else 0)


def list_images(paths: list[Path]) -> list[Path]:
    """Return the files among paths, and the images in the folders among them, in order."""
    inside = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths]
    return [p for files in inside for p in files if p.suffix.lower() in SUFFIXES or p in paths]


def read_image(path: Path) -> Array:
    """Return an upright image (H, W, 3), RGB in 8 bits; of 16-bit grey the high byte is kept."""
    with open(path, "rb") as file:  # given a path, Pillow misreads rotated TIFFs
        image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


class Model:
    """The network of a folder; call it with an RGB image (H, W, 3) uint8."""

    def __init__(self, folder: Path, provider: str = "CPUExecutionProvider") -> None:
        self.info: dict[str, Any] = json.loads((Path(folder) / "deploy.json").read_text())
        self.network = load_network(str(Path(folder) / self.info["file"]), provider)

    def __call__(self, image: Array) -> dict[str, Any]:
        """Return the predictions in pixels of the image."""
        resized = resize_by_rule(image, self.info["preprocessing"]["resize"])
        inner, size = resized.shape[:2], image.shape[:2]
        padded = pad_by_rule(resized, self.info["preprocessing"]["pad"])
        if self.info["task"] == "segmentation":
            return {"label_map": self.segment(padded, inner, size)}
        outputs = self.run(padded)
        found = outputs["labels"] >= 0
        result: dict[str, Any] = {name: values[found] for name, values in outputs.items()}
        scale = np.array([inner[1] / size[1], inner[0] / size[0]], np.float32)
        result["boxes"] = result["boxes"] / np.tile(scale, 2)
        if "masks" in result:
            pasted = map(paste_mask, result["masks"], result["boxes"], [size] * found.sum())
            result["masks"] = [mask >= self.info["mask_threshold"] for mask in pasted]
        return result

    def run(self, image: Array) -> dict[str, Array]:
        """Return the outputs by name for one image (H, W, 3)."""
        expected = self.info["input"]
        batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(expected["dtype"]))
        if expected["batch"] != "free":
            batch = np.repeat(batch, expected["batch"], axis=0)
        return {name: x[0] for name, x in self.network({expected["name"]: batch}).items()}

    def segment(self, image: Array, inner: Size, size: Size) -> Array:
        """Return the label map of a size; `inner` is the part of the image that is no padding."""
        rule = self.info["inference"]
        if rule["mode"] == "slide":
            logits = self.slide(image, *rule["crop"], *rule["stride"])
        else:
            outputs = self.run(image)
            if "probabilities" not in outputs:
                y, x = ((np.arange(n) + 0.5) * (m / n) for n, m in zip(size, inner, strict=True))
                return outputs["label_map"][y.astype(int)[:, None], x.astype(int)]
            logits = to_logits(outputs["probabilities"])
        logits = logits[:, : inner[0], : inner[1]].transpose(1, 2, 0)
        logits = resize(logits, size, rule["align_corners"])
        if logits.shape[-1] == 1:
            return (logits[..., 0] > np.log(rule["threshold"] / (1 - rule["threshold"]))) * 1
        return logits.argmax(-1)

    def slide(self, image: Array, crop_y: int, crop_x: int, step_y: int, step_x: int) -> Array:
        """Return the mean of the logits (C, H, W) of overlapping windows."""
        height, width = image.shape[:2]
        total, count = np.float32(0), np.zeros((height, width), np.float32)
        for y in range(0, max(height - crop_y + step_y - 1, 0) + 1, step_y):
            for x in range(0, max(width - crop_x + step_x - 1, 0) + 1, step_x):
                bottom, right = min(y + crop_y, height), min(x + crop_x, width)
                top, left = max(bottom - crop_y, 0), max(right - crop_x, 0)
                logits = to_logits(self.run(image[top:bottom, left:right])["probabilities"])
                sides = ((0, 0), (top, height - bottom), (left, width - right))
                total = total + np.pad(logits, sides)
                count[top:bottom, left:right] += 1
        return total / count


def load_network(path: str, provider: str) -> Any:
    """Return a network as a function from inputs to outputs, both by name."""
    if path.endswith(".xml"):
        import openvino

        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda inputs: {out.any_name: values for out, values in compiled(inputs).items()}
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=[provider])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def to_logits(probabilities: Array) -> Array:
    """Return logits (C, H, W), up to a summand of each pixel that all classes share."""
    least = np.finfo(np.float32).tiny
    odds = probabilities / (np.maximum(1 - probabilities, least) if len(probabilities) == 1 else 1)
    return np.log(np.maximum(odds, least))


def resize_by_rule(image: Array, rule: dict[str, Any] | None) -> Array:
    """Resize as the test pipeline does, to {"scale": [width, height], "keep_ratio": bool}."""
    if rule is None:
        return image
    (height, width), (new_width, new_height) = image.shape[:2], rule["scale"]
    if rule["keep_ratio"]:
        long, short = max(rule["scale"]), min(rule["scale"])
        factor = min(long / max(height, width), short / min(height, width))
        if rule.get("fit"):  # into a frame whose sides have their own lengths
            factor = min(new_width / width, new_height / height)
        new_width, new_height = (int(side * factor + 0.5) for side in (width, height))
    return np.rint(resize(image.astype(np.float32), (new_height, new_width))).astype(np.uint8)


def pad_by_rule(image: Array, rule: dict[str, Any] | None) -> Array:
    """Pad at the right and the bottom, to a size (height, width) or to multiples of a divisor."""
    if rule is None:
        return image
    size = rule["size"] or [-(-n // rule["divisor"]) * rule["divisor"] for n in image.shape[:2]]
    padded = np.full((*map(max, size, image.shape[:2]), 3), np.rint(rule["value"]), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def resize(image: Array, size: Size, align_corners: bool = False) -> Array:
    """Resize (H, W, C) by bilinear interpolation without smoothing, as OpenCV and torch do."""
    for axis, (length, old) in enumerate(zip(size, image.shape[:2], strict=True)):
        if old == length:
            continue
        position = (np.arange(length) + 0.5) * (old / length) - 0.5
        if align_corners:
            position = np.arange(length) * ((old - 1) / max(length - 1, 1))
        position = position.clip(0, old - 1)
        low = position.astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (position - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def paste_mask(mask: Array, box: Array, size: Size) -> Array:
    """Stretch a mask (S, S) over its box in an image of a size; 0 outside."""
    (x1, y1, x2, y2), (rows, columns) = box, mask.shape
    return stretch(y1, y2, size[0], rows) @ mask @ stretch(x1, x2, size[1], columns).T


def stretch(start: float, end: float, length: int, cells: int) -> Array:
    """Return the share (length, cells) that each cell between start and end has in each pixel."""
    pixel = np.arange(length, dtype=np.float32) + 0.5
    position = (pixel - start) / max(end - start, 1e-6) * cells - 0.5
    return np.maximum(1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)), 0)


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
    shown, canvas = np.flatnonzero(result["scores"] >= min_score), image.copy()
    for row in shown if "masks" in result else ():
        mask = result["masks"][row]
        canvas[mask] = canvas[mask] * 0.5 + palette[result["labels"][row]] * 0.5
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for row in shown:
        label, score = int(result["labels"][row]), result["scores"][row]
        colour = tuple(palette[label].tolist())
        x1, y1, x2, y2 = result["boxes"][row].tolist()
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        pen.text((x1 + 3, y1 + 1), f"{info['classes'][label]} {score:.2f}", colour)
    return picture


if __name__ == "__main__":
    main()
