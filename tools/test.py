#!/usr/bin/env python
"""Evaluate a detector (mmdet) or a segmentor (mmseg), with the flags of OpenMMLab's own tools."""

import sys

from convnext_backbone.openmmlab.tools.launch import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
