"""All that mmdet and mmseg ship imports and builds without compiled mmcv.

One config of every folder under `.mim/configs` is parsed and its model built, on the meta device
and without weights, so that no memory is needed. What needs a package that is not among the
project's own is listed with that package, and has to say so itself.
"""

import functools
import importlib
import itertools
import math
import pkgutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from helpers.process_group import one_process

from convnext_backbone.openmmlab.patches.apply import apply_compat
from convnext_backbone.openmmlab.tools.channels import fit_channels
from convnext_backbone.openmmlab.tools.typed import TypedOptions

apply_compat()

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402

pytestmark = pytest.mark.openmmlab

LIBRARIES = ("mmdet", "mmseg")
# Not families: parts of configs that others inherit from.
NO_MODELS = {("mmdet", "_base_"), ("mmdet", "common"), ("mmseg", "_base_")}
# Modules that import a package which the library itself calls optional, with that package.
OPTIONAL_MODULES = {
    "mmdet.utils.benchmark": "psutil",
    "mmdet.datasets.onedl": "loguru",
    "mmdet.datasets.transforms.loading_onedl": "onedl",
    "mmseg.datasets.onedl": "mmpretrain",
    "mmseg.datasets.transforms.loading_onedl": "onedl",
}
# Families that need more than the project installs: the module that is missing, and what the
# library says about it.
OPTIONAL_FAMILIES = {
    ("mmdet", "boxinst"): ("skimage", "skimage is not installed"),
    ("mmdet", "bytetrack"): ("lap", "lap is not installed"),
    ("mmdet", "convnext"): ("mmpretrain", "mmpretrain"),
    ("mmdet", "deepsort"): ("mmpretrain", "mmpretrain"),
    ("mmdet", "misc"): ("detectron2", "Detectron2"),
    ("mmdet", "ocsort"): ("lap", "lap is not installed"),
    ("mmdet", "reid"): ("mmpretrain", "mmpretrain"),
    ("mmdet", "strongsort"): ("mmpretrain", "mmpretrain"),
    ("mmdet", "timm_example"): ("mmpretrain", "mmpretrain"),
    ("mmseg", "convnext"): ("mmpretrain", "mmpretrain"),
    ("mmseg", "poolformer"): ("mmpretrain", "mmpretrain"),
    ("mmseg", "vpd"): ("ldm", "requirements/optional.txt"),
}
# Families whose models compute with values, or load a language model, while they are built.
ON_CPU = {("mmdet", family) for family in ("clrnet", "glip", "grounding_dino", "mm_grounding_dino")}
# Among several, a small one of those.
REPRESENTATIVES = {
    ("mmdet", "glip"): "glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py",
    ("mmdet", "grounding_dino"): "grounding_dino_swin-t_finetune_16xb2_1x_coco.py",
    ("mmdet", "mm_grounding_dino"): "grounding_dino_swin-t_finetune_16xb4_1x_coco.py",
}


def config_root(library):
    return Path(find_spec(library).submodule_search_locations[0], ".mim", "configs")


FAMILIES = [
    (library, folder.name)
    for library in LIBRARIES
    for folder in sorted(config_root(library).iterdir())
    if folder.is_dir() and (library, folder.name) not in NO_MODELS
]


_number = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def registered():
    for library in LIBRARIES:
        importlib.import_module(f"{library}.utils").register_all_modules(init_default_scope=False)


@pytest.fixture(scope="module", autouse=True)
def one_process_group():
    """MMSyncBN asks for a process group when it is built."""
    with one_process():
        yield


@pytest.fixture
def device(library, family, monkeypatch):
    """Build on the meta device where that works, and without memory."""
    if (library, family) in ON_CPU:
        yield
        return
    # Models read their rates of stochastic depth out of a linspace while they are built.
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_module_imports(library):
    package = importlib.import_module(library)
    names = [
        module.name
        for module in pkgutil.walk_packages(package.__path__, f"{library}.")
        if ".mim" not in module.name
    ]
    assert len(names) > 100
    for name in names:
        missing = OPTIONAL_MODULES.get(name)
        if missing is not None and find_spec(missing) is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A language model of the right kind, since the real one would come from the network."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(vocabulary), intermediate_size=8, **sizes)).save_pretrained(
        folder
    )
    return str(folder)


def representative(library, family, bert):
    """The first config of a family that has a model, prepared for building without downloads."""
    root = config_root(library)
    pattern = REPRESENTATIVES.get((library, family), "*.py")
    for path in sorted((root / family).glob(pattern)) or sorted((root / family).rglob(pattern)):
        config = Config.fromfile(path)
        if "model" in config:
            break
    model = config.model
    # Distillation reads its teacher's config by a path from the sources' root, and its weights.
    if isinstance(model.get("teacher_config"), str):
        model.teacher_config = str(root / model.teacher_config.partition("configs/")[2])
    if "teacher_ckpt" in model:
        model.teacher_ckpt = None
    if "language_model" in model:
        model.language_model.name = bert
        if "lang_model_name" in model.bbox_head:
            model.bbox_head.lang_model_name = bert
        # Checkpointing the encoder needs fairscale, which no longer installs.
        model.get("encoder", {}).pop("num_cp", None)
    return config


def build(config, library):
    scope = config.get("default_scope", library)
    # Each instance needs a name of its own, and the newest one counts.
    DefaultScope.get_instance(f"{scope}-{next(_number)}", scope_name=scope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODELS.build(ConfigDict(config.model))


@pytest.mark.parametrize(("library", "family"), FAMILIES)
def test_a_model_of_every_family_builds_or_says_what_it_needs(library, family, device, tiny_bert):
    missing, message = OPTIONAL_FAMILIES.get((library, family), (None, ""))
    if missing is not None and find_spec(missing) is None:
        with pytest.raises((ImportError, RuntimeError, AssertionError), match=message):
            build(representative(library, family, tiny_bert), library)
        return
    model = build(representative(library, family, tiny_bert), library)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


def replace_resnet(model):
    """Put a ConvNextBackbone of the same strides in the place of a ResNet; True if there is one."""
    resnet = model.get("backbone") or {}
    if not str(resnet.get("type")).startswith("ResNet"):
        return False
    outputs = [index + 1 for index in resnet.get("out_indices", range(4))]  # the stem is our 0
    strides = [*resnet.get("strides", (1, 2, 2, 2)), *(4 - resnet.get("num_stages", 4)) * [2]]
    model.backbone = ConfigDict(
        type="ConvNextBackbone",
        arch="convnext_atto",
        out_indices=outputs,
        output_stride=4 * math.prod(strides[:4]),
    )
    return True


@pytest.mark.parametrize(("library", "least"), [("mmdet", 50), ("mmseg", 20)])
def test_the_tools_take_a_convnext_for_the_resnet_of_every_family(library, least, tiny_bert):
    replaced = []
    for _, family in (entry for entry in FAMILIES if entry[0] == library):
        if (library, family) in OPTIONAL_FAMILIES:
            continue
        config = representative(library, family, tiny_bert)
        if replace_resnet(config.model):
            fit_channels(config, TypedOptions())
            replaced.append(family)
    assert len(replaced) >= least, replaced
