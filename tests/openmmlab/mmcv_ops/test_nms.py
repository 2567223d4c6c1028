"""mmcv.ops.nms, soft_nms, nms_match and batched_nms on torchvision.

References: greedy suppression and the pseudo code of Soft-NMS (arXiv 1704.04503, figure 3) written
out with Python floats, and the values that mmcv's own tests expect of its compiled operations.
"""

import math

import numpy as np
import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops

pytestmark = pytest.mark.openmmlab

# tests/test_ops/test_nms.py of mmcv
BOXES = [[6.0, 3.0, 8.0, 7.0], [3.0, 6.0, 9.0, 11.0], [3.0, 7.0, 10.0, 12.0], [1.0, 4.0, 13.0, 7.0]]
SCORES = [0.6, 0.9, 0.7, 0.2]


def random_boxes(count, seed, size=40.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    extent = torch.rand(count, 2, generator=generator) * size / 2
    scores = torch.randperm(count, generator=generator).float() / count + 0.5 / count
    return torch.cat([corner, corner + extent], dim=1), scores


def iou(a, b, offset=0):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)

    def area(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    union = area(a) + area(b) - width * height
    return width * height / union if union > 0 else 0.0


def greedy(boxes, scores, threshold, offset=0):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft(boxes, scores, threshold, sigma, min_score, method, offset):
    alive, scores, picks = list(range(len(boxes))), list(scores), []
    while alive:
        best = max(alive, key=lambda i: scores[i])
        alive.remove(best)
        picks.append((best, scores[best]))
        for i in alive:
            overlap = iou(boxes[best], boxes[i], offset)
            if method == "gaussian":
                scores[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[i] *= 0.0 if method == "naive" else 1 - overlap
        alive = [i for i in alive if scores[i] >= min_score]
    return picks


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_nms_keeps_what_greedy_suppression_keeps(seed, threshold, offset):
    boxes, scores = random_boxes(60, seed)
    dets, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == greedy(boxes.tolist(), scores.tolist(), threshold, offset)
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept], rtol=0, atol=0)


def test_nms_gives_the_values_of_compiled_mmcv():
    dets, kept = ops.nms(np.float32(BOXES), np.float32(SCORES), 0.3)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == [1, 0, 3]
    np.testing.assert_array_equal(dets[:, 4], np.float32([0.9, 0.6, 0.2]))


def test_nms_keeps_a_box_at_the_threshold():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # IoU 0.5 exactly
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist() == [0, 1]
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.499)[1].tolist() == [0]


def test_nms_gives_a_one_pixel_box_an_area_only_with_offset_1():
    boxes = torch.zeros(2, 4)
    scores = torch.tensor([0.4, 0.6])
    assert ops.nms(boxes, scores, 0.5, offset=0)[1].tolist() == [1, 0]
    assert ops.nms(boxes, scores, 0.5, offset=1)[1].tolist() == [1]


def test_nms_filters_by_score_and_number_with_indices_into_the_input():
    boxes, scores = random_boxes(50, 3)
    reference = [i for i in greedy(boxes.tolist(), scores.tolist(), 0.5) if scores[i] > 0.3]
    _, kept = ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=4)
    assert kept.tolist() == reference[:4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_every_floating_type(dtype):
    boxes, scores = random_boxes(40, 4)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    dets, kept = ops.nms(boxes, scores, 0.4)
    assert dets.dtype == dtype
    # Reduced scores tie, and tied boxes may come in either order.
    reference = greedy(boxes.tolist(), (scores.double() - torch.arange(40) * 1e-9).tolist(), 0.4)
    assert kept.tolist() == reference


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("min_score", [1e-3, 0.2])
def test_soft_nms_follows_the_paper(method, offset, min_score):
    boxes, scores = random_boxes(50, 5)
    boxes, scores = boxes.double(), scores.double()
    before = scores.clone()
    dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.5, min_score, method, offset)
    picks = soft(boxes.tolist(), scores.tolist(), 0.3, 0.5, min_score, method, offset)
    assert kept.tolist() == [index for index, _ in picks]
    expected = torch.tensor([score for _, score in picks], dtype=torch.float64)
    torch.testing.assert_close(dets[:, 4], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(dets[:, :4], boxes[kept], rtol=0, atol=0)
    torch.testing.assert_close(scores, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "kept", "scores"),
    [
        ("linear", [1, 0, 2, 3], [0.9, 0.6, 0.29024392, 0.2]),
        ("gaussian", [1, 0, 2, 3], [0.9, 0.59630775, 0.35275510, 0.18650459]),
        ("naive", [1, 0, 3], [0.9, 0.6, 0.2]),
    ],
)
def test_soft_nms_gives_the_values_of_compiled_mmcv(method, kept, scores):
    dets, indices = ops.soft_nms(
        np.float32(BOXES), np.float32(SCORES), 0.3, sigma=0.5, min_score=0.01, method=method
    )
    assert indices.tolist() == kept
    np.testing.assert_allclose(dets[:, 4], scores, rtol=1e-5)


def test_soft_nms_breaks_ties_as_compiled_mmcv():
    # The example of mmcv's docstring, with boxes of no area. A dropped box gives its place to the
    # last one, so of the equal scores 2, 3, 4 the order depends on what was dropped before.
    boxes = torch.tensor([[4.0, 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1]])
    dets, kept = ops.soft_nms(boxes, torch.tensor([0.9, 0.9, 0.5, 0.5, 0.0]), 0.6, sigma=0.5)
    assert kept.tolist() == [0, 1, 2, 3]
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5])
    # Box 0 drops 1 and 2. Their places go to 5 and 4, which so come before 3.
    lone = [[20.0 * i, 0, 20.0 * i + 1, 1] for i in (3, 4, 5)]
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 3 + lone)
    scores = torch.tensor([0.9, 0.8, 0.8, 0.5, 0.5, 0.5])
    _, kept = ops.soft_nms(boxes, scores, 0.6, method="naive")
    assert kept.tolist() == [0, 5, 4, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_soft_nms_takes_every_floating_type_and_tensors_with_gradients(dtype):
    boxes, scores = random_boxes(20, 10)
    boxes, scores = boxes.to(dtype).requires_grad_(), scores.to(dtype).requires_grad_()
    dets, kept = ops.soft_nms(boxes, scores, 0.3)
    assert dets.dtype == dtype
    wide, same = ops.soft_nms(boxes.detach().float(), scores.detach().float(), 0.3)
    assert kept.tolist() == same.tolist()
    torch.testing.assert_close(dets.detach(), wide.to(dtype), rtol=0, atol=0)


def test_nms_match_groups_each_box_with_its_suppressor():
    boxes, scores = random_boxes(40, 6)
    rows = torch.cat([boxes, scores[:, None]], dim=1).double()
    groups, remaining = [], scores.argsort(descending=True).tolist()
    while remaining:
        best = remaining[0]
        near = [i for i in remaining[1:] if iou(rows[i].tolist(), rows[best].tolist()) >= 0.3]
        groups.append([best, *near])
        remaining = [i for i in remaining[1:] if i not in near]
    assert [group.tolist() for group in ops.nms_match(rows, 0.3)] == groups
    assert [group.tolist() for group in ops.nms_match(rows.numpy(), 0.3)] == groups


def test_nms_match_counts_equality_as_a_match():
    rows = torch.tensor([[0.0, 0.0, 2.0, 1.0, 0.9], [0.0, 0.0, 1.0, 1.0, 0.8]])
    assert [group.tolist() for group in ops.nms_match(rows, 0.5)] == [[0, 1]]


@pytest.mark.parametrize("split_thr", [10000, 10])
def test_batched_nms_suppresses_within_a_class_only(split_thr):
    boxes, scores = random_boxes(60, 7)
    labels = torch.arange(60) % 3
    dets, kept = ops.batched_nms(
        boxes, scores, labels, {"type": "nms", "iou_threshold": 0.4, "split_thr": split_thr}
    )
    expected = []
    for label in range(3):
        own = (labels == label).nonzero().squeeze(1)
        expected += own[greedy(boxes[own].tolist(), scores[own].tolist(), 0.4)].tolist()
    assert kept.tolist() == sorted(expected, key=lambda i: -scores[i])
    torch.testing.assert_close(dets[:, :4], boxes[kept], rtol=0, atol=0)


def test_batched_nms_runs_soft_nms_by_name():
    boxes, scores = random_boxes(30, 8)
    together, _ = ops.batched_nms(
        boxes, scores, torch.zeros(30, dtype=torch.long), {"type": "soft_nms", "iou_threshold": 0.3}
    )
    picks = soft(boxes.tolist(), scores.tolist(), 0.3, 0.5, 1e-3, "linear", 0)
    expected = torch.tensor([score for _, score in picks])
    torch.testing.assert_close(together[:, 4], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", ["nms", "soft_nms"])
def test_no_boxes_give_no_detections(function):
    dets, kept = getattr(ops, function)(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []


def test_line_nms_drops_lines_that_run_close_to_a_better_one():
    from mmcv._ext import line_nms_forward

    generator = torch.Generator().manual_seed(9)
    count, rows, threshold = 40, 72, 60.0
    lines = torch.rand(count, 5 + rows, generator=generator) * 400
    lines[:, 2] = torch.rand(count, generator=generator)
    lines[:, 4] = torch.randint(0, 60, (count,), generator=generator).float()
    lines[:, 5:] = lines[:, 5:6] + torch.randn(count, rows, generator=generator)
    scores = torch.rand(count, generator=generator)

    def span(line):
        first = int(line[2] * (rows - 1) + 0.5)
        return first, min(first + int(line[4]) - 1, rows - 1)

    def close(a, b):
        start = max(span(a)[0], span(b)[0])
        end = min(span(a)[1], span(b)[1])
        if end < start:
            return False
        distance = sum(abs(float(a[5 + r]) - float(b[5 + r])) for r in range(start, end + 1))
        return distance < threshold * (end - start + 1)

    kept, parent = [], [0] * count
    for i in scores.argsort(descending=True).tolist():
        owner = next((n for n, k in enumerate(kept) if close(lines[i], lines[k])), None)
        if owner is None:
            kept.append(i)
            owner = len(kept) - 1
        parent[i] = owner + 1
    keep, number, parents = line_nms_forward(lines, scores, threshold, count)
    assert 1 < len(kept) < count
    assert int(number) == len(kept)
    assert keep[:number].tolist() == kept
    assert parents.tolist() == parent
    keep, number, _ = line_nms_forward(lines, scores, threshold, 3)
    assert keep[:number].tolist() == kept[:3]
