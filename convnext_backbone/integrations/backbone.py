"""What every integration takes as its `source`: a backbone, or weights of any origin."""

import os
from typing import Any

from ..models.backbone import ConvNextBackbone
from ..models.config import ConfigFields, check_names

Source = ConvNextBackbone | str | os.PathLike[str]
# Arguments of the constructor that are attributes of a backbone, not fields of its config.
_ATTRIBUTES = ("frozen_stages", "with_cp")


def as_backbone(source: Source, **fields: Any) -> ConvNextBackbone:
    """Return a backbone as it is, or the one that weights describe, in training mode.

    Args:
        source: A `ConvNextBackbone`, whose own fields must be those asked for, or what
            `ConvNextBackbone.from_pretrained` reads.
        fields: Arguments of `from_pretrained`: outputs, `output_stride`, ...; with a backbone,
            fields of its config, `frozen_stages` and `with_cp`.

    Raises:
        ValueError: A given backbone differs in a field; both values are named.
        TypeError: The source is neither, or a field is none that a given backbone has.
    """
    if isinstance(source, str | os.PathLike):
        return ConvNextBackbone.from_pretrained(source, **fields).train()
    if not isinstance(source, ConvNextBackbone):
        raise TypeError(
            "source must be a ConvNextBackbone or weights that from_pretrained reads, got "
            f"{type(source).__name__}"
        )
    check_names("a given ConvNextBackbone", fields, (*_ATTRIBUTES, *ConfigFields.__annotations__))
    built = {name: getattr(source, name) for name in _ATTRIBUTES} | vars(source.config)
    wanted = {name: fields.pop(name, built[name]) for name in _ATTRIBUTES}
    wanted |= vars(source.config.replace(**fields))
    for name, value in built.items():
        # Positions may be counted from the end; the names say the same.
        if not name.startswith("_") and name != "out_indices" and wanted[name] != value:
            raise ValueError(
                f"{name} must be {wanted[name]!r} here, but the backbone has {value!r}"
            )
    return source
