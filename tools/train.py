#!/usr/bin/env python
"""Train a detector (mmdet) or a segmentor (mmseg), with the flags of OpenMMLab's own tools."""

import sys

from convnext_backbone.openmmlab.tools.launch import train

if __name__ == "__main__":
    sys.exit(train())
