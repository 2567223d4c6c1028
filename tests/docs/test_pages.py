"""The pages of the documentation: their Python runs, their commands run, their messages exist."""

import ast
import re
import shlex
import subprocess
import sys

import pytest
from helpers.documents import (
    ROOT,
    blocks,
    commands,
    fill_folder,
    missing_paths,
    missing_targets,
)

from convnext_backbone.cli.main import main

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(DOCS)): path.read_text(encoding="utf-8")
    for path in sorted(DOCS.rglob("*.md"))
    if not path.relative_to(DOCS).parts[0].startswith("_")
}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
# Run by tests of their own: a page, the state of the machine, trained models, Ray.
RUN_ELSEWHERE = ("--serve", "doctor", "predict", "deploy", "work_dirs/", "--engine ray")
SHOWN = r"^print\(.*\)  # (.*)$"  # `print(x)  # y` prints y
# What these blocks name is a user's, or they are parts of configs with bases of their own.
NOT_RUN = {"install.md", "measurements.md", "deploy.md"}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    fill_folder(folder)
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if p not in NOT_RUN])
def test_the_python_and_the_commands_of_a_page_run_in_their_order(page, filled, monkeypatch):
    monkeypatch.chdir(filled)
    names: dict = {}
    for kind, code in re.findall(r"^```(python|bash)\n(.*?)^```", PAGES[page], re.S | re.M):
        if kind == "python":
            exec(compile(code, page, "exec"), names)
            continue
        for line in commands(f"```bash\n{code}```", "convnext-backbone"):
            if not any(word in line for word in RUN_ELSEWHERE):
                assert main(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p not in NOT_RUN and re.search(SHOWN, PAGES[p], re.M)]
)
def test_every_printed_result_is_what_the_code_prints(page, filled, monkeypatch, capsys):
    monkeypatch.chdir(filled)
    names: dict = {}
    for code in blocks(PAGES[page], "python"):
        capsys.readouterr()
        exec(compile(code, page, "exec"), names)
        shown = re.findall(SHOWN, code, re.M)
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in shown if line not in printed] == []


@EVERY_PAGE
def test_every_path_and_make_target_of_a_page_exists(page):
    assert missing_paths(PAGES[page]) == []
    assert missing_targets(PAGES[page]) == []


def _texts(path):
    """Yield every string of a module as a pattern in which a formatted value is anything."""
    inside = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(
                re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
                for part in node.values
            )
        elif isinstance(getattr(node, "value", None), str) and id(node) not in inside:
            yield re.escape(node.value)


def test_the_messages_of_the_faq_are_those_of_the_code():
    patterns = [
        pattern
        for path in (ROOT / "convnext_backbone").rglob("*.py")
        for pattern in _texts(path)
        if len(re.sub(r"\\.|\.\*", "", pattern)) >= 12
    ]
    faq = PAGES["howto/faq.md"]
    of_others = {
        "No module named 'mmcv._ext'", "MMCV==2.2.0 is used but incompatible",
        "No module named 'pkg_resources'", "Weights only load failed",
        "ConvNextBackbone is not in the ... registry", "CUDA out of memory",
        "Expected more than 1 value per channel when training",
    }  # fmt: skip
    messages = re.findall(r"^### `(.*)`$", faq, re.M)
    assert len(messages) > 20
    assert of_others <= set(messages)

    def is_ours(message):
        # Our pattern lies in the message, or the message, its "..." being anything, in our text.
        shown = ".*".join(map(re.escape, message.split("...")))
        return any(
            re.search(pattern, message) or re.search(shown, pattern.replace("\\", ""))
            for pattern in patterns
        )

    assert [m for m in messages if m not in of_others and not is_ours(m)] == []


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    catalogue = (tmp_path / "html" / "_generated" / "catalogue.html").read_text(encoding="utf-8")
    assert "convnextv2_nano.fcmae_ft_in1k" in catalogue
    api = (tmp_path / "html" / "reference" / "api.html").read_text(encoding="utf-8")
    assert "convnext_backbone.load_weights" in api
