"""What became of every tensor of a source and of a module."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..utils.checks import shorten_list


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a source and of a module; printed as a table.

    Example:
        >>> report = ConvNextBackbone.from_pretrained("convnext_atto.d2_in1k").load_report
        >>> report.fresh  # the norm of the output, which a classifier does not have
        ('norms.stage4.weight', 'norms.stage4.bias')

    Attributes:
        source: What was asked for.
        layout: The key layout that was recognised.
        loaded: Native keys that were filled from the source.
        fresh: Native keys that the source does not have and that are newly initialized.
        dropped: Source keys that were left out on purpose: heads, decoders, other modules.
        reshaped: Source key -> how its tensor changed form.
        notes: What else a user should know.
        assumed: Fields of the architecture that tensors do not show, with their values, and where
            these are from: the tag, config.json, or the published model of these sizes.
    """

    source: str
    layout: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    reshaped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumed: str = ""

    def __str__(self) -> str:
        reshaped = [f"{key} ({how})" for key, how in self.reshaped.items()]
        counted = (
            ("loaded", self.loaded, 0),
            ("newly initialized", self.fresh, 6),
            ("dropped", self.dropped, 6),
            ("reshaped", reshaped, 2),
        )
        rows = [("source", self.source), ("layout", self.layout)]
        rows += [
            (name, f"{len(keys):>5}  {shorten_list([*keys], show) if show else ''}")
            for name, keys, show in counted
        ]
        rows += [("assumed", self.assumed)] if self.assumed else []
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<17} {text}".rstrip() for name, text in rows)
