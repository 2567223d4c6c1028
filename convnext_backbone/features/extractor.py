"""FeatureExtractor: images of any kind in, named features out.

Axes: N batch, C channels, H height, W width, in pixels.
"""

import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._version import __version__
from ..images.processor import ConvNextImageProcessor
from ..images.reading import UNREADABLE
from ..images.sources import ImageItem, as_item, count_images, expand, is_single, iter_items
from ..models.backbone import ConvNextBackbone
from ..models.config import ConvNextConfig
from ..utils.checks import check_choice, check_min, first_line
from .batching import batched_by, compute_with, prepare_ahead, stack_padded
from .network import load_network

ON_ERROR_CHOICES = ("raise", "skip")
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
_LOOKAHEAD = 8  # batches' worth of images among which those of one size are put together
_VERSIONS = ("torchvision", "numpy", "Pillow", "safetensors")


@dataclass(frozen=True)
class Failure:
    """An image that could not be used, and why."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if repr(self.name) in self.reason else f"{self.name}: {self.reason}"


class Features(dict[str, Tensor]):
    """The features of one image by name: maps (C, H, W), or vectors (C,) when pooled.

    Attributes:
        index: The position of the image in the source.
        name: Its path, or its position.
        image_size: Its (height, width) as the network saw it, without padding.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], item: ImageItem, size: tuple[int, int]
    ) -> None:
        super().__init__(tensors)
        self.index = item.index
        self.name = item.name
        self.image_size = size


@dataclass(frozen=True)
class _Prepared:
    item: ImageItem
    pixels: Tensor  # (C, H, W), normalised


class FeatureExtractor:
    """Run images through a ConvNeXt and give its features by name.

    Args:
        source: Anything that `load_weights` reads, a `ConvNextBackbone`, `ConvNextModel` or
            `ConvNextForImageClassification` (copied), or, with `checkpoint`, an OpenMMLab config.
            A backbone gives maps through the norms of its outputs, a model has no such norms.
        checkpoint: The checkpoint of an OpenMMLab config.
        out_features: Names of the features, or "stages" for every stage; the source's own, or the
            last stage, when not given.
        out_indices: The same as positions among the stem and the stages.
        processor: How images are prepared; what belongs to the weights when not given, and
            ImageNet's mean and deviation at 224 pixels where nothing does.
        size: None resizes as the processor says, a number does so to another side, (height, width)
            warps to it, "native" leaves the image as it is.
        norm: Pass maps through the norms of a backbone's outputs. False gives the maps before them.
        pool: None gives maps; "avg", "max" and "gem" reduce each to a vector; "cls" gives one
            vector, the normed average that a classifier or DINOv3 works on.
        gem_p: The power of "gem", the generalised mean (Radenovic et al., arXiv 1711.02512).
        pad: Pad images to whole strides and cut the maps back to those that the image touches.
            Without, pixels beyond the last whole stride are dropped.
        dtype: Of the computation and of the features: a torch dtype or a key of `DTYPES`.
        device: Where the network runs; CUDA where there is one.
        channels_last: Keep the weights in channels-last memory as well.
        batch_size: Images in a batch; those of one size are put together.
        num_workers: Threads that decode images; 0 decodes in between.
        compute_workers: Batches that the CPU computes at a time, each with one thread, so that the
            rounding does not depend on the number of threads; 0 computes one with all threads.
        on_error: What to do about an image that cannot be read: "raise", or "skip" and note it in
            `failures`.
        progress: Show a bar with the rate and the time left.
        load_options: Options of `load_weights`.

    Attributes:
        failures: The images that the last run left out.
        processor: The processor in use.
        model: The network in use.

    Raises:
        ValueError: An argument is out of its range or does not fit the source.
        TypeError: The source is of no known kind, or an argument is unknown.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | nn.Module,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        out_features: Sequence[str] | str | None = None,
        out_indices: Sequence[int] | None = None,
        processor: ConvNextImageProcessor | None = None,
        size: int | tuple[int, int] | str | None = None,
        norm: bool = True,
        pool: str | None = None,
        gem_p: float = 3.0,
        pad: bool = True,
        dtype: torch.dtype | str = torch.float32,
        device: str | torch.device | None = None,
        channels_last: bool = False,
        batch_size: int = 8,
        num_workers: int | None = None,
        compute_workers: int = 0,
        on_error: str = "raise",
        progress: bool = False,
        **load_options: Any,
    ) -> None:
        check_choice("pool", pool, (None, *POOLS, "cls"))
        check_choice("on_error", on_error, ON_ERROR_CHOICES)
        self.dtype = _dtype(dtype)
        self.batch_size = check_min("batch_size", batch_size, 1)
        workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
        self.num_workers = check_min("num_workers", workers, 0)
        self.compute_workers = check_min("compute_workers", compute_workers, 0)
        if not isinstance(gem_p, int | float) or gem_p <= 0:
            raise ValueError(f"gem_p must be positive, got {gem_p!r}")
        self.norm, self.pool, self.gem_p, self.pad = norm, pool, float(gem_p), pad
        self.on_error, self.progress = on_error, progress
        outputs = {"out_features": out_features, "out_indices": out_indices}
        outputs = {name: value for name, value in outputs.items() if value is not None}
        if pool == "cls" and outputs:
            raise ValueError(
                f"pool='cls' is one vector and takes no choice of stages, got {outputs}"
            )
        loaded = load_network(source, checkpoint, pool == "cls", outputs, load_options)
        loaded.model.config.update({"output_hidden_states": False, "return_dict": True})
        self.source = loaded.name
        self.size = _check_size(loaded.size if size is None else size)
        self.processor = _place_size(processor or loaded.processor, self.size)
        chosen = loaded.model.config.out_features
        self.names: tuple[str, ...] = ("cls",) if pool == "cls" else tuple(chosen)
        self.channels_last = channels_last
        self.device = _usable_device(device)
        model = loaded.model.eval().requires_grad_(False).to(self.device, self.dtype)
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.failures: list[Failure] = []
        self._seen = 0  # images of the last run, those that failed included

    # What it gives.

    @property
    def config(self) -> ConvNextConfig:
        """The architecture."""
        return self.model.config

    @property
    def channels(self) -> dict[str, int]:
        """The channels of each feature."""
        widths = dict(zip(self.config.stage_names, self._widths(), strict=True))
        return {name: widths[self._stage_of(name)] for name in self.names}

    @property
    def strides(self) -> dict[str, int]:
        """The stride of each feature's map, in pixels of the prepared image."""
        strides = dict(zip(self.config.stage_names, self.config.strides, strict=True))
        return {name: strides[self._stage_of(name)] for name in self.names}

    def _widths(self) -> tuple[int, ...]:
        return (self.config.hidden_sizes[0], *self.config.hidden_sizes)

    def _stage_of(self, name: str) -> str:
        return self.config.stage_names[-1] if name == "cls" else name

    def describe(self) -> dict[str, Any]:
        """Return, ready for JSON, all that decides about the values of the features."""
        return {
            "weights": {"source": self.source, "sha256": self.fingerprint()},
            "architecture": self.config.to_dict(),
            "features": {
                name: {"channels": self.channels[name], "stride": self.strides[name]}
                for name in self.names
            },
            "norm": self.norm,
            "pool": self.pool,
            **({"gem_p": self.gem_p} if self.pool == "gem" else {}),
            "preprocessing": {
                **self.processor.to_dict(),
                "backend": self.processor.backend,
                "size_mode": list(self.size) if isinstance(self.size, tuple) else self.size,
                "pad_to": self.stride if self.pad else None,
            },
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "channels_last": self.channels_last,
            "batch_size": self.batch_size,
            "versions": {
                "convnext_backbone": __version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                **{name: metadata.version(name) for name in _VERSIONS},
            },
        }

    def fingerprint(self) -> str:
        """Return the SHA-256 of the names and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    # Images in, features out.

    def __call__(self, images: Any) -> Features | list[Features | None]:
        """Return the features of one image, or of every image of a collection, in order.

        Args:
            images: A path, Pillow image, array or tensor gives one result. A folder, a glob, a
                list, a batch (N, C, H, W), an iterator or a dataset gives a list; an image that
                was skipped is None in it.

        Raises:
            ValueError: An image cannot be read and `on_error` is "raise"; or there is none.
            TypeError: The source holds no images.
        """
        single = is_single(images)
        results: list[Features | None] = []
        for features in self.stream(images):
            results += [None] * (features.index - len(results))
            results.append(features)
        results += [None] * (self._seen - len(results))
        if not single:
            return results
        if results[0] is None:
            raise ValueError(str(self.failures[0]))
        return results[0]

    def stream(self, images: Any) -> Iterator[Features]:
        """Yield features in the order of the images, holding a few batches in memory.

        Skipped images are not yielded; `failures` names them, and `index` and `name` of what is
        yielded say which image it is of. Arguments and errors are those of a call.
        """
        source = expand(images)
        self.failures = []
        self._seen = 0
        bar = tqdm(total=count_images(source), unit="image", disable=not self.progress)
        length = self.batch_size * _LOOKAHEAD
        windows = prepare_ahead(self._prepare, iter_items(source), length, self.num_workers)
        workers = self.compute_workers if self.device.type == "cpu" else 0
        with bar, closing(windows), compute_with(workers) as compute:
            for window in windows:
                self.failures += [entry for entry in window if isinstance(entry, Failure)]
                self._seen += len(window)
                prepared = [entry for entry in window if isinstance(entry, _Prepared)]
                yield from self._run(prepared, compute)
                bar.update(len(window))

    def prepare(self, image: Any) -> Tensor:
        """Return one image as the network sees it, (C, H, W), normalised and not yet padded.

        It may be given back as `{"pixel_values": prepared}`, to compute its features.

        Raises:
            ValueError: It cannot be read.
            TypeError: It is no image.
        """
        return self._pixels(as_item(0, image))

    def _prepare(self, item: ImageItem) -> _Prepared | Failure:
        try:
            item = item.fetch()
            return _Prepared(item, self._pixels(item))
        except UNREADABLE as error:
            failure = Failure(item.index, item.name, " ".join(str(error).split()))
        if self.on_error == "raise":
            raise ValueError(str(failure))
        return failure

    def _pixels(self, item: ImageItem) -> Tensor:
        pixels = self._checked(item.image) if item.ready else self._processed(item.image)
        least, (height, width) = self.stride, pixels.shape[1:]
        if not self.pad and min(height, width) < least:
            raise ValueError(f"an image of {height}x{width} is smaller than the stride {least}")
        return pixels

    def _processed(self, image: Any) -> Tensor:
        x = self.processor.to_tensor(image)
        if isinstance(self.size, tuple):
            x = self.processor.warp(x, self.size)
        return self.processor.process_tensors([x])[0]

    def _checked(self, pixels: Tensor) -> Tensor:
        """Refuse what cannot be the pixels of one prepared image."""
        channels = self.config.num_channels
        if pixels.ndim != 3 or pixels.shape[0] != channels or 0 in pixels.shape:
            raise ValueError(
                f"pixel_values must have shape ({channels}, H, W), got {tuple(pixels.shape)}"
            )
        if not pixels.is_floating_point():
            raise TypeError(f"pixel_values must be floating point, got {pixels.dtype}")
        if not torch.isfinite(pixels).all():
            raise ValueError("pixel_values must not hold NaN or infinite values")
        return pixels

    @property
    def stride(self) -> int:
        """The largest stride among the features."""
        return max(self.strides.values())

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the batch that holds a prepared image of this size."""
        if not self.pad:
            return height, width
        s = self.stride
        return math.ceil(height / s) * s, math.ceil(width / s) * s

    def prepared_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image has once it is prepared, before padding."""
        if self.size == "native":
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        return (
            self.processor.plan(height, width)[1] if self.processor.do_resize else (height, width)
        )

    def map_size(self, name: str, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of a feature's map for a prepared image of this size."""
        s = self.strides[name]
        return (
            (math.ceil(height / s), math.ceil(width / s)) if self.pad else (height // s, width // s)
        )

    def _run(
        self, prepared: list[_Prepared], compute: Callable[..., Iterable[Any]]
    ) -> list[Features]:
        """Return the features of a group of images, in order, running those of one size at once."""
        sizes = [self.padded(*p.pixels.shape[1:]) for p in prepared]
        batches = list(batched_by(sizes, self.batch_size))
        chosen = [[prepared[i] for i in positions] for _, positions in batches]
        computed = compute(self._run_batch, chosen, [size for size, _ in batches])
        results = {
            position: features
            for (_, positions), batch in zip(batches, computed, strict=True)
            for position, features in zip(positions, batch, strict=True)
        }
        return [results[position] for position in range(len(prepared))]

    def _run_batch(self, prepared: list[_Prepared], size: tuple[int, int]) -> list[Features]:
        batch = stack_padded([p.pixels for p in prepared], *size)
        try:
            maps = self._maps(batch.to(self.device, self.dtype))
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{len(prepared)} images of {size[0]}x{size[1]} do not fit into the memory of "
                f"{self.device}: lower batch_size or size"
            ) from error
        return [self._one(maps, row, entry) for row, entry in enumerate(prepared)]

    @torch.inference_mode()
    def _maps(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the maps (N, C, H, W) of a batch by name."""
        if self.norm and isinstance(self.model, ConvNextBackbone):
            return dict(zip(self.names, self.model(batch), strict=True))
        names = self.config.stage_names
        wanted = [self._stage_of(name) for name in self.names]
        maps = self.model.iter_maps(batch, last=names.index(wanted[-1]))
        named = {name: x for name, x in zip(names, maps, strict=False) if name in wanted}
        return {name: named[self._stage_of(name)] for name in self.names}

    @torch.inference_mode()
    def _one(self, maps: Mapping[str, Tensor], row: int, prepared: _Prepared) -> Features:
        height, width = prepared.pixels.shape[1:]
        tensors = {}
        for name, batch in maps.items():
            h, w = self.map_size(name, height, width)
            tensors[name] = self._pool(batch[row, :, :h, :w]).cpu()
        return Features(tensors, prepared.item, (height, width))

    def _pool(self, x: Tensor) -> Tensor:
        """Reduce a map (C, H, W) to (C,) as `pool` says."""
        if self.pool is None:
            return x.clone(memory_format=torch.contiguous_format)
        if self.pool == "cls":
            return self.model.norm(x.mean(dim=(-2, -1)))
        return POOLS[self.pool](x, self.gem_p)


def _average(x: Tensor, _: float) -> Tensor:
    return x.mean(dim=(-2, -1))


def _maximum(x: Tensor, _: float) -> Tensor:
    return x.amax(dim=(-2, -1))


def _generalised_mean(x: Tensor, p: float) -> Tensor:
    # Powers overflow in half precision: raise and average in fp32.
    return x.float().clamp(min=1e-6).pow(p).mean(dim=(-2, -1)).pow(1 / p).to(x.dtype)


# (C, H, W) and the power of "gem" -> (C,)
POOLS: Mapping[str, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {"avg": _average, "max": _maximum, "gem": _generalised_mean}
)


def _check_size(size: Any) -> int | tuple[int, int] | str | None:
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        return check_min("size", size[0], 1), check_min("size", size[1], 1)
    if size is None or size == "native":
        return size
    if isinstance(size, int) and not isinstance(size, bool):
        return check_min("size", size, 1)
    raise ValueError(f"size must be None, a number, (height, width) or 'native', got {size!r}")


def _place_size(processor: ConvNextImageProcessor, size: Any) -> ConvNextImageProcessor:
    """Let the processor resize where it is the one to do so."""
    if size is None:
        return processor
    return (
        replace(processor, size=size)
        if isinstance(size, int)
        else replace(processor, do_resize=False)
    )


def _usable_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    return chosen


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str):
        check_choice("dtype", dtype, tuple(DTYPES))
        return DTYPES[dtype]
    check_choice("dtype", dtype, tuple(DTYPES.values()))
    return dtype
