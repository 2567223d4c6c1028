"""From what a user writes to files on this machine: weights and the JSON files beside them.

A source is a path (`~` is expanded), a URL, a Hugging Face id or an `arch.tag` of the catalogue.
`resolve` decides which; what exists on disk comes first, and a `pathlib.Path` is always a path.
URLs are kept in torch.hub's cache (`TORCH_HOME`), repositories in the hub's (`HF_HOME`). What is
cached is used without a request.

Errors: FileNotFoundError for what does not exist, DownloadError (a ConnectionError) for what cannot
be fetched; a repository or a file that the hub does not have is both. ValueError for a source that
cannot mean anything.
"""

import errno
import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..utils.checks import first_line
from ..utils.files import DISK_FULL, expand_path
from .catalogue import WEIGHTS, WeightEntry, get_weight, suggest
from .containers import WEIGHT_SUFFIXES
from .download import OFFLINE, URL, DownloadError, fetch_url, url_path
from .read import DIRECTORY_FILES, INDEX_SUFFIX, shard_names

_ID = re.compile(r"(?:hf[-_]hub:)?(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_TAG = re.compile(r"(test_)?convnext\w*\.\w+")
_FILES = (*WEIGHT_SUFFIXES, ".json")
_CONNECT_TIMEOUT = 10.0  # seconds
_DEFAULT = "main"  # the branch of a repository where no revision is named
# errno of a file that this machine cannot write; what a network raises has others.
_DISK = (*DISK_FULL, errno.EROFS, errno.EACCES, errno.EPERM)


class SourceNotFoundError(DownloadError, FileNotFoundError):
    """The hub has no such repository, revision or file."""


@dataclass(frozen=True)
class WeightsSource(ABC):
    """Where the files of a model are; both methods fetch what is not there yet."""

    name: str  # what the user wrote
    entry: WeightEntry | None  # of the catalogue

    @abstractmethod
    def weights(self) -> Path:
        """Return the local weights file, index of shards or directory."""

    @abstractmethod
    def file(self, name: str) -> Path:
        """Return the local path of a JSON file beside the weights."""


@dataclass(frozen=True)
class LocalSource(WeightsSource):
    """A file or a directory of this machine, there or missing."""

    path: Path  # with the subfolder
    subfolder: str = ""

    def weights(self) -> Path:
        """Return the path as it is."""
        if not self.path.exists():
            missing = "there is no such file or directory"
            if self.subfolder:
                raise FileNotFoundError(f"{self.path}: {missing}")
            raise FileNotFoundError(
                f"{self.name}: {missing}, and it is not a URL, a Hugging Face id or a name of "
                f"list_weights() either{suggest(self.name)}"
            )
        return self.path

    def file(self, name: str) -> Path:
        """Return the JSON file itself, or the one in the directory or beside the weights file."""
        path = self.path
        if path.is_dir():
            path = path / name
        elif path.is_file() and (path.suffix != ".json" or path.name.endswith(INDEX_SUFFIX)):
            path = path.parent / name  # beside a weights file
        if not path.exists() or path.is_dir():
            where = str(self.path) if self.subfolder else self.name
            raise FileNotFoundError(f"no {name} at {where!r}")
        return path


@dataclass(frozen=True)
class UrlSource(WeightsSource):
    """One file at an http or https address."""

    url: str

    def weights(self) -> Path:
        """Return the local copy, whose hash is checked where it is known."""
        try:
            return fetch_url(self.url, sha256=self.entry.sha256 if self.entry else None)
        except DownloadError as error:
            if self.entry is not None and self.entry.hub_id:
                error.args = (f"{error}; the hub has a copy, {self.entry.hub_id}", *error.args[1:])
            raise

    def file(self, name: str) -> Path:
        """Return the local copy of a JSON file; other URLs have no files beside them."""
        if url_path(self.url).endswith(".json"):
            return fetch_url(self.url)
        raise FileNotFoundError(f"no {name} at {self.name!r}: a URL is that of one file")


@dataclass(frozen=True)
class HubSource(WeightsSource):
    """A repository of the Hugging Face hub, at a revision (None: its default branch)."""

    repo_id: str
    revision: str | None = None
    subfolder: str = ""

    def weights(self) -> Path:
        """Return the cached weights, beside the config.json of the repository if it has one."""
        with _hub_errors(self.repo_id, f"{self.repo_id}: it"):
            found = self._first(self._cached)
            if found is None:
                self._download("config.json")  # is read from the weights' directory
                found = self._first(self._download)
            if found is None:
                raise SourceNotFoundError(
                    f"{self.repo_id}: the repository holds none of {', '.join(DIRECTORY_FILES)}"
                )
            if found.name.endswith(INDEX_SUFFIX):
                for shard in shard_names(found):
                    if not (found.parent / shard).exists():
                        self._download(shard)
        return found

    def file(self, name: str) -> Path:
        """Return the cached file."""
        with _hub_errors(self.repo_id, f"{name} of {self.repo_id!r}"):
            found = self._cached(name) or self._download(name)
        if found is None:
            raise SourceNotFoundError(f"no {name} in {self.repo_id!r} on the hub")
        return found

    def _first(self, find: Callable[[str], Path | None]) -> Path | None:
        return next(filter(None, map(find, DIRECTORY_FILES)), None)

    # huggingface_hub brings an HTTP client along, which most users of a backbone never need, so
    # it is imported where it is used.

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = f"{self.subfolder}/{name}" if self.subfolder else name
        found = try_to_load_from_cache(self.repo_id, path, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def _download(self, name: str) -> Path | None:
        from huggingface_hub import errors, hf_hub_download

        _check_reachable(self.repo_id)
        try:
            return Path(
                hf_hub_download(
                    self.repo_id, name, revision=self.revision, subfolder=self.subfolder or None
                )
            )
        except errors.LocalEntryNotFoundError:
            raise  # a kind of EntryNotFoundError, but it means that the hub is out of reach
        except errors.EntryNotFoundError:
            return None


def _check_reachable(repo_id: str) -> None:
    """Raise DownloadError at once where there is no network: the hub's client tries for a minute.

    A proxy may reach what this machine cannot, so with one the client finds out itself.
    """
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    has_proxy = getproxies().keys() & {"http", "https", "all"}
    if constants.HF_HUB_OFFLINE or has_proxy or endpoint.hostname is None:
        return
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname, port), timeout=_CONNECT_TIMEOUT).close()
    except OSError as error:
        reason = f"the hub cannot be reached: {first_line(error)}; {_without_hub()}"
        raise DownloadError(f"{repo_id}: {reason}") from error


def _without_hub() -> str:
    from huggingface_hub.constants import HF_HOME

    return f"{OFFLINE} or copy the cache {HF_HOME!r} (HF_HOME) from a machine that has it"


@contextmanager
def _hub_errors(repo_id: str, subject: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except DownloadError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo_id}: the repository is gated: accept its licence at "
            f"https://huggingface.co/{repo_id} and log in with `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        message = f"{repo_id}: there is no such repository on the hub"
        raise SourceNotFoundError(message) from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{repo_id}: this is not a Hugging Face id: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise DownloadError(
            f"{subject} is not in the cache, and the hub is out of reach or switched off; "
            f"{_without_hub()}"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        is_disk = isinstance(error, OSError) and error.errno in _DISK
        what = "it cannot be written into the hub's cache" if is_disk else "the hub cannot be read"
        raise DownloadError(f"{repo_id}: {what}: {first_line(error)}") from error


# ------------------------------------------------------------------------------ what a name means


def resolve(
    source: str | os.PathLike[str], *, revision: str | None = None, subfolder: str = ""
) -> WeightsSource:
    """Return where the files of a source are; nothing is fetched yet.

    A `revision` or a `subfolder` belongs to a Hugging Face repository, the latter also to a
    directory. "main" goes with every source, since training scripts of transformers always give it.

    Example:
        >>> resolve("facebook/convnextv2-atto-1k-224", revision="main").file("config.json").name
        'config.json'
    """
    path, name = Path(expand_path(source)), os.fspath(source)
    hub = None if path.exists() else read_hub_id(source)
    if hub is not None:
        repo_id, named = hub
        if revision is not None and named not in (None, revision):
            raise ValueError(f"revision={revision!r} contradicts {named!r} in {name!r}")
        entry = next((e for e in WEIGHTS.values() if e.hub_id == repo_id), None)
        return HubSource(name, entry, repo_id, revision or named, subfolder)
    if revision not in (None, _DEFAULT):
        raise ValueError(f"revision={revision!r} needs a Hugging Face id, got {name!r}")
    if subfolder and not path.is_dir():
        raise ValueError(
            f"subfolder={subfolder!r} needs a directory or a Hugging Face id, got {name!r}"
        )
    if not path.exists() and isinstance(source, str):
        if URL.match(name):
            entry = next((e for e in WEIGHTS.values() if e.url == name), None)
            return UrlSource(name, entry, name)
        if _TAG.fullmatch(name) and not name.endswith(_FILES):
            return _source_of_entry(get_weight(name))
    return LocalSource(name, None, path / subfolder, subfolder)


def _source_of_entry(entry: WeightEntry) -> WeightsSource:
    if entry.url:
        return UrlSource(entry.tag, entry, entry.url)
    if entry.hub_id:
        return HubSource(entry.tag, entry, entry.hub_id)
    raise ValueError(
        f"{entry.tag} has no public link: its owner hands out {entry.file_name} after a form; "
        "give the path of your copy instead"
    )


def read_hub_id(source: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """Split `org/name` or `org/name@revision`; None where a source is none of these.

    What has the suffix of a file is a file, here or missing: the hub need not be asked for it.
    """
    if not isinstance(source, str) or source.startswith((".", "/", "~")):
        return None
    found = None if source.endswith(_FILES) else _ID.fullmatch(source)
    return None if found is None else (found["id"], found["revision"])
