"""The implementations that the benchmark compares, and how each gets the weights of ours."""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone, ConvNextConfig

from .cell import MODES, PRECISIONS, BenchmarkError, Cell
from .runtimes import openvino_computes_in, prepare_onnxruntime, prepare_openvino, to_array

STAGES = ("stage1", "stage2", "stage3", "stage4")
_PURE_DTYPES = ("float32", "bfloat16", "float16")  # without autocast


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes:
        build: Makes the module from a config; its weights do not matter yet.
        run: Gives the stages' maps of an image.
        rename: Pairs of a pattern in our parameter names and what stands there in theirs.
        kind: "ours", "peer" (somebody else's network in torch) or "runtime" (runs our network).
        needs: Modules that must be importable.
        modes: Modes that it takes part in.
        devices: Devices that it runs on.
        versions: 1 and 2, the block versions that it has.
        computes_in: Whether it can compute in a dtype, one of `PRECISIONS`.
        prepare: Makes the module that is timed out of the built one. It compiles as well, where the
            cell says so.
        to_input: Makes what `run` takes out of images (N, C, H, W).
    """

    build: Callable[[ConvNextConfig], nn.Module]
    run: Callable[[nn.Module, Any], Sequence[Any]]
    rename: tuple[tuple[str, str], ...] = ()
    kind: str = "peer"
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES
    devices: tuple[str, ...] = ("cpu", "cuda")
    versions: tuple[int, ...] = (1, 2)
    computes_in: Callable[[str], bool] = PRECISIONS.__contains__
    prepare: Callable[[nn.Module, Cell], nn.Module] | None = None
    to_input: Callable[[Tensor], Any] = lambda x: x

    def name_of(self, name: str) -> str:
        """Return the name of our parameter `name` in this implementation."""
        for pattern, replacement in self.rename:
            name = re.sub(pattern, replacement, name)
        return name


def _ours(with_cp: bool | str = False) -> Callable[[ConvNextConfig], nn.Module]:
    def build(config: ConvNextConfig) -> nn.Module:
        backbone = ConvNextBackbone(config, out_features=STAGES, with_cp=with_cp)
        # The peers give raw maps: equal work asks the same of ours.
        backbone.norms = nn.ModuleDict({name: nn.Identity() for name in STAGES})
        return backbone

    return build


def _optimize(module: nn.Module, cell: Cell) -> nn.Module:
    assert isinstance(module, ConvNextBackbone)
    compiled = cell.engine == "compile"
    return module.optimize_for_inference(dtype=cell.precision.weights, compile=compiled)


def _call(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return module(x)


def _build_timm(config: ConvNextConfig) -> nn.Module:
    import timm

    name = "convnextv2_tiny" if config.use_grn else "convnext_tiny"
    options: dict[str, Any] = {"depths": config.depths, "dims": config.hidden_sizes}
    if not config.use_grn:
        options["ls_init_value"] = config.layer_scale_init_value
    return timm.create_model(name, features_only=True, norm_eps=config.norm_eps, **options)


def _build_torchvision(config: ConvNextConfig) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    outs = (*config.hidden_sizes[1:], None)
    setting = [
        CNBlockConfig(*entry)
        for entry in zip(config.hidden_sizes, outs, config.depths, strict=True)
    ]
    return ConvNeXt(setting, layer_scale=config.layer_scale_init_value, num_classes=1).features


def _run_torchvision(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    maps = []
    for index, layer in enumerate(module.children()):
        x = layer(x)
        if index % 2:  # a downsampling layer, a stage, a downsampling layer, ...
            maps.append(x)
    return maps


def _build_transformers(config: ConvNextConfig) -> nn.Module:
    import transformers

    family = "ConvNextV2" if config.use_grn else "ConvNext"
    sizes = {"hidden_sizes": list(config.hidden_sizes), "depths": list(config.depths)}
    scale = {} if config.use_grn else {"layer_scale_init_value": config.layer_scale_init_value}
    theirs = getattr(transformers, f"{family}Config")(**sizes, **scale, out_features=list(STAGES))
    module = getattr(transformers, f"{family}Backbone")(theirs)
    for name in STAGES:
        module.hidden_states_norms[name] = nn.Identity()
    return module


def _build_mmpretrain(config: ConvNextConfig) -> nn.Module:
    backbones = importlib.import_module("mmpretrain.models.backbones")
    arch = {"depths": list(config.depths), "channels": list(config.hidden_sizes)}
    module = backbones.ConvNeXt(
        arch, use_grn=config.use_grn, layer_scale_init_value=config.layer_scale_init_value,
        out_indices=[0, 1, 2, 3], gap_before_final_norm=False,
    )  # fmt: skip
    for index in range(len(STAGES)):
        setattr(module, f"norm{index}", nn.Identity())
    return module


def _build_facebook(config: ConvNextConfig) -> nn.Module:
    file, name = ("convnextv2", "ConvNeXtV2") if config.use_grn else ("convnext", "ConvNeXt")
    build = getattr(importlib.import_module(f"models.{file}"), name)
    scale = {} if config.use_grn else {"layer_scale_init_value": config.layer_scale_init_value}
    return build(depths=list(config.depths), dims=list(config.hidden_sizes), **scale)


def _run_facebook(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    maps = []
    parts = (module.get_submodule(name).children() for name in ("downsample_layers", "stages"))
    for downsample, stage in zip(*parts, strict=True):
        x = stage(downsample(x))
        maps.append(x)
    return maps


_TIMM_NAMES = (
    (r"^downsample_layers\.0\.(\d)", r"stem_\1"),
    (r"^downsample_layers\.(\d)\.(\d)", r"stages_\1.downsample.\2"),
    (r"^stages\.(\d)\.(\d+)", r"stages_\1.blocks.\2"),
    (r"dwconv", "conv_dw"), (r"pwconv", "mlp.fc"),
    (r"grn\.gamma", "mlp.grn.weight"), (r"grn\.beta", "mlp.grn.bias"),
)  # fmt: skip
_TORCHVISION_NAMES = (
    (r"^downsample_layers\.0\.(\d)", r"0.\1"), (r"^downsample_layers\.1\.(\d)", r"2.\1"),
    (r"^downsample_layers\.2\.(\d)", r"4.\1"), (r"^downsample_layers\.3\.(\d)", r"6.\1"),
    (r"^stages\.0\.", "1."), (r"^stages\.1\.", "3."),
    (r"^stages\.2\.", "5."), (r"^stages\.3\.", "7."),
    (r"dwconv", "block.0"), (r"\.norm\.", ".block.2."),
    (r"pwconv1", "block.3"), (r"pwconv2", "block.5"), (r"gamma$", "layer_scale"),
)  # fmt: skip
_TRANSFORMERS_NAMES = (
    (r"^downsample_layers\.0\.0", "embeddings.patch_embeddings"),
    (r"^downsample_layers\.0\.1", "embeddings.layernorm"),
    (r"^downsample_layers\.(\d)\.(\d)", r"encoder.stages.\1.downsampling_layer.\2"),
    (r"^stages\.(\d)\.(\d+)", r"encoder.stages.\1.layers.\2"),
    (r"\.norm\.", ".layernorm."), (r"grn\.gamma", "grn.weight"), (r"grn\.beta", "grn.bias"),
    (r"(layers\.\d+)\.gamma$", r"\1.layer_scale_parameter"),
)  # fmt: skip
_MMPRETRAIN_NAMES = ((r"dwconv", "depthwise_conv"), (r"pwconv", "pointwise_conv"))


def _runtime(
    name: str,
    prepare: Callable[[nn.Module, Cell], nn.Module],
    computes_in: Callable[[str], bool],
) -> Contender:
    return Contender(
        _ours(), _call, kind="runtime", needs=(name, "onnx", "onnxscript"), modes=("inference",),
        devices=("cpu",), computes_in=computes_in, prepare=prepare, to_input=to_array,
    )  # fmt: skip


CONTENDERS: dict[str, Contender] = {
    "ours": Contender(_ours(), _call, kind="ours"),
    "ours selective": Contender(_ours("selective"), _call, kind="ours", modes=("training",)),
    "ours full": Contender(_ours(True), _call, kind="ours", modes=("training",)),
    "ours optimized": Contender(
        _ours(), _call, kind="ours", modes=("inference",),
        computes_in=_PURE_DTYPES.__contains__, prepare=_optimize,
    ),
    "timm": Contender(_build_timm, _call, _TIMM_NAMES, needs=("timm",)),
    "torchvision": Contender(
        _build_torchvision, _run_torchvision, _TORCHVISION_NAMES, versions=(1,)
    ),
    "transformers": Contender(
        _build_transformers, lambda m, x: m(x).feature_maps, _TRANSFORMERS_NAMES,
        needs=("transformers",),
    ),
    # Products of bf16 on the CPU: onnxruntime has none.
    "onnxruntime": _runtime("onnxruntime", prepare_onnxruntime, ("float32",).__contains__),
    "openvino": _runtime("openvino", prepare_openvino, openvino_computes_in),
    "mmpretrain": Contender(
        _build_mmpretrain, _call, _MMPRETRAIN_NAMES, needs=("mmpretrain",)
    ),
    "facebookresearch": Contender(
        _build_facebook, _run_facebook, needs=("models.convnext", "models.convnextv2")
    ),
}  # fmt: skip
# One of these gives the expected maps and gradients: the first that is there.
_REFERENCES = ("timm", "torchvision", "transformers")


def is_kind(name: str, kind: str) -> bool:
    """Whether a contender is of a kind: "ours", "peer" or "runtime"."""
    return CONTENDERS[name].kind == kind


def reference_for(version: int) -> str:
    """Return the contender by others that all are compared with.

    Raises:
        BenchmarkError: None that has blocks of this version can be imported.
    """
    for name in _REFERENCES:
        if version in CONTENDERS[name].versions and importable(CONTENDERS[name]):
            return name
    raise BenchmarkError("nothing to compare with: pip install timm")


def absence(name: str, cell: Cell) -> str | None:
    """Return why a contender takes no part in a cell, or None if it does."""
    contender = CONTENDERS[name]
    if cell.version not in contender.versions:
        return f"has no V{cell.version}"
    if cell.mode not in contender.modes:
        return f"does {contender.modes[0]} only"
    if cell.device not in contender.devices:
        return f"runs on {contender.devices[0]} only"
    if cell.engine == "compile" and contender.kind == "runtime":
        return "is not compiled by torch"
    return None if contender.computes_in(cell.dtype) else f"does not compute in {cell.dtype}"


def importable(contender: Contender) -> bool:
    """Whether the modules that the contender needs can be imported."""
    try:
        for name in contender.needs:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def randomise(module: nn.Module) -> None:
    """Give every parameter a value that matters: a layer scale of 1e-6 would hide the blocks."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.02 if parameter.ndim > 1 else 0.1)
            scale = re.search(r"weight$|\d\.gamma$", name)  # of a norm, or the layer scale
            if scale and parameter.ndim == 1:
                parameter.add_(1.0)


def copy_weights(ours: nn.Module, theirs: nn.Module, contender: Contender) -> None:
    """Give `theirs` the weights of `ours`.

    Raises:
        BenchmarkError: A parameter of ours has no namesake in theirs.
    """
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            other = named.get(contender.name_of(name))
            if other is None or other.numel() != parameter.numel():
                raise BenchmarkError(f"{type(theirs).__name__} has no parameter for {name}")
            other.copy_(parameter.view_as(other))
