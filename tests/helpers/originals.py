"""Checkpoints as their original homes write them: tiny, of random weights, with their outputs.

timm, torchvision and transformers are installed and write their own. The homes that are not are
represented by `Facebook`, an independent network with facebookresearch's parameter names, and by
writers that follow the published key layouts letter by letter.
"""

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

DEPTHS, WIDTHS, CLASSES = (1, 2, 1, 1), (8, 16, 24, 32), 5


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module.eval()


# ------------------------------------------------------------------------------ facebookresearch


def _norm(x: Tensor, layer: nn.LayerNorm, dim: int) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(dim, keepdim=True) + layer.eps)
    shape = [1] * x.dim()
    shape[dim] = -1
    return scaled * layer.weight.view(shape) + layer.bias.view(shape)


class _Grn(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        size = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        return self.gamma * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class _Block(nn.Module):
    def __init__(self, dim: int, version: int, scaled: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        if version == 2:
            self.grn = _Grn(4 * dim)
        elif scaled:
            self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = _norm(self.dwconv(x), self.norm, 1).permute(0, 2, 3, 1)
        y = nn.functional.gelu(self.pwconv1(y))
        y = self.pwconv2(self.grn(y) if hasattr(self, "grn") else y)
        y = self.gamma * y if hasattr(self, "gamma") else y
        return x + y.permute(0, 3, 1, 2)


class Facebook(nn.Module):
    """A ConvNeXt with the parameter names of models/convnext.py and models/convnextv2.py."""

    def __init__(self, version=1, *, dense=False, dinov3=False, scaled=True, channels=3) -> None:
        super().__init__()
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
            if i == 0:
                parts = (nn.Conv2d(channels, dim, 4, 4), nn.LayerNorm(dim, eps=1e-6))
            else:
                before = WIDTHS[i - 1]
                parts = (nn.LayerNorm(before, eps=1e-6), nn.Conv2d(before, dim, 2, 2))
            self.downsample_layers.append(nn.Sequential(*parts))
            blocks = (_Block(dim, version, scaled) for _ in range(depth))
            self.stages.append(nn.Sequential(*blocks))
        if dense:
            for i, dim in enumerate(WIDTHS):
                self.add_module(f"norm{i}", nn.LayerNorm(dim, eps=1e-6))
            return
        self.norm = nn.LayerNorm(WIDTHS[-1], eps=1e-6)
        if dinov3:
            self.head = nn.Identity()
            self.norms = nn.ModuleList([*(nn.Identity() for _ in range(3)), self.norm])
        else:
            self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def maps(self, x: Tensor) -> list[Tensor]:
        out = []
        for i in range(4):
            first, second = self.downsample_layers[i]
            x = _norm(first(x), second, 1) if i == 0 else second(_norm(x, first, 1))
            x = self.stages[i](x)
            out.append(x)
        return out

    def normed(self, x: Tensor) -> list[Tensor]:
        return [_norm(m, getattr(self, f"norm{i}"), 1) for i, m in enumerate(self.maps(x))]

    def pooled(self, x: Tensor) -> Tensor:
        return _norm(self.maps(x)[-1].mean((2, 3)), self.norm, 1)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x))


@cache
def facebook(**kwargs) -> Facebook:
    return randomise(Facebook(**kwargs))


# ------------------------------------------------------------------------------ writers


def to_mmpretrain(state: dict, *, four_d: bool = False, flat_grn: bool = True) -> dict:
    """What mmpretrain's ConvNeXt classifier of the same weights has in its state dict."""
    out = {}
    for key, value in state.items():
        key = re.sub(r"^norm\.", "norm3.", key)
        key = key.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")
        key = key.replace("head.", "head.fc.") if key.startswith("head.") else f"backbone.{key}"
        if four_d and "pointwise_conv" in key and key.endswith("weight"):
            value = value[:, :, None, None]
        out[key] = value.flatten() if ".grn." in key and flat_grn else value
    return out


def to_sparse(state: dict) -> dict:
    """What a FCMAE of MinkowskiEngine holds: tap t of a kernel is column t // k, row t % k."""
    out = {"mask_token": torch.zeros(1, 12, 1, 1), "proj.weight": torch.zeros(12, 32, 1, 1)}
    out |= {"decoder.0.norm.weight": torch.ones(12), "pred.bias": torch.zeros(48)}
    for key, value in state.items():
        if key.startswith(("norm.", "head.")):
            continue
        deep = re.match(r"downsample_layers\.[1-9]\.(\d)", key)
        if deep and deep[1] == "0":
            key = key.replace(".0.weight", ".0.ln.weight").replace(".0.bias", ".0.ln.bias")
        elif (deep or "dwconv" in key) and key.endswith("bias"):
            value = value[None]
        elif deep or ("dwconv" in key and key.endswith("weight")):
            key, value = key.replace("weight", "kernel"), _minkowski(value)
        key = re.sub(r"(stages\.\d\.\d)\.norm\.", r"\1.norm.ln.", key)
        key = re.sub(r"(pwconv\d)\.", r"\1.linear.", key)
        out[f"encoder.{key}"] = value.reshape(1, -1) if ".grn." in key else value
    return out


def _minkowski(weight: Tensor) -> Tensor:
    out_dim, in_dim, k, _ = weight.shape
    kernel = torch.empty(k * k, in_dim, out_dim)
    for row in range(k):
        for column in range(k):
            kernel[column * k + row] = weight[:, :, row, column].t()
    return kernel[:, 0] if in_dim == 1 and k == 7 else kernel


def _hwio(value: Tensor) -> np.ndarray:
    return value.permute(*((1, 0) if value.dim() == 2 else (2, 3, 1, 0))).numpy()


def _affine(module: nn.Module) -> list[tuple[str, np.ndarray]]:
    if isinstance(module, nn.LayerNorm):
        return [("gamma", module.weight.numpy()), ("beta", module.bias.numpy())]
    return [("kernel", _hwio(module.weight)), ("bias", module.bias.numpy())]


def _keras_layers(model: Facebook, name: str) -> list[tuple[str, str, list]]:
    """The layers in Keras' order: (class, path, variables)."""
    layers = []
    stem, norm = model.downsample_layers[0]
    layers.append(("conv2d", f"{name}_stem/{name}_stem_conv", _affine(stem)))
    layers.append(("layer_normalization", f"{name}_stem/{name}_stem_layernorm", _affine(norm)))
    for s in range(4):
        for b, block in enumerate(model.stages[s]):
            place = f"{name}_stage_{s}_block_{b}"
            layers += [
                ("conv2d", f"{place}_depthwise_conv", _affine(block.dwconv)),
                ("layer_normalization", f"{place}_layernorm", _affine(block.norm)),
                ("dense", f"{place}_pointwise_conv_1", _affine(block.pwconv1)),
                ("dense", f"{place}_pointwise_conv_2", _affine(block.pwconv2)),
                ("layer_scale", f"{place}_layer_scale", [("variable", block.gamma.numpy())]),
            ]
        if s < 3:
            norm, conv = model.downsample_layers[s + 1]
            place = f"{name}_downsampling_block_{s}/{name}_downsampling"
            layers.append(("layer_normalization", f"{place}_layernorm_{s}", _affine(norm)))
            layers.append(("conv2d", f"{place}_conv_{s}", _affine(conv)))
    layers.append(("layer_normalization", f"{name}_head_layernorm", _affine(model.norm)))
    layers.append(("dense", f"{name}_head_dense", _affine(model.head)))
    return layers


def write_keras_legacy(model: Facebook, path: Path, *, keras: int = 3) -> None:
    """A `.h5` of keras.applications: Keras 3's `model.save`, or Keras 2's `save_weights`."""
    groups: dict[str, list] = {}
    scales = 0
    with torch.no_grad():
        for kind, layer, variables in _keras_layers(model, "convnext_tiny"):
            group = layer.split("/")[0]
            for variable, value in variables:
                if kind == "layer_scale":
                    variable, scales = f"variable_{scales}" if scales else "variable", scales + 1
                full = f"{layer}/{variable}"
                if keras == 2:
                    inner = layer.split("/")[-1]
                    full = "Variable:0" if kind == "layer_scale" else f"{inner}/{variable}:0"
                groups.setdefault(group, []).append((full, value))
    groups["convnext_tiny_head_gap"] = []
    if keras == 2:
        normalisation = "convnext_tiny_prestem_normalization"
        groups[normalisation] = [(f"{normalisation}/mean:0", np.zeros(3, "float32"))]
    with h5py.File(path, "w") as file:
        root = file if keras == 2 else file.create_group("model_weights")
        as_saved = (lambda s: s.encode()) if keras == 2 else (lambda s: s)
        root.attrs["layer_names"] = [as_saved(g) for g in groups]
        for name, variables in groups.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [as_saved(n) for n, _ in variables]
            for full, value in variables:
                group[full] = value


def write_keras_nested(model: Facebook, path: Path) -> None:
    """A `.h5` whose ConvNeXt is one layer of another model: its paths leave its name out."""
    with h5py.File(path, "w") as file, torch.no_grad():
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = ["my_net", "dense_1"]
        group = root.create_group("my_net")
        layers = _keras_layers(model, "my_net")
        full = {f"{layer}/{v}": value for _, layer, pairs in layers for v, value in pairs}
        group.attrs["weight_names"] = list(full)
        for name, value in full.items():
            group[name] = value
        dense = root.create_group("dense_1")
        dense.attrs["weight_names"] = ["dense_1/kernel"]
        dense["dense_1/kernel"] = np.zeros((32, 3), "float32")


def write_keras_v3(model: Facebook, path, *, named: bool = True) -> None:
    """A `.weights.h5`: groups of a class and a counter; the name is an attribute since 3.7."""
    counters: dict[tuple[str, str], int] = {}
    containers: dict[str, str] = {}

    def numbered(place: str, kind: str) -> str:
        number = counters.get((place, kind), 0)
        counters[place, kind] = number + 1
        return f"{place}/layers/{kind}_{number}" if number else f"{place}/layers/{kind}"

    with h5py.File(path, "w") as file, torch.no_grad():
        for kind, layer, variables in _keras_layers(model, "convnext_tiny"):
            outer, _, inner = layer.rpartition("/")
            if outer and outer not in containers:
                containers[outer] = numbered("", "sequential")
                group = file.create_group(f"{containers[outer]}/vars")
                if named:
                    group.attrs["name"] = outer
            group = file.create_group(f"{numbered(containers.get(outer, ''), kind)}/vars")
            if named:
                group.attrs["name"] = inner
            for index, (_, value) in enumerate(variables):
                group[str(index)] = value
        file.create_group("/layers/activation/vars")


def write_keras_archive(model: Facebook, path: Path) -> None:
    buffer = io.BytesIO()
    write_keras_v3(model, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", buffer.getvalue())


def write_tf(model: Facebook, path: Path) -> None:
    """The tf_model.h5 of transformers' TFConvNext[V2]ForImageClassification."""
    is_v2 = any(".grn." in key for key in model.state_dict())
    main = "convnextv2" if is_v2 else "convnext"
    home = f"tf_conv_next{'_v2' * is_v2}_for_image_classification"
    trunk: list[tuple[str, np.ndarray]] = []

    def add(place: str, variables: list) -> None:
        trunk.extend((f"{home}/{main}/{place}/{v}:0", value) for v, value in variables)

    with torch.no_grad():
        for s in range(4):
            parts = ("patch_embeddings", "layernorm") if s == 0 else ("0", "1")
            root = "embeddings/" if s == 0 else f"encoder/stages.{s}/downsampling_layer."
            for part, module in zip(parts, model.downsample_layers[s], strict=True):
                add(root + part, _affine(module))
            for b, block in enumerate(model.stages[s]):
                place = f"encoder/stages.{s}/layers.{b}"
                for part in ("dwconv", "norm", "pwconv1", "pwconv2"):
                    layer = part.replace("norm", "layernorm")
                    add(f"{place}/{layer}", _affine(getattr(block, part)))
                if is_v2:
                    grn = block.grn
                    pair = [("weight", grn.gamma.numpy()), ("bias", grn.beta.numpy())]
                    add(f"{place}/grn", pair)
                else:
                    add(place, [("layer_scale_parameter", block.gamma.numpy())])
        add("layernorm", _affine(model.norm))
        head = [(f"{home}/classifier/{v}:0", value) for v, value in _affine(model.head)]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [main, "classifier"]
        for layer, variables in ((main, trunk), ("classifier", head)):
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name for name, _ in variables]
            for name, value in variables:
                group[name] = value


# ------------------------------------------------------------------------------ the list


@dataclass(frozen=True)
class Original:
    """One file: how it is written, which layout it is, and what its author computes."""

    layout: str
    write: Callable[[Path], Path]  # a folder -> the file or directory
    maps: Callable[[Tensor], list[Tensor]]
    normed: Callable[[Tensor], list[Tensor]] | None = None
    logits: Callable[[Tensor], Tensor] | None = None


def _saved(make: Callable[[], object], name: str = "weights.pth") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(make(), folder / name)
        return folder / name

    return write


def _written(writer: Callable[..., None], name: str, model: Facebook, **kwargs):
    def write(folder: Path) -> Path:
        writer(model, folder / name, **kwargs)
        return folder / name

    return write


def _cls(model: Facebook) -> dict:
    return {"maps": model.maps, "logits": model.logits}


V1, V2 = facebook(version=1), facebook(version=2)
DENSE, DENSE_V2 = facebook(version=1, dense=True), facebook(version=2, dense=True)
DINOV3, UNSCALED = facebook(dinov3=True), facebook(scaled=False)


def _without(state: dict, *starts: str) -> dict:
    return {k: v for k, v in state.items() if not k.startswith(starts)}


def _eupe() -> dict:
    extra = {f"norms.{i}.weight": torch.ones(w) for i, w in enumerate(WIDTHS)}
    return {**_without(V1.state_dict(), "head."), **extra, "projectors.a.weight": torch.ones(2, 2)}


def _detector() -> dict:
    heads = {"neck.fpn_convs.0.conv.weight": torch.ones(4), "bbox_head.fc.bias": torch.ones(4)}
    return {"state_dict": {**{f"backbone.{k}": v for k, v in DENSE.state_dict().items()}, **heads}}


def _mm_detector() -> dict:
    state = {f"backbone.{k}": v for k, v in DENSE_V2.state_dict().items()}
    state = {
        k.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv"): (
            v.flatten() if ".grn." in k else v
        )
        for k, v in state.items()
    }
    return {
        "meta": {"epoch": 3},
        "state_dict": {**state, "decode_head.conv_seg.bias": torch.ones(3)},
    }


ORIGINALS: dict[str, Original] = {
    "facebook_v1": Original("facebook-v1", _saved(lambda: {"model": V1.state_dict()}), **_cls(V1)),
    "facebook_v1_no_layer_scale": Original(
        "facebook-v1", _saved(UNSCALED.state_dict), **_cls(UNSCALED)
    ),
    "facebook_v2": Original("facebook-v2", _saved(lambda: {"model": V2.state_dict()}), **_cls(V2)),
    "facebook_fcmae": Original(
        "facebook-fcmae",
        _saved(lambda: {"model": _without(V2.state_dict(), "norm.", "head.")}),
        V2.maps,
    ),
    "facebook_fcmae_sparse": Original(
        "facebook-fcmae-sparse", _saved(lambda: {"model": to_sparse(V2.state_dict())}), V2.maps
    ),
    "facebook_dinov3": Original("facebook-dinov3", _saved(DINOV3.state_dict), DINOV3.maps),
    "facebook_detector": Original(
        "facebook-dense", _saved(_detector), DENSE.maps, normed=DENSE.normed
    ),
    "eupe": Original("eupe", _saved(_eupe), V1.maps),
    "mmpretrain_v1": Original(
        "mmpretrain",
        _saved(lambda: {"state_dict": to_mmpretrain(V1.state_dict())}),
        **_cls(V1),
    ),
    "mmpretrain_v1_conv": Original(
        "mmpretrain",
        _saved(lambda: {"state_dict": to_mmpretrain(V1.state_dict(), four_d=True)}),
        **_cls(V1),
    ),
    "mmpretrain_v2": Original(
        "mmpretrain",
        _saved(lambda: {"state_dict": to_mmpretrain(V2.state_dict())}),
        **_cls(V2),
    ),
    "mmpretrain_v2_unflattened_grn": Original(
        "mmpretrain",
        _saved(lambda: {"state_dict": to_mmpretrain(V2.state_dict(), flat_grn=False)}),
        **_cls(V2),
    ),
    "mmpretrain_downstream": Original(
        "mmpretrain",
        _saved(lambda: _without(to_mmpretrain(V1.state_dict()), "head.", "backbone.norm3")),
        V1.maps,
    ),
    "mmpretrain_segmentor": Original(
        "mmpretrain", _saved(_mm_detector), DENSE_V2.maps, normed=DENSE_V2.normed
    ),
    "keras_h5": Original("keras", _written(write_keras_legacy, "m.h5", V1), **_cls(V1)),
    "keras_2_h5": Original("keras", _written(write_keras_legacy, "m.h5", V1, keras=2), **_cls(V1)),
    "keras_nested_h5": Original("keras", _written(write_keras_nested, "m.h5", V1), **_cls(V1)),
    "keras_weights_h5": Original(
        "keras-numbered", _written(write_keras_v3, "m.weights.h5", V1), **_cls(V1)
    ),
    "keras_archive": Original(
        "keras-numbered", _written(write_keras_archive, "m.keras", V1), **_cls(V1)
    ),
    "tf_v1": Original("huggingface-tf", _written(write_tf, "tf_model.h5", V1), **_cls(V1)),
    "tf_v2": Original("huggingface-tf", _written(write_tf, "tf_model.h5", V2), **_cls(V2)),
}


# ------------------------------------------------------------------------------ installed homes


def _timm(**kwargs) -> nn.Module:
    return randomise(
        timm.models.convnext.ConvNeXt(depths=DEPTHS, dims=WIDTHS, num_classes=CLASSES, **kwargs)
    )


def _timm_maps(model: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: model.forward_intermediates(x, intermediates_only=True)


TIMM = {
    "timm_v1": _timm(),
    "timm_v1_conv_mlp": _timm(conv_mlp=True),
    "timm_v1_no_layer_scale": _timm(ls_init_value=None),
    "timm_v2": _timm(use_grn=True, ls_init_value=None),
    "timm_v2_conv_mlp": _timm(use_grn=True, ls_init_value=None, conv_mlp=True),
}
for _name, _model in TIMM.items():
    ORIGINALS[_name] = Original(
        "timm", _saved(_model.state_dict), _timm_maps(_model), logits=_model
    )


def _openclip() -> dict:
    trunk = _without(TIMM["timm_v1"].state_dict(), "head.fc")
    state = {f"module.visual.trunk.{k}": v for k, v in trunk.items()}
    return {"state_dict": {**state, "module.visual.head.proj.weight": torch.ones(4, 32),
                           "module.transformer.resblocks.0.weight": torch.ones(3)}}  # fmt: skip


def _flattened(wrapper: str) -> dict:
    """timm's features_only, optionally inside mmpretrain's TIMMBackbone."""
    state = _without(TIMM["timm_v1"].state_dict(), "head.")
    return {wrapper + re.sub(r"^(stem|stages)\.", r"\1_", k): v for k, v in state.items()}


_maps = _timm_maps(TIMM["timm_v1"])
ORIGINALS |= {
    "openclip": Original("timm", _saved(_openclip), _maps),
    "timm_features": Original("timm-features", _saved(lambda: _flattened("")), _maps),
    "timm_backbone_of_mmpretrain": Original(
        "timm-features",
        _saved(lambda: {"state_dict": _flattened("backbone.timm_model.")}),
        _maps,
    ),
}


def _torchvision() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    pairs = zip(WIDTHS, (*WIDTHS[1:], None), DEPTHS, strict=True)
    return randomise(
        torchvision.models.convnext.ConvNeXt([setting(*p) for p in pairs], num_classes=CLASSES)
    )


TORCHVISION = _torchvision()


def _torchvision_maps(x: Tensor) -> list[Tensor]:
    maps = []
    for layer in TORCHVISION.features:
        x = layer(x)
        maps.append(x)
    return maps[1::2]


ORIGINALS["torchvision"] = Original(
    "torchvision", _saved(TORCHVISION.state_dict), _torchvision_maps, logits=TORCHVISION
)

_HF = {"hidden_sizes": list(WIDTHS), "depths": list(DEPTHS), "num_labels": CLASSES}
_OUT = ["stage1", "stage2", "stage3", "stage4"]


def _hf(family: str, kind: str, **fields) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(**{**_HF, **fields})
    return randomise(getattr(transformers, f"{family}{kind}")(config))


def _hf_saved(model: nn.Module, **kwargs) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        model.save_pretrained(folder / "hf", **kwargs)
        return folder / "hf"

    return write


def _hf_maps(model: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: list(model(x, output_hidden_states=True).hidden_states[-4:])


for _family, _layout in (("ConvNext", "huggingface-v1"), ("ConvNextV2", "huggingface-v2")):
    _m = _hf(_family, "ForImageClassification")
    _b = _hf(_family, "Backbone", out_features=_OUT)
    ORIGINALS[f"{_layout}_classifier"] = Original(
        _layout, _hf_saved(_m), _hf_maps(_m), logits=lambda x, m=_m: m(x).logits
    )
    ORIGINALS[f"{_layout}_shards"] = Original(
        _layout, _hf_saved(_m, max_shard_size="20KB"), _hf_maps(_m)
    )
    ORIGINALS[f"{_layout}_backbone"] = Original(
        _layout, _hf_saved(_b), _hf_maps(_b), normed=lambda x, m=_b: list(m(x).feature_maps)
    )
_D = randomise(
    transformers.DINOv3ConvNextModel(
        transformers.DINOv3ConvNextConfig(hidden_sizes=list(WIDTHS), depths=list(DEPTHS))
    )
)


def _upernet() -> nn.Module:
    backbone = transformers.ConvNextConfig(**_HF, out_features=_OUT)
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=24
    )
    return randomise(transformers.UperNetForSemanticSegmentation(config))


UPERNET = _upernet()


def _old_upernet() -> dict:
    """The first conversion of UperNet: another prefix, and norms by number."""
    out = {}
    for key, value in UPERNET.state_dict().items():
        key = re.sub(r"^backbone\.(embeddings|encoder)", r"backbone.convnext.\1", key)
        out[re.sub(r"norms\.stage(\d)", lambda m: f"norms.{int(m[1]) - 1}", key)] = value
    return out


ORIGINALS |= {
    "huggingface_dinov3": Original("huggingface-dinov3", _hf_saved(_D), _hf_maps(_D)),
    "huggingface_dinov3_in_memory": Original(
        "huggingface-dinov3", _saved(_D.state_dict), _hf_maps(_D)
    ),
    "huggingface_upernet": Original(
        "huggingface-v1",
        _hf_saved(UPERNET),
        _hf_maps(UPERNET.backbone),
        normed=lambda x: list(UPERNET.backbone(x).feature_maps),
    ),
    "huggingface_upernet_first_conversion": Original(
        "huggingface-v1",
        _saved(_old_upernet),
        _hf_maps(UPERNET.backbone),
        normed=lambda x: list(UPERNET.backbone(x).feature_maps),
    ),
}
