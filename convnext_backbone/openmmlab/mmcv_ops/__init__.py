"""`mmcv._ext` without a compiler: mmcv's operations on torchvision and plain torch."""
