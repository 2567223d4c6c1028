#!/usr/bin/env python
"""Check the data of a config, and print what it holds: images, instances or pixels per class."""

import sys

from convnext_backbone.openmmlab.tools.check_data import main

if __name__ == "__main__":
    sys.exit(main())
