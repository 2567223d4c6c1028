"""The arguments of every command are these, and change only on purpose."""

import argparse

import pytest

from convnext_backbone.cli.arguments import image_size
from convnext_backbone.cli.main import COMMANDS
from convnext_backbone.deploy.graph_export import EXPORTERS
from convnext_backbone.deploy.targets import PRECISIONS, TARGETS
from convnext_backbone.features.engines import ENGINES
from convnext_backbone.features.formats import FORMATS
from convnext_backbone.features.options import DTYPES, POOLS
from convnext_backbone.features.pictures import METHODS

NETWORK = {
    "--weights",
    "--config",
    "--features",
    "--size",
    "--dtype",
    "--device",
    "--batch-size",
    "--workers",
    "--max-inflation",
    "--max-pixels",
}
SURFACE = {
    "extract": {
        "SRC",
        "--out",
        "--pool",
        "--no-pad",
        "--channels-last",
        "--on-error",
        "--shard-mb",
        "--shard-images",
        "--format",
        "--column",
        "--engine",
        "--address",
        "--gpus-per-worker",
        "--quiet",
        *NETWORK,
    },
    "visualize": {"IMAGE", "--method", "--point", "--out", "--serve", "--port", *NETWORK},
    "convert": {"SRC", "DST", "--to", "--pointwise", "--ema", "--prefix", "--max-inflation"},
    "info": {"SRC", "--ema", "--prefix", "--max-inflation"},
    "list": {"PATTERN", "--json"},
    "predict": {
        "FILE",
        "--out",
        "--score",
        "--device",
        "--on-error",
        "--no-pictures",
        "--cfg-options",
    },
    "deploy": {
        "CONFIG",
        "CHECKPOINT",
        "--out",
        "--size",
        "--batch",
        "--input-dtype",
        "--probabilities",
        "--precision",
        "--to",
        "--calibration",
        "--images",
        "--no-check",
        "--cfg-options",
    },
    "doctor": set(),
    "export": {
        *("W", "OUT", "--to", "--features", "--logits", "--opset", "--precision"),
        "--max-inflation",
    },
}


def _actions(command):
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    return [action for action in parser._actions if action.dest != "help"]


def test_every_command_has_its_arguments_listed_here():
    assert SURFACE.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", SURFACE)
def test_surface_is_this(command):
    flags = {(action.option_strings or [action.metavar])[0] for action in _actions(command)}
    assert flags == SURFACE[command]


@pytest.mark.parametrize(
    ("command", "flag", "choices"),
    [
        ("extract", "dtype", tuple(DTYPES)),
        ("extract", "pool", (*POOLS, "cls")),
        ("extract", "format", tuple(FORMATS)),
        ("extract", "engine", tuple(ENGINES)),
        ("visualize", "method", tuple(METHODS)),
        ("export", "to", tuple(EXPORTERS)),
        ("export", "precision", ("float32", "float16", "fp32", "fp16")),
        ("deploy", "to", tuple(TARGETS)),
        ("deploy", "precision", (*PRECISIONS, "fp32", "fp16")),
    ],
)
def test_choices_are_those_of_the_library(command, flag, choices):
    (action,) = [action for action in _actions(command) if action.dest == flag]
    assert tuple(action.choices) == choices


@pytest.mark.parametrize(
    ("text", "size"), [("native", "native"), ("224", 224), ("480x640", (480, 640))]
)
def test_sizes_are_read(text, size):
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "3x", "1x2x3", "-4", "big"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be native, a side or HEIGHTxWIDTH"):
        image_size(text)
