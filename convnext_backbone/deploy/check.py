"""Compare a written network with its original, a backbone's features or a model's predictions.

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

Outputs = Mapping[str, Tensor]  # by name; of one image, or of a batch


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
class Comparison:
    """Compares a written network with its original, and keeps the largest differences.

    Attributes:
        tolerance: What is accepted.
        limits: Of a detector, None of other networks.
    """

    tolerance: Tolerance
    limits: Limits | None = None
    shapes: list[tuple[int, int, int]] = field(default_factory=list)  # (N, H, W)
    compared: int = 0  # boxes or pixels
    ties: int = 0
    missed: int = 0  # boxes that one has alone, where the tolerance does not refuse them
    classes: set[int] = field(default_factory=set)  # of the trained model's boxes or pixels
    worst: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what was seen for deploy.json."""
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

    def _note(self, name: str, difference: float) -> None:
        self.worst[name] = max(difference, self.worst.get(name, 0.0))  # in this order also nan

    def compare_features(self, images: Tensor, expected: Outputs, got: Outputs) -> None:
        """Compare the maps of a backbone, or what a classifier gives, for images (N, C, H, W).

        Raises:
            DisagreementError: An output has another shape, or is off by more than is accepted.
        """
        place = f"for images of {tuple(images.shape)}"
        for name, theirs in expected.items():
            ours = torch.as_tensor(got[name])
            _check_shape(name, ours, theirs, place)
            scale = max(1.0, float(theirs.abs().max()))
            error = float((ours.float() - theirs.float()).abs().max()) / scale
            if not error <= self.tolerance.features:  # also when it is nan
                raise DisagreementError(
                    f"the file gives {name} off by {error:.2g} {place}, allowed is "
                    f"{self.tolerance.features:g}"
                )
            self._note(name, error)
        self.shapes.append((len(images), *images.shape[2:]))

    def compare_predictions(
        self,
        images: Tensor,
        run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
        predict: Callable[[Tensor], Sequence[Outputs]],
    ) -> None:
        """Run a detector or segmentor and its file on images (N, 3, H, W).

        Args:
            images: uint8, RGB.
            run: The deployed network.
            predict: The trained model; see `openmmlab.trained_model.predict`.

        Raises:
            DisagreementError: They differ by more than is accepted; the message says where.
        """
        shape = (len(images), *images.shape[2:])
        outputs = run(images.numpy())
        for index, expected in enumerate(predict(images)):
            got = {name: torch.as_tensor(values[index]) for name, values in outputs.items()}
            place = f"image {index} of a batch {shape}"
            if self.limits is None:
                self._compare_label_maps(expected, got, place)
            else:
                self._compare_boxes(expected, got, self.limits, place)
        self.shapes.append(shape)

    # Label maps.

    def _compare_label_maps(self, expected: Outputs, got: Outputs, place: str) -> None:
        logits, labels, ours = expected["logits"], expected["label_map"], got["label_map"]
        _check_shape("label_map", ours, labels, place)
        different, several = ours != labels, len(logits) > 1
        scores = {"logits": logits, "probabilities": logits.softmax(0) if several else logits}
        compared = [name for name in scores if name in got]
        for name in compared:
            self._compare_scores(name, scores[name], got[name], place)
        if compared and several:  # without scores, equal classes could hide a wrong graph
            loss = logits.amax(0) - logits.gather(0, ours.clamp(0, len(logits) - 1)[None])[0]
            ties = different & (loss <= self.tolerance.margin * logits.abs().amax(0))
            self.ties += int(ties.sum())
            different &= ~ties
        share = float(different.float().mean())
        self._note("label_map", share)
        self.compared += labels.numel()
        self.classes.update(labels.unique().tolist())
        if self.tolerance.refuse and share > self.tolerance.labels:
            raise DisagreementError(
                f"{place}: {share:.2%} of the pixels have other labels, allowed are "
                f"{self.tolerance.labels:.2%}"
            )

    def _compare_scores(self, name: str, expected: Tensor, got: Tensor, place: str) -> None:
        """Compare logits or probabilities (C, H, W), which each pixel's class is chosen by."""
        _check_shape(name, got, expected, place)
        largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        difference = (got - expected).abs().amax(0) / largest
        self._note(name, float(difference.max()))
        allowed = self.tolerance.logits
        share = float((~(difference <= allowed)).float().mean())  # nan is off as well
        if self.tolerance.refuse and share > self.tolerance.labels:
            raise DisagreementError(
                f"{place}: in {share:.2%} of the pixels {name} differ by more than {allowed:g} of "
                f"the largest, allowed are {self.tolerance.labels:.2%}"
            )

    # Boxes.

    def _compare_boxes(self, expected: Outputs, got: Outputs, limits: Limits, place: str) -> None:
        _check_padding(got, place)
        tolerance = self.tolerance
        found = {name: values[got["labels"] >= 0] for name, values in got.items()}
        rows, columns = _match(expected, found, tolerance)
        for name in expected:
            if rows and name != "labels":
                off = found[name][columns].float() - expected[name][rows].float()
                self._note(name, float(off.abs().max()))
        self.compared += len(rows)
        self.classes.update(expected["labels"].tolist())
        for who, one, other, matched in (
            ("the trained model", expected, found, rows),
            ("the deployed network", found, expected, columns),
        ):
            ties = 0
            for row in sorted(set(range(len(one["labels"]))) - set(matched)):
                if not tolerance.refuse:
                    self.missed += 1
                elif _is_tie(one, row, other, tolerance, limits):
                    ties += 1
                else:
                    raise DisagreementError(_describe_box(place, who, one, row, other))
            self.ties += ties
            if ties > max(1, tolerance.ties * len(rows)):
                raise DisagreementError(f"{place}: {ties} of {ties + len(rows)} boxes differ")
        worst, allowed = self.worst.get("masks", 0.0), tolerance.masks
        if tolerance.refuse and not worst <= allowed:  # also when it is nan
            raise DisagreementError(f"{place}: masks differ by {worst:.2g}, allowed is {allowed:g}")


def load_images(paths: Sequence[str], size: Size) -> Tensor:
    """Return images (N, 3, H, W) uint8, RGB, stretched to a size (H, W)."""
    height, width = size
    images = [to_rgb(to_eight_bits(load_image(path))).resize((width, height)) for path in paths]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def _check_shape(name: str, got: Tensor, expected: Tensor, place: str) -> None:
    if got.shape != expected.shape:
        shapes = tuple(got.shape), tuple(expected.shape)
        raise DisagreementError(f"{place}: {name} has shape {shapes[0]}, it must be {shapes[1]}")


def _check_padding(got: Outputs, place: str) -> None:
    empty = got["labels"] < 0
    if bool((got["labels"][empty] != -1).any()) or bool((got["scores"][empty] != 0).any()):
        raise DisagreementError(f"{place}: rows without a box must have score 0 and label -1")
    if bool((empty[:-1] & ~empty[1:]).any()):
        raise DisagreementError(f"{place}: rows without a box must come last")


def _match(expected: Outputs, found: Outputs, tolerance: Tolerance) -> tuple[list[int], list[int]]:
    """Pair rows of equal labels, boxes and scores, each row at most once; return both sides."""
    distance = (expected["boxes"][:, None] - found["boxes"]).abs().amax(-1)  # (R, R')
    close = distance <= tolerance.boxes
    close &= (expected["scores"][:, None] - found["scores"]).abs() <= tolerance.scores
    close &= expected["labels"][:, None] == found["labels"]
    rows, columns = [], []
    for row in range(len(close)):
        if close[row].any():
            best = int(distance[row].masked_fill(~close[row], torch.inf).argmin())
            close[:, best] = False
            rows.append(row)
            columns.append(best)
    return rows, columns


def _is_tie(one: Outputs, row: int, other: Outputs, tolerance: Tolerance, limits: Limits) -> bool:
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


def _describe_box(place: str, who: str, one: Outputs, row: int, other: Outputs) -> str:
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
