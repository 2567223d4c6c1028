"""The work behind tools/check_data.py: the checks of the data alone, and a summary of it."""

from collections.abc import Sequence

from ...utils.commandline import EXIT_USAGE, OneLineParser, print_error
from .arguments import add_cfg_options
from .config import load_config
from .config_checks import check_files, check_types
from .data_checks import check_data_contents
from .errors import UsageError, naming_config

PROGRAM = "check_data.py"
_SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/check_data.py.

    Args:
        argv: The command line without the program; the process's own by default.

    Returns:
        The exit code: 0, or 2 for a mistake in the data or in what the user gave.
    """
    parser = OneLineParser(
        prog=PROGRAM,
        description="Check the data sets of a config and print what they hold. Every file is "
        "opened, where tools/train.py opens a sample of a large data set.",
    )
    parser.add_argument("config", help="config file of the training")
    parser.add_argument(
        "--splits", nargs="+", choices=_SPLITS, default=_SPLITS, help="by default all that it has"
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options, ("model", "train_dataloader"))
        splits = [split for split in args.splits if cfg.get(f"{split}_dataloader")]
        with naming_config(args.config, args.cfg_options):
            check_files(cfg, splits)
            check_types(cfg, splits)
            report = check_data_contents(cfg, splits, everything=True)
    except UsageError as error:
        print_error(PROGRAM, error)
        return EXIT_USAGE
    for text in (*report.summaries, *(f"warning: {warning}" for warning in report.warnings)):
        print(text)
    return 0
