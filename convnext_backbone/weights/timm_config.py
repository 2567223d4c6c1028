"""What timm's config.json says of a network and its tensors do not show.

Source: timm/models/convnext.py. timm builds a network with the arguments of its architecture, then
with those that the file has as `model_args`.
"""

from collections.abc import Mapping
from typing import Any

from ..archs import NORM_HAS_BIAS, NOT_IN_TENSORS, fields_not_in_tensors
from ..utils.checks import check_choice

# timm's arguments: the field that each is here, and its value in timm's class.
_ARGUMENTS = {
    "norm_eps": ("norm_eps", NOT_IN_TENSORS["norm_eps"]),
    "act_layer": ("hidden_act", NOT_IN_TENSORS["hidden_act"]),
    "norm_layer": ("norm_layer", NOT_IN_TENSORS["norm_layer"]),
    "drop_path_rate": ("drop_path_rate", 0.0),
}
# With another spelling of a norm, timm's class leaves the epsilon at the norm's own.
_NORMS = [f"{norm}{of_maps}" for norm in NORM_HAS_BIAS for of_maps in ("", "2d")]
_STRIDES = (8, 16, 32)  # the last is the default
_AVERAGES = ("avg", "fast", "fastavg")  # names of one pooling


def timm_fields(config: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `ConvNextConfig` from timm's architecture, then from its arguments.

    `found` holds the fields that the tensors show.
    """
    known, args = fields_not_in_tensors(str(config.get("architecture"))), timm_args(config)
    if known and NORM_HAS_BIAS[known["norm_layer"]] != NORM_HAS_BIAS[found["norm_layer"]]:
        known["norm_layer"] = found["norm_layer"]  # biases show it where no argument says it
    for name, (field, default) in _ARGUMENTS.items():
        if name in args:
            known[field] = default if args[name] in (None, "") else args[name]
    if isinstance(act := known.get("hidden_act"), str):
        known["hidden_act"] = {"gelu_tanh": "gelu_pytorch_tanh"}.get(act.lower(), act.lower())
    if isinstance(norm := known.get("norm_layer"), str):
        known["norm_layer"] = norm.replace("_", "").lower().removesuffix("fp32").removesuffix("2d")
        known |= {} if norm in _NORMS else {"norm_eps": NOT_IN_TENSORS["norm_eps"]}
    if "architecture" in config:
        known |= timm_dilations(found, args.get("output_stride"))
    return known


def timm_args(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that timm's config.json states; {} for another library's."""
    args = config.get("model_args")
    return args if isinstance(args, Mapping) and "architecture" in config else {}


def timm_pooling(config: Mapping[str, Any]) -> str | None:
    """Return timm's name of the pooling where it is another than the average; "" for none."""
    pool = timm_args(config).get("global_pool")
    return None if pool is None or pool in _AVERAGES else str(pool)


def timm_dilations(found: Mapping[str, Any], output_stride: Any = None) -> dict[str, Any]:
    """Return the dilations of timm's network, where it has any.

    From a stride of `output_stride` on, timm's stages keep the size of the map; 32 is the default,
    so that a stem of large patches dilates them too.
    """
    output_stride = _STRIDES[-1] if output_stride is None else output_stride
    check_choice("output_stride", output_stride, _STRIDES)
    dilations, stride = [1], found["patch_size"]
    for _ in found["depths"][1:]:
        keeps_size = stride >= output_stride
        dilations.append(dilations[-1] * (2 if keeps_size else 1))
        stride *= 1 if keeps_size else 2
    if max(dilations) > 4:
        raise ValueError(
            f"timm's network with patch_size {found['patch_size']} and output_stride "
            f"{output_stride} has dilations {tuple(dilations)}, of which those over 4 are not "
            "built here as in timm"
        )
    return {"dilations": tuple(dilations)} if max(dilations) > 1 else {}
