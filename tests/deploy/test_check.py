"""The comparison lets nothing pass but ties, and says where two networks differ."""

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_backbone.deploy.boxes import Limits
from convnext_backbone.deploy.check import Comparison, DisagreementError, Tolerance, load_images

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
    report = Comparison(Tolerance(), limits)
    images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    theirs = expected() if theirs is None else theirs
    report.compare_predictions(images, lambda x: ours, lambda x: [theirs])
    return report


def test_equal_results_agree():
    report = check(padded(expected()))
    assert report.as_json() == {
        "shapes": [[1, 64, 96]],
        "compared_boxes": 3,
        "compared_classes": 3,
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


def full(last, score):
    """Four boxes, as many as are kept, the last of them given."""
    return expected(
        boxes=torch.cat([BOXES, torch.tensor([last])]),
        scores=torch.cat([SCORES, torch.tensor([score])]),
        labels=torch.cat([LABELS, torch.tensor([2])]),
    )


def test_two_boxes_of_one_score_may_change_places_at_the_end_of_a_full_list():
    first, second = [70.0, 70, 80, 80], [5.0, 50, 15, 60]
    report = check(padded(full(first, 0.2)), full(second, 0.20001))
    assert (report.compared, report.ties) == (3, 2)
    with pytest.raises(DisagreementError, match="only the trained model has"):
        check(padded(full(first, 0.2)), full(second, 0.21))


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


def nearly_equal_classes():
    """Logits (3, 64, 96) whose two best classes differ by a rounding error, and what is best."""
    logits = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) + 1
    logits[2] = logits[:2].amax(0) + 1e-6
    return {"logits": logits, "label_map": logits.argmax(0)}, logits[:2].argmax(0)


def as_outputs(labels, logits):
    return {"label_map": labels[None].numpy(), "logits": logits[None].numpy()}


def test_classes_that_are_equal_but_for_rounding_are_ties_and_said_to_be_many():
    theirs, other = nearly_equal_classes()
    report = check(as_outputs(other, theirs["logits"]), theirs, None)
    assert report.ties == 64 * 96
    assert report.worst == {"logits": 0.0, "label_map": 0.0}
    assert "100.00% of the pixels" in report.as_json()["warning"]
    # A thousandth of the pixels, which a trained model stays below, is no reason to warn.
    few = theirs["label_map"].clone()
    few[0, :6] = other[0, :6]
    report = check(as_outputs(few, theirs["logits"]), theirs, None)
    assert report.ties == 6
    assert "warning" not in report.as_json()


def test_pixels_are_no_ties_where_the_scores_were_not_compared():
    theirs, other = nearly_equal_classes()
    with pytest.raises(DisagreementError, match=r"100.00% of the pixels have other labels"):
        check({"label_map": other[None].numpy()}, theirs, None)


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x * 1.01, lambda x: x.flip(1), lambda x: x * torch.nan],
    ids=["scaled", "upside down", "nan"],
)
@pytest.mark.parametrize("name", ["logits", "probabilities"])
def test_a_wrong_graph_does_not_pass_for_ties_nor_for_one_class(wrong, name):
    for theirs in (nearly_equal_classes()[0], one_class()):
        logits = theirs["logits"]
        scores = logits if name == "logits" else logits.softmax(0)
        labels = logits.flip(1).argmax(0)
        ours = {"label_map": labels[None].numpy(), name: wrong(scores)[None].numpy()}
        with pytest.raises(DisagreementError, match=rf"of the pixels {name} differ by more"):
            check(ours, theirs, None)


def one_class():
    """A segmentor that gives background everywhere: its label maps show nothing."""
    logits = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
    logits[0] += 1
    return {"logits": logits, "label_map": logits.argmax(0)}


def test_classes_of_tiny_scores_are_not_all_equal():
    """Mask2Former's scores where no query claims a pixel."""
    scores = torch.tensor([1e-6, 3e-6, 2e-6])[:, None, None].repeat(1, 64, 96)
    scores[0, :32] = 1
    theirs = {"logits": scores, "label_map": scores.argmax(0)}
    labels = theirs["label_map"].clone()
    labels[32:] = 2
    with pytest.raises(DisagreementError, match=r"50.00% of the pixels have other labels"):
        check(as_outputs(labels, scores), theirs, None)


def test_masks_that_are_no_numbers_are_refused():
    masks = torch.full((3, 28, 28), 0.5)
    ours = padded(expected())
    ours["masks"] = torch.full((1, 4, 28, 28), torch.nan).numpy()
    with pytest.raises(DisagreementError, match="masks differ by nan"):
        check(ours, expected(masks=masks))


def test_an_image_without_boxes_is_said_to_show_nothing():
    none = {name: values[:0] for name, values in expected().items()}
    assert "finds no box" in check(padded(none), none).as_json()["warning"]


def test_images_to_compare_on_are_read_as_all_others(tmp_path, monkeypatch):
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 50), 0x4321, np.uint16)).save(path)
    images = load_images([str(path)], (40, 50))
    assert images.shape == (1, 3, 40, 50)
    assert (images == 0x43).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow itself raises from twice as many
    with pytest.raises(ValueError, match=r"cannot read image .*grey\.png'"):
        load_images([str(path)], (40, 50))
