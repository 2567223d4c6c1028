"""The other ConvNeXts as test references: tiny, of random weights, parameter by parameter.

Each peer says where it keeps what our trunk keeps, so that weights are copied and gradients
compared without any key map of the package itself.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone

DEPTHS, WIDTHS = (1, 2, 3, 1), (8, 16, 24, 32)
STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclass(frozen=True)
class Peer:
    """One implementation: how to build it, to run it, and what it calls our parameters."""

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]
    name_of: Callable[[str], str]  # our parameter name -> theirs
    fields: dict
    outputs: tuple[str, ...] = STAGES
    has_norms: bool = False


def _timm(**kwargs):
    return timm.create_model(
        kwargs.pop("name"), features_only=True, depths=DEPTHS, dims=WIDTHS, **kwargs
    )


def _timm_name(name):
    name = re.sub(r"^downsample_layers\.0\.(\d)", r"stem_\1", name)
    name = re.sub(r"^downsample_layers\.(\d)\.(\d)", r"stages_\1.downsample.\2", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)", r"stages_\1.blocks.\2", name)
    name = name.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
    return name.replace("grn.gamma", "mlp.grn.weight").replace("grn.beta", "mlp.grn.bias")


def _hf_name(name):
    name = name.replace("downsample_layers.0.0", "embeddings.patch_embeddings")
    name = name.replace("downsample_layers.0.1", "embeddings.layernorm")
    name = re.sub(
        r"^downsample_layers\.(\d)\.(\d)", r"encoder.stages.\1.downsampling_layer.\2", name
    )
    name = re.sub(r"^stages\.(\d)\.(\d+)", r"encoder.stages.\1.layers.\2", name)
    name = name.replace(".norm.", ".layernorm.").replace("grn.gamma", "grn.weight")
    name = re.sub(r"^norms\.", "hidden_states_norms.", name).replace("grn.beta", "grn.bias")
    return re.sub(r"(layers\.\d+)\.gamma$", r"\1.layer_scale_parameter", name)


def _dinov3_name(name):
    name = re.sub(r"^downsample_layers\.(\d)\.(\d)", r"model.stages.\1.downsample_layers.\2", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)", r"model.stages.\1.layers.\2", name)
    name = name.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")
    return name.replace(".norm.", ".layer_norm.")


def _torchvision_name(name):
    parts = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
    name = re.sub(r"^downsample_layers\.0\.(\d)", r"features.0.\1", name)
    name = re.sub(
        r"^downsample_layers\.(\d)\.(\d)",
        lambda m: f"features.{2 * int(m[1])}.{m[2]}",
        name,
    )
    name = re.sub(
        r"^stages\.(\d)\.(\d+)\.(\w+)",
        lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.{parts.get(m[3], m[3])}",
        name,
    )
    return name.replace(".gamma", ".layer_scale")


def _build_torchvision():
    setting = torchvision.models.convnext.CNBlockConfig
    widths = (*WIDTHS, None)
    blocks = [setting(widths[i], widths[i + 1], DEPTHS[i]) for i in range(4)]
    return torchvision.models.convnext.ConvNeXt(blocks, layer_scale=0.5, num_classes=3)


def _run_torchvision(model, x):
    maps = []
    for index, layer in enumerate(model.features):
        x = layer(x)
        if index % 2:
            maps.append(x)
    return tuple(maps)


_HF = {"hidden_sizes": list(WIDTHS), "depths": list(DEPTHS), "num_channels": 3}
_ALL = ("stem", *STAGES)

PEERS = {
    "timm_v1": Peer(
        lambda: _timm(name="convnext_tiny", ls_init_value=0.5),
        lambda m, x: tuple(m(x)),
        _timm_name,
        {"layer_scale_init_value": 0.5},
    ),
    "timm_v1_conv_mlp": Peer(
        lambda: _timm(name="convnext_atto", ls_init_value=0.5),
        lambda m, x: tuple(m(x)),
        _timm_name,
        {"layer_scale_init_value": 0.5},
    ),
    "timm_v2": Peer(
        lambda: _timm(name="convnextv2_tiny"),
        lambda m, x: tuple(m(x)),
        _timm_name,
        {"use_grn": True, "layer_scale_init_value": 0.0},
    ),
    "torchvision": Peer(
        _build_torchvision, _run_torchvision, _torchvision_name, {"layer_scale_init_value": 0.5}
    ),
    "transformers_v1": Peer(
        lambda: transformers.ConvNextBackbone(
            transformers.ConvNextConfig(**_HF, out_features=list(_ALL), layer_scale_init_value=0.5)
        ),
        lambda m, x: m(x).feature_maps,
        _hf_name,
        {"layer_scale_init_value": 0.5},
        outputs=_ALL,
        has_norms=True,
    ),
    "transformers_v2": Peer(
        lambda: transformers.ConvNextV2Backbone(
            transformers.ConvNextV2Config(**_HF, out_features=list(_ALL))
        ),
        lambda m, x: m(x).feature_maps,
        _hf_name,
        {"use_grn": True, "layer_scale_init_value": 0.0},
        outputs=_ALL,
        has_norms=True,
    ),
    "transformers_dinov3": Peer(
        lambda: transformers.DINOv3ConvNextBackbone(
            transformers.DINOv3ConvNextConfig(**_HF, out_features=list(STAGES))
        ),
        lambda m, x: m(x).feature_maps,
        _dinov3_name,
        {},
    ),
}


def parameter_pairs(ours: nn.Module, theirs: nn.Module, peer: Peer) -> Iterator[tuple]:
    """Yield (name, our parameter, their parameter) for all of ours."""
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        yield name, parameter, named[peer.name_of(name)]


def randomise(module: nn.Module) -> nn.Module:
    """Give every parameter a value that matters: no zeros, no ones, no tiny layer scales."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return module


def build_pair(peer_name: str, **fields) -> tuple[ConvNextBackbone, nn.Module, Peer]:
    """Build a peer with random weights, and ours with the same."""
    peer = PEERS[peer_name]
    theirs = randomise(peer.build()).eval()
    ours = ConvNextBackbone(
        hidden_sizes=WIDTHS, depths=DEPTHS, out_features=peer.outputs, **peer.fields, **fields
    ).eval()
    if not peer.has_norms:
        ours.norms = nn.ModuleDict({name: nn.Identity() for name in peer.outputs})
    with torch.no_grad():
        for _, mine, other in parameter_pairs(ours, theirs, peer):
            mine.copy_(other.view_as(mine))
    return ours, theirs, peer
