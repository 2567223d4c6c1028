"""Fetch a URL's file once into torch.hub's cache, and only ever whole.

A file appears under its name only once it is whole: it grows as `.part`, is checked by its size,
its first bytes and its hash where one is known, and is then moved into place. A transfer that
breaks goes on where it broke, if the server still has the same version of the file.

Repositories of the Hugging Face hub are huggingface_hub's (see `source`). For other addresses this
module takes the place of `torch.hub.download_url_to_file` and of huggingface_hub's `http_get`,
which lack what a cache needs: the former does not go on after a break, the latter does so without
comparing version and range, and both keep whatever a server sends and follow it anywhere.
"""

import hashlib
import re
import string
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote, urlsplit

import torch
from filelock import FileLock
from tqdm import tqdm

from ..utils.files import errors_naming, file_sha256, move_into_place, read_json
from .catalogue import WEIGHTS, hash_in_name
from .containers import HEAD, ZIP_START, current_limits, is_weights_start

TIMEOUT = 30.0  # seconds without an answer or a byte
ATTEMPTS = 3  # connections in which a broken transfer is continued before giving up
MIN_RATE = 1 << 10  # bytes in a second, over each TIMEOUT; a server that is slower has stalled
URL = re.compile(r"https?://", re.IGNORECASE)
_CHUNK = 1 << 20  # bytes read at a time
_MAX_NAME = 100  # characters, with room for `.part.tag` in what file systems allow
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_LENGTH = re.compile(r"\d{1,18}")
_NO_ADDRESS = "the address cannot be used"
_NOT_WEIGHTS = "the server sent something that is not a weights file, perhaps a login page"
OFFLINE = "offline: pass a local file, set init_cfg=None in a config,"


class DownloadError(ConnectionError):
    """A file could not be fetched; nothing was left under its name."""


def cache_directory() -> Path:
    """Return the directory of downloaded files: torch.hub's, which `TORCH_HOME` moves."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str, directory: Path | None = None) -> Path:
    """Return where the file of a URL is kept: of the catalogue, where torch.hub keeps it.

    Other names ("model.pth") are those of many files, so each URL has a folder, unless the caller
    names a `directory`.
    """
    name = unquote(Path(url_path(url)).name)
    name = re.sub(r"[^\w.+-]", "_", name).lstrip(".")[-_MAX_NAME:] or "weights"
    if directory is not None:
        return directory / name
    if any(entry.url == url for entry in WEIGHTS.values()):
        return cache_directory() / name
    return cache_directory() / hashlib.sha256(url.encode()).hexdigest()[:12] / name


def url_path(url: str) -> str:
    """Return the path that a URL names on its server; DownloadError where it cannot be parsed."""
    try:
        url.encode()  # surrogates
        return urlsplit(url).path
    except ValueError as error:
        raise DownloadError(f"{url}: {_NO_ADDRESS}: {error}") from error


def fetch_url(
    url: str,
    *,
    sha256: str | None = None,
    progress: bool = True,
    directory: Path | None = None,
) -> Path:
    """Return the local copy of a URL's file, fetching it once.

    Args:
        url: An http or https address.
        sha256: The first digits of the file's hash; None reads them from the file's name, where
            torch.hub and OpenMMLab write them; "" has none.
        progress: Show a bar on a terminal.
        directory: Where to keep the file; None is torch.hub's cache.

    Raises:
        DownloadError: The file cannot be had whole, is larger than `file_limits` allows, or is not
            one of weights (or JSON, for a name that ends so). OSError: It cannot be written.
    """
    if not URL.match(url):
        raise ValueError(f"url must start with http:// or https://, got {url!r}")
    target = cached_path(url, directory)
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


class _Refused(Exception):  # noqa: N818
    """What the server sends is not wanted, and what arrived is forgotten."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to other servers, but not to other protocols, nor from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(newurl).scheme.lower() not in allowed:
            raise _Refused(f"the server leads to {newurl!r}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transfer:
    """The fetching of one file: `.part` holds what arrived, `.part.tag` the version it is of."""

    def __init__(self, url: str, target: Path, digits: str, progress: bool) -> None:
        self.url, self.target, self.digits, self.progress = url, target, digits, progress
        self.part = target.with_name(f"{target.name}.part")
        self.tag = target.with_name(f"{target.name}.part.tag")
        self.limit = current_limits().download_gib << 30

    def run(self) -> None:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                self._connect()
                return
            except _Broken as error:
                reason = str(error)
            except _Refused as error:
                self._forget()
                raise DownloadError(f"{self.url}: {error}") from error
        kept = "; what arrived is kept for the next attempt" if self._arrived() else ""
        raise DownloadError(f"{self.url}: {reason}{kept}")

    def _connect(self) -> None:
        """Fetch what is missing, check the whole and move it into place."""
        with self._open() as response, errors_naming(self.target):
            expected = self._receive(response)
        self._finish(expected)

    def _open(self) -> HTTPResponse:
        self.headers = self._headers()
        # As browsers do: blanks and letters of other scripts are escaped, what is escaped stays.
        url = quote(self.url, safe=string.punctuation)
        request = urllib.request.Request(url, headers=self.headers)
        try:
            return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is no beginning of the file that is there now
                self._forget()
                raise _Broken("the part that was there did not fit the file") from error
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500:
                raise _Refused(reason) from error
            raise DownloadError(f"{self.url}: {reason}") from error
        except urllib.error.URLError as error:
            where = f"or put it at {str(self.target)!r} (TORCH_HOME moves this cache)"
            reason = f"the server cannot be reached: {error.reason}; {OFFLINE} {where}"
            raise DownloadError(f"{self.url}: {reason}") from error
        except (HTTPException, OSError) as error:
            raise _broken(error) from error
        except (ValueError, OverflowError) as error:  # of its host, its port, or a redirect's
            raise _Refused(f"{_NO_ADDRESS}: {error}") from error

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": "convnext_backbone", "Accept-Encoding": "identity"}
        if self._arrived() and self.tag.exists():
            # If-Range: the server sends the rest only of the very file that the part is from.
            headers["Range"] = f"bytes={self._arrived()}-"
            headers["If-Range"] = self.tag.read_text(encoding="utf-8")
        return headers

    def _receive(self, response: HTTPResponse) -> int | None:
        """Append the body to the part; return the size of the whole file, where it is known."""
        start, total = self._range(response)
        if start == 0:
            self._forget()
        if total is not None:
            self._check_size(total)
        version = _version(response)
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
            size = start
            for chunk in _chunks(response):
                part.write(chunk)
                bar.update(len(chunk))
                before, size = size, size + len(chunk)
                self._check_size(size)
                if before < HEAD <= size:  # a web page need not arrive whole to be refused
                    part.flush()
                    self._check_start(total or self.limit)
        if total is not None and size < total:
            raise _Broken(f"the file was cut off after {size} of {total} bytes")
        return total

    def _range(self, response: HTTPResponse) -> tuple[int, int | None]:
        """Return where the body begins in the file, and the size of the file where it is known.

        _Broken: it is not the part that was asked for, or of another version than what is there.
        """
        length = None if response.chunked else response.headers.get("Content-Length")
        if length is not None and not _LENGTH.fullmatch(length.strip()):
            raise _Refused(f"the server's Content-Length is {length[:40]!r}")
        if response.status != 206:
            return 0, None if length is None else int(length)
        found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        first, last = (int(found[1]), int(found[2])) if found else (-1, -1)
        is_asked = "Range" in self.headers and first == self._arrived() <= last
        is_sound = length is None or int(length) == last - first + 1
        version = _version(response)
        is_same = version is None or version == self.headers.get("If-Range")
        if found is None or not (is_asked and is_sound and is_same):
            self._forget()
            raise _Broken("the server sent another part of the file than was asked for")
        return first, last + 1 if found[3] == "*" else int(found[3])

    def _finish(self, expected: int | None) -> None:
        size = self._arrived()
        if size == 0 or (expected is not None and size != expected):
            raise _Refused(f"got {size} bytes, expected {expected or 'some'}")
        self._check_start(size)
        if self.digits:
            found = file_sha256(self.part)
            if not found.startswith(self.digits):
                raise _Refused(
                    "the file is corrupt: its SHA-256 starts with "
                    f"{found[: len(self.digits)]}, must be {self.digits}"
                )
        self._check_whole()
        move_into_place(self.part, self.target)
        self.tag.unlink(missing_ok=True)

    def _check_size(self, size: int) -> None:
        if size > self.limit:
            gib = self.limit >> 30
            raise _Refused(
                f"the file is larger than {gib} GiB; file_limits(download_gib=...) allows more"
            )

    def _check_start(self, size: int) -> None:
        """Refuse what cannot be the start of `size` bytes of weights: most often a web page."""
        if self.target.suffix == ".json":
            return
        with open(self.part, "rb") as part:
            if not is_weights_start(part.read(HEAD), size):
                raise _Refused(_NOT_WEIGHTS)

    def _check_whole(self) -> None:
        try:
            if self.target.suffix == ".json":
                read_json(self.part)
        except ValueError as error:
            raise _Refused(_NOT_WEIGHTS) from error
        with open(self.part, "rb") as part:
            is_zip = part.read(len(ZIP_START)) == ZIP_START
        if is_zip and not zipfile.is_zipfile(self.part):  # their directory is at the end
            raise _Refused("the file was cut off")

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _version(response: HTTPResponse) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield a body; what reading it raises is the network's, unlike what writing it raises."""
    start, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK)  # `read` would wait for all of it, however slow
        except (HTTPException, OSError, ValueError) as error:  # ValueError: of a chunk's size
            raise _broken(error) from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - start
        if seconds > TIMEOUT:
            if received < MIN_RATE * seconds:
                raise _Broken(f"the server sent {received} bytes in {seconds:.0f} seconds")
            start, received = time.monotonic(), 0


def _broken(error: Exception) -> _Broken:
    return _Broken(f"the connection broke: {str(error) or type(error).__name__}")
