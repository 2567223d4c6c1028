#!/usr/bin/env python
"""Print the learning rate and weight decay of every layer of a config, without training it."""

import sys
from collections.abc import Sequence

from convnext_backbone.openmmlab.layer_decay import (
    base_weight_decay,
    format_layer_groups,
    layer_groups,
)
from convnext_backbone.openmmlab.tools.arguments import add_cfg_options
from convnext_backbone.openmmlab.tools.config import build_model, load_config
from convnext_backbone.openmmlab.tools.errors import UsageError, naming_config
from convnext_backbone.utils.commandline import OneLineParser, print_error

PROGRAM = "print_layer_decay.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Returns:
        0, or 2 for a mistake in what the user gave.
    """
    parser = OneLineParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("config", help="config file")
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    try:
        print(table(args.config, args.cfg_options))
    except UsageError as error:
        return print_error(PROGRAM, error)
    return 0


def table(path: str, options: dict[str, object] | None) -> str:
    """Return the groups of a config's optimizer as a table.

    Raises:
        UsageError: The config cannot be read or built, has no layer decay, or the options of that
            do not fit the model.
    """
    cfg = load_config(path, options, ("model", "optim_wrapper"))
    with naming_config(path, options):
        wrapper = cfg.optim_wrapper
        if wrapper.get("constructor") != "ConvNextLayerDecayOptimWrapperConstructor":
            raise UsageError(
                f"{path} has no layer decay: its optim_wrapper names no such constructor"
            )
        decay = base_weight_decay(wrapper.optimizer)
        groups = layer_groups(build_model(cfg), weight_decay=decay, **wrapper.paramwise_cfg)
        return format_layer_groups(groups, wrapper.optimizer.lr)


if __name__ == "__main__":
    sys.exit(main())
