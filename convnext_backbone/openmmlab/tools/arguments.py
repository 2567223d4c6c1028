"""The command lines of tools/train.py and tools/test.py, with OpenMMLab's flags.

They are those of mmdet 3.3.0 and mmseg 1.2.2 (tools/train.py and tools/test.py), which differ in a
few meanings; the default scope of the config decides which applies.
"""

import argparse
import ast
import re
from collections.abc import Sequence
from typing import Any

from mmengine.config import DictAction

from ...utils.commandline import OneLineParser

_BRACKETS = ("(", "[", "{", "dict(")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")  # one text between its quotation marks
# A dict or an item that is one: braces inside a word, as in "epoch_{}.pth", make none.
_HOLDS_DICT = re.compile(r"(^|[\[(,]\s*)(dict\(|\{.*\}\s*($|[\]),]))", re.DOTALL)
_OUTER_BLANKS = re.compile(r"(?<=[,(\[]) +| +(?=[,)\]])")  # those around the items of a list
_BLANK = "\0"  # stands for a blank inside an item; no argument of a program holds it


class ConfigOptions(argparse.Action):
    """Collects `key=value` pairs; what cannot be read is a usage error, not a traceback."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the pairs to those of an earlier flag."""
        try:
            options = {**(getattr(namespace, self.dest) or {}), **read_options(values)}
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, options)


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read mmengine's `key=value` pairs, and dicts: `key="[dict(type='EMAHook', momentum=0.1)]"`.

    Raises:
        ValueError: One is no pair, or its value is neither plain data nor words.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            if not equals or not all(key.split(".")):
                raise ValueError("not key=value")
            options[key] = _read_value(value.strip())
        except (AssertionError, RecursionError, SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f"must be key=value pairs, got {pair!r}") from error
    return options


def _read_value(text: str) -> Any:
    """Read lists and dicts as Python writes them, lists of words as mmengine does, or one word.

    Quotation marks around the whole keep its commas; what they enclose may be a number, or a list.
    """
    quoted = _QUOTED.fullmatch(text) is not None
    whole = text[1:-1] if quoted else text
    if not whole.startswith(_BRACKETS) and (quoted or "," not in whole):
        return DictAction._parse_int_float_bool(whole)
    holds_dict = _HOLDS_DICT.search(whole)
    if holds_dict or "'" in whole or '"' in whole:
        try:
            items = _read_literal(ast.parse(f"[{whole}]", mode="eval").body)
            return items if len(items) > 1 or whole.endswith(",") else items[0]
        except (SyntaxError, ValueError):
            if holds_dict:
                raise
    return _read_words(whole)


def _read_words(text: str) -> Any:
    """Read lists of words as mmengine does, which drops the blanks inside them."""
    kept = _OUTER_BLANKS.sub("", text).replace(" ", _BLANK)
    return _restore_blanks(DictAction._parse_iterable(kept))


def _restore_blanks(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_restore_blanks, value))
    return value.replace(_BLANK, " ") if isinstance(value, str) else value


def _read_literal(node: ast.expr) -> Any:
    """Read dicts, lists, tuples and constants; bare words are strings, as for mmengine.

    ValueError: it holds anything else, which would have to be run.
    """
    if isinstance(node, ast.Name):
        return DictAction._parse_int_float_bool(node.id)  # true, false and words
    if isinstance(node, ast.List | ast.Tuple):
        items = [_read_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Dict):
        keys = [_read_literal(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_read_literal, node.values), strict=True))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
        return {str(item.arg): _read_literal(item.value) for item in node.keywords}
    return ast.literal_eval(node)


def train_parser() -> argparse.ArgumentParser:
    """Build the parser of tools/train.py."""
    parser = OneLineParser(
        prog="train.py", description="Train a detector (mmdet) or a segmentor (mmseg)."
    )
    parser.add_argument("config", help="config file of the training")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="mixed precision: bfloat16 where the GPU has it, else float16 with loss scaling, "
        "and full precision where there is no GPU",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the total batch size",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or without a value from the newest in the work dir",
    )
    add_shared_arguments(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Build the parser of tools/test.py."""
    parser = OneLineParser(
        prog="test.py", description="Evaluate a detector (mmdet) or a segmentor (mmseg)."
    )
    parser.add_argument("config", help="config file of the test")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--work-dir", help="folder for the log and the metrics")
    parser.add_argument(
        "--out",
        help="detector: pickle file (.pkl, .pickle) to dump the predictions to; "
        "segmentor: folder to write the predicted label maps to",
    )
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument(
        "--show-dir",
        help="folder for pictures of the predictions; of a detector below WORK_DIR/TIMESTAMP "
        "unless absolute, of a segmentor in SHOW_DIR/vis_data/vis_image",
    )
    parser.add_argument(
        "--wait-time", type=float, default=2, help="how long to show each image, in seconds"
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_shared_arguments(parser)
    return parser


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help='override settings of the config; lists as key="[a,b]" or key=a,b, nested ones as '
        'key="[(a,b),(c,d)]"; a comma inside a word as key="\'a,b\'"',
    )


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    add_cfg_options(parser)
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not check data, files and model before the run; tools/check_data.py does it alone",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="what started the processes of a distributed run",
    )
    # torch.distributed.launch passes the second spelling since torch 2.0.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
