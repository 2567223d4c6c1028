"""Pictures of features: principal components, activations and similarities, drawn with scales.

Axes: C channels, H height, W width of a map; pictures are (H, W, 3) in 8 bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..utils.checks import check_choice
from .extractor import FeatureExtractor, Features

METHODS = ("pca", "activation", "similarity")
_QUANTILES = (0.01, 0.99)  # of a component, that black and full colour stand for
# Matplotlib's viridis at equal distances (CC0), from low to high.
_VIRIDIS = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
_PANEL, _GAP, _TEXT, _BAR = 240, 12, 14, 8  # pixels
_INK, _PAPER = (32, 32, 36), (255, 255, 255)


# ------------------------------------------------------------------------------ maps


def pca_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Project maps on the first three principal components of all their pixels together.

    One basis for all images makes one colour mean one thing in all of them.

    Args:
        maps: Maps (C, H, W) of one feature; sizes may differ.

    Returns:
        For each a (3, H, W) within 0 .. 1: the components, clipped at their 1st and 99th
        percentile over all images. Fewer than three channels leave the others at 0.

    Raises:
        ValueError: There is no map, or the maps differ in their channels.
    """
    channels = {x.shape[0] for x in maps}
    if len(channels) != 1:
        raise ValueError(f"maps must be of one feature, got channels {sorted(channels)}")
    pixels = torch.cat([x.flatten(1).T for x in maps]).double()  # (pixels, C)
    centred = pixels - pixels.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis = vectors.flip(1)[:, :3]  # eigenvalues come in ascending order
    # An eigenvector has no sign of its own: let its largest entry be positive.
    largest = basis.abs().argmax(dim=0, keepdim=True)
    projected = centred @ (basis * basis.gather(0, largest).sign())
    low, high = (projected.quantile(q, dim=0) for q in _QUANTILES)
    scaled = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float()
    scaled = torch.nn.functional.pad(scaled, (0, 3 - scaled.shape[1]))
    parts = scaled.split([x.shape[1] * x.shape[2] for x in maps])
    return [part.T.reshape(3, *x.shape[1:]) for part, x in zip(parts, maps, strict=True)]


def activation_map(x: Tensor) -> Tensor:
    """Return the length of the feature vector at every pixel of a map (C, H, W), as (H, W)."""
    return torch.linalg.vector_norm(x.float(), dim=0)


def similarity_map(x: Tensor, row: int, column: int) -> Tensor:
    """Return the cosine of every pixel's feature vector with that of one pixel, as (H, W).

    Args:
        x: A map (C, H, W).
        row: Of the one pixel, in the map.
        column: Of the one pixel, in the map.

    Raises:
        ValueError: The pixel lies outside the map.
    """
    height, width = x.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"a pixel must lie in the map of {height}x{width}, got ({row}, {column})")
    unit = torch.nn.functional.normalize(x.float(), dim=0)
    return torch.einsum("chw,c->hw", unit, unit[:, row, column])


# ------------------------------------------------------------------------------ panels


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes:
        pixels: Colours (H, W, 3), in 8 bits.
        title: What it shows.
        scale: What the lowest and the highest colour stand for; None for pictures without.
        mark: A point (x, y) to mark, in pixels of the image.
        cell: The side of one pixel of `pixels`, in pixels of the image.
        size: The (height, width) of the image, that the last cells may reach beyond.
    """

    pixels: np.ndarray
    title: str
    scale: tuple[float, float] | None = None
    mark: tuple[float, float] | None = None
    cell: int = 1
    size: tuple[int, int] | None = None

    def enlarged(self) -> np.ndarray:
        """Return the colours at the size of the image."""
        if self.size is None:
            return self.pixels
        # Without padding the map may stop short of the image's border: it is not stretched.
        whole = np.full((*self.size, 3), 255, dtype=np.uint8)
        cells = self.pixels.repeat(self.cell, axis=0).repeat(self.cell, axis=1)
        cells = cells[: self.size[0], : self.size[1]]
        whole[: cells.shape[0], : cells.shape[1]] = cells
        return whole


def colour(values: Tensor, low: float, high: float) -> np.ndarray:
    """Return the colours (H, W, 3) of values (H, W) on a scale from `low` to `high`."""
    span = high - low if high > low else 1.0
    position = ((values.float() - low) / span).clamp(0, 1).cpu().numpy()
    places = np.linspace(0, 1, len(_VIRIDIS))
    table = np.array(_VIRIDIS, dtype=np.float64)
    parts = [np.interp(position, places, table[:, channel]) for channel in range(3)]
    return np.stack(parts, axis=-1).round().astype(np.uint8)


def image_panel(extractor: FeatureExtractor, prepared: Tensor, title: str) -> Panel:
    """Show a prepared image (C, H, W) in its own colours."""
    processor = extractor.processor
    x = prepared.float().cpu()
    if processor.do_normalize:
        mean = torch.tensor(processor.image_mean).view(-1, 1, 1)
        x = x * torch.tensor(processor.image_std).view(-1, 1, 1) + mean
    levels = (x * 255).round().clamp(0, 255).to(torch.uint8)
    levels = levels[:3] if levels.shape[0] >= 3 else levels[:1].expand(3, -1, -1)
    return Panel(levels.permute(1, 2, 0).numpy(), title)  # (C, H, W) -> (H, W, C)


@dataclass(frozen=True)
class Scene:
    """One image with its features, ready to be drawn.

    Attributes:
        name: What to call it.
        shown: The image as the network saw it.
        features: Its maps by name.
        strides: Their strides by name, in pixels.
    """

    name: str
    shown: Panel
    features: Mapping[str, Tensor]
    strides: Mapping[str, int]

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the image as the network saw it."""
        return self.shown.pixels.shape[0], self.shown.pixels.shape[1]


def make_scene(extractor: FeatureExtractor, image: Any, name: str) -> Scene:
    """Compute the features of one image.

    Raises:
        ValueError: The image cannot be read, or the extractor pools its maps.
        TypeError: It is no image.
    """
    if extractor.pool is not None:
        raise ValueError(f"pictures need maps, got an extractor with pool={extractor.pool!r}")
    try:
        prepared = extractor.prepare(image)
    except (ValueError, TypeError) as error:
        if name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error
    features = extractor({"pixel_values": prepared})
    assert isinstance(features, Features)  # one image in, one out
    return Scene(name, image_panel(extractor, prepared, name), features, extractor.strides)


def draw_panels(
    scenes: Sequence[Scene], feature: str, method: str, point: tuple[float, float] | None = None
) -> list[Panel]:
    """Draw one feature of several images.

    Args:
        scenes: The images.
        feature: The name of the feature.
        method: One of `METHODS`. "pca" and "activation" share their basis and scale.
        point: Where "similarity" looks from: (x, y) in pixels of the image as the network saw it.

    Raises:
        ValueError: The feature or the method is unknown, or the point is missing or outside.
    """
    check_choice("method", method, METHODS)
    for scene in scenes:
        check_choice("feature", feature, scene.features)
    return _DRAWERS[method](scenes, feature, point)


def _draw_pca(scenes: Sequence[Scene], feature: str, _: Any) -> list[Panel]:
    components = pca_maps([scene.features[feature] for scene in scenes])
    title = f"{feature}  PCA 1-3 as red, green, blue"
    levels = [(x * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for x in components]
    return [
        Panel(x, title, **_place(scene, feature)) for x, scene in zip(levels, scenes, strict=True)
    ]


def _draw_activation(scenes: Sequence[Scene], feature: str, _: Any) -> list[Panel]:
    maps = [activation_map(scene.features[feature]) for scene in scenes]
    low, high = (float(f(torch.stack([f(x) for x in maps]))) for f in (torch.min, torch.max))
    title = f"{feature}  activation"
    return [
        Panel(colour(x, low, high), title, (low, high), **_place(scene, feature))
        for x, scene in zip(maps, scenes, strict=True)
    ]


def _draw_similarity(
    scenes: Sequence[Scene], feature: str, point: tuple[float, float] | None
) -> list[Panel]:
    panels = []
    for scene in scenes:
        height, width = scene.size
        x, y = _inside(point, height, width)
        rows, columns = scene.features[feature].shape[1:]
        stride = scene.strides[feature]
        # Without padding the map may stop short of the image's border.
        row, column = min(int(y // stride), rows - 1), min(int(x // stride), columns - 1)
        values = similarity_map(scene.features[feature], row, column)
        low = float(values.min())
        title, place = f"{feature}  similarity", _place(scene, feature)
        panels.append(Panel(colour(values, low, 1.0), title, (low, 1.0), (x, y), **place))
    return panels


def _place(scene: Scene, feature: str) -> dict[str, Any]:
    return {"cell": scene.strides[feature], "size": scene.size}


def _inside(point: tuple[float, float] | None, height: int, width: int) -> tuple[float, float]:
    if point is None:
        raise ValueError("method 'similarity' needs a point (x, y)")
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"point must lie in the image of {width}x{height}, got ({x:g}, {y:g})")
    return x, y


_DRAWERS: Mapping[str, Callable[..., list[Panel]]] = MappingProxyType(
    {"pca": _draw_pca, "activation": _draw_activation, "similarity": _draw_similarity}
)


# ------------------------------------------------------------------------------ figures


def draw_figure(rows: Sequence[Sequence[Panel]], heading: str) -> Image.Image:
    """Draw panels in rows, each with its title and, where it has one, its scale."""
    if not rows or not all(rows):
        raise ValueError("a figure needs at least one panel in every row")
    heights = [max(_panel_size(panel)[0] for panel in row) for row in rows]
    extra = _TEXT + 6 + _BAR + _TEXT + 8
    width = _GAP + max(len(row) for row in rows) * (_PANEL + _GAP)
    height = _GAP + _TEXT + _GAP + sum(heights) + len(rows) * (extra + _GAP)
    figure = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(figure)
    _write(draw, (_GAP, _GAP), heading, width - 2 * _GAP)
    top = _GAP + _TEXT + _GAP
    for row, room in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _draw_panel(figure, panel, _GAP + column * (_PANEL + _GAP), top)
        top += room + extra + _GAP
    return figure


def _panel_size(panel: Panel) -> tuple[int, int]:
    height, width = panel.size or panel.pixels.shape[:2]
    return max(1, round(_PANEL * height / width)), _PANEL


def _draw_panel(figure: Image.Image, panel: Panel, left: int, top: int) -> None:
    draw = ImageDraw.Draw(figure)
    _write(draw, (left, top), panel.title, _PANEL)
    top += _TEXT + 6
    height, width = _panel_size(panel)
    pixels = panel.enlarged()
    share = width / pixels.shape[1]
    # Cells of a map stay visible as cells; what is made smaller is made so smoothly.
    method = Image.Resampling.BOX if share < 1 else Image.Resampling.NEAREST
    figure.paste(Image.fromarray(pixels).resize((width, height), method), (left, top))
    if panel.mark is not None:
        x, y = left + (panel.mark[0] + 0.5) * share, top + (panel.mark[1] + 0.5) * share
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_INK, width=3)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_PAPER, width=1)
    if panel.scale is not None:
        _draw_scale(figure, panel.scale, left, top + height + 4)


def _draw_scale(figure: Image.Image, scale: tuple[float, float], left: int, top: int) -> None:
    draw = ImageDraw.Draw(figure)
    ramp = colour(torch.linspace(0, 1, _PANEL)[None].expand(_BAR, -1), 0.0, 1.0)
    figure.paste(Image.fromarray(ramp), (left, top))
    low, high = (f"{value:.3g}" for value in scale)
    below = top + _BAR + 2
    _write(draw, (left, below), low, _PANEL)
    _write(draw, (left + _PANEL - int(draw.textlength(high, _font())), below), high, _PANEL)


def _font() -> Any:
    return ImageFont.load_default(size=_TEXT - 2)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int) -> None:
    """Write one line, cut short where it would not fit."""
    font = _font()
    shown = text
    while shown and draw.textlength(shown, font) > room:
        shown = shown[:-4] + "..." if len(shown) > 4 else ""
    draw.text(place, shown, _INK, font)


def visualize(
    extractor: FeatureExtractor,
    images: Mapping[str, Any],
    methods: Sequence[str] = ("pca", "activation"),
    point: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw every feature of images by every method: a row for each image and method.

    Args:
        extractor: What computes the features; it must give maps.
        images: Images by the name to show.
        methods: Out of `METHODS`.
        point: Where "similarity" looks from: (x, y) in pixels of the image as the network saw it.

    Raises:
        ValueError: An image cannot be read, or an argument is out of its range.
    """
    if not images:
        raise ValueError("images must not be empty")
    scenes = [make_scene(extractor, image, name) for name, image in images.items()]
    drawn = {
        (method, feature): draw_panels(scenes, feature, method, point)
        for method in methods
        for feature in extractor.names
    }
    rows = [
        [scene.shown, *(drawn[method, feature][index] for feature in extractor.names)]
        for index, scene in enumerate(scenes)
        for method in methods
    ]
    return draw_figure(rows, f"{extractor.source}   {extractor.config.model_type}")
