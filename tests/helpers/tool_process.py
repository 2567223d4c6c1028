"""Run a tool as a process of its own, without paying for its imports every time.

A fork server imports torch and OpenMMLab once; each run is a fork of it that executes the script
as `python tools/NAME` would.
"""

import multiprocessing
import os
import runpy
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOAD = ("convnext_backbone.openmmlab.tools.launch", "mmdet.models", "mmseg.models")


@dataclass(frozen=True)
class Result:
    """What a run left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_tool(name, *args, cwd, env=None, timeout=300):
    """Run `tools/<name>` with these arguments in this directory.

    Args:
        name: File name of the tool.
        args: Its command line.
        cwd: Directory to run in; the streams are kept beside it, so that it stays as it is.
        env: Variables to set.
        timeout: Seconds to wait.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    streams = [Path(cwd).with_name(f"{Path(cwd).name}.{kind}") for kind in ("out", "err")]
    command = (str(ROOT / "tools" / name), [str(arg) for arg in args])
    process = context.Process(target=_run, args=(*command, str(cwd), env or {}, *streams))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    return Result(process.exitcode, *(stream.read_text() for stream in streams))


def write_config(path, text):
    """Write a config, dedented, and return its path."""
    path.write_text(textwrap.dedent(text))
    return path


def _run(script, args, cwd, env, out, err):
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    import torch

    torch.set_num_threads(1)
    # A process of its own would not know how this one came to be.
    multiprocessing.set_start_method(None, force=True)
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [script, *args]
    sys.path[0:0] = [str(Path(script).parent)]
    runpy.run_path(script, run_name="__main__")
