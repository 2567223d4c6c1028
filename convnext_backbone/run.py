"""`python -m convnext_backbone.run SCRIPT ARGS...`: run a script of OpenMMLab's, unedited.

mmdet's and mmseg's own tools import `mmcv.ops` before they read a config, so the `custom_imports`
of the config comes too late to serve it; here this package is imported first. `torch.load` reads
checkpoints of mmengine here, and safely.

SCRIPT is a file, or `mmdet:NAME` or `mmseg:NAME` for a tool that the installed package brings, such
as `mmdet:analysis_tools/browse_dataset.py`; `mmdet:` alone lists them.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .utils.commandline import EXIT_USAGE, print_error

_PROGRAM = "convnext_backbone.run"
_PACKAGES = ("mmdet", "mmseg")


def main(argv: Sequence[str]) -> int:
    """Run the script as `python SCRIPT ARGS...` would; return 2 where there is none."""
    try:
        script = find_script(argv[0] if argv else "")
    except ValueError as error:
        return print_error(_PROGRAM, error)
    if script is None:
        print(__doc__)
        return EXIT_USAGE
    _replace_torch_load()
    sys.argv = [str(script), *argv[1:]]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


def find_script(name: str) -> Path | None:
    """Return the file that a name stands for, and None where it is empty.

    Raises:
        ValueError: There is no such script; the scripts of a package are then listed.
    """
    if not name:
        return None
    package, colon, inside = name.partition(":")
    if not colon or package not in _PACKAGES:
        if not Path(name).is_file():
            raise ValueError(f"script {name!r} not found")
        return Path(name)
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{package} is not installed")
    folder = Path(spec.origin).parent / ".mim" / "tools"
    scripts = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    if inside not in scripts:
        raise ValueError(f"{package} has the scripts {', '.join(scripts) or 'none'}")
    return folder / inside


def _replace_torch_load() -> None:
    import torch

    from .openmmlab.patches.mmengine_loaders import load

    vars(torch)["load"] = load


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
