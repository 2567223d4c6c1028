"""Compare a deployed detector or segmentor with the predictions of the library that trained it.

Boxes whose scores or overlaps lie closer to a threshold than the rounding error may be kept by one
and dropped by the other: such ties are counted, and everything else has to agree. So may a pixel
fall to either of two classes of one score, where the scores themselves have been found to agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..images.reading import load_image, to_eight_bits, to_rgb
from .boxes import Limits, Size

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class DisagreementError(RuntimeError):
    """A written network does not give what the original gives."""


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that are accepted."""

    features: float = 1e-4  # of a backbone's maps, as a share of the largest value of one
    boxes: float = 0.1  # pixels
    scores: float = 1e-4
    masks: float = 1e-3  # of probabilities
    overlaps: float = 1e-3  # of an IoU from the threshold of NMS, for a tie
    ties: float = 0.05  # share of an image's boxes that one may have alone; more is no accident
    labels: float = 1e-3  # share of the pixels of a label map, and of their logits
    # Of a segmentor's logits, as a share of the largest in the image. Mask2Former's decoder attends
    # where a mask is above 0.5: rounding decides that in single pixels, and moves a whole mask.
    logits: float = 1e-3
    margin: float = 1e-5  # between two classes as a share of the pixel's largest logit, for a tie
    refuse: bool = True  # what differs by more; otherwise it is counted


@dataclass
class Report:
    """What was compared, and the largest differences that were seen."""

    shapes: list[tuple[int, int, int]] = field(default_factory=list)  # (N, H, W)
    compared: int = 0  # boxes or pixels
    ties: int = 0
    missed: int = 0  # boxes that one has alone, where the tolerance does not refuse them
    classes: set[int] = field(default_factory=set)  # of the trained model's boxes or pixels
    worst: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, difference: float) -> None:
        """Keep the largest difference of an output."""
        self.worst[name] = max(difference, self.worst.get(name, 0.0))  # in this order also nan

    def as_json(self) -> dict[str, Any]:
        """Return it for deploy.json."""
        unit = "pixels" if "label_map" in self.worst else "boxes"
        warning = self._warning(unit)
        return {
            "shapes": [list(shape) for shape in self.shapes],
            f"compared_{unit}": self.compared,
            "compared_classes": len(self.classes),
            "ties": self.ties,
            **({"missed": self.missed} if self.missed else {}),
            "largest_difference": self.worst,
            **({"warning": warning} if warning else {}),
        }

    def _warning(self, unit: str) -> str | None:
        """Return what keeps the comparison from showing much of the model, if anything does."""
        if not self.compared:
            return "nothing was compared: the trained model finds no box in these images"
        if unit == "pixels" and self.ties > Tolerance.labels * self.compared:
            return (
                f"{self.ties / self.compared:.2%} of the pixels have another label, and there two "
                "classes of the trained model have the same score: is it trained?"
            )
        return None


def load_images(paths: Sequence[str], size: Size) -> Tensor:
    """Return images (N, 3, H, W) uint8, RGB, stretched to a size (H, W)."""
    height, width = size
    images = [to_rgb(to_eight_bits(load_image(path))).resize((width, height)) for path in paths]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def compare(
    report: Report,
    images: Tensor,
    run: Run,
    predict: Callable[[Tensor], Sequence[Mapping[str, Tensor]]],
    tolerance: Tolerance,
    limits: Limits | None,
) -> None:
    """Run both on images (N, 3, H, W) of one size and add what is seen to the report.

    Args:
        report: Is added to.
        images: uint8, RGB.
        run: The deployed network.
        predict: The trained model; see `openmmlab.trained_model.predict`.
        tolerance: What is accepted.
        limits: Of a detector; None for a segmentor.

    Raises:
        DisagreementError: They differ by more; the message says where and by how much.
    """
    shape = (len(images), *images.shape[2:])
    outputs = run(images.numpy())
    for index, expected in enumerate(predict(images)):
        got = {name: torch.as_tensor(values[index]) for name, values in outputs.items()}
        place = f"image {index} of a batch {shape}"
        if limits is None:
            _compare_label_maps(report, expected, got, tolerance, place)
        else:
            _compare_boxes(report, expected, got, tolerance, limits, place)
    report.shapes.append(shape)


def _compare_label_maps(
    report: Report,
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    tolerance: Tolerance,
    place: str,
) -> None:
    logits, labels, ours = expected["logits"], expected["label_map"], got["label_map"]
    check_shape("label_map", ours, labels, place)
    different = ours != labels
    scores = {"logits": logits, "probabilities": logits.softmax(0) if len(logits) > 1 else logits}
    compared = [name for name in scores if name in got]
    for name in compared:
        _compare_scores(report, name, scores[name], got[name], tolerance, place)
    if compared:  # otherwise a wrong graph could hide behind classes that are nearly equal
        loss = logits.amax(0) - logits.gather(0, ours.clamp(0, len(logits) - 1)[None])[0]
        ties = different & (loss <= tolerance.margin * logits.abs().amax(0)) & (len(logits) > 1)
        report.ties += int(ties.sum())
        different = different & ~ties
    share = float(different.float().mean())
    report.note("label_map", share)
    report.compared += labels.numel()
    report.classes.update(labels.unique().tolist())
    if tolerance.refuse and share > tolerance.labels:
        raise DisagreementError(
            f"{place}: {share:.2%} of the pixels have other labels, allowed are "
            f"{tolerance.labels:.2%}"
        )


def _compare_scores(
    report: Report, name: str, expected: Tensor, got: Tensor, tolerance: Tolerance, place: str
) -> None:
    """Compare logits or probabilities (C, H, W), which each pixel's class is chosen by."""
    check_shape(name, got, expected, place)
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    difference = (got - expected).abs().amax(0) / largest
    report.note(name, float(difference.max()))
    share = float((~(difference <= tolerance.logits)).float().mean())  # nan is off as well
    if tolerance.refuse and share > tolerance.labels:
        raise DisagreementError(
            f"{place}: in {share:.2%} of the pixels {name} differ by more than "
            f"{tolerance.logits:g} of the largest, allowed are {tolerance.labels:.2%}"
        )


def check_shape(name: str, got: Tensor, expected: Tensor, place: str) -> None:
    """Refuse an output of another shape, with a `DisagreementError` that says where it was."""
    if got.shape != expected.shape:
        shapes = tuple(got.shape), tuple(expected.shape)
        raise DisagreementError(f"{place}: {name} has shape {shapes[0]}, it must be {shapes[1]}")


# ------------------------------------------------------------------------------ boxes


def _compare_boxes(
    report: Report,
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    tolerance: Tolerance,
    limits: Limits,
    place: str,
) -> None:
    _check_padding(got, place)
    found = {name: values[got["labels"] >= 0] for name, values in got.items()}
    pairs = _match(expected, found, tolerance)
    for name in expected:
        if name == "labels" or not pairs:
            continue
        ours, theirs = (
            values[name][[pair[side] for pair in pairs]].float()
            for side, values in ((1, found), (0, expected))
        )
        report.note(name, float((ours - theirs).abs().max()))
    report.compared += len(pairs)
    report.classes.update(expected["labels"].tolist())
    for side, (one, other) in enumerate(((expected, found), (found, expected))):
        matched, ties = {pair[side] for pair in pairs}, 0
        for row in sorted(set(range(len(one["labels"]))) - matched):
            if not tolerance.refuse:
                report.missed += 1
                continue
            if not _is_tie(one, row, other, tolerance, limits):
                who = ("the trained model", "the deployed network")[side]
                raise DisagreementError(_describe_box(place, who, one, row, other))
            ties += 1
        report.ties += ties
        if ties > max(1, tolerance.ties * len(pairs)):
            raise DisagreementError(f"{place}: {ties} of {ties + len(pairs)} boxes differ")
    if tolerance.refuse and not report.worst.get("masks", 0.0) <= tolerance.masks:  # also nan
        raise DisagreementError(
            f"{place}: masks differ by {report.worst['masks']:.2g}, allowed is {tolerance.masks:g}"
        )


def _check_padding(got: Mapping[str, Tensor], place: str) -> None:
    empty = got["labels"] < 0
    if bool((got["labels"][empty] != -1).any()) or bool((got["scores"][empty] != 0).any()):
        raise DisagreementError(f"{place}: rows without a box must have score 0 and label -1")
    if bool((empty[:-1] & ~empty[1:]).any()):
        raise DisagreementError(f"{place}: rows without a box must come last")


def _match(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: Tolerance
) -> list[tuple[int, int]]:
    """Pair rows of equal labels, boxes and scores, each row at most once."""
    distance = (expected["boxes"][:, None] - found["boxes"]).abs().amax(-1)  # (R, R')
    close = distance <= tolerance.boxes
    close &= (expected["scores"][:, None] - found["scores"]).abs() <= tolerance.scores
    close &= expected["labels"][:, None] == found["labels"]
    pairs = []
    for row in range(len(close)):
        choices = distance[row].masked_fill(~close[row], torch.inf)
        if close[row].any():
            best = int(choices.argmin())
            close[:, best] = False
            pairs.append((row, best))
    return pairs


def _is_tie(
    one: Mapping[str, Tensor],
    row: int,
    other: Mapping[str, Tensor],
    tolerance: Tolerance,
    limits: Limits,
) -> bool:
    """Return whether a rounding error explains that `other` lacks a row of `one`."""
    score = float(one["scores"][row])
    threshold = limits.score_threshold
    if threshold is not None and abs(score - threshold) <= tolerance.scores:
        return True
    scores = other["scores"]
    full = len(scores) == limits.max_per_image
    if full and score <= float(scores.min()) + tolerance.scores:
        return True
    rivals = (other["labels"] == one["labels"][row]) & (scores >= score - tolerance.scores)
    if limits.iou_threshold is None or not rivals.any():
        return False
    box, boxes = one["boxes"][row], other["boxes"][rivals]
    overlaps = box_iou(box[None], boxes)[0]
    near = (overlaps - limits.iou_threshold).abs() <= tolerance.overlaps
    # Of two boxes with one score either may suppress the other; a moved box is no such rival.
    equal = (scores[rivals] - score).abs() <= tolerance.scores
    apart = (boxes - box).abs().amax(-1) > 10 * tolerance.boxes
    return bool((near | (equal & apart & (overlaps > limits.iou_threshold))).any())


def _describe_box(
    place: str, who: str, one: Mapping[str, Tensor], row: int, other: Mapping[str, Tensor]
) -> str:
    label, score = int(one["labels"][row]), float(one["scores"][row])
    box = [round(value, 2) for value in one["boxes"][row].tolist()]
    text = f"{place}: only {who} has a box {box} of label {label} with score {score:.5f}"
    same = other["labels"] == one["labels"][row]
    if not same.any():
        return f"{text}; the other has none of this label"
    distance = (other["boxes"][same] - one["boxes"][row]).abs().amax(-1)
    nearest = int(distance.argmin())
    return (
        f"{text}; the nearest of the other is {float(distance[nearest]):.3g} px away, with score "
        f"{float(other['scores'][same][nearest]):.5f}"
    )
