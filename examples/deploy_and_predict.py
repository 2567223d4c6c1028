"""Deploy a trained detector or segmentor, and use the folder from a program without PyTorch.

python examples/deploy_and_predict.py CONFIG CHECKPOINT photo.jpg --out deployed
"""

import argparse
import runpy
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from convnext_backbone.deploy import deploy_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("config")
parser.add_argument("checkpoint")
parser.add_argument("image")
parser.add_argument("--out", type=Path, default=Path("deployed"))
parser.add_argument("--score", type=float, default=0.3, help="the least score of a box to print")
args = parser.parse_args()

# Nothing is written unless the folder gives what mmdet or mmsegmentation gives.
done = deploy_model(args.config, args.checkpoint, args.out)
print("compared:", done.description["check"])

# From here on numpy, Pillow and onnxruntime are enough: predict.py of the folder is a program, and
# a module with a Model.
model = runpy.run_path(str(args.out / "predict.py"))["Model"](args.out)
with Image.open(args.image) as file:
    image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
result = model(image)
classes = model.info["classes"]
if model.info["task"] == "segmentation":
    for label, pixels in enumerate(np.bincount(result["label_map"].ravel())):
        print(f"{classes[label]}: {pixels / result['label_map'].size:.1%} of the image")
else:
    for box, score, label in zip(result["boxes"], result["scores"], result["labels"], strict=True):
        if score >= args.score:
            print(f"{classes[label]} {score:.2f} at {box.round(1).tolist()}")
