"""Train transformers' RT-DETRv2 on a ConvNeXt from a folder in COCO's format.

    python examples/rt_detr_v2.py annotations/instances_train2017.json train2017 \
        --weights convnext_tiny.dinov3_lvd1689m --steps 10000 --batch-size 16
"""

import argparse

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import CocoDetection
from transformers import RTDetrImageProcessor, RTDetrV2Config, RTDetrV2ForObjectDetection

from convnext_backbone import ConvNextBackbone
from convnext_backbone.integrations.transformers import load_backbone_weights, to_transformers

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("annotations", help="a JSON file in COCO's format")
parser.add_argument("images", help="the folder of its images")
parser.add_argument("--arch", default="convnext_tiny")
parser.add_argument("--weights", help="a source of weights; random weights without")
parser.add_argument("--size", type=int, default=640, help="side of the images, in pixels")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--out", default="work_dirs/rt_detr_v2", help="where the model is saved")
args = parser.parse_args()
data = CocoDetection(args.images, args.annotations)
ids = data.coco.getCatIds()  # with gaps; the classes of the network have none
processor = RTDetrImageProcessor(size={"height": args.size, "width": args.size}, do_normalize=True)


def collate(samples: list) -> dict:
    images, boxes = zip(*samples, strict=True)
    boxes = [[{**box, "category_id": ids.index(box["category_id"])} for box in b] for b in boxes]
    targets = [{"image_id": i, "annotations": b} for i, b in enumerate(boxes)]
    return processor(list(images), annotations=targets, return_tensors="pt")


backbone = ConvNextBackbone(args.arch, out_indices=(2, 3, 4), drop_path_rate=0.2)
config = RTDetrV2Config(
    backbone_config=to_transformers(backbone).config,
    encoder_in_channels=list(backbone.channels),
    id2label={i: category["name"] for i, category in enumerate(data.coco.loadCats(ids))},
)
model = RTDetrV2ForObjectDetection(config).train()
if args.weights:
    print(load_backbone_weights(model, args.weights))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
sampler = RandomSampler(data, num_samples=args.steps * args.batch_size)
loader = DataLoader(data, args.batch_size, sampler=sampler, collate_fn=collate)
for step, batch in enumerate(loader):
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
model.save_pretrained(args.out)
processor.save_pretrained(args.out)
