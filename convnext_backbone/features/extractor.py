"""FeatureExtractor: images of any kind in, named features out.

Axes: N batch, C channels, H height, W width, in pixels.
"""

import hashlib
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._version import __version__
from ..images.items import ImageItem, as_item, expand, is_single, iter_items
from ..images.processor import ConvNextImageProcessor
from ..models.backbone import ConvNextBackbone
from ..models.config import ConvNextConfig
from .batching import Compute, batched_by, compute_with, prepare_ahead, stack_padded
from .network import build_network
from .options import (
    CLS,
    POOLS,
    ImageOptions,
    OutputOptions,
    RunOptions,
    choose_options,
    parse_device,
    parse_dtype,
    parse_size,
    recorded_options,
)

_LOOKAHEAD = 8  # batches' worth of images among which those of one size are put together
_VERSIONS = ("torchvision", "numpy", "Pillow", "safetensors")


class Features(dict[str, Tensor]):
    """The features of one image by name: maps (C, H, W), or vectors (C,) when pooled.

    `index` is its position in the source, `name` its path or position, `image_size` its (height,
    width) as the network saw it, without padding, and `original_size` before it was prepared.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prepared: "_Prepared") -> None:
        super().__init__(tensors)
        self.index = prepared.item.index
        self.name = prepared.item.name
        self.image_size = prepared.size
        self.original_size = prepared.original_size


@dataclass(frozen=True)
class Failure:
    """Takes the place of the features of an image that could not be used.

    It is false, as features never are: `if result:` tells them apart.
    """

    index: int
    name: str
    reason: str  # in one line

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.reason if repr(self.name) in self.reason else f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class _Prepared:
    item: ImageItem
    pixels: Tensor  # (C, H, W), normalised
    original_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]


class FeatureExtractor:
    """Run images through a ConvNeXt and return its features by name.

    Example:
        >>> fx = FeatureExtractor("convnext_atto.d2_in1k", out_features=["stage3", "stage4"])
        >>> fx("cat.jpg")["stage4"].shape
        torch.Size([320, 7, 7])
        >>> fx = FeatureExtractor("my-backbone", pool="avg", on_error="skip", batch_size=32)
        >>> for result in fx.stream("photos/"):
        ...     print(result.name, result["stage4"].shape if result else result.reason)
        photos/a.jpg torch.Size([320])
        photos/b.png torch.Size([320])
        photos/c.png torch.Size([320])

    Args:
        source: Anything that `load_weights` reads, a `ConvNextBackbone`, `ConvNextModel` or
            `ConvNextForImageClassification` (copied), or, with `checkpoint`, an OpenMMLab config.
            A backbone gives maps through the norms of its outputs, a model has no such norms.
        checkpoint: The checkpoint of an OpenMMLab config.
        out_features: Names of the features, or "stages" for every stage. When not given, those of
            the network or the OpenMMLab config, and of weights the last stage.
        out_indices: The same as positions among the stem and the stages.
        norm: Pass maps through the norms of a backbone's outputs. False gives the maps before them.
        pool: None gives maps (C, H, W); "avg", "max" and "gem" reduce each to a vector (C,); "cls"
            gives one vector, the normed average that a classifier or DINOv3 works on.
        gem_p: The power of "gem", the generalised mean (Radenovic et al., arXiv 1711.02512).
        processor: How images are prepared; by default what belongs to the weights, else 224 pixels
            with ImageNet's mean and deviation (averaged, for other than three channels).
        size: None resizes as the processor does, a number to another side, (height, width)
            warps to it, "native" leaves the image as it is.
        pad: Pad images to whole strides and cut the maps back to those that the image touches.
            Without, pixels beyond the last whole stride are dropped.
        dtype: Of the computation and of the features: "float32", "bfloat16", "float16" or the
            torch dtype of this name.
        device: Where the network runs; CUDA where there is one.
        channels_last: Keep the weights in channels-last memory as well.
        batch_size: Images in a batch; those of one size are put together.
        num_workers: Threads that decode images, at most four when not given; 0 decodes in between.
        compute_workers: Batches that the CPU computes at a time, each with one thread, so that the
            rounding does not depend on the number of threads; 0 computes one with all threads.
        on_error: For an image that cannot be read, "raise", or "skip" and return a `Failure`.
        progress: Show a bar with the rate and the time left.
        load_options: Options of `load_weights`.

    Attributes:
        source, licence: What the weights came from, and their licence where it is known.
        model, processor: The network and the processor in use.
        names: The names of the features.
        output_options, image_options, run_options: The arguments in three groups.

    Raises:
        ValueError: An argument is out of its range or does not fit the source.
        TypeError: The source, the processor or the device is of no known kind, or an argument is
            unknown.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | nn.Module,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        out_features: Sequence[str] | str | None = None,
        out_indices: Sequence[int] | None = None,
        norm: bool = True,
        pool: str | None = None,
        gem_p: float = 3.0,
        processor: ConvNextImageProcessor | None = None,
        size: int | tuple[int, int] | str | None = None,
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
        # Each argument is named here, where help() shows it, and checked in the group it is of.
        size, dtype, device = parse_size(size), parse_dtype(dtype), parse_device(device)
        if num_workers is None:
            num_workers = min(4, os.cpu_count() or 1)
        arguments = locals()
        self.output_options = choose_options(OutputOptions, arguments)
        self.image_options = choose_options(ImageOptions, arguments)
        self.run_options = choose_options(RunOptions, arguments)
        network = build_network(source, checkpoint, self.output_options, load_options, processor)
        self.source, self.licence = network.name, network.licence
        self.processor = self.image_options.build_processor(network.processor)
        self.names = (CLS,) if pool == CLS else tuple(network.model.config.out_features or ())
        self.model = self.run_options.prepare_model(network.model)

    # What it computes: names, channels and strides.

    @property
    def config(self) -> ConvNextConfig:
        """The architecture."""
        return self.model.config

    @property
    def channels(self) -> dict[str, int]:
        """The channels of each feature."""
        return self._by_name((self.config.hidden_sizes[0], *self.config.hidden_sizes))

    @property
    def strides(self) -> dict[str, int]:
        """The stride of each feature's map, in pixels of the prepared image."""
        return self._by_name(self.config.strides)

    def _by_name(self, values: Sequence[int]) -> dict[str, int]:
        """Return the values that the features have among those of the stem and the stages."""
        by_stage = dict(zip(self.config.stage_names, values, strict=True))
        return {name: by_stage[self._stage_of(name)] for name in self.names}

    @property
    def stride(self) -> int:
        """The largest stride among the features."""
        return max(self.strides.values())

    def _stage_of(self, name: str) -> str:
        return self.config.stage_names[-1] if name == CLS else name

    def describe(self) -> dict[str, Any]:
        """Return, ready for JSON, all that decides about the values of the features."""
        output, images, run = self.output_options, self.image_options, self.run_options
        options = recorded_options(output) | recorded_options(images) | recorded_options(run)
        options.update(dtype=str(run.dtype).removeprefix("torch."), device=run.device.type)
        if output.pool != "gem":
            del options["gem_p"]
        return {
            "weights": {
                "source": self.source,
                "sha256": self.fingerprint(),
                "licence": self.licence,
            },
            "architecture": self.config.to_dict(),
            "features": {
                name: {"channels": self.channels[name], "stride": self.strides[name]}
                for name in self.names
            },
            "preprocessing": {**self.processor.to_dict(), "backend": self.processor.backend},
            **options,
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

    # Sizes of prepared images, batches and maps.

    @property
    def has_one_size(self) -> bool:
        """Whether every image has the same size once it is prepared."""
        return isinstance(self.image_options.size, tuple) or self.processor.do_resize

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the batch that holds a prepared image of this size."""
        s = self.stride if self.image_options.pad else 1
        return math.ceil(height / s) * s, math.ceil(width / s) * s

    def map_size(self, name: str, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of a feature's map for a prepared image of this size."""
        s, rounded = self.strides[name], math.ceil if self.image_options.pad else math.floor
        return rounded(height / s), rounded(width / s)

    # Images in, features out.

    def __call__(self, images: Any) -> Features | list[Features | Failure]:
        """Return the features of one image, or of every image of a collection, in order.

        Args:
            images: A path, Pillow image, array or tensor gives one result. A folder, a glob, a
                `.tar`, a `.txt`, `.csv` or `.parquet` list of paths, a Python list, a batch
                (N, C, H, W), an iterator, a dataset or an `ImageList` gives a list, with a
                `Failure` in the place of each image that was skipped.

        Raises:
            ValueError: An image cannot be read and `on_error` is "raise", or it is the only one;
                or a path holds no image. (An empty list gives an empty list.)
            TypeError: The source holds no images.
        """
        return self.run_one(images) if is_single(images) else list(self.stream(images))

    def run_one(self, image: Any) -> Features:
        """Return the features of one image, with the errors of a call."""
        (result,) = self.stream(image)
        if isinstance(result, Failure):
            raise ValueError(str(result))
        return result

    def stream(self, images: Any) -> Iterator[Features | Failure]:
        """Yield the results in the order of the images, holding a few batches in memory.

        With `on_error="skip"`, an image that could not be used yields a `Failure`, which is false.
        `index` and `name` of a result are those of its image. Arguments and errors: as in a call.
        """
        source = expand(images)
        run = self.run_options
        total = len(source) if hasattr(source, "__len__") else None
        bar = tqdm(total=total, unit="image", disable=not run.progress)
        length = run.batch_size * _LOOKAHEAD
        windows = prepare_ahead(self._prepare, iter_items(source), length, run.num_workers)
        workers = run.compute_workers if run.device.type == "cpu" else 0
        with bar, closing(windows), compute_with(workers) as compute:
            for window in windows:
                yield from self._run(window, compute)
                bar.update(len(window))

    def prepare(self, image: Any) -> Tensor:
        """Return one image as the network sees it, (C, H, W), normalised and not yet padded.

        Given back as `{"pixel_values": prepared}`, its features are computed. Errors: as in a call.
        """
        return self._prepare_item(as_item(0, image)).pixels

    def _prepare(self, item: ImageItem) -> _Prepared | Failure:
        try:
            return self._prepare_item(item)
        except Exception as error:  # of a decoder or of the caller's dataset, about this image
            reason = " ".join(str(error).split()) or type(error).__name__
            failure = Failure(item.index, item.name, reason)
            if self.run_options.on_error == "raise":
                raise ValueError(str(failure)) from error
            return failure

    def _prepare_item(self, item: ImageItem) -> _Prepared:
        item = item.fetch()
        original = pixels = item.image
        if not item.ready:
            original = self.processor.to_tensor(pixels, num_channels=self.config.num_channels)
            sized = self.image_options.size
            warped = self.processor.warp(original, sized) if isinstance(sized, tuple) else original
            (pixels,) = self.processor.process_tensors([warped])
        channels = self.config.num_channels
        if pixels.ndim != 3 or pixels.shape[0] != channels or 0 in pixels.shape:
            raise ValueError(
                f"pixel_values must have shape ({channels}, H, W), got {tuple(pixels.shape)}"
            )
        if not pixels.is_floating_point():
            raise TypeError(f"pixel_values must be floating point, got {pixels.dtype}")
        if not torch.isfinite(pixels).all():
            raise ValueError("pixel_values must not hold NaN or infinite values")
        height, width = pixels.shape[1:]
        if not self.image_options.pad and min(height, width) < self.stride:
            raise ValueError(
                f"an image of {height}x{width} is smaller than the stride {self.stride}"
            )
        return _Prepared(item, pixels, (original.shape[-2], original.shape[-1]))

    def _run(
        self, window: Sequence[_Prepared | Failure], compute: Compute
    ) -> list[Features | Failure]:
        """Compute the images of a window, those of one size at once; failures stay in place."""
        prepared = [entry for entry in window if isinstance(entry, _Prepared)]
        sizes = [self.padded_size(*entry.size) for entry in prepared]
        batches = list(batched_by(sizes, self.run_options.batch_size))
        chosen = [[prepared[i] for i in positions] for _, positions in batches]
        computed = compute(self._run_batch, chosen, [size for size, _ in batches])
        by_index = {features.index: features for batch in computed for features in batch}
        return [
            entry if isinstance(entry, Failure) else by_index[entry.item.index] for entry in window
        ]

    def _run_batch(self, prepared: list[_Prepared], size: tuple[int, int]) -> list[Features]:
        batch = stack_padded([entry.pixels for entry in prepared], *size)
        run = self.run_options
        try:
            maps = self._maps(batch.to(run.device, run.dtype))
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{len(prepared)} images of {size[0]}x{size[1]} do not fit into the memory of "
                f"{run.device}: lower batch_size or size"
            ) from error
        return [self._features_of(maps, row, entry) for row, entry in enumerate(prepared)]

    # Not inference mode: its tensors cannot be the input of a head that is then trained.
    @torch.no_grad()
    def _maps(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the maps (N, C, H, W) of a batch by name."""
        if self.output_options.norm and isinstance(self.model, ConvNextBackbone):
            return dict(zip(self.names, self.model(batch), strict=True))
        stages = self.config.stage_names
        wanted = [self._stage_of(name) for name in self.names]
        maps = self.model.iter_maps(batch, last=stages.index(wanted[-1]))
        kept = [x for stage, x in zip(stages, maps, strict=False) if stage in wanted]
        return dict(zip(self.names, kept, strict=True))  # both in the order of the stages

    @torch.no_grad()
    def _features_of(self, maps: Mapping[str, Tensor], row: int, entry: _Prepared) -> Features:
        """Cut the maps of one image out of those of its batch, and pool them."""
        tensors = {}
        for name, batch in maps.items():
            h, w = self.map_size(name, *entry.size)
            tensors[name] = self._pool(batch[row, :, :h, :w]).cpu()
        return Features(tensors, entry)

    def _pool(self, x: Tensor) -> Tensor:
        """Reduce a map (C, H, W) to (C,), unless `pool` is None."""
        pool = self.output_options.pool
        if pool is None:
            return x.clone(memory_format=torch.contiguous_format)
        if pool == CLS:
            return self.model.get_submodule("norm")(x.mean(dim=(-2, -1)))
        return POOLS[pool](x, self.output_options.gem_p)
