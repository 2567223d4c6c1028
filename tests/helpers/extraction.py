"""A folder of small images, some of them damaged, and the extraction of its features."""

import numpy as np
from PIL import Image

from convnext_backbone.features.extraction import extract_features
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.images.files import ImageList

SHAPE = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
WHOLE = 40  # images that can be read
BROKEN = {"b/text.jpg": b"not an image", "empty.png": b"", "b/cut.png": None}


def write_images(root):
    """Write `WHOLE` images of many sizes, and the `BROKEN` ones."""
    (root / "b").mkdir()
    generator = np.random.default_rng(0)
    for i in range(WHOLE):
        size = (int(generator.integers(20, 90)), int(generator.integers(20, 90)), 3)
        array = generator.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(array).save(root / ("b" if i % 3 else "") / f"{i:02d}.png")
    for name, content in BROKEN.items():
        whole = (root / "00.png").read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2] if content is None else content)


def make_extractor(weights, **options):
    options = {"out_features": ["stage2", "stage4"], "size": "native", **options}
    return FeatureExtractor(weights, on_error="skip", batch_size=3, **options)


def extract(weights, images, out, *, options=None, **kwargs):
    """Extract in six shards, most of them of several files."""
    kwargs = {"shard_images": 8, "shard_bytes": 20_000, **kwargs}
    return extract_features(
        make_extractor(weights, **(options or {})), ImageList([images]), out, **kwargs
    )


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}
