#!/usr/bin/env python
"""Run a trained detector or segmentor on images: `convnext-backbone predict`."""

import sys

from convnext_backbone.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
