"""The work behind tools/check_data.py: the checks of a training, and a summary of its data."""

from collections.abc import Sequence

from ...utils.commandline import OneLineParser, print_error
from .arguments import add_cfg_options
from .checks.report import Report
from .checks.table import run_checks
from .config import NEEDED, load_config
from .errors import UsageError, naming_config
from .typed import TypedOptions

PROGRAM = "check_data.py"
_SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/check_data.py; return 0, or 2 for a mistake in what the user gave."""
    parser = OneLineParser(
        prog=PROGRAM,
        description="Check a config as tools/train.py does, and print what its data sets hold. "
        "Every file is opened, where tools/train.py opens a sample of a large data set.",
    )
    parser.add_argument("config", help="config file of the training")
    parser.add_argument(
        "--splits", nargs="+", choices=_SPLITS, default=_SPLITS, help="by default all that it has"
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options, NEEDED["train"])
        splits = [split for split in args.splits if cfg.get(f"{split}_dataloader")]
        report = Report(cfg, splits, TypedOptions(args.cfg_options), everything=True)
        with naming_config(args.config, args.cfg_options):
            run_checks("check_data", report)
    except UsageError as error:
        return print_error(PROGRAM, error)
    for text in (*report.summaries, *(f"warning: {warning}" for warning in report.warnings)):
        print(text)
    return 0
