"""Every shipped config, built: it fits together, and it is the recipe that was published.

The published values are those of facebookresearch/ConvNeXt (object_detection and
semantic_segmentation, configs and READMEs), ConvNeXt V2 (arXiv 2301.00808, tables 6 and 7, A.3 and
A.4), facebookresearch/dinov3 (eval/segmentation) and mmdet's rtmdet_l_convnext_b_4xb32-100e_coco.
"""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import functools
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytestmark = pytest.mark.openmmlab

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from mmseg.structures import SegDataSample

from convnext_backbone import ConvNextBackbone, list_weights
from convnext_backbone.openmmlab.tools.channels import check_built_maps
from convnext_backbone.openmmlab.tools.config import build_model

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from complexity import count_flops, count_parameters, input_size

CONFIGS = sorted(
    str(path.relative_to(ROOT / "configs"))
    for path in (ROOT / "configs").glob("[!_]*/*.py")
    if path.parent.name != "quickstart"
)
GPUS = 8


@functools.cache
def config(name):
    return Config.fromfile(ROOT / "configs" / name)


@functools.cache
def model(name):
    cfg = config(name)
    init_default_scope(cfg.default_scope)
    return build_model(cfg)


# What holds for every config.


@pytest.mark.parametrize("name", CONFIGS)
def test_the_backbone_feeds_what_follows_it(name):
    built = model(name)
    assert isinstance(built.backbone, ConvNextBackbone)
    height, width = 64, 96
    with torch.device("meta"):
        images = torch.empty(2, 3, height, width)
        maps = built.backbone(images)
        features = built.extract_feat(images)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, height // s, width // s)
        for c, s in zip(built.backbone.channels, built.backbone.strides, strict=True)
    ]
    check_built_maps(config(name), built)
    if hasattr(built, "neck"):
        assert len({f.shape[1] for f in features}) == 1  # the neck ran and gave one width
    for key in ("decode_head", "auxiliary_head"):
        head = getattr(built, key, None)
        if head is not None and not hasattr(head, "transformer_decoder"):
            with torch.device("meta"):
                assert head(maps).shape[:2] == (2, head.num_classes)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_initial_weights_are_in_the_catalogue_and_of_the_same_architecture(name):
    settings = config(name).model.backbone
    tag = settings.init_cfg.checkpoint
    if "-sup_" in name:  # published, but not with its weights
        assert tag == f"checkpoints/{settings.arch}_sup_in1k.pth"
        return
    assert tag in list_weights()
    assert tag.split(".")[0] == settings.arch


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_plain_data(name):
    values = config(name).to_dict()
    assert json.loads(json.dumps(values)) == _listed(values)


def _listed(value):
    """`value` with lists for tuples, as JSON has it."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", [CONFIGS[0], CONFIGS[-1]])
def test_a_dumped_config_is_the_same_config(name, tmp_path):
    config(name).dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == config(name).to_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_name_tells_batch_size_and_precision(name):
    cfg = config(name)
    batch = cfg.train_dataloader.batch_size
    gpus = cfg.auto_scale_lr.base_batch_size // batch
    assert f"{gpus}xb{batch}" in name
    wrapper = cfg.optim_wrapper.type
    assert ("-amp" in name) == (wrapper == "AutoAmpOptimWrapper"), wrapper


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_inherited_from_another_package(name):
    # A config of another package is inherited as "package::path".
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    assert "::" not in text
    assert "mmpretrain" not in text.replace("its dependency on mmpretrain", "")


# Tables and metafiles.


# One config a head: the sizes of the backbone do not change how a head is counted.
@pytest.mark.parametrize(
    "name",
    [n for n in CONFIGS if n.startswith(("dino/dino-4scale_c", "mask2former/mask2former_c"))],
)
def test_the_flops_of_a_transformer_head_are_those_of_a_run_that_computes(name):
    size = (256, 256)  # holds DINO's 900 queries
    computing = build_model(Config.fromfile(ROOT / "configs" / name), "cpu")
    meta = {"img_shape": size, "batch_input_shape": size, "pad_shape": size}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        if name.startswith("dino/"):
            computing(torch.zeros(1, 3, *size), [DetDataSample(metainfo=meta)], mode="tensor")
        else:
            maps = computing.extract_feat(torch.zeros(1, 3, *size))
            computing.decode_head(maps, [SegDataSample(metainfo=meta)])
    assert count_flops(model(name), size) == counter.get_total_flops() // 2


def packages_of(module):
    """The names of the distributions that a module comes from, in one string."""
    return " ".join(importlib.metadata.packages_distributions().get(module, ()))


@pytest.fixture(scope="module")
def model_table():
    """tools/model_table.py, counting on the models that this module has built already."""
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "tools/model_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def measure(path):
        name = str(path.relative_to(ROOT / "configs"))
        built = model(name)
        return count_parameters(built), count_flops(built, input_size(config(name)))

    module.measure = measure
    return module


@pytest.mark.skipif(
    "onedl" in packages_of("mmdet"),
    reason="the tables are those of the published packages; onedl's DINO decoder is larger",
)
def test_the_tables_of_the_readmes_are_what_the_configs_say(model_table):
    assert [str(readme) for readme, _ in model_table.outdated()] == []


def test_a_wrong_number_in_a_table_is_found(model_table, tmp_path):
    folder = tmp_path / "configs" / "fcos"
    shutil.copytree(ROOT / "configs" / "fcos", folder)
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert " 36.0 " in text
    readme.write_text(text.replace(" 36.0 ", " 37.0 "), encoding="utf-8")
    models = model_table.read_metafile(folder)
    drawn = model_table.with_table(readme.read_text(encoding="utf-8"), model_table.table(models))
    assert drawn == text


def test_every_config_has_its_entry_in_a_metafile_of_the_index(model_table):
    index = load(ROOT / "model-index.yml")["Import"]
    models = [m for path in index for m in load(ROOT / path)["Models"]]
    assert sorted(m["Config"] for m in models) == [f"configs/{name}" for name in CONFIGS]
    assert all(m["Config"].endswith(f"/{m['Name']}.py") for m in models)


def test_the_metafiles_give_the_published_parameters_and_flops():
    facts = {}
    for path in load(ROOT / "model-index.yml")["Import"]:
        for entry in load(ROOT / path)["Models"]:
            facts[entry["Config"].removeprefix("configs/")] = entry["Metadata"]
    for recipe in PUBLISHED:
        assert facts[recipe.name].get("Published Parameters (M)") == recipe.parameters
        assert facts[recipe.name].get("Published FLOPs (G)") == recipe.flops


# The published recipes.

T, S, B, L, XL = (
    ((3, 3, 9, 3), (96, 192, 384, 768)),
    ((3, 3, 27, 3), (96, 192, 384, 768)),
    ((3, 3, 27, 3), (128, 256, 512, 1024)),
    ((3, 3, 27, 3), (192, 384, 768, 1536)),
    ((3, 3, 27, 3), (256, 512, 1024, 2048)),
)
H = ((3, 3, 27, 3), (352, 704, 1408, 2816))


@dataclass(frozen=True)
class Recipe:
    """One published row; millions of parameters and billions of FLOPs where they were given."""

    name: str
    size: tuple
    lr: float
    decay: float
    num_layers: int
    drop_path: float
    amp: bool
    parameters: float | None = None
    flops: float | None = None
    v2: bool = False


_MS = "-ms-crop-3x_coco.py"
_MASK = "mask_rcnn/mask-rcnn_convnext"
_CASCADE = "cascade_rcnn/cascade-mask-rcnn_convnext"
_HEAD = "_fpn_4conv1fc-giou_8xb2"
_LSJ = "_fpn_8xb4-amp-lsj-3x_coco.py"
DETECTION = (
    Recipe(f"{_MASK}-t_fpn_8xb2-amp{_MS}", T, 1e-4, 0.95, 6, 0.4, True, 48, 262),
    Recipe(f"{_CASCADE}-t{_HEAD}-amp{_MS}", T, 2e-4, 0.7, 6, 0.4, True, 86, 741),
    Recipe(f"{_CASCADE}-s{_HEAD}-amp{_MS}", S, 2e-4, 0.7, 12, 0.6, True, 108, 827),
    Recipe(f"{_CASCADE}-b{_HEAD}-amp{_MS}", B, 2e-4, 0.8, 12, 0.7, True, 146, 964),
    Recipe(f"{_CASCADE}-b-in22k{_HEAD}-amp{_MS}", B, 1e-4, 0.8, 12, 0.6, True, 146, 964),
    Recipe(f"{_CASCADE}-l-in22k{_HEAD}{_MS}", L, 1e-4, 0.7, 12, 0.7, False, 255, 1354),
    Recipe(f"{_CASCADE}-xl-in22k{_HEAD}{_MS}", XL, 1e-4, 0.7, 12, 0.8, False, 407, 1898),
)
# The paper names the sets that it searched: decay {0.9, 0.95}, drop path {0.2, 0.3, 0.4, 0.5}.
LSJ = (
    Recipe(f"{_MASK}-b{_LSJ}", B, 1e-4, 0.95, 12, 0.4, True),
    Recipe(f"{_MASK}-l{_LSJ}", L, 1e-4, 0.95, 12, 0.5, True),
    Recipe(f"{_MASK}v2-b-sup{_LSJ}", B, 1e-4, 0.95, 12, 0.4, True, None, 486, v2=True),
    Recipe(f"{_MASK}v2-l-sup{_LSJ}", L, 1e-4, 0.95, 12, 0.5, True, None, 875, v2=True),
    Recipe(f"{_MASK}v2-b-fcmae{_LSJ}", B, 1e-4, 0.95, 12, 0.4, True, None, 486, v2=True),
    Recipe(f"{_MASK}v2-l-fcmae{_LSJ}", L, 1e-4, 0.95, 12, 0.5, True, None, 875, v2=True),
    Recipe(f"{_MASK}v2-h-fcmae{_LSJ}", H, 1e-4, 0.95, 12, 0.5, True, None, 2525, v2=True),
)
_UPER, _512, _640 = "upernet/upernet_convnext", "ade20k-512x512.py", "ade20k-640x640.py"
SEGMENTATION = (
    Recipe(f"{_UPER}-t_8xb2-amp-160k_{_512}", T, 1e-4, 0.9, 6, 0.4, True, 60, 939),
    Recipe(f"{_UPER}-s_8xb2-amp-160k_{_512}", S, 1e-4, 0.9, 12, 0.3, True, 82, 1027),
    Recipe(f"{_UPER}-b_8xb2-amp-160k_{_512}", B, 1e-4, 0.9, 12, 0.4, True, 122, 1170),
    Recipe(f"{_UPER}-b-in22k_8xb2-amp-160k_{_640}", B, 1e-4, 0.9, 12, 0.4, True, 122, 1828),
    Recipe(f"{_UPER}-l-in22k_8xb2-160k_{_640}", L, 1e-4, 0.9, 12, 0.4, False, 235, 2458),
    Recipe(f"{_UPER}-xl-in22k_8xb2-160k_{_640}", XL, 8e-5, 0.9, 12, 0.4, False, 391, 3335),
    # The paper searched decay {0.8, 0.9}, lr {1e-4, 2e-4, 3e-4} and drop path 0.1 to 0.4.
    Recipe(f"{_UPER}v2-b-sup_8xb2-amp-160k_{_512}", B, 1e-4, 0.9, 12, 0.4, True, v2=True),
    Recipe(f"{_UPER}v2-l-sup_8xb2-amp-160k_{_512}", L, 1e-4, 0.9, 12, 0.4, True, v2=True),
    Recipe(f"{_UPER}v2-b_8xb2-amp-160k_{_512}", B, 1e-4, 0.9, 12, 0.4, True, v2=True),
    Recipe(f"{_UPER}v2-l_8xb2-amp-160k_{_512}", L, 1e-4, 0.9, 12, 0.4, True, v2=True),
    Recipe(f"{_UPER}v2-h_8xb2-amp-160k_{_512}", H, 1e-4, 0.9, 12, 0.4, True, v2=True),
    Recipe(f"{_UPER}v2-h-in22k_8xb2-amp-160k_{_640}", H, 1e-4, 0.9, 12, 0.4, True, v2=True),
)
PUBLISHED = (*DETECTION, *LSJ, *SEGMENTATION)


def by_name(recipe):
    return recipe.name.split("/")[1].removesuffix(".py")


def all_of(recipes):
    return pytest.mark.parametrize("recipe", recipes, ids=by_name)


@all_of(PUBLISHED)
def test_parameters_and_flops_are_the_published_ones_within_one_percent(recipe):
    built = model(recipe.name)
    flops = count_flops(built, input_size(config(recipe.name))) / 1e9
    if recipe.parameters is not None:
        assert count_parameters(built) / 1e6 == pytest.approx(recipe.parameters, rel=0.01)
    if recipe.flops is not None:
        assert flops == pytest.approx(recipe.flops, rel=0.01)
    if recipe.v2 and recipe.parameters is None:
        # Against V1 of the same size the block gains two vectors of GRN and loses a layer scale.
        depths, widths = recipe.size
        grn = sum(d * (2 * 4 * w) for d, w in zip(depths, widths, strict=True))
        blocks = [m for m in built.backbone.modules() if hasattr(m, "grn")]
        assert sum(p.numel() for b in blocks for p in b.grn.parameters()) == grn
        assert all(b.gamma is None for b in blocks)


@all_of(PUBLISHED)
def test_the_backbone_is_the_published_one(recipe):
    backbone = model(recipe.name).backbone
    depths, widths = recipe.size
    assert (tuple(backbone.config.depths), backbone.channels) == (depths, widths)
    assert backbone.out_features == ("stage1", "stage2", "stage3", "stage4")
    blocks = [block for stage in backbone.stages for block in stage]
    rates = [block.drop_path.rate for block in blocks]
    expected = [recipe.drop_path * i / (len(blocks) - 1) for i in range(len(blocks))]
    assert rates == pytest.approx(expected)
    assert backbone.config.layer_scale_init_value == (0.0 if recipe.v2 else 1.0)
    assert backbone.config.use_grn == recipe.v2
    assert backbone.frozen_stages == -1


def expected_scale(name, depths, num_layers, rate, kind):
    """The learning rate's factor by the formulas of the published constructors."""
    parts = name.split(".")
    if parts[:2] == ["backbone", "downsample_layers"]:
        stage = int(parts[2])
        layer = 0 if kind == "stage_wise" else (0, 2, 3, num_layers)[stage]
    elif parts[:2] == ["backbone", "stages"]:
        stage, block = int(parts[2]), int(parts[3])
        layer = stage + 1 if kind == "stage_wise" else (1, 2, 3 + block // 3, num_layers)[stage]
    else:
        layer = num_layers + 1
    return rate ** (num_layers + 1 - layer)


@all_of(PUBLISHED)
def test_the_optimizer_gives_every_parameter_the_published_rate_and_decay(recipe):
    wrapper = build_optim_wrapper(model(recipe.name), config(recipe.name).optim_wrapper)
    optimizer = wrapper.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert wrapper.clip_grad_kwargs is None
    kind = "stage_wise" if "upernet" in recipe.name else "layer_wise"
    seen = set()
    parameters = dict(model(recipe.name).named_parameters())
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            scale = expected_scale(name, recipe.size[0], recipe.num_layers, recipe.decay, kind)
            assert group["lr"] == pytest.approx(recipe.lr * scale, rel=1e-9), name
            assert group["weight_decay"] == (0.05 if parameters[name].ndim > 1 else 0.0), name
            seen.add(name)
    assert seen == parameters.keys()


def train_transforms(name):
    init_default_scope(config(name).default_scope)
    steps = config(name).train_dataloader.dataset.pipeline
    return {step["type"]: TRANSFORMS.build(step) for step in steps}


def test_transform(name):
    init_default_scope(config(name).default_scope)
    steps = config(name).test_dataloader.dataset.pipeline
    return {step["type"]: TRANSFORMS.build(step) for step in steps}


test_transform.__test__ = False

_SHORT_SIDES = [(side, 1333) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]


@all_of(DETECTION)
def test_detection_images_are_scaled_and_cropped_as_published(recipe):
    steps = train_transforms(recipe.name)
    assert list(steps) == [
        "LoadImageFromFile", "LoadAnnotations", "RandomFlip", "RandomChoice", "PackDetInputs"
    ]  # fmt: skip
    assert steps["RandomFlip"].prob == 0.5
    assert steps["LoadAnnotations"].with_mask
    scale_only, with_crop = (list(branch) for branch in steps["RandomChoice"].transforms)
    assert [step.scales for step in scale_only] == [_SHORT_SIDES]
    first, crop, last = with_crop
    assert first.scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop.crop_type, crop.crop_size, crop.allow_negative_crop) == (
        "absolute_range", (384, 600), True
    )  # fmt: skip
    assert last.scales == _SHORT_SIDES
    resize = test_transform(recipe.name)["Resize"]
    assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)


@all_of(LSJ)
def test_large_scale_jitter_is_the_published_one(recipe):
    steps = train_transforms(recipe.name)
    resize, crop = steps["RandomResize"], steps["RandomCrop"]
    assert (resize.scale, resize.ratio_range) == ((1024, 1024), (0.1, 2.0))
    assert (crop.crop_size, crop.crop_type) == ((1024, 1024), "absolute_range")
    assert config(recipe.name).model.test_cfg.rcnn.nms.type == "soft_nms"


@all_of((*DETECTION, *LSJ))
def test_the_detection_schedule_is_the_published_one(recipe):
    cfg = config(recipe.name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm_up, steps = (
        PARAM_SCHEDULERS.build(dict(s), default_args={"optimizer": optimizer})
        for s in cfg.param_scheduler
    )
    assert (warm_up.by_epoch, warm_up.begin, warm_up.end) == (False, 0, 1000)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert (steps.by_epoch, sorted(steps.milestones), steps.gamma) == (True, [27, 33], 0.1)
    assert cfg.train_cfg.max_epochs == 36
    images = 32 if recipe in LSJ else 16
    assert cfg.train_dataloader.batch_size * GPUS == images
    assert cfg.auto_scale_lr.base_batch_size == images


@all_of([r for r in DETECTION if "cascade" in r.name])
def test_the_cascade_heads_are_the_published_ones(recipe):
    from mmcv.cnn.bricks import ConvModule
    from mmdet.models.losses import GIoULoss

    heads = list(model(recipe.name).roi_head.bbox_head)
    assert [tuple(head.bbox_coder.stds) for head in heads] == [
        (0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)
    ]  # fmt: skip
    for head in heads:
        convs = [m for m in head.shared_convs if isinstance(m, ConvModule)]
        assert (len(convs), len(head.shared_fcs)) == (4, 1)
        assert all(isinstance(conv.norm, torch.nn.SyncBatchNorm) for conv in convs)
        assert isinstance(head.loss_bbox, GIoULoss)
        assert (head.loss_bbox.loss_weight, head.reg_decoded_bbox) == (10.0, True)
        assert not head.reg_class_agnostic


@all_of(SEGMENTATION)
def test_segmentation_images_are_scaled_and_cropped_as_published(recipe):
    crop = 640 if "640" in recipe.name else 512
    steps = train_transforms(recipe.name)
    assert list(steps) == [
        "LoadImageFromFile", "LoadAnnotations", "RandomResize", "RandomCrop", "RandomFlip",
        "PhotoMetricDistortion", "PackSegInputs",
    ]  # fmt: skip
    assert steps["LoadAnnotations"].reduce_zero_label
    assert steps["RandomResize"].scale == (4 * crop, crop)
    assert steps["RandomResize"].ratio_range == (0.5, 2.0)
    assert (steps["RandomCrop"].crop_size, steps["RandomCrop"].cat_max_ratio) == (
        (crop, crop), 0.75
    )  # fmt: skip
    assert steps["RandomFlip"].prob == 0.5
    assert test_transform(recipe.name)["Resize"].scale == (4 * crop, crop)


@all_of(SEGMENTATION)
def test_the_segmentor_is_the_published_one(recipe):
    built = model(recipe.name)
    crop, stride = (640, 426) if "640" in recipe.name else (512, 341)
    head, auxiliary = built.decode_head, built.auxiliary_head
    assert (head.channels, head.dropout_ratio, head.num_classes) == (512, 0.1, 150)
    assert [pool[0].output_size for pool in head.psp_modules] == [1, 2, 3, 6]
    assert (auxiliary.in_index, auxiliary.in_channels) == (2, recipe.size[1][2])
    assert (head.loss_decode.loss_weight, auxiliary.loss_decode.loss_weight) == (1.0, 0.4)
    for part in (head, auxiliary):
        norms = [m for m in part.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
        assert norms
        assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert built.test_cfg.mode == "slide"
    assert (built.test_cfg.crop_size, built.test_cfg.stride) == ((crop, crop), (stride, stride))
    assert built.data_preprocessor.size == (crop, crop)


@all_of(SEGMENTATION)
def test_the_segmentation_schedule_is_the_published_one(recipe):
    cfg = config(recipe.name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm_up, poly = (
        PARAM_SCHEDULERS.build(dict(s), default_args={"optimizer": optimizer})
        for s in cfg.param_scheduler
    )
    assert (warm_up.by_epoch, warm_up.begin, warm_up.end) == (False, 0, 1500)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)
    assert (poly.by_epoch, poly.begin, poly.end) == (False, 1500, 160000)
    assert (poly.power, poly.eta_min) == (1.0, 0.0)
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.train_dataloader.batch_size * GPUS == 16


@all_of(SEGMENTATION)
def test_multi_scale_tests_take_the_published_scales(recipe):
    init_default_scope("mmseg")
    crop = 640 if "640" in recipe.name else 512
    ratios = (0.75, 0.875, 1, 1.125, 1.25) if recipe.v2 else (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    branches = TRANSFORMS.build(config(recipe.name).tta_pipeline[1]).subroutines
    steps = [list(branch.transforms) for branch in branches]
    seen = {(resize.scale, flip.prob) for resize, flip, *_ in steps}
    assert seen == {
        ((int(4 * crop * r), int(crop * r)), prob) for r in ratios for prob in (0.0, 1.0)
    }


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as the optimizer wrappers ask; yields a switch for its bfloat16."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    MMLogger.get_current_instance()  # asks for the GPUs' names when it is made
    has_bfloat16 = [True]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16[0]
    )
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    return has_bfloat16


def optim_wrapper(settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    others = ("optimizer", "constructor", "paramwise_cfg")
    settings = {k: v for k, v in settings.items() if k not in others}
    return OPTIM_WRAPPERS.build({**settings, "optimizer": optimizer})


@all_of(PUBLISHED)
def test_mixed_precision_is_on_where_it_was_published(recipe, gpu):
    wrapper = optim_wrapper(config(recipe.name).optim_wrapper)
    assert type(wrapper) is (AmpOptimWrapper if recipe.amp else OptimWrapper)
    if recipe.amp:
        assert wrapper.cast_dtype == torch.bfloat16
        assert not wrapper.loss_scaler.is_enabled()


def test_mixed_precision_is_float16_on_a_gpu_without_bfloat16(gpu):
    gpu[0] = False
    wrapper = optim_wrapper({"type": "AutoAmpOptimWrapper"})
    assert wrapper.cast_dtype == torch.float16
    assert wrapper.loss_scaler.is_enabled()


def test_mixed_precision_is_off_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert type(optim_wrapper({"type": "AutoAmpOptimWrapper"})) is OptimWrapper


# Frozen linear segmentation and RTMDet have recipes of their own.

LINEAR = [name for name in CONFIGS if name.startswith("linear/")]


@pytest.mark.parametrize("name", LINEAR)
def test_linear_segmentation_trains_nothing_but_its_head(name):
    cfg, built = config(name), model(name)
    wrapper = build_optim_wrapper(built, cfg.optim_wrapper)
    groups = [g for g in wrapper.optimizer.param_groups if g["lr"] > 0]
    moving = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    assert moving == {id(p) for p in built.decode_head.parameters()}
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(1e-3, 1e-3)}
    assert built.backbone.out_features == ("stage4",)
    assert [n for n, p in built.backbone.named_parameters() if p.requires_grad] == [
        "norms.stage4.weight", "norms.stage4.bias"
    ]  # fmt: skip
    assert isinstance(built.decode_head.norm, torch.nn.SyncBatchNorm)
    assert built.decode_head.conv_seg.kernel_size == (1, 1)
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size * GPUS) == (40000, 16)
    assert (built.test_cfg.crop_size, built.test_cfg.stride) == ((512, 512), (341, 341))


def test_a_rate_of_zero_leaves_the_backbones_norm_as_it_was_loaded():
    weight = torch.nn.Parameter(torch.full((4,), 0.5))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.0, "weight_decay": 0.0}])
    weight.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((4,), 0.5))


def test_rtmdet_is_mmdets_recipe():
    name = "rtmdet/rtmdet-l_convnext-b_4xb32-100e_coco.py"
    cfg, built = config(name), model(name)
    wrapper = build_optim_wrapper(built, cfg.optim_wrapper)
    rates = {g["lr"] for g in wrapper.optimizer.param_groups}
    assert max(rates) == pytest.approx(1e-3)
    assert min(rates) == pytest.approx(1e-3 * 0.8**13)
    assert built.backbone.with_cp
    assert built.backbone.stages[3][2].drop_path.rate == pytest.approx(0.7)
    neck_norms = [m for m in built.neck.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert neck_norms
    assert {norm.num_groups for norm in neck_norms} == {32}
    assert cfg.train_cfg.max_epochs == 100
