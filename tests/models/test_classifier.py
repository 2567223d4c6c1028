"""ConvNextModel and ConvNextForImageClassification against transformers' own, and their outputs."""

import re

import numpy as np
import pytest
import torch
import transformers
from torch.utils import _pytree as pytree

from convnext_backbone import ConvNextConfig
from convnext_backbone.models.classifier import ConvNextForImageClassification, ConvNextModel
from convnext_backbone.models.outputs import FeatureMaps, ImageClassifierOutput

SHAPE = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 3, 1]}


def _v1_name(name):
    name = re.sub(r"^downsample_layers\.0\.0", "embeddings.patch_embeddings", name)
    name = re.sub(r"^downsample_layers\.0\.1", "embeddings.layernorm", name)
    name = re.sub(r"^downsample_layers\.(\d)\.", r"encoder.stages.\1.downsampling_layer.", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)", r"encoder.stages.\1.layers.\2", name)
    name = re.sub(r"(layers\.\d+)\.gamma$", r"\1.layer_scale_parameter", name)
    name = re.sub(r"(^|\.)norm\.", r"\1layernorm.", name)
    return name.replace("grn.gamma", "grn.weight").replace("grn.beta", "grn.bias")


def _dinov3_name(name):
    name = re.sub(r"^downsample_layers\.(\d)\.", r"model.stages.\1.downsample_layers.", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)", r"model.stages.\1.layers.\2", name)
    name = re.sub(r"(^|\.)norm\.", r"\1layer_norm.", name)
    return name.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")


FAMILIES = {
    "convnext": (transformers.ConvNextConfig, transformers.ConvNextModel, _v1_name),
    "convnextv2": (transformers.ConvNextV2Config, transformers.ConvNextV2Model, _v1_name),
    "dinov3_convnext": (
        transformers.DINOv3ConvNextConfig,
        transformers.DINOv3ConvNextModel,
        _dinov3_name,
    ),
}


def _randomise(module):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.2)
    return module.eval()


def _copy(ours, theirs, name_of):
    source = dict(theirs.named_parameters())
    names = {name_of(name): p for name, p in ours.named_parameters()}
    assert names.keys() == source.keys()
    with torch.no_grad():
        for name, p in names.items():
            p.copy_(source[name].reshape(p.shape))
    return ours.eval()


def _pair(family):
    config_class, model_class, name_of = FAMILIES[family]
    theirs = _randomise(model_class(config_class(**SHAPE)))
    config = ConvNextConfig.from_dict(theirs.config.to_dict())
    return _copy(ConvNextModel(config), theirs, name_of), theirs


def _classifiers(**labels):
    theirs = _randomise(
        transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**SHAPE, **labels))
    )
    ours = ConvNextForImageClassification(ConvNextConfig(**SHAPE, **labels))

    def name_of(name):
        if name.startswith("head."):
            return name.replace("head.", "classifier.")
        return "convnext." + _v1_name(name)

    return _copy(ours, theirs, name_of), theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (97, 45)])
def test_model_outputs_equal_transformers(family, size):
    ours, theirs = _pair(family)
    x = torch.randn(2, 3, *size)
    a = ours(x, output_hidden_states=True)
    b = theirs(x, output_hidden_states=True)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-5)
    assert len(a.hidden_states) == len(b.hidden_states)
    for mine, peer in zip(a.hidden_states, b.hidden_states, strict=True):
        torch.testing.assert_close(mine, peer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_gradients_equal_transformers(family):
    ours, theirs = _pair(family)
    ours, theirs = ours.double(), theirs.double()
    x = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    (ours(x).pooler_output ** 2).sum().backward()
    (theirs(x).pooler_output ** 2).sum().backward()
    peers = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        peer = peers[FAMILIES[family][2](name)].grad
        torch.testing.assert_close(p.grad, peer.reshape(p.shape), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_pass_through_the_hidden_states_as_in_transformers(family):
    ours, theirs = (model.double() for model in _pair(family))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    states = []
    for model in (ours, theirs):
        output = model(x, output_hidden_states=True)
        kept = [t for t in output.hidden_states if t.requires_grad]
        kept += [] if kept[-1] is output.last_hidden_state else [output.last_hidden_state]
        for state in kept:
            state.retain_grad()
        (output.pooler_output**2).sum().backward()
        states.append([state.grad for state in kept])
    assert len(states[0]) == len(states[1]) >= 5
    torch.testing.assert_close(*states, atol=1e-10, rtol=1e-8)


LABELS = {
    "single label": ({"num_labels": 5}, torch.tensor([4, 0, 2])),
    "one-number regression": ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
    "regression in a column": ({"num_labels": 1}, torch.tensor([[0.5], [-1.0], [2.0]])),
    "several labels": ({"num_labels": 3}, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])),
    "named regression": (
        {"num_labels": 2, "problem_type": "regression"},
        torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 3.0]]),
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_logits_and_loss_equal_transformers(case):
    fields, labels = LABELS[case]
    ours, theirs = _classifiers(**fields)
    x = torch.randn(3, 3, 64, 64)
    a, b = ours(x, labels=labels), theirs(x, labels=labels)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.loss, b.loss, atol=1e-5, rtol=1e-5)
    assert a.loss.shape == ()


def test_zero_labels_give_the_pooled_features():
    ours, theirs = _classifiers(num_labels=0)
    x = torch.randn(2, 3, 32, 32)
    logits = ours(x).logits
    assert logits.shape == (2, 32)
    torch.testing.assert_close(logits, theirs(x).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"num_labels": 5}, torch.tensor([1, 2])),
        ({"num_labels": 3}, torch.zeros(3, 2)),
        ({"num_labels": 1}, torch.zeros(2)),
    ],
)
def test_labels_of_another_shape_are_refused(fields, labels):
    model = ConvNextForImageClassification(ConvNextConfig(**SHAPE, **fields))
    with pytest.raises(ValueError, match="labels must have shape"):
        model(torch.randn(3, 3, 32, 32), labels=labels)


def test_output_is_read_by_name_attribute_and_position():
    model = ConvNextForImageClassification(ConvNextConfig(**SHAPE))
    x = torch.randn(2, 3, 32, 32)
    plain, with_loss = model(x), model(x, labels=torch.tensor([0, 1]))
    assert plain[0] is plain.logits is plain["logits"]
    assert plain.loss is None
    assert "loss" not in plain
    assert list(with_loss) == ["loss", "logits"]
    assert with_loss[0] is with_loss.loss
    assert with_loss[1:] == (with_loss.logits,)
    as_tuple = model(x, return_dict=False)
    assert type(as_tuple) is tuple
    assert torch.equal(as_tuple[0], plain.logits)
    with pytest.raises(AttributeError, match="no_such"):
        _ = plain.no_such


def test_outputs_survive_pytree_flattening():
    output = ImageClassifierOutput(logits=torch.ones(2), hidden_states=(torch.zeros(1),))
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) == 2
    back = pytree.tree_unflatten(leaves, spec)
    assert type(back) is ImageClassifierOutput
    assert list(back) == ["logits", "hidden_states"]
    maps = FeatureMaps((torch.ones(1), torch.ones(2)), hidden_states=(torch.zeros(3),))
    back = pytree.tree_map(lambda t: t + 1, maps)
    assert [tuple(m.shape) for m in back.feature_maps] == [(1,), (2,)]
    assert back.hidden_states[0].tolist() == [1.0, 1.0, 1.0]


class _Maps(torch.nn.Module):
    """A module that returns FeatureMaps."""

    def __init__(self):
        super().__init__()
        self.model = ConvNextModel(ConvNextConfig(**SHAPE))

    def forward(self, x):
        states = self.model(x, output_hidden_states=True).hidden_states
        return FeatureMaps(states[1:])


@pytest.mark.parametrize("build", [_Maps, lambda: ConvNextModel(ConvNextConfig(**SHAPE))])
def test_outputs_pass_through_compile_and_export(build, tmp_path):
    model = build().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(x)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()(x)
    for got in (compiled, exported):
        assert type(got) is type(expected)
        torch.testing.assert_close(
            pytree.tree_leaves(got), pytree.tree_leaves(expected), atol=1e-6, rtol=1e-6
        )


def test_feature_maps_pass_through_trace_and_serve_as_a_tuple():
    model = _Maps().eval()
    x = torch.randn(2, 3, 64, 64)
    maps = model(x)
    assert isinstance(maps, tuple)
    assert isinstance(maps.feature_maps, tuple)
    assert maps.feature_maps[-1] is maps[-1]
    traced = torch.jit.trace(model, x)(x)
    torch.testing.assert_close(tuple(traced), tuple(maps), atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", ["Model", "ForImageClassification"])
def test_jit_trace_gives_a_dict_or_a_tuple_as_in_transformers(name):
    build = {"Model": ConvNextModel, "ForImageClassification": ConvNextForImageClassification}[name]
    model = build(ConvNextConfig(**SHAPE)).eval()
    theirs = getattr(transformers, f"ConvNext{name}")(transformers.ConvNextConfig(**SHAPE)).eval()
    x, other = torch.randn(1, 3, 64, 64), torch.randn(2, 3, 96, 64)
    expected = model(other)
    traced = torch.jit.trace(model, x, strict=False)(other)
    assert type(traced) is dict
    assert list(traced) == list(theirs(x))  # which is what tracing theirs gives
    torch.testing.assert_close(traced, dict(expected), atol=1e-6, rtol=1e-6)
    model.config.return_dict = False
    torch.testing.assert_close(
        torch.jit.trace(model, x)(other), expected.to_tuple(), atol=1e-6, rtol=1e-6
    )


def test_model_exports_with_dynamic_batch_height_and_width():
    model = ConvNextModel(ConvNextConfig(**SHAPE)).eval()
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        model, (torch.randn(2, 3, 64, 96),), dynamic_shapes={"pixel_values": dims}
    )
    x = torch.randn(5, 3, 96, 128)
    torch.testing.assert_close(
        program.module()(x).pooler_output, model(x).pooler_output, atol=1e-5, rtol=1e-5
    )


def test_gradient_checkpointing_gives_the_same_gradients():
    model = ConvNextForImageClassification(ConvNextConfig(**SHAPE, num_labels=4))
    x, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 3])
    model(x, labels=labels).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert model.is_activation_checkpointing
    model(x, labels=labels).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], atol=1e-6, rtol=1e-6)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert not model.is_activation_checkpointing
    with pytest.warns(UserWarning, match="use_reentrant=True is ignored"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.warns(UserWarning, match="every_n_layers=2 and offload=False are ignored"):
        model.activation_checkpointing_enable(every_n_layers=2)
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_device_dtype_and_size_are_told():
    model = ConvNextModel(ConvNextConfig(**SHAPE)).to(torch.bfloat16)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)
    peer = transformers.ConvNextModel(transformers.ConvNextConfig(**SHAPE))
    assert model.num_parameters() == peer.num_parameters()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 10},
        {"num_labels": 1},
        {"id2label": {0: "cat", 1: "dog", 2: "cow"}},
        {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": "0", "dog": "1"}},
    ],
)
def test_label_fields_equal_transformers(fields):
    ours, theirs = ConvNextConfig(**fields), transformers.ConvNextConfig(**fields)
    assert ours.num_labels == theirs.num_labels
    assert ours.id2label == theirs.id2label
    assert {index: name for name, index in ours.label2id.items()} == ours.id2label


def test_labels_travel_through_config_json_to_transformers_and_back(tmp_path):
    names = {0: "cat", 1: "dog", 2: "cow"}
    ConvNextConfig(**SHAPE, id2label=names, problem_type="regression").save_pretrained(tmp_path)
    theirs = transformers.ConvNextConfig.from_pretrained(tmp_path)
    assert (theirs.num_labels, theirs.id2label) == (3, names)
    assert theirs.problem_type == "regression"
    theirs.save_pretrained(tmp_path)
    back = ConvNextConfig.from_pretrained(tmp_path)
    assert (back.num_labels, back.id2label, back.problem_type) == (3, names, "regression")


def test_a_changed_number_of_labels_renames_them():
    config = ConvNextConfig(id2label={0: "cat", 1: "dog", 2: "cow"})
    assert config.replace(num_labels=3, image_size=64).num_labels == 3
    assert config.replace(image_size=64).id2label == config.id2label
    assert config.replace(num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config.num_labels = 1
    assert config.id2label == {0: "LABEL_0"}
    config.id2label = {0: "a", 1: "b"}
    assert (config.num_labels, config.label2id) == (2, {"a": 0, "b": 1})


@pytest.mark.parametrize("index", ["Infinity", "NaN", "1.5", '"1.5"', '"x"', "true", "null", "[1]"])
def test_an_index_that_is_no_integer_is_refused_by_name(index, tmp_path):
    text = '{"model_type": "convnext", "label2id": {"a": 0, "b": INDEX}}'
    (tmp_path / "config.json").write_text(text.replace("INDEX", index))
    with pytest.raises(ValueError, match=r"config\.json: indices of label2id must be integers"):
        ConvNextConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="indices of id2label must be integers, got"):
        ConvNextConfig(id2label={0: "a", 0.7: "b"})


def test_whole_indices_of_any_type_are_taken():
    config = ConvNextConfig(id2label={"0": "a", 1.0: "b", np.int64(2): "c"})
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert ConvNextConfig(label2id={"a": "0", "b": 1.0}).label2id == {"a": 0, "b": 1}


def test_two_names_of_one_class_are_refused():
    with pytest.raises(ValueError, match="id2label names class 0 twice, 'b' and 'a'"):
        ConvNextConfig(id2label={"0": "b", 0: "a"})


def test_shared_class_names_are_kept():
    names = {0: "crane", 1: "cat", 2: "crane"}
    config = ConvNextConfig(id2label=names)
    assert (config.num_labels, config.id2label) == (3, names)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"num_labels": 2, "id2label": {0: "a"}}, "num_labels must be the length of id2label, 1"),
        ({"num_labels": -1}, "num_labels must be an integer of at least 0, got -1"),
        ({"num_labels": "3"}, "num_labels must be an integer"),
        ({"problem_type": "clustering"}, "problem_type must be one of"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "needs num_labels > 1"),
    ],
)
def test_wrong_label_fields_are_named(fields, error):
    with pytest.raises(ValueError, match=error):
        ConvNextConfig(**fields)


SAVED = {
    "convnext": (transformers.ConvNextConfig, transformers.ConvNextForImageClassification),
    "convnextv2": (transformers.ConvNextV2Config, transformers.ConvNextV2ForImageClassification),
}


@pytest.mark.parametrize("family", SAVED)
def test_a_directory_of_transformers_gives_equal_logits_and_names_and_goes_back(family, tmp_path):
    config_class, model_class = SAVED[family]
    names = {0: "cat", 1: "dog", 2: "cow"}
    theirs = _randomise(model_class(config_class(**SHAPE, id2label=names)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ConvNextForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours(x).logits, theirs(x).logits, atol=1e-5, rtol=1e-5)
    assert ours.config.id2label == names
    ours.save_pretrained(tmp_path / "ours")
    back = model_class.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(back(x).logits, theirs(x).logits, atol=1e-5, rtol=1e-5)
    assert back.config.id2label == names
    again = ConvNextForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(again(x).logits, ours(x).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_transformers_load_with_equal_pooled_output(family, tmp_path):
    config_class, model_class, _ = FAMILIES[family]
    theirs = _randomise(model_class(config_class(**SHAPE)))
    theirs.save_pretrained(tmp_path)
    ours = ConvNextModel.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, 64, 96)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a.pooler_output, b.pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_another_number_of_classes_gets_a_fresh_head(tmp_path):
    theirs = transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(**SHAPE, num_labels=5)
    )
    theirs.save_pretrained(tmp_path)
    fresh = {"num_labels": 7, "fresh": ("head.",)}
    model = ConvNextForImageClassification.from_pretrained(tmp_path, **fresh)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 7)
    assert set(model.load_report.fresh) == {"head.weight", "head.bias"}


def test_transformers_trainer_trains_the_classifier(tmp_path):
    """Two steps by transformers' own loop: loss, gradients, saving, evaluation."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = ConvNextForImageClassification(hidden_sizes=(8, 16), depths=(1, 1), num_labels=3)
    before = model.head.weight.detach().clone()
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        save_steps=2, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    result = trainer.train()
    assert result.global_step == 2
    assert not torch.equal(model.head.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0


def test_parameters_are_counted_as_in_transformers():
    from transformers import ConvNextConfig as TheirConfig
    from transformers import ConvNextForImageClassification as Theirs

    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
    ours = ConvNextForImageClassification(**sizes)
    theirs = Theirs(TheirConfig(num_stages=2, **sizes))
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options)
