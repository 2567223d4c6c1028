"""The installed package carries its configs and tools where OpenMMLab looks for them."""

import configparser
import glob
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "convnext_backbone"


def test_the_wheel_takes_every_config_and_tool():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options.package_data"]["convnext_backbone"].splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # As setuptools expands them.
    taken = {
        Path(path).resolve()
        for pattern in patterns
        for path in glob.glob(str(PACKAGE / pattern), recursive=True)
        if Path(path).is_file()
    }
    wanted = [ROOT / "model-index.yml"]
    wanted += [p for p in (ROOT / "configs").rglob("*") if p.suffix in (".py", ".yml", ".md")]
    wanted += [p for p in (ROOT / "tools").rglob("*") if p.suffix in (".py", ".sh")]
    assert len(wanted) > 80
    assert [str(p) for p in wanted if p.resolve() not in taken] == []
