"""Small files of a model: on this machine, or in a Hugging Face repository."""

import os
import re
from pathlib import Path

_ID = re.compile(r"(?:hf[-_]hub:)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Say whether a source that is no path here has the form of a Hugging Face id."""
    return isinstance(source, str) and _ID.fullmatch(source) is not None


def find_file(
    source: str | os.PathLike[str],
    name: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
) -> Path:
    """Return the local path of a model's file, fetching it if need be.

    Args:
        source: The file itself, the directory that holds it, or a Hugging Face id (`org/name`,
            `org/name@revision`). What exists on disk comes first.
        name: The file's name in a directory or repository.
        revision: The branch, tag or commit of a repository.
        subfolder: The folder inside the directory or repository.

    Raises:
        FileNotFoundError: There is no such file.
        ConnectionError: The hub cannot be reached, and the file is not in its cache.
    """
    path = Path(source)
    path = path / subfolder / name if path.is_dir() else path
    if path.is_file():
        return path
    hub = _ID.fullmatch(source) if isinstance(source, str) else None
    if path.exists() or Path(source).is_dir() or hub is None:
        raise FileNotFoundError(f"no {name} at {os.fspath(source)!r}")
    return _fetch(hub["id"], name, revision or hub["revision"], subfolder)


def _fetch(repo_id: str, name: str, revision: str | None, subfolder: str) -> Path:
    # Imported here: it brings an HTTP client along, which most users of a backbone never need.
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, subfolder=subfolder or None))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"{name} of {repo_id!r} is not in the cache, and the hub is out of reach"
        ) from error
    except (
        errors.EntryNotFoundError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
    ) as error:
        raise FileNotFoundError(f"no {name} in {repo_id!r} on the hub") from error
