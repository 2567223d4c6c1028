"""Find anomalies with anomalib's PatchCore on a ConvNeXt's maps.

    pip install anomalib
    python examples/anomalib_patchcore.py data/cable --normal good --abnormal broken

Folders as anomalib's `Folder` takes them: images without a fault for training, and images with one.
"""

import argparse

from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Patchcore

from convnext_backbone import ConvNextBackbone

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("root", help="the folder that holds both folders of images")
parser.add_argument("--normal", default="good")
parser.add_argument("--abnormal", default="bad")
parser.add_argument("--weights", help="a source of weights; random weights without")
parser.add_argument("--arch", default="convnext_tiny")
parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
parser.add_argument("--out", default="work_dirs/patchcore")
args = parser.parse_args()

outputs = {"out_features": ["stage2", "stage3"]}
if args.weights:
    backbone = ConvNextBackbone.from_pretrained(args.weights, **outputs)
else:
    backbone = ConvNextBackbone(args.arch, **outputs)
# anomalib finds the maps by the names of modules, through torchvision's feature extraction.
side = (args.size, args.size)
model = Patchcore(
    backbone=backbone,
    layers=["stages.1", "stages.2"],
    pre_trained=False,
    pre_processor=Patchcore.configure_pre_processor(image_size=side),
)
data = Folder(
    "data", args.normal, root=args.root, abnormal_dir=args.abnormal, train_batch_size=4,
    eval_batch_size=4, num_workers=0,
)  # fmt: skip
engine = Engine(default_root_dir=args.out, accelerator="auto", devices=1)
engine.fit(model, datamodule=data)
for batch in engine.predict(model, datamodule=data):
    for path, score in zip(batch.image_path, batch.pred_score, strict=True):
        print(f"{float(score):.3f}  {path}")
