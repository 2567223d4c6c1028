"""Train segmentation_models_pytorch's Unet on a ConvNeXt, on squares drawn on noise.

pip install segmentation_models_pytorch
python examples/segmentation_models_unet.py --weights convnextv2_atto.fcmae_ft_in1k --steps 200
"""

import argparse

import segmentation_models_pytorch as smp
import torch

import convnext_backbone.integrations.segmentation_models  # noqa: F401 - registers the encoders
from convnext_backbone import load_weights


def draw(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images (count, 3, size, size) with one bright square each, and its mask."""
    masks = torch.zeros(count, 1, size, size)
    for mask in masks:
        x, y = torch.randint(0, size // 2, (2,)).tolist()
        mask[0, y : y + size // 2, x : x + size // 2] = 1.0
    return torch.rand(count, 3, size, size) * 0.5 + masks * 0.5, masks


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--arch", default="convnextv2_atto")
parser.add_argument("--weights", help="a source of weights; random weights without")
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
parser.add_argument("--out", default="work_dirs/unet")
args = parser.parse_args()

model = smp.Unet(args.arch, encoder_weights=None, classes=1).train()
if args.weights:
    print(load_weights(model.encoder.backbone, args.weights))
loss_function = smp.losses.DiceLoss("binary")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(args.steps):
    images, masks = draw(4, args.size)
    loss = loss_function(model(images), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
images, masks = draw(4, args.size)
counts = smp.metrics.get_stats(model.predict(images), masks.long(), "binary", threshold=0.0)
print(f"IoU {smp.metrics.iou_score(*counts, reduction='micro').item():.3f}")
model.save_pretrained(args.out)
assert torch.equal(smp.from_pretrained(args.out).predict(images), model.predict(images))
