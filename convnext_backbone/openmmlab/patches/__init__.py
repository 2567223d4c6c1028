"""Repairs of published packages for current torch, NumPy and setuptools; one file a fault."""
