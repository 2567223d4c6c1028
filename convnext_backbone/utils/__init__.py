"""Argument checks and file writing, shared by every package."""
