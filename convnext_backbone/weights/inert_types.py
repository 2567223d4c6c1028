"""Types of harmless objects beside the weights, which are read as objects that keep nothing.

Trainers save paths, dates, settings and classes of optimizers with the weights, which need none of
them. Nothing of these types is imported or built.
"""

from typing import Any

import torch


class Inert:
    """Takes any arguments and any state, and keeps nothing."""

    __slots__ = ()

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class InertDict(Inert):
    """Takes the place of a class of dicts."""

    def __new__(cls, *_: object) -> Any:
        """Return a plain dict, without the arguments."""
        return {}


class InertList(Inert):
    """Takes the place of a class of lists."""

    def __new__(cls, *_: object) -> Any:
        """Return a plain list, without the arguments."""
        return []


# Module -> its types. A new one is a word here.
_OBJECTS = {
    "builtins": "Ellipsis NotImplemented bool dict float getattr int list object range "
    "slice str tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "functools": "partial",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "typing": "Any",
    "uuid": "SafeUUID UUID",
    "mmengine.config.config": "Config ConfigDict",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode "
    "StringNode",
    "torch.torch_version": "TorchVersion",
    "torchvision.transforms.functional": "InterpolationMode",
}
_DICTS = {
    "collections": "defaultdict",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
}
_LISTS = {"collections": "deque"}


def _names(table: dict[str, str]) -> list[str]:
    return [f"{module}.{name}" for module, names in table.items() for name in names.split()]


_OPTIMIZERS = {
    f"{kind.__module__}.{kind.__qualname__}"
    for module in (torch.optim, torch.optim.lr_scheduler)
    for kind in vars(module).values()
    if isinstance(kind, type) and kind.__module__.startswith("torch.optim.")
}
INERT_TYPES: dict[str, type[Inert]] = {
    **dict.fromkeys((*_names(_OBJECTS), *_OPTIMIZERS), Inert),
    **dict.fromkeys(_names(_DICTS), InertDict),
    **dict.fromkeys(_names(_LISTS), InertList),
}
