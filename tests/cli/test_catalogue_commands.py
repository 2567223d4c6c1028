"""`list` and `info` answer from the catalogue, without fetching anything."""

import json
import socket

import pytest

from convnext_backbone import list_weights
from convnext_backbone.cli.main import main


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_list_prints_one_line_a_weight(capsys):
    assert main(["list", "convnextv2_atto.fcmae*"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["tag", "parameters", "top-1", "input", "licence"]
    assert [line.split() for line in lines] == [
        ["convnextv2_atto.fcmae", "3.4", "M", "224", "CC-BY-NC-4.0"],
        ["convnextv2_atto.fcmae_ft_in1k", "3.4", "M", "76.7", "224", "CC-BY-NC-4.0"],
    ]


def test_list_without_a_pattern_prints_all_of_them_as_json(capsys):
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["tag"] for entry in entries] == [*list_weights()]
    gated = [entry["tag"] for entry in entries if entry["gated"]]
    assert gated == [w for w in list_weights() if "b_dinov3" in w or "hf_dinov3" in w]


def test_a_pattern_that_fits_nothing_is_one_line_with_what_was_meant(capsys):
    assert main(["list", "convnext_tiny.fb_in1kk"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean 'convnext_tiny.fb_in1k'?" in error


@pytest.mark.parametrize("name", ["convnext_atto_ols.a2_in1k", "convnext_tiny.fb_dinov3_lvd1689m"])
def test_info_of_a_tag_is_the_catalogues(name, capsys):
    assert main(["info", name]) == 0
    shown = capsys.readouterr().out
    (entry,) = list_weights(name)
    assert f"{entry.parameters:,} parameters" in shown
    assert entry.licences in shown
    for where in entry.hosts or (entry.file_name,):
        assert where in shown
    assert "nothing was fetched" in shown


def test_info_of_an_architecture_names_its_weights(capsys):
    assert main(["info", "convnext_femto"]) == 2
    assert "is an architecture, whose weights are convnext_femto.d1_in1k" in capsys.readouterr().err
