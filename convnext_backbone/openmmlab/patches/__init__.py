"""Repairs of the published OpenMMLab packages, one file a package or fault; see apply.py."""
