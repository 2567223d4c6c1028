"""What tests of README, documentation and docstrings share: their code, and files to run it on."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_backbone import ConvNextForImageClassification

ROOT = Path(__file__).parents[2]
# What the examples fetch by name. A path comes before a name of the catalogue or the hub, so a
# directory of that name, with random weights, takes its place.
PUBLISHED = {
    "convnext_atto.d2_in1k": "convnext_atto",
    "convnextv2_atto.fcmae": "convnextv2_atto",
    "facebook/convnextv2-atto-1k-224": "convnextv2_atto",
}


def fill_folder(folder):
    """Write the images and the weights that the examples name."""
    rng = np.random.default_rng(0)
    for name in ("cat.jpg", "images/a.jpg", "images/b.png", "photos/a.jpg", "photos/b.png",
                 "photos/c.png"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / name)
    for name, arch in PUBLISHED.items():
        model = ConvNextForImageClassification(arch=arch, num_labels=1000)
        model.save_pretrained(folder / name)


def blocks(text, language):
    """Return the code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text, program):
    """Return the lines of shell blocks that call a program, with continued lines joined."""
    shell = "".join(blocks(text, "bash")).replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in shell.splitlines())
    return [line for line in lines if line.startswith(f"{program} ")]


def missing_paths(text):
    """Return the files of the repository that a text names and that there are not."""
    named = re.findall(r"\b((?:configs|tools|docs|examples)/[\w./-]+\.(?:py|sh|md))\b", text)
    return [path for path in named if not (ROOT / path).exists()]


def missing_targets(text):
    """Return the make targets that a text names and that there are not."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+(?: [a-z-]+)*)", text, flags=re.MULTILINE)
    return sorted({name for names in named for name in names.split()} - targets)
