"""What the data sets of a config read: their class builds them, before it reads any file."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_dir_or_file
from mmengine.registry import DATASETS, DefaultScope, Registry

from ..config_walk import choose_indices, is_local, is_remote, type_name
from .coco_file import Annotation, kept_categories, read_coco
from .errors import CONFIG_ERRORS, UsageError

COCO, LABEL_MAPS = "CocoDataset", "BaseSegDataset"  # the classes whose files are checked
_READ = (("mmdet", COCO), ("mmseg", LABEL_MAPS))  # with their packages
# Data sets of others whose lengths add up, or are repeated.
_WRAPPERS = ("ConcatDataset", "MultiImageMixDataset", "RepeatDataset")
_PUBLISHED = ("mmcv.", "mmdet.", "mmengine.", "mmseg.")


@dataclass(frozen=True)
class DataSource:
    """A data set of a config.

    Attributes:
        config: Its part of the config.
        where: The name of that part.
        built: What its class made of it, with paths joined and defaults filled in; the class
            itself where that is of neither kind, as its constructor may read every image.
        reads: `COCO` or `LABEL_MAPS`; None for one that may read anything.
    """

    config: Mapping[str, Any]
    where: str
    built: Any
    reads: str | None

    @property
    def pipeline(self) -> Sequence[Mapping[str, Any]]:
        """The steps that its images go through."""
        return self.config.get("pipeline") or ()

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes."""
        own = {**getattr(self.built, "METAINFO", {}), **(self.config.get("metainfo") or {})}
        metainfo = own if isinstance(self.built, type) else getattr(self.built, "metainfo", {})
        classes = metainfo.get("classes") or ()
        # Numbers are as good: of files that have such names they are compared as text.
        return (classes,) if isinstance(classes, str) else tuple(map(str, classes))

    @property
    def ann_file(self) -> str:
        """The path of its annotation file; empty where no file is meant."""
        path = getattr(self.built, "ann_file", "")
        is_file = isinstance(path, str) and is_local(self.config) and not is_remote(path)
        return path if is_file else ""

    def folder(self, key: str) -> str:
        """Return a folder of its `data_prefix`; empty where there is none."""
        return self.built.data_prefix.get(key) or ""

    def stems(self) -> Sequence[str] | None:
        """List the images of folders of label maps without their suffix, as mmsegmentation does.

        None where the folder is missing, or no folder is meant.
        """
        images, suffix = self.folder("img_path"), self.built.img_suffix
        if os.path.isfile(self.ann_file):
            try:
                with open(self.ann_file, encoding="utf-8") as file:
                    return self._choose([line.strip() for line in file])
            except UnicodeDecodeError as error:
                raise UsageError(f"{self.ann_file!r} is not text in UTF-8: {error}") from error
        if not is_local(self.config) or is_remote(images) or not os.path.isdir(images):
            return None
        names = list_dir_or_file(images, list_dir=False, suffix=suffix, recursive=True)
        return self._choose([name[: -len(suffix)] for name in sorted(names)])

    def _choose(self, images: Sequence[Any]) -> Sequence[Any]:
        """Return those of its images that its `indices` choose.

        Raises:
            UsageError: They choose none, or one that is not there.
        """
        try:
            chosen = choose_indices(images, self.config)
        except IndexError:
            chosen = []
        if images and not chosen:
            raise UsageError(
                f"{self.where}.indices={self.config['indices']!r} leaves no image, or names one "
                f"beyond the {len(images)} that there are"
            )
        return chosen


@dataclass(frozen=True)
class CocoSet(DataSource):
    """A data set in COCO's format.

    Attributes:
        coco: The contents of its annotation file.
    """

    coco: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The annotation file, as messages name it."""
        return f"annotation file {self.ann_file!r}"

    @property
    def trains(self) -> bool:
        """Whether mmdet filters its images, as it does to train."""
        return not self.built.test_mode

    @property
    def filter_cfg(self) -> Mapping[str, Any]:
        """What mmdet filters them by."""
        return self.built.filter_cfg or {}

    @property
    def loads_masks(self) -> bool:
        """Whether its pipeline does."""
        return any(step.get("with_mask") for step in self.pipeline)

    @functools.cached_property
    def sizes(self) -> Mapping[Any, tuple[float, float]]:
        """The width and height of each image, by its id."""
        return {image["id"]: (image["width"], image["height"]) for image in self.coco["images"]}

    @functools.cached_property
    def images(self) -> Sequence[Mapping[str, Any]]:
        """The images that mmdet's `CocoDataset` opens: to train, those that its filter keeps."""
        images = list({image["id"]: image for image in self.coco["images"]}.values())
        rules = self.filter_cfg if self.trains else {}
        if rules:
            least = rules.get("min_size", 0)
            images = [image for image in images if min(image["width"], image["height"]) >= least]
        if rules.get("filter_empty_gt"):
            kept = kept_categories(self.coco, self.classes)
            annotations = self.coco.get("annotations", ())
            with_objects = {a["image_id"] for a in annotations if a["category_id"] in kept}
            images = [image for image in images if image["id"] in with_objects]
        return self._choose(images)

    @functools.cached_property
    def listed(self) -> Sequence[Annotation]:
        """The annotations of its images."""
        return [a for a in self.coco.get("annotations", ()) if a["image_id"] in self.sizes]

    @functools.cached_property
    def annotations(self) -> Sequence[Annotation]:
        """Those of them that mmdet unpacks: to train not those to ignore."""
        return [a for a in self.listed if not (self.trains and a.get("ignore"))]

    @functools.cached_property
    def of_classes(self) -> Sequence[Annotation]:
        """Those of them that it keeps: mmdet passes over other categories."""
        kept = kept_categories(self.coco, self.classes)
        return [a for a in self.annotations if a["category_id"] in kept]


def load_coco(source: DataSource, *, unlabelled: bool = False) -> CocoSet:
    """Read the annotation file of a data set, as `read_coco` does.

    Unless its filter leaves them out, mmdet trains on images without objects too.
    """
    built = source.built
    unlabelled |= not built.test_mode and not (built.filter_cfg or {}).get("filter_empty_gt")
    coco = read_coco(source.ann_file, unlabelled=unlabelled)
    return CocoSet(source.config, source.where, built, source.reads, coco)


def resolve_dataset(dataset: Mapping[str, Any], where: str = "") -> DataSource | None:
    """Build a data set without its files; None where that fails: the run's own error says why."""
    try:
        type_ = find_class(dataset["type"])
        base = _known_base(type_)
        if base is None:
            return DataSource(dataset, where, type_, None)
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": True})
    except CONFIG_ERRORS:  # a constructor of the user's may raise anything
        return None
    # Unless a subclass reads otherwise.
    above = type_.__mro__[: type_.__mro__.index(base)]
    reads = None if any(_overrides(own, base) for own in above) else base.__name__
    return DataSource(dataset, where, built, reads)


def find_class(type_: Any, registry: Registry = DATASETS) -> Any:
    """Return the class of a type of data set, in the default scope; None for an unknown name.

    `registry` may be another one, for a type of another kind.
    """
    if not isinstance(type_, str):
        return type_
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(type_)


def is_published(type_: Any, packages: tuple[str, ...] = _PUBLISHED) -> bool:
    """Return whether a class is one of OpenMMLab's packages, not the user's."""
    return getattr(type_, "__module__", "").startswith(packages)


def _known_base(type_: type) -> type | None:
    """Return the class `COCO` or `LABEL_MAPS` of mmdet or mmsegmentation that one derives from."""
    for base in type_.__mro__:
        if (base.__module__.partition(".")[0], base.__name__) in _READ:
            return base
    return None


def _overrides(type_: type, base: type) -> bool:
    """Return whether a class has other methods than its base, its constructor left aside."""
    names = [name for name in vars(type_) if name != "__init__" and hasattr(base, name)]
    return any(callable(getattr(type_, name)) for name in names)


def count_training_images(cfg: Config, *, build: bool = False) -> int | None:
    """Return the number of images of an epoch; None where files are missing or it is not known.

    With `build`, a data set of a class that is not known is built and asked.
    """
    dataset = cfg.train_dataloader.get("dataset")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            count = _count_images(dataset, "train_dataloader.dataset")
        except FileNotFoundError:
            return None
        if count is not None or not build:
            return count
        try:
            return len(DATASETS.build(dataset))
        except CONFIG_ERRORS:  # a class of the user's may raise anything
            return None


def _count_images(dataset: Any, where: str) -> int | None:
    if not isinstance(dataset, Mapping):
        return None
    parts: Sequence[Any] = dataset.get("datasets") or [dataset.get("dataset")]
    if parts[0] is not None:
        counts = [_count_images(part, where) for part in parts]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or type_name(dataset) not in _WRAPPERS:
            return None
        return sum(known) * dataset.get("times", 1)
    source = resolve_dataset(dataset, where)
    if source is None or source.reads is None or not is_local(dataset):
        return None
    if source.reads == COCO:
        path = source.ann_file
        if path and not os.path.exists(path):
            raise FileNotFoundError(path)
        return len(load_coco(source).images) if path else None
    stems = source.stems()
    if not stems:
        raise FileNotFoundError(source.folder("img_path"))
    return len(stems)
