"""Pictures of features: principal components, activations and similarities, drawn with scales.

Axes: C channels, H height, W width of a map; pictures are (H, W, 3) in 8 bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..utils.checks import check_choice
from .extractor import FeatureExtractor

_QUANTILES = (0.01, 0.99)  # of a component: drawn black, and in full colour
# Matplotlib's viridis at equal distances (CC0), from low to high.
_VIRIDIS = bytes.fromhex("440154 472c7a 3b518b 2c718e 21908d 27ad81 5cc863 aadc32 fde725")
_PANEL, _GAP, _TEXT, _BAR = 240, 12, 14, 8  # pixels
_INK, _PAPER = (32, 32, 36), (255, 255, 255)

Point = tuple[float, float]  # (x, y), in pixels of the image as the network saw it


# ------------------------------------------------------------------------------ maps


def pca_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Project maps (C, H, W) of one feature on the first three components of all their pixels.

    One basis for all images gives a colour one meaning. Each result is (3, H, W) within 0 .. 1,
    clipped at the 1st and 99th percentile over all images. Missing components are 0.
    """
    channels = {x.shape[0] for x in maps}
    if len(channels) != 1:
        raise ValueError(f"maps must be of one feature, got channels {sorted(channels)}")
    pixels = torch.cat([x.flatten(1).T for x in maps]).double()  # (pixels, C)
    centred = pixels - pixels.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis = vectors.flip(1)[:, :3]  # eigenvalues come in ascending order
    # The sign of an eigenvector is arbitrary: its largest entry is made positive.
    largest = basis.abs().argmax(dim=0, keepdim=True)
    projected = centred @ (basis * basis.gather(0, largest).sign())
    low, high = (projected.quantile(q, dim=0) for q in _QUANTILES)
    scaled = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float()
    scaled = torch.nn.functional.pad(scaled, (0, 3 - scaled.shape[1]))
    splits = scaled.split([x.shape[1] * x.shape[2] for x in maps])
    return [split.T.reshape(3, *x.shape[1:]) for split, x in zip(splits, maps, strict=True)]


def activation_map(x: Tensor) -> Tensor:
    """Return the length of the feature vector at every pixel of a map (C, H, W), as (H, W)."""
    return torch.linalg.vector_norm(x.float(), dim=0)


def similarity_map(x: Tensor, row: int, column: int) -> Tensor:
    """Return the cosine of every pixel's vector with that of one pixel of a map, as (H, W)."""
    height, width = x.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"a pixel must lie in the map of {height}x{width}, got ({row}, {column})")
    unit = torch.nn.functional.normalize(x.float(), dim=0)
    return torch.einsum("chw,c->hw", unit, unit[:, row, column])


# ------------------------------------------------------------------------------ panels


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    pixels: np.ndarray  # (H, W, 3) in 8 bits
    title: str
    scale: tuple[float, float] | None = None  # values of the lowest and the highest colour
    mark: Point | None = None
    cell: int = 1  # side of one of `pixels`, in pixels of the image
    size: tuple[int, int] | None = None  # (height, width) of the image; last cells may exceed it

    def enlarged(self) -> np.ndarray:
        """Return the colours at the size of the image."""
        if self.size is None:
            return self.pixels
        # Without padding the map may end before the image's border: it is not stretched.
        canvas = np.full((*self.size, 3), 255, dtype=np.uint8)
        cells = self.pixels.repeat(self.cell, axis=0).repeat(self.cell, axis=1)
        cells = cells[: self.size[0], : self.size[1]]
        canvas[: cells.shape[0], : cells.shape[1]] = cells
        return canvas


def colour(values: Tensor, low: float, high: float) -> np.ndarray:
    """Return the colours (H, W, 3) of values (H, W) on a scale from `low` to `high`."""
    span = high - low if high > low else 1.0
    position = ((values.float() - low) / span).clamp(0, 1).cpu().numpy()
    table = np.frombuffer(_VIRIDIS, np.uint8).reshape(-1, 3).astype(np.float64)
    steps = np.linspace(0, 1, len(table))
    channels = [np.interp(position, steps, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def image_panel(extractor: FeatureExtractor, prepared: Tensor, title: str) -> Panel:
    """Show a prepared image (C, H, W) in its own colours; of 2 channels, the first in grey."""
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
    """One image with its features (C, H, W), ready to be drawn."""

    name: str
    shown: Panel  # the image as the network saw it
    features: Mapping[str, Tensor]
    strides: Mapping[str, int]

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the image as the network saw it."""
        return self.shown.pixels.shape[0], self.shown.pixels.shape[1]

    def panel(self, feature: str, pixels: np.ndarray, title: str, **options: Any) -> Panel:
        """Return the picture of a feature, at the scale of the image."""
        return Panel(pixels, title, cell=self.strides[feature], size=self.size, **options)


def make_scene(extractor: FeatureExtractor, image: Any, name: str) -> Scene:
    """Compute the features of one image; an error names the image."""
    pool = extractor.output_options.pool
    if pool is not None:
        raise ValueError(f"pictures need maps, got an extractor with pool={pool!r}")
    try:
        prepared = extractor.prepare(image)
    except (ValueError, TypeError) as error:
        if name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error
    features = extractor.run_one({"pixel_values": prepared})
    return Scene(name, image_panel(extractor, prepared, name), features, extractor.strides)


# ------------------------------------------------------------------------------ methods


def _draw_pca(scenes: Sequence[Scene], feature: str, _: Point | None) -> list[Panel]:
    components = pca_maps([scene.features[feature] for scene in scenes])
    title = f"{feature}  PCA 1-3 as red, green, blue"
    levels = [(x * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for x in components]
    return [scene.panel(feature, x, title) for x, scene in zip(levels, scenes, strict=True)]


def _draw_activation(scenes: Sequence[Scene], feature: str, _: Point | None) -> list[Panel]:
    maps = [activation_map(scene.features[feature]) for scene in scenes]
    low, high = min(float(x.min()) for x in maps), max(float(x.max()) for x in maps)
    title = f"{feature}  activation"
    return [
        scene.panel(feature, colour(x, low, high), title, scale=(low, high))
        for x, scene in zip(maps, scenes, strict=True)
    ]


def _draw_similarity(scenes: Sequence[Scene], feature: str, point: Point | None) -> list[Panel]:
    panels = []
    for scene in scenes:
        if point is None:
            raise ValueError("method 'similarity' needs a point (x, y)")
        (x, y), (height, width) = point, scene.size
        if not (0 <= x < width and 0 <= y < height):
            text = f"point must lie in the image of {width}x{height}"
            raise ValueError(f"{text}, got ({x:g}, {y:g})")
        rows, columns = scene.features[feature].shape[1:]
        stride = scene.strides[feature]
        # Without padding the map may end before the image's border.
        row, column = min(int(y // stride), rows - 1), min(int(x // stride), columns - 1)
        values = similarity_map(scene.features[feature], row, column)
        scale = (float(values.min()), 1.0)
        pixels, title = colour(values, *scale), f"{feature}  similarity"
        panels.append(scene.panel(feature, pixels, title, scale=scale, mark=(x, y)))
    return panels


@dataclass(frozen=True)
class DrawingMethod:
    """A way to draw a feature of several images."""

    label: str  # its name on the page
    legend: str  # what the colours mean, for the page
    draw: Callable[[Sequence[Scene], str, Point | None], list[Panel]]  # of scenes, feature, point


# A new method is one entry; the command line and the page take it from here.
METHODS = {
    "pca": DrawingMethod("Principal components", "red, green, blue: components 1 to 3", _draw_pca),
    "activation": DrawingMethod("Activation", "length of the feature vector", _draw_activation),
    "similarity": DrawingMethod(
        "Similarity", "cosine with the marked point; click another", _draw_similarity
    ),
}


def draw_panels(
    scenes: Sequence[Scene], feature: str, method: str, point: Point | None = None
) -> list[Panel]:
    """Draw one feature of several images by a method of `METHODS`.

    "pca" and "activation" share their basis and scale among the images. ValueError for an unknown
    feature or method, and for a `point` that is missing or outside.
    """
    check_choice("method", method, METHODS)
    for scene in scenes:
        check_choice("feature", feature, scene.features)
    return METHODS[method].draw(scenes, feature, point)


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
    for row, row_height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _draw_panel(figure, panel, _GAP + column * (_PANEL + _GAP), top)
        top += row_height + extra + _GAP
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
    factor = width / pixels.shape[1]
    # Enlarged, the cells of a map keep their edges; reduced, they are averaged.
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
    figure.paste(Image.fromarray(pixels).resize((width, height), method), (left, top))
    if panel.mark is not None:
        x, y = left + (panel.mark[0] + 0.5) * factor, top + (panel.mark[1] + 0.5) * factor
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_INK, width=3)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_PAPER, width=1)
    if panel.scale is not None:
        top += height + 4
        ramp = colour(torch.linspace(0, 1, _PANEL)[None].expand(_BAR, -1), 0.0, 1.0)
        figure.paste(Image.fromarray(ramp), (left, top))
        low, high = (f"{value:.3g}" for value in panel.scale)
        top += _BAR + 2
        _write(draw, (left, top), low, _PANEL)
        _write(draw, (left + _PANEL - int(draw.textlength(high, _font())), top), high, _PANEL)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT - 2)


def _write(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, width: int) -> None:
    """Write one line, shortened to a width in pixels."""
    font = _font()
    while text and draw.textlength(text, font) > width:
        text = text[:-4] + "..." if len(text) > 4 else ""
    draw.text(position, text, _INK, font)


def visualize(
    extractor: FeatureExtractor,
    images: Mapping[str, Any],
    methods: Sequence[str] = ("pca", "activation"),
    point: Point | None = None,
) -> Image.Image:
    """Draw every feature of images (by the name to show): a row for each image and method.

    Example:
        >>> fx = FeatureExtractor("my-backbone", out_features="stages", size="native", norm=False)
        >>> visualize(fx, {"cat": "cat.jpg"}, ["pca", "similarity"], (120, 80)).save("cat.png")

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
