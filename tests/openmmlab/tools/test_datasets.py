"""Data sets of the user's own classes are checked where they read as their base does."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import convnext_backbone.openmmlab  # noqa: F401 - mmdet.datasets needs mmcv's operations

pytestmark = pytest.mark.openmmlab

from helpers.own_data import (
    DETECTOR,
    NAMES,
    SEGMENTOR,
    checked,
    coco,
    prepared,
    write_detection,
    write_segmentation,
)
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS as DETECTION_SETS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.registry import DATASETS as SEGMENTATION_SETS

from convnext_backbone.openmmlab.config_walk import iter_heads
from convnext_backbone.openmmlab.tools.checks.classes import check_num_classes
from convnext_backbone.openmmlab.tools.checks.types import check_types
from convnext_backbone.openmmlab.tools.config_options import apply_options
from convnext_backbone.openmmlab.tools.datasets import count_training_images, resolve_dataset
from convnext_backbone.openmmlab.tools.errors import UsageError


def detection(type_, root, train):
    """The config of a detector whose training set is of another type, its classes not given."""
    DETECTION_SETS.register_module(module=type_, force=True)
    cfg = prepared(DETECTOR, custom_dataset=write_detection(root, train=train))
    cfg.train_dataloader.dataset.type = type_.__name__
    del cfg.train_dataloader.dataset.metainfo
    return cfg


def segmentation(type_, root, **options):
    SEGMENTATION_SETS.register_module(module=type_, force=True)
    cfg = prepared(SEGMENTOR, custom_dataset=write_segmentation(root, **options))
    dataset = cfg.train_dataloader.dataset
    dataset.type = type_.__name__
    for name in ("metainfo", "reduce_zero_label"):
        del dataset[name]
    return cfg


class Cells(CocoDataset):
    """Names its classes, and passes over small images unless it is told otherwise."""

    METAINFO: ClassVar = {"classes": tuple(NAMES)}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"filter_cfg": {"min_size": 61}, **kwargs})

    def count(self):
        """Return something that `CocoDataset` does not know."""
        return len(self)


class OwnReader(Cells):
    def parse_data_info(self, raw_data_info):
        raw_data_info["raw_ann_info"] = []
        return super().parse_data_info(raw_data_info)


class Streets(BaseSegDataset):
    METAINFO: ClassVar = {"classes": ("road", "sky")}

    def __init__(self, **kwargs):
        super().__init__(seg_map_suffix=".png", reduce_zero_label=True, **kwargs)


class NoVoid(Streets):
    METAINFO: ClassVar = {"classes": ("void", "road", "sky")}

    def __init__(self, **kwargs):
        super(Streets, self).__init__(**kwargs)


class Streets16(Streets):
    def __getitem__(self, index):
        raise NotImplementedError


class FewerNames(ADE20KDataset):
    pass


def test_a_subclass_of_coco_is_checked_with_its_own_classes(tmp_path):
    report = checked(detection(Cells, tmp_path / "good", coco()), "train")
    assert "2 images, 2 instances" in report.summaries[0]
    stray = {**coco()["annotations"][0], "category_id": 1}
    with pytest.raises(UsageError, match=r"train\.json.* category_id .* such as 1"):
        checked(detection(Cells, tmp_path / "bad", coco(annotations=[stray])), "train")


def test_settings_of_the_constructor_count(tmp_path):
    cfg = detection(Cells, tmp_path / "det", coco())
    assert count_training_images(cfg) == 2
    del cfg.train_dataloader.dataset.filter_cfg
    assert count_training_images(cfg) == 0
    cfg = segmentation(Streets, tmp_path / "seg", highest=2)
    assert count_training_images(cfg) == 2
    report = checked(cfg, "train")
    assert "road" in report.summaries[0]
    message = r"a\.png' holds the value 3, but there are 2 classes: with reduce_zero_label=True"
    with pytest.raises(UsageError, match=message):
        checked(segmentation(Streets, tmp_path / "bad", highest=3), "train")
    cfg = segmentation(NoVoid, tmp_path / "void", highest=2)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 3
    for step in cfg.train_dataloader.dataset.pipeline:
        step.pop("reduce_zero_label", None)  # the loader takes its data set's
    assert "void" in checked(cfg, "train").summaries[0]


@pytest.mark.parametrize("type_", [Streets16, FewerNames])
def test_classes_that_read_otherwise_or_cannot_be_built_are_passed_over(type_, tmp_path):
    cfg = segmentation(type_, tmp_path, highest=9)
    cfg.train_dataloader.dataset.metainfo = {"classes": ("road", "moon")}
    assert checked(cfg, "train").summaries == []


def test_a_method_of_its_own_makes_a_coco_set_unknown(tmp_path):
    cfg = detection(OwnReader, tmp_path, coco())
    assert checked(cfg, "train").summaries == []
    assert count_training_images(cfg) is None
    assert count_training_images(cfg, build=True) == 2
    cfg.train_dataloader.dataset.ann_file = "gone.json"
    assert count_training_images(cfg, build=True) is None


@pytest.mark.parametrize(("indices", "number"), [(1, 1), (5, 3), (-2, 2), ([2, 0], 2), (None, 3)])
def test_the_images_that_indices_choose_count_and_are_looked_for(indices, number, tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 80, "height": 60} for i in (1, 2, 3)]
    annotations = [{**coco()["annotations"][0], "id": i, "image_id": i} for i in (1, 2, 3)]
    values = coco(images=images, annotations=annotations)
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path / "det", train=values))
    dataset = cfg.train_dataloader.dataset
    dataset.indices = indices
    with DefaultScope.overwrite_default_scope("mmdet"):
        built = DETECTION_SETS.build({**dataset, "pipeline": []})
    opened = {Path(built.get_data_info(i)["img_path"]).name for i in range(len(built))}
    assert count_training_images(cfg) == len(built) == number
    for name in {"1.jpg", "2.jpg", "3.jpg"} - opened:
        (tmp_path / "det" / "train" / name).unlink()
    checked(cfg, "train")
    cfg = prepared(SEGMENTOR, custom_dataset=write_segmentation(tmp_path / "seg"))
    cfg.train_dataloader.dataset.indices = 1
    assert count_training_images(cfg) == 1


def test_a_wrapper_that_repeats_some_images_is_built_to_be_counted(tmp_path):
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    balanced = {"type": "ClassBalancedDataset", "oversample_thr": 0.9}
    balanced["dataset"] = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = balanced
    assert count_training_images(cfg) is None
    with DefaultScope.overwrite_default_scope("mmdet"):
        assert count_training_images(cfg, build=True) == len(DETECTION_SETS.build(balanced))


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("mmdet", "htc/htc_r50_fpn_1x_coco.py"),
        ("mmdet", "scnet/scnet_r50_fpn_1x_coco.py"),
        ("mmseg", "stdc/stdc1_4xb12-80k_cityscapes-512x1024.py"),
    ],
)
def test_heads_of_other_classes_than_the_datas_are_not_compared_with_it(package, name):
    folder = Path(find_spec(package).origin).parent / ".mim" / "configs"
    cfg = Config.fromfile(folder / name)
    with DefaultScope.overwrite_default_scope(package):
        check_num_classes(cfg, len(resolve_dataset(cfg.train_dataloader.dataset).classes))


def test_heads_that_propose_or_are_asked_in_words_are_not_compared():
    proposing, boxes = {"type": "FCOSHead", "num_classes": 1}, {"num_classes": 7}
    words = {"type": "mmdet.GroundingDINOHead", "num_classes": 256}
    model = {"rpn_head": proposing, "bbox_head": words, "roi_head": {"bbox_head": [boxes]}}
    assert list(iter_heads(Config({"model": model}))) == [(boxes, "model.roi_head.bbox_head.0")]


@pytest.mark.parametrize("reduce", [None, False])
def test_a_type_of_the_users_stays_where_custom_dataset_names_its_files(reduce, tmp_path):
    SEGMENTATION_SETS.register_module(module=Streets, force=True)
    path = tmp_path / "own.py"
    path.write_text(
        f"_base_ = {str(SEGMENTOR)!r}\ntrain_dataloader = dict(dataset=dict(type='Streets'))\n"
    )
    cfg = Config.fromfile(path)
    options = write_segmentation(tmp_path / "seg")
    if reduce is not None:
        options["reduce_zero_label"] = reduce
    cfg.merge_from_dict({"custom_dataset": options})
    apply_options(cfg)
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == "Streets"
    assert cfg.val_dataloader.dataset.type == "BaseSegDataset"
    assert dataset.data_root == str(tmp_path / "seg")
    assert dict(dataset.data_prefix) == {"img_path": "train", "seg_map_path": "train/maps"}
    assert dataset.get("reduce_zero_label") is reduce
    if reduce is None:  # its constructor sets it
        assert count_training_images(cfg) == 2


def test_an_unknown_type_of_the_users_is_named_and_not_replaced(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        f"_base_ = {str(SEGMENTOR)!r}\ntrain_dataloader = dict(dataset=dict(type='MyTiles'))\n"
    )
    cfg = prepared(path, custom_dataset=write_segmentation(tmp_path / "seg"))
    with pytest.raises(UsageError, match=r"train_dataloader\.dataset\.type: 'MyTiles'"):
        check_types(cfg, ("train",))


class Frames:
    """A data set that is none of mmengine's, and takes what any may be given."""

    def __init__(self, **settings):
        self.settings = settings

    def __len__(self):
        return 7


def test_a_data_set_of_another_base_is_passed_over(tmp_path):
    DETECTION_SETS.register_module(module=Frames, force=True)
    cfg = prepared(DETECTOR, custom_dataset=write_detection(tmp_path))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.type = "Frames"
    assert checked(cfg, "train", "val").summaries == []
    assert count_training_images(cfg) is None
    assert count_training_images(cfg, build=True) == 7
    with DefaultScope.overwrite_default_scope("mmdet"):
        source = resolve_dataset(cfg.train_dataloader.dataset)
    assert (source.reads, source.ann_file) == (None, "")
