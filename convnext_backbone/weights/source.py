"""Small files of a model: on this machine, or in a Hugging Face repository."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from ..utils.files import WEIGHT_SUFFIXES, check_source

_ID = re.compile(r"(?:hf[-_]hub:)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_FILES = (*WEIGHT_SUFFIXES, ".json")
_DEFAULT = "main"  # the branch of a repository where no revision is named


class HubId(NamedTuple):
    """A repository on the Hugging Face hub, and the revision where one is named."""

    repo_id: str
    revision: str | None


def read_hub_id(source: str | os.PathLike[str]) -> HubId | None:
    """Take apart `org/name` or `org/name@revision`; None where a source is none of these.

    What is called like a file is a file, here or missing: the hub need not be asked for it.
    """
    if not isinstance(source, str) or source.startswith((".", "/", "~")):
        return None
    found = _ID.fullmatch(source)
    return (
        None if found is None or source.endswith(_FILES) else HubId(found["id"], found["revision"])
    )


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Say whether a source that is no path here has the form of a Hugging Face id."""
    return read_hub_id(source) is not None


def at_revision(source: str | os.PathLike[str], revision: str | None) -> str | os.PathLike[str]:
    """Return a Hugging Face id together with the revision that is asked for beside it.

    "main" goes with every source, since transformers' training scripts give it with every source.

    Raises:
        ValueError: Another revision is asked of what has none, or of an id that names its own.
    """
    if revision is None:
        return source
    hub = None if os.path.exists(source) else read_hub_id(source)
    if hub is not None and hub.revision in (None, revision):
        return f"{hub.repo_id}@{revision}"
    if hub is not None or revision != _DEFAULT:
        have = "has none: it is no Hugging Face id" if hub is None else f"names {hub.revision!r}"
        raise ValueError(f"revision {revision!r} is asked for, but {os.fspath(source)!r} {have}")
    return source


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
        ValueError: The source is empty, or a revision is asked of what has none.
    """
    check_source(source)
    source = at_revision(source, revision)
    path = Path(source)
    path = path / subfolder / name if path.is_dir() else path
    if path.is_file():
        return path
    hub = read_hub_id(source)
    if path.exists() or Path(source).is_dir() or hub is None:
        raise FileNotFoundError(f"no {name} at {os.fspath(source)!r}")
    return _fetch(hub.repo_id, name, hub.revision, subfolder)


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
