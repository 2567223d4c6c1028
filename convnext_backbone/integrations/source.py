"""What every integration takes as its `source`: a backbone, or weights of any origin."""

import os
from typing import Any

from ..models.backbone import ConvNextBackbone

Source = ConvNextBackbone | str | os.PathLike[str]


def as_backbone(source: Source, **fields: Any) -> ConvNextBackbone:
    """Return a backbone as it is, or the one that weights describe, in training mode.

    Args:
        source: A `ConvNextBackbone`, whose own fields must be those asked for, or what
            `ConvNextBackbone.from_pretrained` reads.
        fields: Arguments of `from_pretrained`: outputs, `output_stride`, ...

    Raises:
        ValueError: A given backbone differs in a field; both values are named.
        TypeError: The source is neither.
    """
    if isinstance(source, str | os.PathLike):
        return ConvNextBackbone.from_pretrained(source, **fields).train()
    if not isinstance(source, ConvNextBackbone):
        raise TypeError(
            "source must be a ConvNextBackbone or weights that from_pretrained reads, got "
            f"{type(source).__name__}"
        )
    wanted = vars(source.config.replace(**fields))
    for name, value in vars(source.config).items():
        # Positions may be counted from the end; the names say the same.
        if not name.startswith("_") and name != "out_indices" and wanted[name] != value:
            raise ValueError(
                f"{name} must be {wanted[name]!r} here, but the backbone has {value!r}"
            )
    return source
