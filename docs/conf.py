"""The documentation site: `make docs` builds it, without network; a warning is an error.

Some pages are written here, into `_generated/`: the command line from its parsers, the catalogue
from `weights/catalogue.csv`, and copies of pages that have their place elsewhere in the repository.
"""

import html
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"
sys.path.insert(0, str(ROOT))
os.environ.setdefault("COLUMNS", "100")  # the width of the commands' help

from convnext_backbone import __version__  # noqa: E402
from convnext_backbone.cli.main import COMMANDS, main  # noqa: E402
from convnext_backbone.weights.catalogue import WEIGHTS, WeightEntry  # noqa: E402

project = "convnext_backbone"
copyright = "2026, the convnext_backbone contributors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = f"ConvNeXt backbone {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["table_filter.js"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "attrs_block"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
# The types stand with the text of each argument; the signature has the defaults.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


# Files of the repository that are pages as well, and the page of each.
REPOSITORY = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE_WEIGHTS.md": "licences.md",
    "configs/README.md": "recipes/options.md",
    **{
        f"configs/{path.parent.name}/README.md": f"recipes/{path.parent.name}.md"
        for path in sorted((ROOT / "configs").glob("*/README.md"))
    },
}
# What links lead to, besides: a file whose page shows what it holds.
PAGES = {**REPOSITORY, "convnext_backbone/weights/catalogue.csv": "catalogue.md"}


def write_generated() -> None:
    """Write the pages that come from elsewhere; a page that is as it was is left alone."""
    pages = {"cli.md": _command_line(), "catalogue.md": _catalogue()}
    pages |= {page: _repository_page(source, page) for source, page in REPOSITORY.items()}
    for name, text in pages.items():
        path = GENERATED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _command_line() -> str:
    parts = ["# Command line", _help([])]
    parts += [f"## {name}\n\n{_help([name])}" for name in COMMANDS]
    return "\n\n".join(parts) + "\n"


def _help(command: list[str]) -> str:
    with redirect_stdout(StringIO()) as shown, suppress(SystemExit):
        main([*command, "--help"])
    return f"```text\n{shown.getvalue()}```"


def _catalogue() -> str:
    head = ("name", "parameters", "top-1", "trained on", "task", "side", "licence", "from")
    rows = "\n".join(map(_row, sorted(WEIGHTS.values())))
    cells = "".join(f"<th>{name}</th>" for name in head)
    return (
        f"# The {len(WEIGHTS)} weights of the catalogue\n\n"
        "Any of these names is a source: `ConvNextBackbone.from_pretrained(name)`, "
        '`init_cfg=dict(type="Pretrained", checkpoint=name)`, '
        "`convnext-backbone info name`. Top-1 is ImageNet-1k's, in percent, as published. "
        "[The licences](licences.md).\n\n"
        '```{raw} html\n<input class="table-filter" type="search" aria-label="Filter the table" '
        'placeholder="Filter: v2 nano, ade20k, MIT, ...">\n<div class="table-wrapper">'
        f'<table class="docutils filtered"><thead><tr>{cells}</tr></thead><tbody>\n{rows}\n'
        "</tbody></table></div>\n```\n"
    )


def _row(entry: WeightEntry) -> str:
    server = re.sub(r"^https?://([^/]+)/.*", r"\1", entry.url)
    where = ", ".join(filter(None, (server, entry.hub_id))) or "by a form"
    if entry.gated:
        where += " (gated)"
    cells = (
        f"<code>{entry.tag}</code>",
        f"{entry.parameters / 1e6:.1f} M",
        "" if entry.top1 is None else f"{entry.top1:.1f}",
        entry.data,
        entry.task,
        str(entry.input_size),
        entry.licences + ", non-commercial" * entry.non_commercial,
        html.escape(where),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _repository_page(source: str, page: str) -> str:
    text = (ROOT / source).read_text(encoding="utf-8")
    return _with_links(text, (ROOT / source).parent, (GENERATED / page).parent)


def _with_links(text: str, here: Path, page: Path) -> str:
    """Return a text whose links, relative to `here`, fit a page in the folder `page`.

    Files of the repository that are no pages become their names.
    """

    def rewrite(match: re.Match[str]) -> str:
        label, target = match[1], Path(os.path.normpath(here / match[2]))
        if not target.exists():
            return match[0]
        target = target / "README.md" if (target / "README.md").is_file() else target
        name = os.path.relpath(target, ROOT)
        linked = GENERATED / PAGES[name] if name in PAGES else target
        if linked.is_relative_to(DOCS):
            return f"[{label}]({os.path.relpath(linked, page)})"
        return f"`{label}`" if target.suffix == ".py" else f"{label} (`{name}`)"

    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)\)", rewrite, text)


def setup(app: Any) -> None:
    """Let pages link to files of the repository, as they do where the repository is read."""

    def rewrite(app: Any, name: str, source: list[str]) -> None:
        folder = (DOCS / name).parent
        if not folder.is_relative_to(GENERATED):
            source[0] = _with_links(source[0], folder, folder)

    app.connect("source-read", rewrite)


write_generated()
