#!/usr/bin/env python
"""Draw loss, learning rate and metrics of one or several runs."""

import sys

from convnext_backbone.openmmlab.tools.plot import main

if __name__ == "__main__":
    sys.exit(main())
