"""A ConvNeXt written out from the papers, which shares no code with the package.

arXiv 2201.03545 (section 2, figure 4) and 2301.00808 (section 3.3, algorithm 1). Maps are
(N, C, H, W) throughout: norms and pointwise layers act on axis 1 by einsum.
"""

import torch
import torch.nn.functional as F


def layer_norm(x, weight, bias, eps):
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight[:, None, None] + bias[:, None, None]


def pointwise(x, weight, bias):
    return torch.einsum("nchw,dc->ndhw", x, weight) + bias[:, None, None]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def grn(x, gamma, beta, eps=1e-6):
    norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    share = norm / (norm.mean(dim=1, keepdim=True) + eps)
    return gamma[:, None, None] * (x * share) + beta[:, None, None] + x


def block(p, x, eps=1e-6):
    """Run one block; `p` holds its tensors by the block's own keys."""
    size = p["dwconv.weight"].shape[-1]
    y = F.conv2d(x, p["dwconv.weight"], p["dwconv.bias"], padding=size // 2, groups=x.shape[1])
    y = layer_norm(y, p["norm.weight"], p["norm.bias"], eps)
    y = gelu(pointwise(y, p["pwconv1.weight"], p["pwconv1.bias"]))
    if "grn.gamma" in p:
        y = grn(y, p["grn.gamma"], p["grn.beta"])
    y = pointwise(y, p["pwconv2.weight"], p["pwconv2.bias"])
    if "gamma" in p:
        y = y * p["gamma"][:, None, None]
    return x + y


def below(p, prefix):
    return {key[len(prefix) :]: value for key, value in p.items() if key.startswith(prefix)}


def maps(p, x, depths, eps=1e-6):
    """Return the map of each stage through its output norm; `p` is a backbone's state dict."""
    out = []
    for stage, depth in enumerate(depths):
        first, second = (below(p, f"downsample_layers.{stage}.{i}.") for i in (0, 1))
        conv, norm = (first, second) if stage == 0 else (second, first)
        if stage == 0:
            x = F.conv2d(x, conv["weight"], conv["bias"], stride=conv["weight"].shape[-1])
            x = layer_norm(x, norm["weight"], norm["bias"], eps)
        else:
            x = layer_norm(x, norm["weight"], norm["bias"], eps)
            x = F.conv2d(x, conv["weight"], conv["bias"], stride=2)
        for index in range(depth):
            x = block(below(p, f"stages.{stage}.{index}."), x, eps)
        norm = below(p, f"norms.stage{stage + 1}.")
        if norm:
            out.append(layer_norm(x, norm["weight"], norm["bias"], eps))
    return out


def by_parts(backbone, x):
    """Return the output maps of a backbone by calling its parts one by one, as the paper has them.

    For networks whose parts were altered: hooks, replacements and computed weights of a part act.
    """
    out = []
    named = zip(backbone.stage_names[1:], backbone.downsample_layers, backbone.stages, strict=True)
    for name, downsample, stage in named:
        for layer in downsample:
            x = layer(x)
        for b in stage:
            y = b.dwconv(x).permute(0, 2, 3, 1)
            y = b.pwconv2(b.grn(b.act(b.pwconv1(b.norm(y)))))
            y = y if b.gamma is None else y * b.gamma
            x = x + b.drop_path(y.permute(0, 3, 1, 2))
        if name in backbone.out_features:
            out.append(backbone.norms[name](x))
    return out
