"""`python -m convnext_backbone.run` runs other packages' scripts, which import mmcv.ops first."""

import subprocess
import sys

import pytest
import torch

from convnext_backbone.run import find_script, main

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")

SCRIPT = """
import sys
from mmcv.ops import nms
import torch
from mmengine.logging import HistoryBuffer
loaded = torch.load(sys.argv[1])
assert isinstance(loaded["history"], HistoryBuffer), loaded
assert loaded["meta"] == {"cfg": "a = 1"}  # what is published is what was trained
assert __name__ == "__main__"
print(sys.argv[1:], nms(torch.rand(1, 4), torch.ones(1), 0.5)[1].tolist())
"""


def test_a_script_that_imports_mmcv_first_runs_unedited(tmp_path):
    from mmengine.logging import HistoryBuffer

    content = {"history": HistoryBuffer([1.0], [1]), "meta": {"cfg": "a = 1"}}
    torch.save(content, tmp_path / "run.pth")
    (tmp_path / "beside.py").touch()
    (tmp_path / "script.py").write_text("import beside" + SCRIPT)
    command = [sys.executable, "-W", "ignore", "-m", "convnext_backbone.run"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "run.pth"), "--flag"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"['{tmp_path / 'run.pth'}', '--flag'] [0]"


def test_an_installed_packages_tools_are_found_by_name():
    path = find_script("mmdet:analysis_tools/browse_dataset.py")
    assert path.parts[-4:] == (".mim", "tools", "analysis_tools", "browse_dataset.py")
    with pytest.raises(
        ValueError, match=r"mmdet has the scripts .*analysis_tools/analyze_logs\.py"
    ):
        find_script("mmdet:")


def test_what_is_no_script_is_one_line(capsys):
    assert main(["gone.py"]) == 2
    assert capsys.readouterr().err == "convnext_backbone.run: error: script 'gone.py' not found\n"
    assert main([]) == 2
    assert "SCRIPT ARGS" in capsys.readouterr().out
