#!/usr/bin/env python
"""Write the tables of configs/*/README.md: published figures beside measured ones.

The published figures and their sources are in each folder's metafile.yml. Parameters and FLOPs
are counted from the configs themselves, by the convention that complexity.py describes.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from complexity import count_flops, count_parameters, input_size
from mmengine.config import Config
from mmengine.fileio import load

import convnext_backbone  # noqa: F401 - registers the backbone
from convnext_backbone.openmmlab.tools.config import build_model
from convnext_backbone.utils.commandline import OneLineParser, print_error

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- begin: tools/model_table.py -->"
END = "<!-- end: tools/model_table.py -->"
PROGRAM = "model_table.py"
_UNKNOWN = "-"


def folders(root: Path = ROOT) -> list[Path]:
    """List the folders of configs that have a metafile."""
    return sorted(path.parent for path in (root / "configs").glob("*/metafile.yml"))


def read_metafile(folder: Path) -> list[dict[str, Any]]:
    """Return the models of a folder's metafile."""
    return load(folder / "metafile.yml")["Models"]


def measure(config: Path) -> tuple[int, int]:
    """Count the parameters and the FLOPs of a config's model.

    Raises:
        FileNotFoundError: There is no such config.
    """
    cfg = Config.fromfile(config)
    model = build_model(cfg)
    return count_parameters(model), count_flops(model, input_size(cfg))


def table(models: Sequence[Mapping[str, Any]], root: Path = ROOT) -> str:
    """Draw the Markdown table of a folder's models."""
    metrics = list(dict.fromkeys(name for model in models for name in _metrics(model)))
    header = ["config", "initial weights", "parameters (M)", "FLOPs (G)", *metrics, "source"]
    rows = [header, ["---", "---", *["---:"] * (2 + len(metrics)), "---"]]
    rows += [_row(model, metrics, root) for model in models]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(model: Mapping[str, Any], metrics: Sequence[str], root: Path) -> list[str]:
    config = root / model["Config"]
    parameters, flops = measure(config)
    facts = model.get("Metadata") or {}
    backbone = Config.fromfile(config).model.backbone
    values = _metrics(model)
    return [
        f"[{model['Name']}](./{config.name})",
        f"`{backbone.init_cfg.checkpoint}`",
        _beside(f"{parameters / 1e6:.1f}", facts.get("Published Parameters (M)")),
        _beside(f"{flops / 1e9:.0f}", facts.get("Published FLOPs (G)")),
        *(str(values.get(name, _UNKNOWN)) for name in metrics),
        facts["Source"],
    ]


def _beside(measured: str, published: float | None) -> str:
    return measured if published is None else f"{measured} ({published})"


def _metrics(model: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for result in model.get("Results") or [] for k, v in result["Metrics"].items()}


def with_table(text: str, drawn: str) -> str:
    """Put `drawn` between the two marks of a README's `text`.

    Raises:
        ValueError: The marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{drawn}\n\n{END}{after}"


def outdated(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Yield each README whose table is out of date, with the text that it should have.

    Raises:
        ValueError: A README lacks the marks of its table.
    """
    for folder in folders(root):
        readme = folder / "README.md"
        text = readme.read_text(encoding="utf-8")
        try:
            wanted = with_table(text, table(read_metafile(folder), root))
        except ValueError as error:
            raise ValueError(f"{readme}: {error}") from error
        if wanted != text:
            yield readme, wanted


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the tables, or with --check list those that are out of date.

    Returns:
        0; 1 when --check found an outdated table; 2 for a mistake.
    """
    parser = OneLineParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if outdated")
    args = parser.parse_args(argv)
    try:
        found = list(outdated())
    except (OSError, ValueError) as error:
        return print_error(PROGRAM, error)
    for readme, wanted in found:
        if not args.check:
            readme.write_text(wanted, encoding="utf-8")
        print(f"{'outdated' if args.check else 'wrote'}: {readme.relative_to(ROOT)}")
    return int(args.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
