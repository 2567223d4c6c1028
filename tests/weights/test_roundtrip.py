"""What is saved is what comes back: every network, in `save_pretrained` and in every target.

Or it is refused by name, or a warning says what a file alone cannot.
"""

import dataclasses
import random
import warnings
from contextlib import suppress

import pytest
import torch
import transformers
from helpers.process_group import one_process
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._pytree import tree_leaves

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    load_weights,
)
from convnext_backbone.models.block import Block
from convnext_backbone.weights import convert_weights, open_weights
from convnext_backbone.weights.export import TARGETS, altered_layers
from convnext_backbone.weights.load import build_blank

CLASSES = (ConvNextBackbone, ConvNextModel, ConvNextForImageClassification)
TINY = {"hidden_sizes": (8, 16), "depths": (1, 2)}
# Values that are not the default, of every field.
VALUES = {
    "num_channels": (1, 5),
    "patch_size": (2, 8),
    "hidden_sizes": ((3, 40), (24, 8)),
    "depths": ((2, 1),),
    "hidden_act": ("relu", "silu", "gelu_new", "swish"),
    "initializer_range": (0.5,),
    "layer_norm_eps": (1e-3, 0.1),
    "layer_scale_init_value": (0.0, 0.5),
    "drop_path_rate": (0.3,),
    "image_size": (96, (32, 64)),
    "use_grn": (True,),
    "norm_eps": (1e-4, 0.1),
    "kernel_size": (3, (7, 5)),
    "output_stride": (4,),
    "dilations": ((1, 2),),
    "pad_to_stride": (True,),
    "stem_type": ("overlap", "overlap_tiered", "overlap_act", "patch_no_norm"),
    "norm_layer": ("rmsnorm", "simplenorm"),
    "conv_bias": (False,),
    "head_norm_first": (True,),
    "head_hidden_size": (9,),
    "out_features": (["stem", "stage2"],),
    "out_indices": ([0, -1], [-2]),
    "model_type": ("convnext", "convnextv2", "dinov3_convnext"),
    "num_labels": (0, 1, 5),
    "id2label": ({0: "a", 1: "a", 2: "c"},),
    "label2id": ({"a": 0, "b": 1},),
    "problem_type": ("regression", "multi_label_classification"),
    "output_hidden_states": (True,),
    "return_dict": (False,),
}
PAIRS = [(name, value) for name, values in VALUES.items() for value in values]


def randomise(module):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.3).add_(0.5 * (p.ndim == 1))
    return module.eval()


def build(cls, fields):
    """Build a network, or return None where the fields do not fit each other."""
    with suppress(ValueError):
        return randomise(cls(**{**TINY, **fields}))
    return None


def images(config):
    return torch.randn(1, config.num_channels, 37, 41)


@torch.no_grad()
def assert_same(got, expected):
    assert got.config == expected.config
    x = images(expected.config)
    pairs = zip(tree_leaves(got(x)), tree_leaves(expected(x)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)


def samples(count):
    """Every field alone, then some at random; the seed is fixed."""
    draw = random.Random(0)
    yield from ({name: value} for name, value in PAIRS)
    for _ in range(count):
        yield dict(draw.sample(PAIRS, draw.randint(2, 6)))


def test_the_table_names_every_field_of_the_config():
    fields = {field.name for field in dataclasses.fields(ConvNextConfig)} - {"num_stages"}
    assert VALUES.keys() == fields


@pytest.mark.parametrize("cls", CLASSES)
def test_any_network_comes_back_from_its_directory(cls, tmp_path):
    built = 0
    for index, fields in enumerate(samples(60)):
        module = build(cls, fields)
        if module is None:
            continue
        built += 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "transformers will not compute")
            module.save_pretrained(tmp_path / str(index))
            again = cls.from_pretrained(tmp_path / str(index))
        assert_same(again, module)
        assert again.load_report.fresh == again.load_report.dropped == ()
        assert ConvNextConfig.from_pretrained(tmp_path / str(index)) == module.config
    assert built > 60


@pytest.fixture(scope="module", params=CLASSES, ids=lambda cls: cls.__name__)
def networks(request, tmp_path_factory):
    """Networks of one class and their directories."""
    torch.manual_seed(0)
    found = []
    for fields in samples(20):
        module = build(request.param, fields)
        if module is not None:
            found.append((module, tmp_path_factory.mktemp("network")))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module.save_pretrained(found[-1][1])
    return found


@pytest.mark.parametrize("to", TARGETS)
def test_a_network_in_a_file_of_its_own_comes_back_or_is_refused_or_warned_of(
    networks, to, tmp_path
):
    """By name of every field that the file does not store."""
    written = 0
    for index, (module, folder) in enumerate(networks):
        file = tmp_path / f"{index}.safetensors"
        text = convert(folder, file, to)
        if not file.exists():
            assert text.startswith(f"{folder}: ")
            continue
        written += 1
        weights, config = open_weights(file), module.config
        concluded = ConvNextConfig(**weights.fields())
        for name in ("norm_eps", "hidden_act", "norm_layer", "pad_to_stride", "dilations"):
            if getattr(concluded, name) != getattr(config, name):
                assert f"{name}={getattr(config, name)!r}" in text
        for key, tensor in module.state_dict().items():
            if not key.startswith("norms.") or key in weights.tensors:
                assert torch.equal(weights.tensors[key], tensor), key
        blank = build_blank(type(module), config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the file does not store and is given here
            load_weights(blank, file)
    homeless = isinstance(module, ConvNextBackbone) and to in ("timm", "torchvision")
    assert (written == 0) if homeless else (written > 5)  # no names for norms of outputs


def convert(folder, file, to):
    """Return what is warned of, or the error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            convert_weights(open_weights(folder), file, to)
        except ValueError as error:
            return str(error)
    return " ".join(str(warning.message) for warning in caught)


# ------------------------------------------------------------------------------ families


@pytest.mark.parametrize("cls", [ConvNextBackbone, ConvNextForImageClassification])
def test_a_network_of_dinov3_keeps_its_epsilon_and_is_read_by_transformers(cls, tmp_path):
    """transformers has its trunk alone; as V1, with another epsilon, it would compute otherwise."""
    fields = {"model_type": "dinov3_convnext", "layer_norm_eps": 1e-3}
    module = randomise(cls(**TINY, **fields))
    with pytest.warns(UserWarning, match="norm_eps must be 1e-06, is 0.001"):
        module.save_pretrained(tmp_path)
    assert_same(cls.from_pretrained(tmp_path), module)
    usual = randomise(cls(**TINY, model_type="dinov3_convnext", output_hidden_states=True))
    usual.save_pretrained(tmp_path)
    again, x = cls.from_pretrained(tmp_path), images(usual.config)
    assert_same(again, usual)
    assert (again(x).hidden_states[0] is x) == (cls is ConvNextForImageClassification)
    theirs = getattr(transformers, cls.__name__).from_pretrained(tmp_path).eval()
    assert theirs.config.model_type == "convnext"
    with torch.no_grad():
        got, expected = theirs(x), usual(x)
    pairs = (
        [(got.logits, expected.logits)]
        if cls is ConvNextForImageClassification
        else zip(got.feature_maps, expected, strict=True)
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:transformers will not compute")
def test_the_family_in_config_json_is_not_believed_against_the_tensors(tmp_path):
    randomise(ConvNextModel(**TINY, use_grn=True, stem_type="overlap")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"convnextv2"', '"dinov3_convnext"'))
    assert ConvNextModel.from_pretrained(tmp_path).config.model_type == "convnextv2"


def test_the_norm_of_a_dinov3_classifier_is_that_of_the_last_output(tmp_path):
    """By the family's recipe, though the directory is one of V1 for transformers."""
    model = randomise(ConvNextForImageClassification(**TINY, model_type="dinov3_convnext"))
    model.save_pretrained(tmp_path)
    backbone = ConvNextBackbone.from_pretrained(tmp_path)
    assert torch.equal(backbone.norms["stage2"].weight, model.norm.weight)
    assert backbone.load_report.fresh == ()


def test_a_cut_file_does_not_pass_for_a_network_without_the_stems_norm(tmp_path):
    module = randomise(ConvNextModel(**TINY))
    norm = "downsample_layers.0.1."
    cut = {k: v for k, v in module.state_dict().items() if not k.startswith(norm)}
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"missing: downsample_layers\.0\.1\.weight"):
        ConvNextModel.from_pretrained(tmp_path / "cut.pth")


@pytest.mark.filterwarnings("ignore:transformers will not compute")
@pytest.mark.parametrize("to", ["native", "facebook", "timm"])
def test_a_file_that_would_pass_for_a_cut_one_is_not_written(to, tmp_path):
    randomise(ConvNextModel(**TINY, stem_type="patch_no_norm")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot represent stem_type='patch_no_norm'"):
        convert_weights(open_weights(tmp_path), tmp_path / "file.pth", to)


@pytest.mark.parametrize("fields", [{"head_norm_first": True}, {"head_hidden_size": 12}], ids=str)
@pytest.mark.parametrize("num_labels", [0, 5])
@torch.no_grad()
def test_v2_with_another_head_goes_from_timm_to_every_class_and_back(fields, num_labels, tmp_path):
    import timm

    theirs = randomise(
        timm.create_model(
            "convnextv2_atto", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=num_labels,
            **fields,
        )
    )  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    options = {"num_labels": num_labels}
    ours = ConvNextForImageClassification.from_pretrained(tmp_path / "timm.pth", **options)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x).logits, theirs(x), rtol=1e-4, atol=1e-4)
    convert_weights(open_weights(tmp_path / "timm.pth"), tmp_path / "native.pth", "native")
    again = ConvNextForImageClassification.from_pretrained(tmp_path / "native.pth", **options)
    assert_same(again, ours)
    trunk = ConvNextBackbone(ours.config)
    result = trunk.load_state_dict(ours.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(key.startswith("norms.") for key in result.missing_keys)


# ------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", ["auto", torch.float64, "float64"])
def test_double_precision_is_not_rounded(dtype, tmp_path):
    module = ConvNextForImageClassification(**TINY).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64))
    module.save_pretrained(tmp_path)
    ours = ConvNextForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    theirs = transformers.ConvNextForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert ours.dtype == theirs.dtype == torch.float64
    assert torch.equal(ours.head.weight, theirs.classifier.weight)
    for key, tensor in module.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_rounded_once(dtype, tmp_path):
    """fp64 to fp32 to bf16 would round a value just above the middle of two down."""
    module = ConvNextModel(**TINY).double()
    with torch.no_grad():
        module.norm.weight.fill_(1 + 2**-8 + 2**-40)
    module.save_pretrained(tmp_path)
    loaded = ConvNextModel.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    for key, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor.to(dtype)), key


def test_a_narrow_default_dtype_does_not_round_what_is_asked_for_in_a_wide_one(tmp_path):
    module = randomise(ConvNextModel(**TINY))
    module.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = ConvNextModel.from_pretrained(tmp_path, dtype="float32")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(loaded.norm.weight, module.norm.weight)


# ------------------------------------------------------------------------------ altered networks


def _relu_everywhere(m):
    for stage in m.stages:
        for block in stage:
            block.act = nn.ReLU()


class OwnNorm(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnBlock(Block):
    def forward(self, x):
        return 2 * super().forward(x)


class SameNorm(nn.LayerNorm):
    """Its forward method is inherited."""


def _set(path, name, value):
    """Assign an attribute of a part of the network."""
    return lambda m: setattr(m.get_submodule(path) if path != "config" else m.config, name, value)


ALTERED = {
    "activation": (_relu_everywhere, r"stages\.0\.0\.act is ReLU\(\), not GELU"),
    "epsilon": (_set("stages.1.0.norm", "eps", 0.1), r"stages\.1\.0\.norm .*eps=0\.1"),
    "dilation": (_set("stages.1.1.dwconv", "dilation", (2, 2)), r"dilation=\(2, 2\)"),
    "stride": (_set("downsample_layers.1.1", "stride", (1, 1)), r"stride=\(1, 1\)"),
    "padding": (_set("stages.0.0.dwconv", "padding", (2, 2)), r"padding=\(2, 2\)"),
    "grn": (_set("stages.0.0.grn", "eps", 0.1), r"stages\.0\.0\.grn .*eps=0\.1"),
    "own": (_set("stages.0.0", "norm", OwnNorm(8, eps=1e-6)), r"norm is OwnNorm"),
    "config": (_set("config", "hidden_act", "relu"), r"is GELU.*, not ReLU\(\)"),
    "config's epsilon": (_set("config", "norm_eps", 1e-3), r"not LayerNorm.*eps=0\.001"),
    "a layer more": (
        lambda m: m.stages[0].append(nn.Tanh()), r"stages\.0\.1 is Tanh\(\), not there",
    ),
    "a chain": (
        _set("stages.0.0", "act", nn.Sequential(nn.GELU(), nn.Tanh())),
        r"stages\.0\.0\.act is Sequential",
    ),
    "a block": (_set("stages.0.0", "__class__", OwnBlock), r"stages\.0\.0 is OwnBlock"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:transformers will not compute")
@pytest.mark.parametrize("name", ALTERED)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_network_that_its_config_does_not_describe_is_warned_of(cls, name, tmp_path):
    alter, message = ALTERED[name]
    module = cls(**TINY, use_grn=True, layer_scale_init_value=0.0)
    alter(module)
    with pytest.warns(UserWarning, match=rf"does not describe this network.*{message}"):
        module.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_an_output_norm_and_a_head_of_another_kind_are_warned_of(tmp_path):
    backbone = ConvNextBackbone(**TINY)
    backbone.norms["stage2"] = nn.Identity()
    with pytest.warns(UserWarning, match=r"norms\.stage2 is Identity\(\), not LayerNorm2d"):
        backbone.save_pretrained(tmp_path / "a")
    model = ConvNextForImageClassification(**TINY)
    model.head = nn.Linear(16, 7)
    with pytest.warns(UserWarning, match=r"head is Linear\(.*out_features=7.*out_features=2"):
        model.save_pretrained(tmp_path / "b")
    model.reset_classifier(7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "c")


def _compiled_in_place(m):
    m.compile(backend="eager")
    m.stages[0] = torch.compile(m.stages[0], backend="eager")
    m.stages[1][0] = torch.compile(m.stages[1][0], backend="eager")


def _same_layers(m):
    m.stages[0][0].norm = SameNorm(8, eps=1e-6)
    m.stages[1] = nn.Sequential(*m.stages[1])
    m.stages[1][1].drop_path = nn.Identity()
    conv = m.stages[1][0].dwconv
    m.stages[1][0].dwconv = nn.Conv2d(16, 16, 7, padding=3, groups=16)
    m.stages[1][0].dwconv.load_state_dict(conv.state_dict())


UNALTERED = {
    "frozen": lambda m: m.requires_grad_(False).train(),
    "compiled": _compiled_in_place,
    "checkpointed": lambda m: m.stages.__setitem__(0, checkpoint_wrapper(m.stages[0])),
    "tied": lambda m: m.stages[1].__setitem__(1, m.stages[1][0]),
    "same": _same_layers,
    "half": lambda m: m.bfloat16(),
    "hooked": lambda m: m.stages[0][0].register_forward_hook(lambda *_: None),
    "with a loss": lambda m: setattr(m, "criterion", nn.CrossEntropyLoss()),
    "outputs": lambda m: setattr(m, "out_indices", (0, 1)) if hasattr(m, "norms") else None,
}


@pytest.mark.parametrize("name", UNALTERED)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_network_that_computes_what_its_config_describes_is_saved_silently(cls, name, tmp_path):
    module = randomise(cls(**TINY, drop_path_rate=0.2))
    UNALTERED[name](module)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn for the comparison
    again = cls.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 32, 32, dtype=module.dtype)
    with torch.no_grad():
        got = tree_leaves(again.to(module.dtype)(x))
        for a, b in zip(got, tree_leaves(module.eval()(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)


def test_sharded_and_distributed_networks_are_compared_by_their_own_layers(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with one_process(), warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = nn.parallel.DistributedDataParallel(ConvNextModel(**TINY))
        wrapped.module.save_pretrained(tmp_path)
        sharded, mesh = ConvNextModel(**TINY), init_device_mesh("cpu", (1,))
        for part in (*sharded.stages[0], *sharded.stages, sharded):
            fully_shard(part, mesh=mesh)
        assert altered_layers(sharded) == []
        sharded.stages[1][0].act = nn.ReLU()
        assert len(altered_layers(sharded)) == 1


@pytest.mark.filterwarnings("ignore:.*(quantiz|Quantiz|deprecated)")
def test_a_network_of_quantized_layers_is_refused_by_name(tmp_path):
    model = ConvNextModel(**TINY)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"cannot represent stages\.0\.0\.pwconv1\.scale"):
        quantized.save_pretrained(tmp_path)


def test_a_users_subclass_is_compared_with_this_packages_class(tmp_path):
    class Own(ConvNextBackbone):
        def __init__(self, width, act=None):
            super().__init__(hidden_sizes=(width, 2 * width), depths=(1, 1))
            if act is not None:
                self.stages[0][0].act = act

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Own(8).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"stages\.0\.0\.act is ReLU"):
        Own(8, nn.ReLU()).save_pretrained(tmp_path)


# ------------------------------------------------------------------------------ where to


@pytest.mark.parametrize("value", ["", 3, None])
def test_a_directory_that_is_none_is_refused_and_nothing_is_written(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ConvNextBackbone(**TINY)
    module.save_pretrained(tmp_path / "model")
    weights = open_weights(tmp_path / "model")
    writers = (
        ("directory", module.save_pretrained),
        ("directory", module.config.save_pretrained),
        ("path", module.config.to_json_file),
        ("destination", lambda path: convert_weights(weights, path, "huggingface")),
        ("destination", lambda path: convert_weights(weights, path, "timm")),
    )
    for name, write in writers:
        with pytest.raises((TypeError, ValueError), match=f"{name} must "):
            write(value)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("to", ["timm", "huggingface"])
def test_what_is_wrong_in_config_json_names_the_source_that_is_converted(to, tmp_path):
    ConvNextForImageClassification(**TINY, id2label={0: "a", 1: "b"}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"b": 1', '"b": Infinity'))
    with pytest.raises(ValueError, match=rf"{tmp_path}: indices of label2id must be integers"):
        convert_weights(open_weights(tmp_path), tmp_path / "out.safetensors", to)


def test_a_kernel_of_even_sides_names_the_source_that_is_converted(tmp_path):
    state = ConvNextModel(**TINY).state_dict()
    even = {k: v[..., :6, :6].contiguous() if "dwconv.weight" in k else v for k, v in state.items()}
    torch.save(even, tmp_path / "even.pth")
    for to in ("timm", "huggingface"):
        with pytest.raises(ValueError, match=rf"{tmp_path}/even\.pth: kernel_size must be odd"):
            convert_weights(open_weights(tmp_path / "even.pth"), tmp_path / "o.safetensors", to)
