"""Find the images of a folder that look most like one image, and show them side by side.

python examples/similar_images.py photos cat.jpg --weights convnext_tiny.fb_in22k --out similar.png
"""

import argparse

import torch
from PIL import Image, ImageOps

from convnext_backbone import FeatureExtractor

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", help="a folder of images, searched with its subfolders")
parser.add_argument("query", help="the image to compare them with")
parser.add_argument("--weights", default="convnext_tiny.fb_in22k", help="a source of weights")
parser.add_argument("--top", type=int, default=5)
parser.add_argument("--out", default="similar.png")
args = parser.parse_args()

# The normed average of the last stage, which the classifier works on; damaged files are left out.
extractor = FeatureExtractor(args.weights, pool="cls", on_error="skip", progress=True)
found = [result for result in extractor.stream(args.folder) if result]
vectors = torch.stack([result["cls"] for result in found])
query = extractor(args.query)["cls"]
# A direction that all images share says nothing about any of them.
mean = vectors.mean(0)
similarity = torch.cosine_similarity(vectors - mean, query - mean)
values, positions = similarity.topk(min(args.top, len(found)))
names = [found[i].name for i in positions.tolist()]
for name, value in zip(names, values.tolist(), strict=True):
    print(f"{value:6.3f}  {name}")

side = 160
sheet = Image.new("RGB", (side * (1 + len(names)), side), "white")
for column, name in enumerate([args.query, *names]):
    with Image.open(name) as image:
        picture = ImageOps.pad(ImageOps.exif_transpose(image).convert("RGB"), (side, side))
    sheet.paste(picture, (column * side, 0))
sheet.save(args.out)
print(f"query and the most similar, from left to right: {args.out}")
