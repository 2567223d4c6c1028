"""Which files of a config are looked for before a run."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from convnext_backbone.openmmlab.config_walk import iter_datasets
from convnext_backbone.openmmlab.tools.checks.checkpoint import check_checkpoint
from convnext_backbone.openmmlab.tools.checks.files import check_files
from convnext_backbone.openmmlab.tools.coco_file import read_coco
from convnext_backbone.openmmlab.tools.errors import UsageError


def test_wrapped_data_sets_are_found_with_their_names():
    leaf = {"type": "CocoDataset"}
    wrapped = {
        "type": "ClassBalancedDataset",
        "dataset": {"type": "ConcatDataset", "datasets": [dict(leaf), {"dataset": leaf}]},
    }
    names = [name for _, name in iter_datasets(wrapped, "d")]
    assert names == ["d.dataset.datasets.0", "d.dataset.datasets.1.dataset"]


def test_remote_files_are_not_looked_for():
    dataset = {
        "type": "CocoDataset",
        "data_root": "s3://bucket/coco/",
        "ann_file": "annotations/train.json",
        "data_prefix": {"img": "train/"},
    }
    check_files({"train_dataloader": {"dataset": dataset}}, ("train",))
    check_checkpoint("https://example.org/weights.pth", "load_from")


def test_absolute_paths_do_not_hang_below_the_data_root(tmp_path):
    (tmp_path / "a.json").touch()
    dataset = {"data_root": "gone/", "ann_file": str(tmp_path / "a.json")}
    check_files({"test_dataloader": {"dataset": dataset}}, ("test",))


def test_annotations_may_be_a_folder_where_the_data_set_reads_one(tmp_path):
    (tmp_path / "labels").mkdir()
    dataset = {"type": "OwnTextDataset", "data_root": str(tmp_path), "ann_file": "labels/"}
    check_files({"train_dataloader": {"dataset": dataset}}, ("train",))
    with pytest.raises(UsageError, match=r"labels' is not readable JSON: .*directory"):
        read_coco(str(tmp_path / "labels"))


def test_a_loop_of_the_users_may_have_several_data_sets(tmp_path):
    loaders = [{"dataset": {"ann_file": str(tmp_path / name)}} for name in ("a.json", "b.json")]
    (tmp_path / "a.json").touch()
    with pytest.raises(UsageError, match=r"b\.json' not found \(val_dataloader\.1\.dataset\.ann_"):
        check_files({"val_dataloader": loaders}, ("val",))
