"""Segment with frozen features: batch norm and a linear layer, as DINOv3's linear probes.

python examples/linear_segmentation_probe.py images masks --weights convnext_tiny.dinov3_lvd1689m

A mask is a PNG of its image's name and size: classes from 0 on, 255 where none is given.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from convnext_backbone import FeatureExtractor

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("images", type=Path)
parser.add_argument("masks", type=Path)
parser.add_argument("--weights", default="convnext_tiny.dinov3_lvd1689m", help="a source")
parser.add_argument(
    "--stage", default="stage3", help="the map to read; stage3 has 1/16 of the side"
)
parser.add_argument("--steps", type=int, default=500)
args = parser.parse_args()

# Images keep their size, so that a mask fits its image.
extractor = FeatureExtractor(args.weights, out_features=[args.stage], size="native", pad=True)
pairs = []
for result in extractor.stream(args.images):
    mask = np.array(Image.open(args.masks / f"{Path(result.name).stem}.png"), dtype=np.int64)
    pairs.append((result[args.stage][None], torch.from_numpy(mask)[None]))
classes = max(int(mask[mask != 255].max()) for _, mask in pairs) + 1
held_out, train = pairs[::5], [pair for i, pair in enumerate(pairs) if i % 5]

channels = len(pairs[0][0][0])
probe = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, classes, 1))
optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-3)
for step in range(args.steps):
    x, mask = train[step % len(train)]
    logits = nn.functional.interpolate(probe(x), mask.shape[1:], mode="bilinear")
    loss = nn.functional.cross_entropy(logits, mask, ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)

probe.eval()
counts = torch.zeros(classes, classes)  # how many pixels of each true class got which class
for x, mask in held_out:
    found = nn.functional.interpolate(probe(x), mask.shape[1:], mode="bilinear").argmax(1)
    both = (mask * classes + found)[mask != 255]
    counts += both.bincount(minlength=classes**2).view(classes, classes)
iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
print(f"mIoU on {len(held_out)} images held out: {100 * iou.nanmean().item():.1f}")
