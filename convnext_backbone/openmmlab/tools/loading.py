"""Load a run's checkpoint into its model, report every tensor, and refuse what does not fit."""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ...utils.checks import shorten_list
from ...weights.report import LoadReport
from ...weights.torch_files import unwrap
from ..config_walk import iter_datasets
from .config import build_model
from .errors import BUILD_ERRORS, UsageError, cannot_build

# torch names the tensors of another shape in the text of its error only.
_MISMATCH = re.compile(r"size mismatch for (\S+): .*?\[(.*?)\].*?\[(.*?)\]")
# Counters of batch norm, which files of old releases lack and no result depends on.
_UNIMPORTANT = "num_batches_tracked"


def load_model(cfg: Config, checkpoint: str, device: str) -> tuple[Any, dict[str, Any]]:
    """Build the model of a config and load it whole; return it with classes and palette.

    Raises:
        UsageError: Model or data set cannot be built, or the checkpoint leaves a part of the model
            without trained values.
    """
    for owner in (cfg.model, cfg.model.get("backbone") or {}):
        owner.pop("init_cfg", None)  # all weights come from the checkpoint
    dataset = next(iter_datasets(cfg.test_dataloader.dataset))[0]
    try:
        model = revert_sync_batchnorm(build_model(cfg, "cpu"))
        metainfo = dict(DATASETS.build({**dataset, "lazy_init": True}).metainfo)
    except BUILD_ERRORS as error:
        raise cannot_build(str(cfg.filename), error) from error
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu")
    report = load_and_report(model, loaded, checkpoint)
    refuse_incomplete(report, loaded, str(cfg.filename))
    print(report)
    trained, others = trained_classes(loaded), metainfo.get("classes") or ()
    if first_other_class(trained, others) is not None:
        names = shorten_list([repr(name) for name in others])
        print(f"warning: named by the checkpoint's classes, not the config's {names}")
    metainfo.update((loaded.get("meta") or {}).get("dataset_meta") or {})
    metainfo.update({"classes": tuple(trained)} if trained else {})
    return model.to(device).eval(), metainfo


def load_and_report(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> LoadReport:
    """Load what fits of a checkpoint, as mmengine does, and return what became of every tensor.

    The checkpoint is as read from the file `source`: with a "state_dict" or any known wrapper, or
    bare. Keys are renamed by the hooks of the model's modules.

    Raises:
        ValueError: The checkpoint holds no tensors.
    """
    notes: list[str] = []
    tensors = checkpoint.get("state_dict") or unwrap(checkpoint, source, False, notes)
    versions = getattr(tensors, "_metadata", {})  # modules rename what old ones called otherwise
    tensors = OrderedDict((k.removeprefix("module."), value) for k, value in tensors.items())
    vars(tensors)["_metadata"] = versions
    found: list[_IncompatibleKeys] = []
    # A root's hook runs after those of all children, and before torch raises for shapes.
    handle = model.register_load_state_dict_post_hook(lambda _, keys: found.append(keys))
    mismatches: list[tuple[str, ...]] = []
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        mismatches = [match.groups() for match in _MISMATCH.finditer(str(error))]
        if not mismatches:
            raise
    finally:
        handle.remove()
    own = model.state_dict()
    unfilled = [*found[0].missing_keys, *(key for key, _, _ in mismatches)]
    notes += [f"{k} is ({old}) in the file, ({new}) in the model" for k, old, new in mismatches]
    return LoadReport(
        source=source,
        layout=type(model).__name__,
        loaded=tuple(k for k in own if k not in unfilled and not k.endswith(_UNIMPORTANT)),
        fresh=tuple(k for k in unfilled if not k.endswith(_UNIMPORTANT)),
        dropped=tuple(found[0].unexpected_keys),
        notes=tuple(notes[:4]),
    )


def refuse_incomplete(report: LoadReport, checkpoint: Mapping[str, Any], config: str) -> None:
    """Refuse a checkpoint that leaves a part of the model without trained values.

    Raises:
        UsageError: It names the first such tensor, the classes that the checkpoint was trained on,
            and the config that fits.
    """
    if not report.fresh:
        return
    reason = next((note for note in report.notes if note.startswith(report.fresh[-1])), "")
    reason = reason or f"it has no {shorten_list(report.fresh, 2)}"
    classes = trained_classes(checkpoint)
    trained = f"; it was trained on {len(classes)} classes ({shorten_list(classes)})"
    raise UsageError(
        f"checkpoint {report.source!r} does not fit config {config!r}: {reason}"
        f"{trained if classes else ''}; {advise_config(report.source)}"
    )


def trained_classes(checkpoint: Any) -> list[str]:
    """List the classes that a run's checkpoint was trained on; empty where it does not say."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    if not isinstance(meta, Mapping):
        return []
    # "CLASSES" was its name before mmengine.
    classes = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES") or ()
    return [str(name) for name in classes]


def first_other_class(trained: Sequence[Any], classes: Sequence[Any]) -> int | None:
    """Return the first class whose names differ beyond case and blanks.

    None where there is none, or the numbers of classes differ: the tensors then do not fit.
    """
    if len(trained) != len(classes):
        return None
    there, here = ([str(name).strip().lower() for name in names] for names in (trained, classes))
    return next((i for i, name in enumerate(there) if name != here[i]), None)


def advise_config(checkpoint: str) -> str:
    """Name the configs in a checkpoint's folder, to use them instead."""
    configs = configs_beside(checkpoint)
    if configs:
        return f"use the config of its run, {shorten_list([str(path) for path in configs], 2)}"
    return "use the config of its run, or its custom_dataset options"


def configs_beside(checkpoint: str) -> list[Path]:
    """List the configs that mmengine dumped into the work directory that holds a checkpoint."""
    return sorted(Path(checkpoint).parent.glob("*.py"))
