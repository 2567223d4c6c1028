"""Parquet files by pyarrow, which only those install who use them."""

from typing import Any


def import_parquet() -> Any:
    """Return `pyarrow.parquet`, or raise an ImportError that says how to install it."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: pip install 'convnext_backbone[parquet]'"
        ) from error
    return pq
