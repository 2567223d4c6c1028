"""A detector in plain PyTorch: an FPN on a ConvNeXt and a head without anchors find squares.

python examples/fpn_detector.py --weights convnext_tiny.fb_in1k --steps 200
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torchvision.ops import FeaturePyramidNetwork, box_convert, box_iou, generalized_box_iou_loss

from convnext_backbone import ConvNextBackbone

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--weights", help="a source of weights; a random convnextv2_atto without")
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
build = ConvNextBackbone.from_pretrained if args.weights else ConvNextBackbone
backbone = build(args.weights or "convnextv2_atto", out_features=["stage2", "stage3", "stage4"])
fpn = FeaturePyramidNetwork(list(backbone.channels), 64, norm_layer=nn.BatchNorm2d)
network = nn.ModuleList([backbone, fpn, head := nn.Conv2d(64, 5, 1)])
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)


def draw(count: int) -> tuple[Tensor, Tensor]:
    """Draw noise (N, 3, 96, 96) with a white square each, and the boxes (N, 1, 4) in pixels."""
    images, corners = torch.randn(count, 3, 96, 96), torch.randint(0, 48, (count, 2))
    boxes = torch.cat([corners, corners + torch.randint(24, 48, (count, 1))], dim=1)
    for image, (left, top, right, bottom) in zip(images, boxes.tolist(), strict=True):
        image[:, top:bottom, left:right] = 2.0
    return images, boxes[:, None].float()


def detect(images: Tensor) -> tuple[Tensor, ...]:
    """Give logits (N, P, 1), boxes (N, P, 4) and the places (N, P, 2) that they are seen from."""
    levels, maps = [], fpn(dict(enumerate(backbone(images)))).values()
    for x, stride in zip(map(head, maps), backbone.strides, strict=True):
        rows, columns = (torch.arange(n) * stride + stride / 2 for n in x.shape[2:])
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).expand(len(x), 2, -1, -1)
        left_top, right_bottom = (softplus(x[:, 1:]) * 2 * stride).chunk(2, dim=1)
        levels.append(torch.cat([x[:, :1], places - left_top, places + right_bottom, places], 1))
    return torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2).split([1, 4, 2], dim=2)


for step in range(args.steps):
    images, targets = draw(8)
    logits, boxes, places = detect(images)
    # The middle half of a square is to find it; all other places are background.
    centres, sides = box_convert(targets, "xyxy", "cxcywh").chunk(2, dim=2)
    inside = ((places - centres).abs() < sides / 4).all(2)
    sure = binary_cross_entropy_with_logits(logits[..., 0], inside.float(), reduction="sum")
    fit = generalized_box_iou_loss(boxes[inside], targets.expand_as(boxes)[inside], "sum")
    loss = (sure + fit) / inside.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    iou = box_iou(boxes[range(8), logits[..., 0].argmax(1)], targets[:, 0]).diagonal().mean()
    print(f"step {step + 1}: loss {loss.item():.2f}, IoU of the surest box {iou.item():.2f}")
