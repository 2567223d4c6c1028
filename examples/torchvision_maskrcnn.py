"""Train torchvision's Mask R-CNN on a ConvNeXt, on squares drawn on noise.

python examples/torchvision_maskrcnn.py --weights convnext_tiny.fb_in1k --steps 200
"""

import argparse

import torch

from convnext_backbone import ConvNextBackbone
from convnext_backbone.integrations.torchvision import convnext_maskrcnn


def draw(size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Draw an image (3, size, size) with one white square, and its target."""
    image = torch.rand(3, size, size) * 0.5
    side = int(torch.randint(size // 4, size // 2, ()))
    x, y = torch.randint(0, size - side, (2,)).tolist()
    image[:, y : y + side, x : x + side] = 1.0
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[0, y : y + side, x : x + side] = 1
    boxes = torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)
    return image, {"boxes": boxes, "labels": torch.tensor([1]), "masks": mask}


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--arch", default="convnext_tiny")
parser.add_argument("--weights", help="a source of weights; random weights without")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
args = parser.parse_args()

source = args.weights or ConvNextBackbone(args.arch, out_indices=(1, 2, 3, 4))
model = convnext_maskrcnn(source, num_classes=2, min_size=args.size, max_size=args.size)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
for step in range(args.steps):
    images, targets = zip(*(draw(args.size) for _ in range(2)), strict=True)
    losses = model(images, targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    print(f"step {step + 1}: loss {sum(losses.values()).item():.3f}", flush=True)
image, target = draw(args.size)
with torch.no_grad():
    found = model.eval()([image])[0]
print("drawn", target["boxes"].tolist(), "found", found["boxes"][:1].tolist())
