"""Find the file behind a source, and fetch it when it is not here yet.

URLs go to torch.hub's cache (`TORCH_HOME`), Hugging Face ids to the hub's (`HF_HOME`). What is
cached is used without a request. A file appears under its name only once it is whole: it grows as
`.part`, is checked against its hash or its size, and is then moved into place.
"""

import errno
import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock
from tqdm import tqdm

from ..utils.checks import first_line
from ..utils.files import check_source, errors_naming, file_sha256
from .catalogue import WEIGHTS, WeightEntry, get_weight, hash_in_name
from .read import DIRECTORY_FILES
from .source import read_hub_id

TIMEOUT = 30.0  # seconds without an answer or a byte
ATTEMPTS = 3  # connections in which a broken transfer is taken up again before giving up
_CHUNK = 1 << 20
_URL = re.compile(r"https?://", re.IGNORECASE)
# What this machine says when a file cannot be written; a network has other words.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class DownloadError(OSError):
    """A file could not be fetched; nothing was left under its name."""


def locate(source: str | os.PathLike[str]) -> tuple[Path, WeightEntry | None]:
    """Return the local file or directory behind a source, fetching it if need be.

    Args:
        source: A file, a directory, a URL, a Hugging Face id (`org/name`, `org/name@revision`) or
            an `arch.tag` of `list_weights()`. What exists on disk comes first.

    Returns:
        The path, and the catalogue's entry when the source is in the catalogue.

    Raises:
        ValueError: The source is none of these, or the catalogue says it cannot be used.
        FileNotFoundError: It is the path of a file that does not exist.
        DownloadError: It cannot be fetched.
        OSError: What was fetched cannot be written.
    """
    check_source(source)
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.exists():
        return path, None
    if _URL.match(name):
        entry = next((e for e in WEIGHTS.values() if e.url == name), None)
        return fetch_url(name, sha256=entry.sha256 if entry else None), entry
    if name in WEIGHTS:
        return _fetch_entry(get_weight(name)), get_weight(name)
    hub = read_hub_id(source)
    if hub is not None:
        entry = next((e for e in WEIGHTS.values() if e.hub_id == hub.repo_id), None)
        return fetch_hub(hub.repo_id, hub.revision), entry
    if "/" not in name and re.fullmatch(r"(test_)?convnext\w*\.\w+", name):
        get_weight(name)
    raise FileNotFoundError(
        f"{name}: there is no such file or directory, and it is not a URL, a Hugging Face id "
        "or a name of list_weights() either"
    )


def _fetch_entry(entry: WeightEntry) -> Path:
    if entry.unsupported:
        raise ValueError(f"{entry.name} cannot be held by ConvNextBackbone: {entry.unsupported}")
    if entry.url:
        return fetch_url(entry.url, sha256=entry.sha256)
    if entry.hub_id:
        return fetch_hub(entry.hub_id)
    raise ValueError(
        f"{entry.name} has no public link: its owner hands out {entry.file_name} after a form; "
        "give the path of your copy instead"
    )


# ------------------------------------------------------------------------------ the hub


def fetch_hub(repo_id: str, revision: str | None = None) -> Path:
    """Return the local copy of a Hugging Face repository's weights; its config.json lies beside.

    Raises:
        DownloadError: The repository is not there, not open to you, or out of reach.
    """
    # Imported here: it brings an HTTP client along, which most users of a backbone never need.
    from huggingface_hub import try_to_load_from_cache

    with _hub_errors(repo_id):
        for name in DIRECTORY_FILES:
            cached = try_to_load_from_cache(repo_id, name, revision=revision)
            if isinstance(cached, str):
                return _whole(repo_id, revision, Path(cached))
        _hub_file(repo_id, "config.json", revision)
        for name in DIRECTORY_FILES:
            found = _hub_file(repo_id, name, revision)
            if found is not None:
                return _whole(repo_id, revision, found)
    raise DownloadError(f"{repo_id}: the repository holds none of {', '.join(DIRECTORY_FILES)}")


def _hub_file(repo_id: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except errors.LocalEntryNotFoundError:
        raise  # a kind of EntryNotFoundError, but it means that the hub is out of reach
    except errors.EntryNotFoundError:
        return None


def _whole(repo_id: str, revision: str | None, file: Path) -> Path:
    """Fetch the shards that an index names."""
    if file.name.endswith(".index.json"):
        shards = set(re.findall(r'"([\w.-]+\.(?:safetensors|bin))"', file.read_text("utf-8")))
        for name in sorted(shards):
            if not (file.parent / name).exists():
                _hub_file(repo_id, name, revision)
    return file


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo_id}: the repository is gated: accept its licence at "
            f"https://huggingface.co/{repo_id} and log in with `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise DownloadError(f"{repo_id}: there is no such repository on the hub") from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{repo_id}: this is not a Hugging Face id: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise DownloadError(
            f"{repo_id}: it is not in the cache, and the hub is out of reach or switched off"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        written = isinstance(error, OSError) and error.errno in _DISK
        what = "it cannot be written into the hub's cache" if written else "the hub cannot be read"
        raise DownloadError(f"{repo_id}: {what}: {first_line(error)}") from error


# ------------------------------------------------------------------------------ URLs


def cache_directory() -> Path:
    """Return the directory of downloaded files: torch.hub's, which `TORCH_HOME` moves."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str) -> Path:
    """Return where the file of a URL is kept.

    A catalogue's name says which file it is, and is kept as torch.hub keeps it. Other names need
    not ("model.pth"), so they stand in a folder of their URL.
    """
    name = unquote(Path(urlsplit(url).path).name) or "weights"
    name = re.sub(r"[^\w.+-]", "_", name)
    if any(entry.url == url for entry in WEIGHTS.values()):
        return cache_directory() / name
    return cache_directory() / hashlib.sha256(url.encode()).hexdigest()[:12] / name


def fetch_url(url: str, *, sha256: str | None = None, progress: bool = True) -> Path:
    """Return the local copy of a URL's file, fetching it once.

    Args:
        url: An http or https address.
        sha256: The first digits of the file's hash; None reads them from the file's name, where
            torch.hub and OpenMMLab write them; "" has none.
        progress: Show a bar on a terminal.

    Raises:
        DownloadError: The file cannot be had whole.
        OSError: It cannot be written; what came is kept for the next attempt.
    """
    if not _URL.match(url):
        raise ValueError(f"url must start with http:// or https://, got {url!r}")
    target = cached_path(url)
    if target.exists():
        return target
    digits = hash_in_name(target.name) if sha256 is None else sha256
    target.parent.mkdir(parents=True, exist_ok=True)
    # One process fetches; another that asks meanwhile waits and finds the file.
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _Transfer(url, target, digits, progress).run()
    return target


class _Broken(Exception):  # noqa: N818 - never leaves this module
    """The connection ended early; what came can be built on."""


class _Transfer:
    """One file on its way: `.part` holds what came, `.part.tag` which version of it."""

    def __init__(self, url: str, target: Path, digits: str, progress: bool) -> None:
        self.url, self.target, self.digits, self.progress = url, target, digits, progress
        self.part = target.with_name(f"{target.name}.part")
        self.tag = target.with_name(f"{target.name}.part.tag")

    def run(self) -> None:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                self._connect()
                return
            except _Broken as error:
                reason = str(error)
        raise DownloadError(f"{self.url}: {reason}; what came is kept for the next attempt")

    def _connect(self) -> None:
        """Fetch what is missing, check the whole and move it into place."""
        with self._open() as response, errors_naming(self.target):
            expected = self._receive(response)
        self._finish(expected)

    def _open(self) -> HTTPResponse:
        request = urllib.request.Request(self.url, headers=self._headers())
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is no beginning of the file that is there now
                self._forget()
                raise _Broken("the part that was there did not fit the file") from error
            self._forget()
            message = f"{self.url}: the server answered {error.code} {error.reason}"
            raise DownloadError(message) from error
        except urllib.error.URLError as error:
            message = f"{self.url}: the server cannot be reached: {error.reason}"
            raise DownloadError(message) from error
        except (HTTPException, OSError) as error:
            raise _broken(error) from error

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": "convnext_backbone", "Accept-Encoding": "identity"}
        if self.part.exists() and self.part.stat().st_size and self.tag.exists():
            # If-Range: the server sends the rest only of the very file that the part is from.
            headers["Range"] = f"bytes={self.part.stat().st_size}-"
            headers["If-Range"] = self.tag.read_text(encoding="utf-8")
        return headers

    def _receive(self, response: HTTPResponse) -> int | None:
        """Append the body to the part; return the size of the whole file, where it is told."""
        resumed = response.status == 206
        start = self.part.stat().st_size if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if not resumed:
            self._forget()
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # a weak tag does not tell bytes apart
            self.tag.write_text(version, encoding="utf-8")
        with (
            open(self.part, "ab") as part,
            tqdm(
                desc=self.target.name,
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=None if self.progress else True,  # None: shown on a terminal only
            ) as bar,
        ):
            for chunk in _chunks(response):
                part.write(chunk)
                bar.update(len(chunk))
        size = self.part.stat().st_size
        if total is not None and size < total:
            raise _Broken(f"the file was cut off after {size} of {total} bytes")
        return total

    def _finish(self, expected: int | None) -> None:
        size = self.part.stat().st_size
        if size == 0 or (expected is not None and size != expected):
            self._forget()
            raise DownloadError(f"{self.url}: got {size} bytes, expected {expected or 'some'}")
        if self.digits:
            found = file_sha256(self.part)
            if not found.startswith(self.digits):
                self._forget()
                raise DownloadError(
                    f"{self.url}: the file is corrupt: its SHA-256 starts with "
                    f"{found[: len(self.digits)]}, must be {self.digits}"
                )
        with errors_naming(self.target):
            os.replace(self.part, self.target)
        self.tag.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield a body. Its errors are the network's, those of whoever takes the bytes are not."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (HTTPException, OSError) as error:
            raise _broken(error) from error
        if not chunk:
            return
        yield chunk


def _broken(error: Exception) -> _Broken:
    return _Broken(f"the connection broke: {str(error) or type(error).__name__}")
