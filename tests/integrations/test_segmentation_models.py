"""segmentation_models_pytorch's decoders on our encoders, against timm's ConvNeXts there."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers.peers import DEPTHS, STAGES, WIDTHS, randomise
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone, list_archs, load_weights
from convnext_backbone.integrations.segmentation_models import register_encoder

SHAPE = {"hidden_sizes": WIDTHS, "depths": DEPTHS, "layer_scale_init_value": 0.5}
# smp's DPT builds timm's vision transformers only.
DECODERS = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus",
    "PAN", "UPerNet", "Segformer",
)  # fmt: skip
register_encoder("tiny", **SHAPE)


def build(decoder, encoder="tiny", **options):
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=3, **options)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_trains_the_stem_and_reloads(decoder, tmp_path):
    model, x = build(decoder).train(), torch.randn(2, 3, 128, 128)
    labels = torch.randint(3, (2, 128, 128))
    torch.nn.functional.cross_entropy(model(x), labels).backward()
    assert model.encoder.backbone.downsample_layers[0][0].weight.grad.abs().sum() > 0
    torch.optim.SGD(model.parameters(), 1e-2).step()
    model.save_pretrained(tmp_path)
    again = smp.from_pretrained(tmp_path)
    torch.testing.assert_close(again.predict(x), model.predict(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("decoder", "depth", "options"),
    [
        ("UPerNet", 5, {}),
        ("PSPNet", 3, {}),
        ("DeepLabV3Plus", 4, {"encoder_output_stride": 8}),
        ("DeepLabV3Plus", 5, {"encoder_output_stride": 16}),
        ("PAN", 5, {"encoder_output_stride": 16}),
    ],
)
def test_a_segmentor_is_equal_to_one_on_timms_convnext(decoder, depth, options, monkeypatch):
    create = timm.create_model
    tiny = {"depths": DEPTHS, "dims": WIDTHS}
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: create(*args, **kw, **tiny))
    options = {"encoder_depth": depth, **options}
    peer = randomise(build(decoder, "tu-convnext_tiny", **options)).double().eval()
    mine = build(decoder, **options).double().eval()
    assert [*mine.encoder.out_channels] == [*peer.encoder.out_channels]
    assert mine.encoder.output_stride == peer.encoder.output_stride
    missing = mine.encoder.backbone.load_state_dict(peer.encoder.model.state_dict(), strict=False)
    # timm leaves out the stages that are not run.
    assert all(int(k.split(".")[1]) >= depth - 1 for k in missing.missing_keys)
    assert not missing.unexpected_keys
    for part in ("decoder", "segmentation_head"):
        getattr(mine, part).load_state_dict(getattr(peer, part).state_dict())
    x = torch.randn(2, 3, 128, 128).double()
    with torch.no_grad():
        torch.testing.assert_close(mine(x), peer(x), rtol=1e-9, atol=1e-9)


def test_every_architecture_is_registered():
    names = smp.encoders.get_encoder_names()
    assert set(list_archs()) <= set(names)
    with torch.device("meta"):
        encoder = smp.encoders.get_encoder("convnextv2_atto", depth=4)
    assert encoder.out_channels == [3, 0, 40, 80, 160]


def test_our_loader_fills_the_encoder(tmp_path):
    source = ConvNextBackbone(**SHAPE, out_features=STAGES)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    register_encoder("normed", output_norm=True, **SHAPE)
    model = build("Unet", "normed")
    load_weights(model.encoder.backbone, tmp_path / "weights.safetensors")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.encoder(x)[2:], list(source(x)), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels_adapt_the_stem(channels):
    encoder = smp.encoders.get_encoder("tiny", in_channels=channels)
    assert encoder.out_channels[0] == channels
    assert encoder(torch.zeros(1, channels, 64, 64))[-1].shape == (1, 32, 2, 2)
    rgb = smp.encoders.get_encoder("tiny")
    deeper = {k: v.clone() for k, v in rgb.backbone.stages.state_dict().items()}
    gray = torch.randn(1, 1, 64, 64)
    expected = rgb(gray.expand(1, 3, 64, 64))[-1]
    rgb.set_in_channels(1)
    torch.testing.assert_close(rgb.backbone.stages.state_dict(), deeper)
    torch.testing.assert_close(rgb(gray)[-1], expected, rtol=1e-4, atol=1e-4)


CHANGES = {
    "input channels": (lambda encoder: encoder.set_in_channels(4), 4),
    "new input channels": (lambda encoder: encoder.set_in_channels(4, pretrained=False), 4),
    "dilation": (lambda encoder: encoder.make_dilated(16), 3),
}


@pytest.mark.parametrize(("change", "channels"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_a_built_encoder_keeps_everything_else(change, channels):
    encoder = smp.encoders.get_encoder("tiny").double().eval()
    body = encoder.backbone
    body.frozen_stages, body.with_cp = 1, "selective"
    modules, calls = dict(encoder.named_modules()), []
    for index in (0, 3):
        body.downsample_layers[index].register_forward_hook(lambda *_: calls.append(1))
    change(encoder)
    assert dict(encoder.named_modules()) == modules
    assert not any(module.training for module in encoder.modules())
    assert (encoder.backbone.frozen_stages, encoder.backbone.with_cp) == (1, "selective")
    stem = [*body.downsample_layers[0].parameters()]
    assert not any(p.requires_grad for p in stem)
    assert {p.dtype for p in encoder.parameters()} == {torch.float64}
    assert [m.shape[1] for m in encoder(torch.zeros(1, channels, 64, 64).double())][2:] == [*WIDTHS]
    assert len(calls) == 2
    body.frozen_stages = -1
    assert all(p.requires_grad for p in stem)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilating_a_built_encoder_gives_the_one_that_is_built_dilated(output_stride):
    register_encoder("built dilated", output_stride=output_stride, **SHAPE)
    expected = smp.encoders.get_encoder("built dilated")
    encoder = smp.encoders.get_encoder("tiny", output_stride=16)  # 32 takes the dilation back
    encoder.load_state_dict(expected.state_dict())
    encoder.make_dilated(output_stride)
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(encoder(x), expected(x), rtol=0, atol=0)
    assert encoder.output_stride == expected.output_stride == output_stride
    assert encoder.backbone.config == expected.backbone.config


def test_a_refused_change_leaves_the_encoder_as_it_was():
    encoder, x = smp.encoders.get_encoder("tiny"), torch.randn(1, 3, 64, 64)
    expected = encoder(x)
    with pytest.raises(ValueError, match="num_channels must be positive, got 0"):
        encoder.set_in_channels(0)
    with pytest.raises(ValueError, match="output_stride must be one of"):
        encoder.make_dilated(12)
    torch.testing.assert_close(encoder(x), expected, rtol=0, atol=0)


def test_an_encoder_is_exported_and_compiled_with_free_sizes():
    encoder, x = smp.encoders.get_encoder("tiny").eval(), torch.randn(2, 3, 64, 96)
    sides = {0: torch.export.Dim("n", min=2), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(encoder, (x,), dynamic_shapes={"x": sides}).module()
    other = torch.randn(3, 3, 128, 64)
    torch.testing.assert_close(program(other), encoder(other), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(other), encoder(other), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"depth must be one of \(2, 3, 4, 5\), got 1"):
        smp.encoders.get_encoder("tiny", depth=1)
    with pytest.raises(ValueError, match="output_stride must be one of"):
        smp.encoders.get_encoder("tiny", output_stride=12)
    with pytest.raises(ValueError, match="name must be one that smp does not use"):
        register_encoder("resnet18")
    with pytest.raises(TypeError, match="has no argument 'depth'"):
        register_encoder("mine", depth=(1, 1, 1, 1))
    register_encoder("two pixels", patch_size=2, **SHAPE)
    with pytest.raises(ValueError, match="patch_size must be one of"):
        smp.encoders.get_encoder("two pixels")
