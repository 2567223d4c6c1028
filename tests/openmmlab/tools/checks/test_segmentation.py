"""Segmentors on folders of label maps: what mmsegmentation would count wrongly or stop at later."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import copy
import pprint
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")
pytestmark = pytest.mark.openmmlab

from helpers.own_data import checked as check_data
from mmengine.registry import LOOPS, TRANSFORMS
from mmengine.runner import BaseLoop, ValLoop

from convnext_backbone.openmmlab.tools import flags as run_flags
from convnext_backbone.openmmlab.tools import launch
from convnext_backbone.openmmlab.tools.checks import model as model_checks
from convnext_backbone.openmmlab.tools.checks.files import check_files
from convnext_backbone.openmmlab.tools.checks.metrics import check_metrics
from convnext_backbone.openmmlab.tools.checks.types import check_types
from convnext_backbone.openmmlab.tools.config import load_config
from convnext_backbone.openmmlab.tools.errors import UsageError

WIDTH, HEIGHT, SIDE = 40, 24, 32
LOAD, ANNOTATIONS, RESIZE, PACK = (
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "Resize", "scale": (SIDE, SIDE)},
    {"type": "PackSegInputs"},
)
SIGMOID = {"type": "CrossEntropyLoss", "use_sigmoid": True}
SOFTMAX = {"type": "CrossEntropyLoss"}


def write_set(root, values=(0, 1, 2), splits=("train", "val"), names=("a", "b")):
    """Images and label maps of these values, in stripes."""
    for split in splits:
        for name in names:
            for kind in ("img", "ann"):
                (root / kind / split / name).parent.mkdir(parents=True, exist_ok=True)
            labels = np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))
            Image.fromarray(labels).save(root / "ann" / split / f"{name}.png")
            image = Image.fromarray(labels).convert("RGB")
            image.save(root / "img" / split / f"{name}.jpg")
    return root


def settings(root, classes=("a", "b", "c"), head=None, iters=1):
    """The settings of a tiny segmentor on the data of `write_set`."""

    def loader(split, pipeline, **more):
        dataset = {
            "type": "BaseSegDataset", "data_root": str(root),
            "pipeline": copy.deepcopy(pipeline),  # splits are changed one by one
            "data_prefix": {"img_path": f"img/{split}", "seg_map_path": f"ann/{split}"},
            **({"metainfo": {"classes": list(classes)}} if classes else {}),
        }  # fmt: skip
        return {"batch_size": 2, "num_workers": 0, "dataset": dataset, **more}

    decode_head = {
        "type": "FCNHead", "in_channels": 32, "channels": 8, "num_convs": 1, "concat_input": False,
        "num_classes": len(classes) or 3, "norm_cfg": {"type": "BN"}, "loss_decode": SOFTMAX,
        **(head or {}),
    }  # fmt: skip
    val = loader("val", [LOAD, RESIZE, ANNOTATIONS, PACK], sampler={"type": "DefaultSampler"})
    values = {
        "default_scope": "mmseg",
        "model": {
            "type": "EncoderDecoder",
            "data_preprocessor": {
                "type": "SegDataPreProcessor", "mean": [127.0] * 3, "std": [60.0] * 3,
                "size": (SIDE, SIDE), "seg_pad_val": 255,
            },
            "backbone": {
                "type": "ConvNextBackbone", "hidden_sizes": (8, 16, 24, 32),
                "depths": (1, 1, 1, 1), "out_indices": (1, 2, 3, 4),
            },
            "decode_head": decode_head,
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        },
        "train_dataloader": loader(
            "train", [LOAD, ANNOTATIONS, RESIZE, PACK], sampler={"type": "InfiniteSampler"}
        ),
        "val_dataloader": {**val, "batch_size": 1},
        "test_dataloader": {**copy.deepcopy(val), "batch_size": 1},
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}},
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iters, "val_interval": iters},
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "by_epoch": False}},
        "log_processor": {"by_epoch": False},
    }  # fmt: skip
    return values


def put(values, **changes):
    """Set nested settings; `__` stands for a dot, and None takes one away."""
    for name, value in changes.items():
        *parts, last = name.split("__")
        part = values
        for key in parts:
            part = part[int(key) if key.isdecimal() else key]
        if value is None:
            part.pop(last)
        else:
            part[last] = value
    return values


def write_config(path, values):
    lines = [f"{key} = {pprint.pformat(value)}\n" for key, value in values.items()]
    path.write_text("".join(lines))
    return str(path)


def checked(tmp_path, values, *splits, **options):
    """The report of the checks on a config with these settings and `--cfg-options`."""
    path = write_config(tmp_path / "own.py", values)
    cfg = load_config(path, {k.replace("__", "."): v for k, v in options.items()}, ())
    splits = splits or ("train", "val")
    check_files(cfg, splits)
    check_types(cfg, splits)
    check_metrics(cfg, splits)
    return check_data(cfg, *splits)


def trained(tmp_path, values, *options):
    """The exit code of tools/train.py on a config with these settings."""
    path = write_config(tmp_path / "own.py", values)
    run = ["--work-dir", str(tmp_path / "run")]
    return launch.train([path, *run, *(["--cfg-options", *options] if options else [])])


# --------------------------------------------------------------------------- classes and labels


@pytest.mark.parametrize("loss", [SIGMOID, SOFTMAX, {"type": "DiceLoss"}, [SIGMOID, SOFTMAX]])
@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_one_class_is_refused_whatever_the_loss(loss, values, tmp_path):
    root = write_set(tmp_path, values)
    tiny = settings(root, ["fg"], {"loss_decode": loss})
    with pytest.raises(UsageError, match=r"one class.*num_classes=2, out_channels=1, .*use_sig"):
        checked(tmp_path, tiny)


def test_the_form_that_the_message_names_trains(tmp_path):
    head = {"out_channels": 1, "threshold": 0.5, "loss_decode": SIGMOID}
    tiny = settings(write_set(tmp_path, (0, 1)), ["background", "fg"], head)
    assert trained(tmp_path, tiny) == 0


@pytest.mark.parametrize("softmax", [SOFTMAX, [SIGMOID, {**SOFTMAX, "loss_name": "loss_b"}]])
def test_a_softmax_over_one_channel_is_refused(softmax, tmp_path):
    head = {"out_channels": 1, "loss_decode": softmax}
    tiny = settings(write_set(tmp_path, (0, 1)), ["background", "fg"], head)
    with pytest.raises(UsageError, match=r"loss_decode.*softmax.*use_sigmoid=True"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        ({**SIGMOID}, 3),
        ({"type": "LovaszLoss", "reduction": "none"}, 2),
        ({"type": "TverskyLoss"}, 2),
        ({"type": "FocalLoss"}, 2),
        ({**SOFTMAX}, 4),
    ],
    ids=lambda value: str(value)[10:22],
)
def test_class_weights_that_the_loss_cannot_use_are_refused(loss, weights, tmp_path):
    head = {"loss_decode": {**loss, "class_weight": [1.0] * weights}}
    with pytest.raises(UsageError, match=r"decode_head\.loss_decode.*class_weight"):
        checked(tmp_path, settings(write_set(tmp_path), head=head))


@pytest.mark.parametrize(
    "loss",
    [
        {**SOFTMAX, "class_weight": [1.0, 2.0, 3.0]},
        {**SIGMOID, "class_weight": [2.0]},
        {"type": "LovaszLoss", "reduction": "none", "class_weight": [1.0, 2.0, 3.0]},
        {"type": "TverskyLoss", "class_weight": [1.0, 2.0, 3.0]},
        {"type": "FocalLoss", "class_weight": [1.0, 2.0, 3.0]},
        [{"type": "DiceLoss"}, {**SOFTMAX, "loss_name": "loss_b"}],
        {"type": "HuasdorffDisstanceLoss"},
    ],
    ids=str,
)
def test_losses_that_mmsegmentation_computes_pass(loss, tmp_path):
    checked(tmp_path, settings(write_set(tmp_path), head={"loss_decode": loss}))


def test_one_channel_and_a_sigmoid_tell_two_classes_apart(tmp_path):
    """`num_classes=1` is mmsegmentation's older form of `num_classes=2, out_channels=1`."""
    losses = [SIGMOID, {"type": "DiceLoss"}]
    head = {"num_classes": 1, "threshold": 0.3, "loss_decode": losses}
    tiny = settings(write_set(tmp_path, (0, 1)), ["background", "fg"], head)
    checked(tmp_path, tiny)
    assert trained(tmp_path, tiny) == 0
    tiny["model"]["decode_head"]["loss_decode"] = SOFTMAX
    with pytest.raises(UsageError, match="num_classes is 1, but the data set has 2 classes"):
        checked(tmp_path, tiny)


def write_deep(root, dtype, void):
    """Label maps of 0, 1 and void, in more than 8 bits."""
    for path in (root / "ann").rglob("*.png"):
        labels = np.resize(np.array([0, 1, void], dtype), (HEIGHT, WIDTH))
        path.unlink()
        Image.fromarray(labels).save(path.with_suffix(".tif"))


@pytest.mark.filterwarnings("ignore:For binary segmentation")
@pytest.mark.parametrize(
    ("dtype", "void", "fits"),
    [(np.uint16, 65535, True), (np.int32, -1, True), (np.uint16, 256, False)],
)
def test_values_that_are_void_modulo_256_are_void(dtype, void, fits, tmp_path):
    write_deep(write_set(tmp_path), dtype, void)
    tiny = settings(tmp_path, ("a", "b"))
    for split in ("train", "val", "test"):
        tiny[f"{split}_dataloader"]["dataset"]["seg_map_suffix"] = ".tif"
    if fits:
        checked(tmp_path, tiny)
        assert trained(tmp_path, tiny) == 0
        return
    with pytest.raises(UsageError, match="values from 0 to 256"):
        checked(tmp_path, tiny)


# --------------------------------------------------------------------------- splits that disagree


def with_zero_labels(values, **splits):
    for split, reduced in splits.items():
        dataset = values[f"{split}_dataloader"]["dataset"]
        dataset["reduce_zero_label"] = reduced
        for step in dataset["pipeline"]:
            if step["type"] == "LoadAnnotations":
                step["reduce_zero_label"] = reduced
    return values


@pytest.mark.parametrize("train", [True, False])
def test_splits_that_read_the_same_labels_differently_are_refused(train, tmp_path):
    tiny = settings(write_set(tmp_path, (0, 1, 2)))
    tiny = with_zero_labels(tiny, train=train, val=not train, test=not train)
    with pytest.raises(UsageError) as error:
        checked(tmp_path, tiny)
    text = str(error.value)
    assert "train_dataloader.dataset.reduce_zero_label" in text
    assert "val_dataloader.dataset.reduce_zero_label" in text


def test_splits_with_labels_of_their_own_may_read_them_differently(tmp_path):
    # 0 is void in val, as its highest label shows.
    write_set(tmp_path / "a", (0, 1, 2))
    tiny = settings(tmp_path / "a")
    other = write_set(tmp_path / "b", (0, 1, 2, 3))
    tiny["val_dataloader"]["dataset"]["data_root"] = str(other)
    report = checked(tmp_path, with_zero_labels(tiny, val=True))
    assert any("reduce_zero_label" in warning for warning in report.warnings)


def own_data(root, **more):
    return {
        "root": str(root), "train_img": "img/train", "train_ann": "ann/train", "val_img": "img/val",
        "val_ann": "ann/val", "classes": ["a", "b", "c"], **more,
    }  # fmt: skip


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_typed_reduce_zero_label_holds_for_all_splits(split, tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["custom_dataset"] = own_data(tmp_path)
    path = write_config(tmp_path / "own.py", tiny)
    cfg = load_config(path, {f"{split}_dataloader.dataset.reduce_zero_label": False}, ())
    for other in ("train", "val", "test"):
        dataset = cfg[f"{other}_dataloader"].dataset
        assert dataset.reduce_zero_label is False
        loads = [step for step in dataset.pipeline if step.type == "LoadAnnotations"]
        assert [step.reduce_zero_label for step in loads] == [False]
    check_data(cfg, "train", "val")


def test_classes_in_another_order_in_val_are_refused(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["val_dataloader"]["dataset"]["metainfo"]["classes"] = ["c", "a", "b"]
    with pytest.raises(UsageError, match=r"val_dataloader.*classes 'c', 'a', 'b'.*'a', 'b', 'c'"):
        checked(tmp_path, tiny)


def test_other_names_of_the_classes_in_val_are_reported(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["val_dataloader"]["dataset"]["metainfo"]["classes"] = ["a", "B ", "cc"]
    report = checked(tmp_path, tiny)
    assert any("'cc'" in warning and "'c'" in warning for warning in report.warnings)
    tiny["val_dataloader"]["dataset"]["metainfo"]["classes"] = ["A", " b", "c"]
    assert not any("'A'" in warning for warning in checked(tmp_path, tiny).warnings)


# --------------------------------------------------------------------------- evaluators


IOU = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}


@pytest.mark.parametrize(
    "evaluator",
    [
        {"type": "Evaluator", "metrics": [IOU]},
        {"metrics": [IOU]},
        {"type": "mmengine.Evaluator", "metrics": IOU},
        [IOU],
    ],
    ids=str,
)
def test_an_evaluator_that_holds_metrics_is_walked_through(evaluator, tmp_path):
    tiny = put(settings(write_set(tmp_path)), val_evaluator=evaluator)
    checked(tmp_path, tiny)
    assert trained(tmp_path, tiny) == 0


@LOOPS.register_module()
class OwnLoop(BaseLoop):
    """A loop of a user's that validates on one data set after the other."""

    def __init__(self, runner, dataloader, evaluator):
        super().__init__(runner, dataloader)
        self.evaluator = evaluator

    def run(self):
        for loader in self.dataloader:
            ValLoop(self.runner, loader, copy.deepcopy(self.evaluator)).run()


def test_a_loop_of_the_users_gets_its_list_of_data_loaders(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["val_dataloader"] = [tiny["val_dataloader"], copy.deepcopy(tiny["val_dataloader"])]
    tiny["val_cfg"] = {"type": "OwnLoop"}
    assert trained(tmp_path, tiny) == 0
    tiny["val_dataloader"][1]["dataset"]["pipeline"] = [LOAD, RESIZE, PACK]
    with pytest.raises(UsageError, match=r"val_dataloader\.1\.dataset\.pipeline.*LoadAnnotations"):
        checked(tmp_path, tiny)


def test_mmdets_evaluator_of_several_data_sets_passes(tmp_path):
    tiny = settings(write_set(tmp_path))
    one = tiny["val_dataloader"]["dataset"]
    tiny["val_dataloader"]["dataset"] = {"type": "ConcatDataset", "datasets": [one, one]}
    several = {"type": "mmdet.MultiDatasetsEvaluator", "dataset_prefixes": ["x", "y"]}
    tiny["val_evaluator"] = {**several, "metrics": [IOU, IOU]}
    checked(tmp_path, tiny)


@pytest.mark.parametrize(
    ("evaluator", "named"),
    [
        ({"type": "Evaluatr", "metrics": [IOU]}, "val_evaluator.type: 'Evaluatr'"),
        ({"metrics": [IOU, {"type": "IoUMetri"}]}, "val_evaluator.metrics.1.type: 'IoUMetri'"),
        ({"metrics": [{**IOU, "ann_file": "no.json"}]}, "val_evaluator.metrics.0.ann_file"),
    ],
)
def test_a_mistake_inside_an_evaluator_is_named(evaluator, named, tmp_path):
    tiny = put(settings(write_set(tmp_path)), val_evaluator=evaluator)
    with pytest.raises(UsageError, match=named):
        checked(tmp_path, tiny)


def test_the_void_label_of_a_metric_inside_an_evaluator_is_known(tmp_path):
    tiny = settings(write_set(tmp_path, (0, 1, 2, 9)))
    tiny["val_evaluator"] = {"metrics": [{**IOU, "ignore_index": 9}]}
    checked(tmp_path, tiny, "val")


# --------------------------------------------------------------------------- the first sample


def test_label_maps_that_are_loaded_before_the_resizing_are_refused_in_an_evaluation(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["val_dataloader"]["dataset"]["pipeline"] = [LOAD, ANNOTATIONS, RESIZE, PACK]
    message = rf"val_dataloader.*pipeline.*{SIDE} x {SIDE}.*{WIDTH} x {HEIGHT}.*LoadAnnotations"
    with pytest.raises(UsageError, match=message):
        checked(tmp_path, tiny)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_pipeline_without_label_maps_is_refused(split, tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny[f"{split}_dataloader"]["dataset"]["pipeline"] = [LOAD, RESIZE, PACK]
    with pytest.raises(UsageError, match=rf"{split}_dataloader.*pipeline.*LoadAnnotations"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_folder_of_label_maps_is_named(split, tmp_path):
    tiny = settings(write_set(tmp_path))
    del tiny[f"{split}_dataloader"]["dataset"]["data_prefix"]["seg_map_path"]
    with pytest.raises(UsageError, match=rf"{split}_dataloader.*data_prefix.*seg_map_path"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("loads", [True, False])
def test_a_loader_that_reads_zero_otherwise_than_its_data_set_is_refused(loads, split, tmp_path):
    tiny = settings(write_set(tmp_path, (1, 2, 3) if not loads else (0, 1, 2)))
    if not loads:
        tiny = with_zero_labels(tiny, train=True, val=True)
    for step in tiny[f"{split}_dataloader"]["dataset"]["pipeline"]:
        if step["type"] == "LoadAnnotations":
            step["reduce_zero_label"] = loads
    with pytest.raises(UsageError, match=rf"{split}_dataloader.*reduce_zero_label"):
        checked(tmp_path, tiny)


def test_an_unlabelled_test_set_passes_where_it_is_only_predicted(tmp_path):
    tiny = settings(write_set(tmp_path))
    dataset = tiny["test_dataloader"]["dataset"]
    dataset["pipeline"] = [LOAD, RESIZE, PACK]
    del dataset["data_prefix"]["seg_map_path"]
    tiny["test_evaluator"] = {**IOU, "format_only": True, "output_dir": str(tmp_path / "out")}
    checked(tmp_path, tiny, "test")
    tiny["test_evaluator"] = IOU
    with pytest.raises(UsageError, match=r"test_dataloader.*LoadAnnotations"):
        checked(tmp_path, tiny, "test")


CALLS = []


@TRANSFORMS.register_module()
class OwnStep:
    """A transform of a user's, which counts."""

    def __call__(self, results):
        CALLS.append(1)
        return results


@TRANSFORMS.register_module()
class OwnLabels:
    """A transform of a user's that makes label maps without a file."""

    def __call__(self, results):
        results["gt_seg_map"] = np.zeros(results["ori_shape"], np.uint8)
        return results


def test_steps_of_a_users_are_not_run(tmp_path):
    tiny = settings(write_set(tmp_path))
    for split in ("train", "val"):
        dataset = tiny[f"{split}_dataloader"]["dataset"]
        del dataset["data_prefix"]["seg_map_path"]
        for labels in ([{"type": "OwnLabels"}], [{"type": "OwnStep"}, ANNOTATIONS]):
            dataset["pipeline"] = [LOAD, {"type": "OwnStep"}, *labels, PACK]
            checked(tmp_path, tiny, split)
    assert not CALLS


@TRANSFORMS.register_module()
class OwnBinarize:
    """A transform of a user's, by which 255 becomes the second class."""

    def __call__(self, results):
        results["gt_seg_map"] = (results["gt_seg_map"] > 0).astype(np.uint8)
        return results


@pytest.mark.filterwarnings("ignore:For binary segmentation")
def test_labels_that_a_step_of_the_users_may_change_are_not_judged(tmp_path):
    tiny = settings(write_set(tmp_path, (0, 255)), ["background", "fg"])
    for split in ("train", "val", "test"):
        steps = tiny[f"{split}_dataloader"]["dataset"]["pipeline"]
        steps.insert(steps.index(ANNOTATIONS) + 1, {"type": "OwnBinarize"})
    checked(tmp_path, tiny)
    assert trained(tmp_path, tiny) == 0


@pytest.mark.parametrize("wrapper", ["RepeatDataset", "ConcatDataset", "MultiImageMixDataset"])
def test_the_first_sample_comes_through_the_wrappers(wrapper, tmp_path):
    tiny = settings(write_set(tmp_path))
    inner = tiny["train_dataloader"]["dataset"]
    mosaic = {"type": "RandomMosaic", "prob": 1.0, "img_scale": (SIDE, SIDE)}
    wrapped = {
        "RepeatDataset": {"times": 2, "dataset": inner},
        "ConcatDataset": {"datasets": [inner, copy.deepcopy(inner)]},
        "MultiImageMixDataset": {
            "dataset": {**inner, "pipeline": [LOAD, ANNOTATIONS]},
            "pipeline": [mosaic, RESIZE, PACK],
        },
    }[wrapper]
    tiny["train_dataloader"]["dataset"] = {"type": wrapper, **wrapped}
    checked(tmp_path, tiny)
    for part in [wrapped.get("dataset"), *wrapped.get("datasets", ())][-1:]:
        part = part or wrapped["dataset"]
        part["pipeline"] = [s for s in part["pipeline"] if s["type"] != "LoadAnnotations"]
    with pytest.raises(UsageError, match=r"train_dataloader\.dataset"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize(
    ("evaluator", "named"),
    [
        ({"type": "IoUMetric", "iou_metrics": ["mIOU"]}, "'mIOU'.*mIoU, mDice, mFscore"),
        ({"type": "IoUMetric", "iou_metrics": "miou"}, "'miou'.*mIoU, mDice, mFscore"),
        ([{"type": "mmseg.IoUMetric", "iou_metrics": ["mIoU", "IoU"]}], "0.iou_metrics.*'IoU'"),
    ],
)
def test_an_unknown_score_is_named_with_those_there_are(evaluator, named, tmp_path):
    tiny = put(settings(write_set(tmp_path)), val_evaluator=evaluator)
    with pytest.raises(UsageError, match=rf"val_evaluator.*{named}"):
        checked(tmp_path, tiny)


def test_a_data_set_without_the_names_of_its_classes_trains(tmp_path):
    tiny = settings(write_set(tmp_path), classes=())
    tiny = {k: v for k, v in tiny.items() if not k.startswith(("val_", "test_"))}
    del tiny["train_cfg"]["val_interval"]
    assert trained(tmp_path, tiny) == 0


@pytest.mark.parametrize("metainfo", [None, {"CLASSES": ["a", "b", "c"]}])
def test_missing_names_of_classes_are_named_where_a_metric_needs_them(metainfo, tmp_path):
    tiny = settings(write_set(tmp_path), classes=())
    if metainfo:
        for split in ("train", "val"):
            tiny[f"{split}_dataloader"]["dataset"]["metainfo"] = metainfo
    with pytest.raises(UsageError, match=r"val_dataloader\.dataset\.metainfo\.classes is missing"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize(
    ("test_cfg", "named"),
    [
        ({"mode": "slide"}, "crop_size"),
        ({"mode": "slide", "crop_size": 32, "stride": 16}, "crop_size.*32"),
        ({"mode": "slide", "crop_size": (32, 32), "stride": (0, 16)}, "stride"),
        ({"mode": "slide", "crop_size": (32, 32)}, "stride"),
        ({"mode": "sliding"}, "'sliding'.*whole"),
    ],
)
def test_windows_that_cannot_slide_are_refused(test_cfg, named, tmp_path):
    tiny = put(settings(write_set(tmp_path)), model__test_cfg=test_cfg)
    with pytest.raises(UsageError, match=rf"model\.test_cfg\..*{named}"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize(
    "test_cfg", [{}, {"mode": "slide", "crop_size": (32, 32), "stride": [16, 16]}]
)
def test_windows_that_slide_pass(test_cfg, tmp_path):
    checked(tmp_path, put(settings(write_set(tmp_path)), model__test_cfg=test_cfg))


# --------------------------------------------------------------------------- bands


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"model__backbone__num_channels": 4}, False),
        ({"model__data_preprocessor__mean": [1.0] * 4, "model__data_preprocessor__std": [1.0] * 4},
         False),
        ({"model__data_preprocessor__mean": [1.0], "model__data_preprocessor__std": [1.0]}, True),
    ],
)  # fmt: skip
def test_bands_of_data_preprocessor_and_backbone_agree(changes, fits, tmp_path):
    tiny = put(settings(write_set(tmp_path)), **changes)
    if fits:
        checked(tmp_path, tiny)
        return
    with pytest.raises(UsageError, match=r"3 channels.*4"):
        checked(tmp_path, tiny)


def test_a_grey_image_is_spread_over_the_bands_of_the_mean(tmp_path):
    tiny = settings(write_set(tmp_path))
    for split in ("train", "val"):
        steps = tiny[f"{split}_dataloader"]["dataset"]["pipeline"]
        steps[0] = {**LOAD, "color_type": "grayscale"}
    checked(tmp_path, tiny)
    assert trained(tmp_path, tiny) == 0


@pytest.mark.parametrize("size", [{"size": None}, {"size_divisor": 32}])
def test_the_preprocessor_needs_one_size(size, tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["model"]["data_preprocessor"].update(size)
    with pytest.raises(UsageError, match=r"data_preprocessor.*size.*size_divisor"):
        checked(tmp_path, tiny)


# --------------------------------------------------------------------------- what is written


def run_test(tmp_path, values, *flags):
    """Train once, then run tools/test.py with these flags; return its exit code."""
    assert trained(tmp_path, values) == 0
    checkpoint = str(tmp_path / "run" / "iter_1.pth")
    run = ["--work-dir", str(tmp_path / "test"), *flags]
    return launch.evaluate([str(tmp_path / "own.py"), checkpoint, *run])


@pytest.mark.parametrize(
    "evaluator",
    [
        IOU,
        {"type": "Evaluator", "metrics": [IOU]},
        [{"type": "DumpResults", "out_file_path": "{}/all.pkl"}, IOU],
    ],
    ids=["one", "evaluator", "list"],
)
def test_label_maps_are_written_beside_other_metrics(evaluator, tmp_path):
    tiny = settings(write_set(tmp_path))
    if isinstance(evaluator, list):
        evaluator = [{**evaluator[0], "out_file_path": str(tmp_path / "all.pkl")}, IOU]
    tiny["test_evaluator"] = evaluator
    assert run_test(tmp_path, tiny, "--out", str(tmp_path / "out")) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_all_pictures_of_a_small_test_set_are_drawn(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["default_hooks"]["visualization"] = {"type": "SegVisualizationHook"}
    tiny["visualizer"] = {
        "type": "SegLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]
    }  # fmt: skip
    assert run_test(tmp_path, tiny, "--show-dir", str(tmp_path / "show")) == 0
    assert len(list((tmp_path / "show").rglob("*.png"))) == 2


def flag_errors(tmp_path, values, *flags):
    path = write_config(tmp_path / "own.py", values)
    cfg = load_config(path, None, ())
    with pytest.raises(UsageError) as error:
        run_flags.KEEP_PREDICTIONS["mmseg"](cfg, *flags)
    return str(error.value)


def test_label_maps_of_one_name_are_refused_before_the_test(tmp_path):
    tiny = settings(write_set(tmp_path, names=("x/1", "y/1", "y/2")))
    text = flag_errors(tmp_path, tiny, str(tmp_path / "out"))
    assert all(part in text for part in ("x/1", "y/1", "predict"))


def test_a_file_for_the_folder_of_label_maps_names_the_flag(tmp_path):
    tiny = settings(write_set(tmp_path))
    (tmp_path / "out").write_text("")
    assert "--out" in flag_errors(tmp_path, tiny, str(tmp_path / "out"))


def test_a_metric_that_writes_no_label_maps_is_not_enough(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["test_evaluator"] = [{"type": "DumpResults", "out_file_path": "a.pkl"}]
    assert "IoUMetric" in flag_errors(tmp_path, tiny, str(tmp_path / "out"))


# --------------------------------------------------------------------------- files and options


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("a\n\nb\n", "utf-8", "1 of 3 files"),
        ("a\nb\n", "utf-8-sig", "1 of 2 files"),
        ("a.jpg\nb\n", "utf-8", "'a.jpg.jpg'"),
        ("ä\n", "latin-1", "UTF-8"),
        ("a\n", "utf-16", "UTF-8"),
        ("", "utf-8", "lists no image"),
    ],
)
def test_a_mistake_in_the_list_of_a_split_names_the_list(text, encoding, named, tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["train_dataloader"]["dataset"]["ann_file"] = "train.txt"
    (tmp_path / "train.txt").write_text(text, encoding=encoding)
    with pytest.raises(UsageError, match=rf"train\.txt'.*{named}|{named}.*train\.txt'"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_list_of_a_split_is_read_as_mmsegmentation_does(newline, tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["train_dataloader"]["dataset"]["ann_file"] = "train.txt"
    (tmp_path / "train.txt").write_text(newline.join(("a", "b", "")), newline="")
    report = checked(tmp_path, tiny, "train")
    assert "2 images" in report.summaries[0]


def test_a_folder_for_the_list_of_a_split_is_the_folder_of_the_images(tmp_path):
    # `BaseSegDataset` lists the images where `ann_file` is a folder.
    tiny = settings(write_set(tmp_path))
    tiny["train_dataloader"]["dataset"]["ann_file"] = "img"
    assert trained(tmp_path, tiny) == 0
    tiny["train_dataloader"]["dataset"]["ann_file"] = "none"
    with pytest.raises(UsageError, match=r"annotation file .*none"):
        checked(tmp_path, tiny)


def test_images_and_label_maps_in_one_folder_leave_nothing_out(tmp_path):
    tiny = settings(write_set(tmp_path))
    for split in ("train", "val"):
        for path in (tmp_path / "ann" / split).iterdir():
            path.rename(tmp_path / "img" / split / path.name)
        prefix = tiny[f"{split}_dataloader"]["dataset"]["data_prefix"]
        prefix["seg_map_path"] = prefix["img_path"]
    assert not any("left out" in warning for warning in checked(tmp_path, tiny).warnings)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "img" / "train" / "c.webp")
    assert any("1 .webp are left out" in w for w in checked(tmp_path, tiny).warnings)


def test_a_label_map_of_an_image_that_exif_turns_says_so(tmp_path):
    tiny = settings(write_set(tmp_path))
    path = tmp_path / "img" / "train" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).copy().save(path, exif=exif)
    with pytest.raises(UsageError, match=r"a\.png.*EXIF"):
        checked(tmp_path, tiny)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"custom_dataset.reduce_zero_label": "no"}, "reduce_zero_label must be True or False.*no"),
        ({"custom_dataset.root": ["/data/a", "b"]}, "custom_dataset.root .*'/data/a'"),
        ({"train_dataloader.batch_size": 0}, "train_dataloader.batch_size .* got 0"),
        ({"train_dataloader.batch_size": "two"}, "train_dataloader.batch_size .* got 'two'"),
    ],
)
def test_a_value_of_another_kind_is_named(options, named, tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["custom_dataset"] = own_data(tmp_path, reduce_zero_label=False, iters=3)
    path = write_config(tmp_path / "own.py", tiny)
    with pytest.raises(UsageError, match=named):
        load_config(path, options, ())


def test_a_schedule_of_one_iteration_has_no_empty_range(tmp_path):
    tiny = settings(write_set(tmp_path))
    tiny["custom_dataset"] = own_data(tmp_path, reduce_zero_label=False, iters=1)
    tiny["train_cfg"]["max_iters"] = 100
    tiny["param_scheduler"] = [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 20},
        {"type": "PolyLR", "power": 1.0, "by_epoch": False, "begin": 20, "end": 100},
    ]
    cfg = load_config(write_config(tmp_path / "own.py", tiny), None, ())
    assert [s.type for s in cfg.param_scheduler] == ["LinearLR"]
    assert trained(tmp_path, tiny) == 0


def test_a_run_that_is_resumed_at_its_end_says_that_nothing_is_left(tmp_path):
    tiny = settings(write_set(tmp_path))
    assert trained(tmp_path, tiny) == 0
    path = str(tmp_path / "own.py")
    assert launch.train([path, "--work-dir", str(tmp_path / "run"), "--resume"]) == 0
    newest = max((tmp_path / "run").glob("*/*.log"), key=lambda log: log.stat().st_mtime)
    assert "Nothing is left to train" in newest.read_text()


# --------------------------------------------------------------------------- maps and heads


@pytest.mark.parametrize("kind", ["PSPHead", "ASPPHead"])
def test_batch_norm_over_one_pooled_image_is_refused(kind, tmp_path, capsys):
    head = {"type": kind, "loss_decode": SOFTMAX}
    tiny = settings(write_set(tmp_path), head=head)
    for key in ("num_convs", "concat_input"):
        del tiny["model"]["decode_head"][key]
    assert trained(tmp_path, tiny) == 0
    last = ("train_dataloader.sampler.type=DefaultSampler", "train_dataloader.batch_size=3")
    write_set(tmp_path, names=("c", "d"))  # of four images one is left
    for options in (("train_dataloader.batch_size=1",), last):
        assert trained(tmp_path, tiny, *options) == 2
    assert trained(tmp_path, tiny, *last, "train_dataloader.drop_last=True") == 0
    error = capsys.readouterr().err
    assert re.search(r"decode_head.*one image.*train_dataloader\.batch_size=2", error)


def test_synchronized_batch_norm_counts_the_images_of_all_processes(tmp_path):
    head = {"type": "PSPHead", "norm_cfg": {"type": "SyncBN"}}
    tiny = put(settings(write_set(tmp_path), head=head), train_dataloader__batch_size=1)
    for key in ("num_convs", "concat_input"):
        del tiny["model"]["decode_head"][key]
    cfg = load_config(write_config(tmp_path / "own.py", tiny), None, (), "pytorch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_checks, "count_processes", lambda cfg: 2)
        model_checks.check_model(cfg, ("train",))
    with pytest.raises(UsageError, match=r"decode_head"):
        model_checks.check_model(cfg, ("train",))
