"""Fetch a URL's file once into torch.hub's cache, and only ever whole.

A file appears under its name only once it is whole: it grows as `.part`, is checked against its
hash or its size, and is then moved into place. A transfer that breaks goes on where it broke.
"""

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock
from tqdm import tqdm

from ..utils.files import errors_naming, file_sha256, move_into_place
from .catalogue import WEIGHTS, hash_in_name

TIMEOUT = 30.0  # seconds without an answer or a byte
ATTEMPTS = 3  # connections in which a broken transfer is continued before giving up
URL = re.compile(r"https?://", re.IGNORECASE)
_CHUNK = 1 << 20  # bytes read at a time


class DownloadError(ConnectionError):
    """A file could not be fetched; nothing was left under its name."""


def cache_directory() -> Path:
    """Return the directory of downloaded files: torch.hub's, which `TORCH_HOME` moves."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str) -> Path:
    """Return where the file of a URL is kept: of the catalogue, where torch.hub keeps it.

    Other names ("model.pth") are those of many files, so each URL has a folder.
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
        DownloadError: The file cannot be had whole; OSError: it cannot be written.
    """
    if not URL.match(url):
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
    """The connection ended early; the next one goes on from what arrived."""


class _Transfer:
    """The fetching of one file: `.part` holds what arrived, `.part.tag` the version it is of."""

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
        raise DownloadError(f"{self.url}: {reason}; what arrived is kept for the next attempt")

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
        """Append the body to the part; return the size of the whole file, where it is known."""
        resumed = response.status == 206
        start = self.part.stat().st_size if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if not resumed:
            self._forget()
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # a weak tag is no promise of equal bytes
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
        move_into_place(self.part, self.target)
        self.tag.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield a body; what reading it raises is the network's, unlike what writing it raises."""
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
