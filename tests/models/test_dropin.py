"""What a user meets who takes `from transformers import ConvNext...` from here instead.

Every expected value is transformers' own.
"""

import dataclasses
import inspect
import pydoc
import typing

import numpy as np
import pytest
import torch
import transformers
import typing_extensions
from helpers.peers import DEPTHS, WIDTHS, build_pair, randomise
from PIL import Image

import convnext_backbone
from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextModel,
)
from convnext_backbone.models.config import ConfigFields

SHAPE = {"hidden_sizes": list(WIDTHS), "depths": list(DEPTHS)}


@pytest.mark.parametrize("family", ["transformers_v1", "transformers_v2"])
def test_the_backbone_serves_in_transformers_upernet(family):
    torch.manual_seed(0)
    ours, theirs = (model.double() for model in build_pair(family)[:2])
    config = transformers.UperNetConfig(
        backbone_config=theirs.config, hidden_size=16, pool_scales=[1, 2], num_labels=5,
        use_auxiliary_head=True, auxiliary_channels=8, auxiliary_in_channels=16,
    )  # fmt: skip
    model = randomise(transformers.UperNetForSemanticSegmentation(config)).double().eval()
    x, labels = torch.randn(2, 3, 64, 96).double(), torch.randint(5, (2, 64, 96))
    model.backbone = theirs
    expected = model(x, labels=labels, output_hidden_states=True)
    as_tuple = model(x, labels=labels, return_dict=False)
    model.backbone = ours
    got = model(x, labels=labels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-9, atol=1e-9)
    assert got.attentions is None
    for mine, peer in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, peer, rtol=1e-9, atol=1e-9)
    mine = model(x, labels=labels, return_dict=False)
    assert len(mine) == len(as_tuple)
    torch.testing.assert_close(mine, as_tuple, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}])
def test_the_plain_tuple_of_a_backbone_is_transformers(options):
    torch.manual_seed(1)
    ours, theirs, _ = build_pair("transformers_v1")
    x = torch.randn(1, 3, 32, 64)
    expected = theirs(x, return_dict=False, **options)
    got = ours(x, return_dict=False, **options)
    assert type(got) is tuple
    assert len(got) == len(expected)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x, **options).to_tuple(), got, rtol=0, atol=0)


def test_a_wrapped_call_is_a_call_for_hooks():
    ours, _, _ = build_pair("transformers_v1")
    calls = []
    ours.register_forward_hook(lambda *_: calls.append(1))
    ours.forward_with_filtered_kwargs(torch.randn(1, 3, 32, 32), output_attentions=False)
    assert calls == [1]


@pytest.mark.parametrize("name", ["Backbone", "Model", "ForImageClassification"])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_config_decides_what_a_call_leaves_open(name, hidden, named):
    answers = {"output_hidden_states": hidden, "return_dict": named}
    build = {
        "Backbone": ConvNextBackbone,
        "Model": ConvNextModel,
        "ForImageClassification": ConvNextForImageClassification,
    }[name]
    x = torch.randn(2, 3, 32, 32)
    got = build(ConvNextConfig(**SHAPE, **answers)).eval()(x)
    theirs = getattr(transformers, f"ConvNext{name}")(transformers.ConvNextConfig(**SHAPE)).eval()
    # Their own classes fail inside where the config says return_dict=False.
    expected = theirs(x, output_hidden_states=hidden, return_dict=named)
    if not named:
        assert type(got) is tuple
        assert len(got) == len(expected)
        return
    assert build.config_class is ConvNextConfig
    assert (got.hidden_states is None) == (expected.hidden_states is None) == (not hidden)
    if hidden:
        shapes = [t.shape for t in expected.hidden_states]
        assert [t.shape for t in got.hidden_states] == shapes


@pytest.fixture
def directory(tmp_path):
    config = transformers.ConvNextConfig(**SHAPE, num_labels=5, drop_path_rate=0.5)
    model = randomise(transformers.ConvNextForImageClassification(config))
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_model_and_processor_serve_in_transformers_pipelines(task, directory):
    ConvNextImageProcessor(size=64, do_convert_rgb=True).save_pretrained(directory)
    kind = "ForImageClassification" if task == "image-classification" else "Model"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    answers = []
    for package in (transformers, convnext_backbone):
        model = getattr(package, f"ConvNext{kind}").from_pretrained(directory)
        processor = package.ConvNextImageProcessor.from_pretrained(directory)
        pipeline = transformers.pipeline(task, model=model, image_processor=processor)
        # By position, as without `pool`, the pipeline reads outputs of its own classes only.
        options = {"pool": True} if kind == "Model" else {}
        answers.append(pipeline(image, **options))
        assert "image" in repr(pipeline)
    expected, got = answers
    if task == "image-classification":
        assert [entry["label"] for entry in got] == [entry["label"] for entry in expected]
        expected, got = ([entry["score"] for entry in answer] for answer in answers)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_from_pretrained_gives_a_model_for_evaluation(directory):
    ours = ConvNextForImageClassification.from_pretrained(directory)
    theirs = transformers.ConvNextForImageClassification.from_pretrained(directory)
    assert ours.training == theirs.training
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x).logits, theirs(x).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"dtype": torch.float16}, {"torch_dtype": "bfloat16"}, {"dtype": "float64"}]
)
def test_from_pretrained_takes_the_dtype(options, directory):
    ours = ConvNextForImageClassification.from_pretrained(directory, **options)
    theirs = transformers.ConvNextForImageClassification.from_pretrained(directory, **options)
    assert ours.dtype == theirs.dtype
    assert {p.dtype for p in ours.parameters()} == {ours.dtype}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_source_is_taken_where_asked(stored, directory, tmp_path):
    model = transformers.ConvNextForImageClassification.from_pretrained(directory).to(stored)
    model.save_pretrained(tmp_path / "stored")
    theirs = type(model).from_pretrained(tmp_path / "stored", dtype="auto")
    ours = ConvNextModel.from_pretrained(tmp_path / "stored", dtype="auto")
    assert ours.dtype == theirs.dtype == stored
    assert ConvNextModel.from_pretrained(tmp_path / "stored").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "no_such"])
def test_another_dtype_is_refused(dtype, directory):
    with pytest.raises(ValueError, match="dtype must be a floating-point dtype, its name or"):
        ConvNextModel.from_pretrained(directory, dtype=dtype)


def test_another_number_of_classes_starts_a_fresh_head_where_asked(directory):
    options = {"num_labels": 7, "ignore_mismatched_sizes": True}
    ours = ConvNextForImageClassification.from_pretrained(directory, **options)
    theirs = transformers.ConvNextForImageClassification.from_pretrained(directory, **options)
    x = torch.randn(1, 3, 32, 32)
    assert ours(x).logits.shape == theirs(x).logits.shape
    assert ours.config.id2label == theirs.config.id2label
    trunk = theirs.convnext.embeddings.patch_embeddings.weight
    assert torch.equal(ours.downsample_layers[0][0].weight, trunk)
    with pytest.raises(ValueError, match=r"classifier\.weight is \(5, 32\)"):
        ConvNextForImageClassification.from_pretrained(directory, num_labels=7)


@pytest.mark.parametrize("cls", [ConvNextModel, ConvNextBackbone])
def test_an_unknown_argument_is_named_before_anything_is_read(cls, directory):
    for source in (directory, "no/such/place"):
        with pytest.raises(TypeError, match=r"no argument 'bogus'; .*'ema', .*'with_cp'.*Config"):
            cls.from_pretrained(source, bogus=1, ema=False, depths=(1, 1, 1, 1), with_cp=True)


def test_a_subclass_has_arguments_of_its_own(directory):
    class Wrapped(ConvNextModel):
        def __init__(self, *args, **kwargs):
            self_bogus = kwargs.pop("bogus")
            super().__init__(*args, **kwargs)
            self.bogus = self_bogus

    assert Wrapped.from_pretrained(directory, bogus=3).bogus == 3


def test_a_revision_goes_along_with_a_hub_id_only(directory, monkeypatch):
    asked = []

    def note(cls, source, overrides, dtype):
        asked.append((source, overrides["revision"], overrides["subfolder"]))
        return cls(**SHAPE)

    monkeypatch.setattr("convnext_backbone.models.pretrained.load_pretrained_", note)
    ConvNextModel.from_pretrained("org/name", revision="v2", subfolder="a")
    monkeypatch.undo()
    assert asked == [("org/name", "v2", "a")]
    # transformers' scripts give "main" where their user gives nothing.
    ConvNextModel.from_pretrained(directory, revision="main")
    with pytest.raises(ValueError, match=r"revision='v2' needs a Hugging Face id, got"):
        ConvNextModel.from_pretrained(directory, revision="v2")


@pytest.mark.parametrize("cls", [ConvNextBackbone, ConvNextModel, ConvNextForImageClassification])
def test_the_fields_of_the_config_are_seen_among_the_arguments(cls):
    parameters = inspect.signature(cls).parameters
    for field in dataclasses.fields(ConvNextConfig):
        assert parameters[field.name].default == field.default
        assert parameters[field.name].annotation == field.type
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert "drop_path_rate: float = 0.0" in pydoc.render_doc(cls, renderer=pydoc.plaintext)
    hints = typing.get_type_hints(cls.__init__)
    assert hints["fields"] == typing_extensions.Unpack[ConfigFields]


def test_a_subclass_shows_its_own_arguments():
    class Own(ConvNextBackbone):
        def __init__(self, width: int, **others):
            super().__init__(hidden_sizes=(width, 2 * width), depths=(1, 1), **others)

    class Inherits(ConvNextBackbone):
        pass

    assert list(inspect.signature(Own).parameters) == ["width", "others"]
    assert inspect.signature(Inherits) == inspect.signature(ConvNextBackbone)
    assert Own(8, out_features=["stage1"]).channels == (8,)
    with pytest.raises(TypeError, match=r"Own has no argument 'out_feature'.*mean 'out_features'"):
        Own(8, out_feature=["stage1"])


@pytest.mark.parametrize("cls", [ConvNextBackbone, ConvNextModel, ConvNextForImageClassification])
def test_a_misspelt_argument_is_named_with_the_one_that_was_meant(cls, directory):
    message = rf"{cls.__name__}.* has no argument 'drop_path_rat' \(did you mean 'drop_path_rate'\?"
    with pytest.raises(TypeError, match=message):
        cls(drop_path_rat=0.1)
    with pytest.raises(TypeError, match=message):
        cls.from_pretrained(directory, drop_path_rat=0.1)


def test_a_compiled_segmentor_can_call_the_backbone_with_any_keywords():
    b, x = ConvNextBackbone(**SHAPE).eval(), torch.randn(1, 3, 32, 32)

    def run(x):
        return b.forward_with_filtered_kwargs(x, output_attentions=True, foo=1).feature_maps

    got = torch.compile(run, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(got, run(x), rtol=0, atol=1e-6)
