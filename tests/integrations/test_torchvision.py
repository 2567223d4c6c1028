"""torchvision's detectors and DeepLabV3 on our backbone."""

import copy
import math
import re

import pytest
import torch
from helpers.peers import DEPTHS, STAGES, WIDTHS, build_pair
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from convnext_backbone import ConvNextBackbone
from convnext_backbone.integrations.torchvision import (
    convnext_maskrcnn,
    deeplab_backbone,
    fpn_backbone,
)

SHAPE = {"hidden_sizes": WIDTHS, "depths": DEPTHS, "layer_scale_init_value": 0.5}
SMALL = {"min_size": 64, "max_size": 64, "box_detections_per_img": 5}
ANCHORS = AnchorGenerator(tuple((8 * 2**i,) for i in range(2, 7)), ((0.5, 1.0, 2.0),) * 5)


def backbone(outputs=STAGES, **fields):
    return ConvNextBackbone(**SHAPE, out_features=outputs, **fields)


# torchvision's own heads, with fewer layers and channels.
MASK_HEAD = {"mask_head": detection.mask_rcnn.MaskRCNNHeads(16, (256,), 1)}
KEYPOINT_HEAD = {
    "keypoint_head": detection.keypoint_rcnn.KeypointRCNNHeads(16, (16,)),
    "keypoint_predictor": detection.keypoint_rcnn.KeypointRCNNPredictor(16, 17),
}


def two_stage(cls, heads):
    def build():
        body = fpn_backbone(backbone(), 16)
        heads_of_its_own = copy.deepcopy(heads)
        return cls(body, 3, rpn_anchor_generator=ANCHORS, **heads_of_its_own, **SMALL)

    return build


def one_stage(cls):
    def build():
        extra = LastLevelP6P7(32, 32)
        body = fpn_backbone(backbone(STAGES[1:]), 32, extra_blocks=extra)
        return cls(body, 3, min_size=64, max_size=64, detections_per_img=5)

    return build


DETECTORS = {
    "Faster R-CNN": two_stage(FasterRCNN, {}),
    "Mask R-CNN": two_stage(MaskRCNN, MASK_HEAD),
    "Keypoint R-CNN": two_stage(KeypointRCNN, KEYPOINT_HEAD),
    "convnext_maskrcnn": lambda: convnext_maskrcnn(backbone(), 3, **SMALL),
    "RetinaNet": one_stage(RetinaNet),
    "FCOS": one_stage(FCOS),
}


def targets():
    keypoints = torch.tensor([[[20.0, 20.0, 1.0]] * 17])
    return [
        {
            "boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
            "keypoints": keypoints,
        }
    ] * 2


@pytest.mark.parametrize("build", DETECTORS.values(), ids=DETECTORS)
def test_a_detector_trains_its_stem_predicts_and_reloads(build):
    model, images = build().train(), [torch.rand(3, 64, 64) for _ in range(2)]
    losses = model(images, targets())
    sum(losses.values()).backward()
    assert model.backbone.body.downsample_layers[0][0].weight.grad.abs().sum() > 0
    torch.optim.SGD(model.parameters(), 1e-3).step()
    again = build()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, got = model.eval()(images), again.eval()(images)
    assert expected[0].keys() >= {"boxes", "scores", "labels"}
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_pyramid_is_torchvisions_on_the_backbones_maps():
    body = backbone().eval()
    built = fpn_backbone(body, 16)
    fpn = FeaturePyramidNetwork(list(WIDTHS), 16)
    fpn.load_state_dict(built.fpn.state_dict())
    x = torch.randn(1, 3, 64, 96)
    expected = fpn(dict(zip("0123", body(x), strict=True)))
    got = built(x)
    assert [*got] == [*"0123", "pool"]
    for name, level in expected.items():
        torch.testing.assert_close(got[name], level, rtol=0, atol=0)
    assert built.out_channels == 16


def test_weights_of_torchvision_become_the_body_of_a_pyramid(tmp_path):
    _, theirs, _ = build_pair("torchvision")
    torch.save(theirs.state_dict(), tmp_path / "torchvision.pth")
    built = fpn_backbone(tmp_path / "torchvision.pth", 16)
    assert built.training
    assert built.body.training
    assert built.body.out_features == STAGES
    x = torch.randn(2, 3, 64, 64)
    built.body.norms = nn.ModuleDict({name: nn.Identity() for name in STAGES})
    maps = built.body.eval()(x)
    for index, layer in enumerate(theirs.features):
        x = layer(x)
        if index % 2:
            torch.testing.assert_close(maps[index // 2], x, rtol=1e-5, atol=1e-5)


def test_anchors_and_pooled_levels_follow_the_backbones_strides():
    model = convnext_maskrcnn(backbone(STAGES[:3], patch_size=2), 3)
    assert model.rpn.anchor_generator.sizes == ((16,), (32,), (64,), (128,))
    assert model.roi_heads.box_roi_pool.featmap_names == ["0", "1", "2"]
    given = convnext_maskrcnn(backbone(), 3, rpn_anchor_generator=ANCHORS)
    assert given.rpn.anchor_generator is ANCHORS


# Fields of the backbone, and a side of images in pixels that has no multiple of the last stride.
PADDED = {
    "usual": ({}, 66),
    "patch_size 8": ({"patch_size": 8}, 160),
    "five stages": (
        {
            "hidden_sizes": (*WIDTHS, 40),
            "depths": (*DEPTHS, 1),
            "out_features": ("stage2", "stage3", "stage4", "stage5"),
        },
        160,
    ),
}


def features_of(model, side):
    images, _ = model.transform([torch.rand(3, side, side)])
    return images, model.backbone(images.tensors)


@pytest.mark.parametrize(("fields", "side"), PADDED.values(), ids=PADDED)
def test_anchors_lie_a_stride_apart_on_every_level(fields, side):
    body = ConvNextBackbone(**{**SHAPE, "out_features": STAGES, **fields})
    model = convnext_maskrcnn(body, 3, min_size=side, max_size=side).eval()
    images, maps = features_of(model, side)
    generator = model.rpn.anchor_generator
    (anchors,) = generator(images, list(maps.values()))
    sizes = [3 * m.shape[-2] * m.shape[-1] for m in maps.values()]
    # The extra level's are apart as its size has them, as in torchvision's own models.
    for level, m, stride in zip(anchors.split(sizes), maps.values(), body.strides, strict=False):
        centres = (level[::3, 0] + level[::3, 2]) / 2
        expected = (torch.arange(m.shape[-1]) * stride).repeat(m.shape[-2])
        torch.testing.assert_close(centres, expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize(("fields", "side"), PADDED.values(), ids=PADDED)
def test_regions_are_pooled_at_the_scale_of_their_level(fields, side):
    body = ConvNextBackbone(**{**SHAPE, "out_features": STAGES, **fields})
    model = convnext_maskrcnn(body, 3, min_size=side, max_size=side).eval()
    images, maps = features_of(model, side)
    heads = model.roi_heads
    for pool, size in ((heads.box_roi_pool, 7), (heads.mask_roi_pool, 14)):
        # The paper's level of a region (FPN, equation 1): 224 pixels are of stride 16.
        for edge in (10.0, 24.0, 60.0, 150.0):
            box = torch.tensor([[3.0, 2.0, 3.0 + edge, 2.0 + edge]])
            stride = 16 * 2.0 ** math.floor(math.log2(edge / 224))
            stride = min(max(stride, body.strides[0]), body.strides[-1])
            level = maps[str(body.strides.index(stride))]
            expected = roi_align(level, [box], size, 1 / stride, sampling_ratio=2)
            got = pool(maps, [box], images.image_sizes)
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_users_padding_wins():
    assert convnext_maskrcnn(backbone(), 3, size_divisible=32).transform.size_divisible == 32


UNPOOLED = {
    "a level skipped": ({"outputs": ("stage1", "stage3", "stage4")}, (4, 16, 32)),
    "patch_size 6": ({"patch_size": 6}, (6, 12, 24, 48)),
    "one level of patch_size 14": ({"patch_size": 14, "outputs": ("stage1",)}, (14,)),
    "dilated": ({"output_stride": 16}, (4, 8, 16, 16)),
    "stem and stage 1": ({"outputs": ("stem", *STAGES)}, (4, 4, 8, 16, 32)),
}


@pytest.mark.parametrize(("fields", "strides"), UNPOOLED.values(), ids=UNPOOLED)
def test_levels_that_torchvision_cannot_pool_from_need_the_users_poolers(fields, strides):
    body = backbone(**fields)
    levels = [str(i) for i in range(len(strides))]
    box, mask = (MultiScaleRoIAlign(levels, size, 2) for size in (7, 14))
    message = rf"each twice the one before, got {re.escape(str(strides))}"
    for options in ({}, {"box_roi_pool": box}, {"box_roi_pool": box, "mask_roi_pool": None}):
        with pytest.raises(ValueError, match=message):
            convnext_maskrcnn(body, 3, **options)
    model = convnext_maskrcnn(body, 3, box_roi_pool=box, mask_roi_pool=mask)
    assert model.roi_heads.box_roi_pool is box
    assert model.roi_heads.mask_roi_pool is mask


@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplab_trains_its_stem_and_reloads(output_stride):
    def build():
        body = backbone(STAGES[2:], output_stride=output_stride)
        body = deeplab_backbone(body, output_stride)
        aux = FCNHead(body.aux_channels, 5)
        return DeepLabV3(body, DeepLabHead(body.out_channels, 5), aux)

    model, x = build().train(), torch.randn(2, 3, 64, 64)
    out = model(x)
    assert model.backbone(x)["out"].shape[-1] == 64 // output_stride
    labels = torch.randint(5, (2, 64, 64))
    sum(nn.functional.cross_entropy(logits, labels) for logits in out.values()).backward()
    assert model.backbone.body.downsample_layers[0][0].weight.grad.abs().sum() > 0
    again = build()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        got, expected = again.eval()(x), model.eval()(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_deeplab_dilates_the_weights_of_a_file(tmp_path):
    source = backbone()
    source.save_pretrained(tmp_path)
    body = deeplab_backbone(tmp_path, output_stride=16)
    assert body.body.strides == (16, 16)
    assert (body.aux_channels, body.out_channels) == WIDTHS[2:]
    torch.testing.assert_close(body.body.stages.state_dict(), source.stages.state_dict())
    with pytest.raises(TypeError, match="out_indices"):  # its outputs are not another's to choose
        deeplab_backbone(tmp_path, out_indices=(0, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_stride": 32}, r"output_stride must be 8 here, .* has 32"),
        ({"outputs": STAGES}, r"out_features must be .* here, .* has \['stage1'"),
    ],
)
def test_a_backbone_that_differs_from_what_is_asked_is_refused(given, message):
    options = {"outputs": STAGES[2:], "output_stride": 8} | given
    with pytest.raises(ValueError, match=message):
        deeplab_backbone(backbone(**options))


@pytest.mark.parametrize(("name", "value"), [("frozen_stages", 2), ("with_cp", True)])
def test_what_a_backbone_was_built_with_is_compared_too(name, value):
    built = getattr(backbone(), name)
    with pytest.raises(ValueError, match=f"{name} must be {value} here, .* has {built}"):
        fpn_backbone(backbone(), 16, **{name: value})
    body = backbone(**{name: value})
    assert fpn_backbone(body, 16, **{name: value}).body is body


def test_arguments_of_loading_are_refused_beside_a_backbone():
    with pytest.raises(TypeError, match=r"has no argument 'ema'.*'frozen_stages', 'with_cp'"):
        fpn_backbone(backbone(), 16, ema=True)
    with pytest.raises(TypeError, match=r"'frozen_stage' \(did you mean 'frozen_stages'"):
        fpn_backbone(backbone(), 16, frozen_stage=1)


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="source must be a ConvNextBackbone or weights"):
        fpn_backbone(nn.Linear(1, 1))
