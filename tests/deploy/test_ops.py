"""The operations of fixed size give in onnxruntime what they give in torch and torchvision."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from convnext_backbone.deploy.boxes import NO_BOX, Suppression, best_candidates, finish
from convnext_backbone.deploy.onnx_file import write_onnx
from convnext_backbone.deploy.ops import nms_mask, roi_align_levels
from convnext_backbone.deploy.segmentor import AdaptiveAvgPool

N, M, CLASSES = 2, 40, 3


def random_boxes(n=N, m=M, side=100.0):
    corners = torch.rand(n, m, 2) * side
    return torch.cat([corners, corners + 5 + torch.rand(n, m, 2) * side / 2], dim=-1)


def run_onnx(network, inputs, path, free):
    network.output_names = ("y",)
    run = write_onnx(network.eval(), inputs, free, path)
    return lambda x: run({"x": x.numpy()})["y"]


def test_nms_keeps_what_torchvision_keeps_of_each_class():
    boxes, scores = random_boxes(), torch.rand(N, M)
    labels = torch.randint(0, CLASSES, (N, M))
    scores[0, ::3] = NO_BOX
    suppress = Suppression("test_cfg", {"nms": {"iou_threshold": 0.3}, "max_per_img": M})
    got = finish(*suppress(boxes, scores, labels))
    for image in range(N):
        valid = scores[image] >= 0
        expected = boxes[image][valid], scores[image][valid], labels[image][valid]
        kept = torchvision.ops.batched_nms(*expected, 0.3)
        assert 1 < len(kept) < valid.sum()
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours[image, : len(kept)], theirs[kept])
        assert (got[1][image, len(kept) :] == 0).all()
        assert (got[2][image, len(kept) :] == -1).all()


def test_there_are_as_many_rows_as_asked_for_whatever_there_is():
    boxes, scores = random_boxes(1, 3), torch.rand(1, 3)
    suppress = Suppression("test_cfg", {"nms": {"iou_threshold": 1.0}, "max_per_img": 5})
    got = suppress(boxes, scores, torch.zeros(1, 3).long())
    assert [tuple(x.shape) for x in got] == [(1, 5, 4), (1, 5), (1, 5)]
    torch.testing.assert_close(got[1][0, :3], scores[0].sort(descending=True).values)


@pytest.mark.parametrize("count", [4, 50])
def test_candidates_are_the_best_pairs_above_the_threshold(count):
    scores = torch.rand(N, 8, CLASSES)
    best, rows, labels = best_candidates(scores, count, 0.5)
    for image in range(N):
        flat = scores[image].flatten()
        expected = flat[flat > 0.5].sort(descending=True).values[:count]
        found = best[image] >= 0
        torch.testing.assert_close(best[image][found], expected)
        torch.testing.assert_close(scores[image][rows[image], labels[image]][found], expected)
    assert best.shape == (N, count)


@pytest.mark.parametrize(
    ("nms", "named"),
    [
        ({"type": "soft_nms", "iou_threshold": 0.5}, "soft_nms"),
        ({"type": "nms", "iou_threshold": 0.5, "surprise": 1}, "surprise"),
        ({"type": "nms"}, "nms"),
    ],
)
def test_other_kinds_of_nms_are_refused_by_name(nms, named):
    with pytest.raises(ValueError, match=rf"model\.test_cfg\.rcnn\.nms.*{named}"):
        Suppression("model.test_cfg.rcnn", {"nms": nms, "max_per_img": 5})


class _Nms(nn.Module):
    def forward(self, x):
        return (nms_mask(x[..., :4], x[..., 4], 0.4, 7).long(),)


def test_nms_in_onnxruntime(tmp_path):
    run = run_onnx(_Nms(), torch.rand(2, 30, 5), tmp_path / "nms.onnx", {0: "n", 1: "m"})
    for n, m in ((1, 12), (3, M)):
        x = torch.cat([random_boxes(n, m), torch.rand(n, m, 1)], dim=-1)
        x[:, ::4, 4] = NO_BOX
        expected = nms_mask(x[..., :4], x[..., 4], 0.4, 7)
        assert expected.sum(1).max() <= 7
        np.testing.assert_array_equal(run(x), expected.long().numpy())


class _Crops(nn.Module):
    def forward(self, x):
        boxes = x[:, 1:5]
        maps = [torch.ones(1, 2, 1, 1) * x[:1, 0, None, None, None] for _ in range(3)]
        maps = [
            m + torch.linspace(0, 1, (16 >> i) ** 2).view(1, 1, 16 >> i, 16 >> i)
            for i, m in enumerate(maps)
        ]
        images = torch.zeros(x.shape[0], dtype=torch.int64)
        levels = x[:, 5].long()
        return (
            roi_align_levels(maps, boxes, images, levels, [0.25, 0.125, 0.0625], [3, 3], 0, True),
        )


@pytest.mark.parametrize("levels", [[0, 2, 1, 0, 2], [1, 1, 1, 1, 1]])
def test_each_box_is_cropped_from_its_own_level_in_onnxruntime(levels, tmp_path):
    run = run_onnx(_Crops(), torch.rand(5, 6), tmp_path / "crops.onnx", {0: "r"})
    boxes = random_boxes(1, 5, 40.0)[0]
    x = torch.cat([torch.rand(5, 1), boxes, torch.tensor(levels)[:, None].float()], dim=1)
    expected = []
    for row, level in enumerate(levels):
        side = 16 >> level
        feature = x[:1, 0, None, None, None] + torch.linspace(0, 1, side**2).view(1, 1, side, side)
        roi = torch.cat([torch.zeros(1), boxes[row]])[None]
        expected.append(
            torchvision.ops.roi_align(
                feature.expand(1, 2, -1, -1), roi, 3, 1 / 4 / 2**level, 0, aligned=True
            )
        )
    got = run(x)
    np.testing.assert_allclose(got, torch.cat(expected).numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_adaptive_pooling_is_torchs_also_in_onnxruntime(size, tmp_path):
    pool = AdaptiveAvgPool((size, size))

    class Network(nn.Module):
        def forward(self, x):
            return (pool(x),)

    run = run_onnx(Network(), torch.rand(2, 3, 16, 20), tmp_path / "p.onnx", {2: "h", 3: "w"})
    for sides in ((16, 20), (7, 13), (6, 6)):
        x = torch.randn(2, 3, *sides)
        expected = nn.functional.adaptive_avg_pool2d(x, size)
        torch.testing.assert_close(pool(x), expected)
        np.testing.assert_allclose(run(x), expected.numpy(), atol=1e-6)
