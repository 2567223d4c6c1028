"""The comparison lets nothing pass but ties, and says where two networks differ."""

import pytest
import torch

from convnext_backbone.deploy.boxes import Limits
from convnext_backbone.deploy.check import DisagreementError, Report, Tolerance, compare

LIMITS = Limits(score_threshold=0.05, iou_threshold=0.5, max_per_image=4)
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 70]])
SCORES, LABELS = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([2, 0, 1])


def expected(**changes):
    return {"boxes": BOXES, "scores": SCORES, "labels": LABELS, **changes}


def padded(rows):
    """A network's output of one image: padded to four rows."""
    missing = 4 - len(rows["scores"])
    filled = {
        "boxes": torch.cat([rows["boxes"], torch.zeros(missing, 4)]),
        "scores": torch.cat([rows["scores"], torch.zeros(missing)]),
        "labels": torch.cat([rows["labels"], torch.full((missing,), -1)]),
    }
    return {name: values[None].numpy() for name, values in filled.items()}


def check(ours, theirs=None, limits=LIMITS):
    report = Report()
    images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    theirs = expected() if theirs is None else theirs
    compare(report, images, lambda x: ours, lambda x: [theirs], Tolerance(), limits)
    return report


def test_equal_results_agree():
    report = check(padded(expected()))
    assert report.as_json() == {
        "shapes": [[1, 64, 96]],
        "compared_boxes": 3,
        "ties": 0,
        "largest_difference": {"boxes": 0.0, "scores": 0.0},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": BOXES + torch.tensor([0, 0, 0, 0.2])},
        {"scores": SCORES + 2e-4},
        {"labels": torch.tensor([2, 0, 0])},
    ],
)
def test_a_difference_is_shown(changes):
    with pytest.raises(DisagreementError, match=r"batch \(1, 64, 96\): only the trained model has"):
        check(padded(expected(**changes)))


def test_a_box_too_many_is_shown():
    fewer = {name: values[:2] for name, values in expected().items()}
    with pytest.raises(DisagreementError, match="only the deployed network has a box"):
        check(padded(expected()), fewer)


def test_equal_scores_may_change_places():
    scores = torch.tensor([0.9, 0.8, 0.8])
    order = torch.tensor([0, 2, 1])
    swapped = {name: values[order] for name, values in expected(scores=scores).items()}
    assert check(padded(swapped), expected(scores=scores)).compared == 3


@pytest.mark.parametrize(
    ("box", "score", "label"),
    [
        ([70.0, 70, 80, 80], 0.05001, 2),  # at the threshold of the scores
        ([20.0, 20, 40, 30.001], 0.7, 0),  # overlaps a better box of its class by 0.5
    ],
)
def test_a_tie_is_counted_and_not_refused(box, score, label):
    more = expected(
        boxes=torch.cat([BOXES, torch.tensor([box])]),
        scores=torch.cat([SCORES, torch.tensor([score])]),
        labels=torch.cat([LABELS, torch.tensor([label])]),
    )
    report = check(padded(expected()), more)
    assert (report.compared, report.ties) == (3, 1)


def test_wrong_padding_is_refused():
    ours = padded(expected())
    ours["scores"][0, 3] = 0.5
    with pytest.raises(DisagreementError, match="score 0 and label -1"):
        check(ours)


def test_label_maps_may_differ_in_a_thousandth():
    logits = torch.zeros(2, 64, 96)
    logits[1, :32] = 1
    theirs = {"logits": logits, "label_map": logits.argmax(0)}
    labels = logits.argmax(0)
    labels[0, :6] = 0
    assert check({"label_map": labels[None].numpy()}, theirs, None).ties == 0
    labels[:2] = 0
    with pytest.raises(DisagreementError, match=r"3.12% of the pixels"):
        check({"label_map": labels[None].numpy()}, theirs, None)


def test_classes_that_are_equal_but_for_rounding_are_ties():
    logits = torch.rand(3, 64, 96)
    logits[2] = logits[:2].amax(0) + 1e-7
    theirs = {"logits": logits, "label_map": logits.argmax(0)}
    ours = {"label_map": logits[:2].argmax(0)[None].numpy()}
    report = check(ours, theirs, None)
    assert report.ties == 64 * 96
    assert report.worst == {"label_map": 0.0}
