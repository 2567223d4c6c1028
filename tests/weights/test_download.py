"""Downloads against a server on this machine that fails in every way a server fails."""

import errno
import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.originals import V1

from convnext_backbone import ConvNextBackbone, ConvNextConfig
from convnext_backbone.weights import (
    DownloadError,
    catalogue,
    download,
    file_limits,
    open_weights,
)
from convnext_backbone.weights import source as sources
from convnext_backbone.weights.containers import WEIGHT_SUFFIXES
from convnext_backbone.weights.download import cached_path, fetch_url
from convnext_backbone.weights.source import resolve


class _Server(ThreadingHTTPServer):
    """Serves one content; `behaviour` says how it misbehaves, `requests` what it was asked."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.behaviour, self.requests = content, "sound", []
        self.tag = '"v1"'
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name="weights.pth"):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        content, start = server.content, 0
        if server.behaviour == "missing":
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == server.tag and server.behaviour != "no_range":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if server.behaviour != "no_length":
            self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        drops = server.behaviour == "always_drops" or (
            server.behaviour in ("drops_once", "no_range") and len(server.requests) == 1
        )
        if server.behaviour == "slow":
            time.sleep(0.5)
        self.wfile.write(body[: len(body) // 2] if drops else body)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch_home"


@pytest.fixture
def server(tmp_path):
    torch.save(V1.state_dict(), tmp_path / "served.pth")
    server = _Server((tmp_path / "served.pth").read_bytes())
    yield server
    server.shutdown()
    server.server_close()


def _left(cache):
    """The files of the cache that could be taken for weights."""
    return [p for p in cache.rglob("*") if p.suffix not in (".lock", ".part", ".tag", "")]


def test_file_of_a_url_is_fetched_once_into_torchs_cache(server, cache):
    module = ConvNextBackbone.from_pretrained(server.url())
    again = ConvNextBackbone.from_pretrained(server.url())
    assert len(server.requests) == 1
    assert torch.equal(module.stages[0][0].gamma, V1.stages[0][0].gamma)
    assert torch.equal(again.stages[0][0].gamma, V1.stages[0][0].gamma)
    (file,) = _left(cache)
    assert file.read_bytes() == server.content
    assert file.is_relative_to(cache / "hub" / "checkpoints")
    assert module.load_report.source == server.url()


def test_cached_file_is_used_when_the_server_is_gone(server):
    path = fetch_url(server.url())
    server.shutdown()
    server.server_close()
    assert fetch_url(server.url()) == path


def test_same_name_at_another_address_is_another_file(server):
    assert cached_path(server.url("a/model.pth")) != cached_path(server.url("b/model.pth"))
    known = "https://download.pytorch.org/models/convnext_tiny-983f1562.pth"
    assert cached_path(known) == Path(torch.hub.get_dir()) / "checkpoints" / known[-26:]


def test_dead_host_is_one_error_and_leaves_nothing(server, cache):
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=rf"{url}: the server cannot be reached"):
        fetch_url(url)
    assert _left(cache) == []


def test_unknown_host_is_one_error(cache):
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        fetch_url("http://host.invalid/weights.pth")
    for way in ("pass a local file", "init_cfg=None", "TORCH_HOME"):
        assert way in str(caught.value)
    assert _left(cache) == []


def test_404_is_one_error_and_leaves_nothing(server, cache):
    server.behaviour = "missing"
    with pytest.raises(DownloadError, match=r"weights\.pth: the server answered 404"):
        fetch_url(server.url())
    assert _left(cache) == []
    assert list(cache.rglob("*.part")) == []


def test_dropped_connection_is_taken_up_where_it_broke(server, cache):
    server.behaviour = "drops_once"
    path = fetch_url(server.url())
    assert path.read_bytes() == server.content
    half = len(server.content) // 2
    assert server.requests == [None, f"bytes={half}-"]
    assert list(cache.rglob("*.part*")) == []


def test_transfer_that_never_ends_is_one_error_and_goes_on_next_time(server, cache):
    server.behaviour = "always_drops"
    with pytest.raises(DownloadError, match=r"cut off after \d+ of \d+ bytes"):
        fetch_url(server.url())
    assert _left(cache) == []
    (part,) = cache.rglob("*.part")
    came = part.stat().st_size
    assert 0 < came < len(server.content)
    server.behaviour = "sound"
    assert fetch_url(server.url()).read_bytes() == server.content
    assert server.requests[-1] == f"bytes={came}-"


def test_file_that_changed_meanwhile_is_fetched_from_its_start(server, cache):
    server.behaviour = "always_drops"
    with pytest.raises(DownloadError):
        fetch_url(server.url())
    server.behaviour, server.tag = "sound", '"v2"'
    content = server.content
    server.content = content[:100] + bytes(reversed(content[100:-100])) + content[-100:]
    assert fetch_url(server.url()).read_bytes() == server.content


def test_server_without_ranges_or_tags_starts_over(server):
    server.behaviour, server.tag = "no_range", ""
    assert fetch_url(server.url()).read_bytes() == server.content
    assert server.requests == [None, None]


def test_server_that_does_not_tell_the_length_is_believed(server):
    server.behaviour = "no_length"
    assert fetch_url(server.url()).read_bytes() == server.content


def test_truncated_file_of_unknown_length_fails_on_its_hash(server, cache):
    digits = hashlib.sha256(server.content).hexdigest()[:8]
    server.behaviour, server.content = "no_length", server.content[:1000]
    with pytest.raises(DownloadError, match=f"corrupt.*must be {digits}"):
        fetch_url(server.url(), sha256=digits)
    assert _left(cache) == []


def test_hash_in_the_name_is_checked(server, cache):
    right = hashlib.sha256(server.content).hexdigest()[:8]
    path = fetch_url(server.url(f"weights-{right}.pth"))
    assert path.read_bytes() == server.content
    with pytest.raises(DownloadError, match=f"corrupt: its SHA-256 starts with {right}"):
        fetch_url(server.url("weights-0badf00d.pth"))
    assert _left(cache) == [path]
    assert list(cache.rglob("*.part*")) == []


def test_empty_answer_is_one_error(server, cache):
    server.content = b""
    with pytest.raises(DownloadError, match="got 0 bytes"):
        fetch_url(server.url())
    assert _left(cache) == []


_FETCH_WITH_A_FULL_DISK = """
import resource, sys
from convnext_backbone.weights.download import DownloadError, fetch_url
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    fetch_url(sys.argv[1])
except OSError as error:
    print(isinstance(error, DownloadError), error)
"""


def test_a_disk_that_is_full_is_no_broken_connection(server, cache):
    pytest.importorskip("resource")
    command = [sys.executable, "-c", _FETCH_WITH_A_FULL_DISK, server.url(), "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"False [Errno 27] File too large: '{cached_path(server.url())}'\n"
    assert len(server.requests) == 1
    assert _left(cache) == []
    (part,) = cache.rglob("*.part")  # and once there is room, it goes on from there
    assert part.read_bytes() == server.content[:10_000]
    assert fetch_url(server.url()).read_bytes() == server.content
    assert server.requests[1] == "bytes=10000-"


def test_a_cache_of_the_hub_that_is_full_is_named(monkeypatch):
    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "blob")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_room)
    with pytest.raises(DownloadError, match=r"someone/else: it cannot be written .*No space left"):
        resolve("someone/else").weights()


_FETCH_ON_DEMAND = """
import sys
from convnext_backbone.weights.download import fetch_url
print("ready", flush=True)
sys.stdin.readline()
print(fetch_url(sys.argv[1], progress=False))
"""


def test_two_processes_at_once_fetch_once(server):
    server.behaviour = "slow"
    command = [sys.executable, "-c", _FETCH_ON_DEMAND, server.url()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    paths = [Path(worker.communicate(timeout=60)[0].strip()) for worker in workers]
    assert paths[0] == paths[1] == cached_path(server.url())
    assert paths[0].read_bytes() == server.content
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.pth", "file:///etc/passwd"])
def test_other_schemes_are_not_fetched(url):
    with pytest.raises(ValueError, match="http"):
        fetch_url(url)
    with pytest.raises(FileNotFoundError):
        resolve(url).weights()


# ------------------------------------------------------------------------------ what servers send


class _Scripted(BaseHTTPRequestHandler):
    """Gives the server's next answer, the last one again and again: (status, headers, body)."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        status, headers, body = (
            server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for part in [body] if isinstance(body, bytes) else body():
            self.wfile.write(part)
            self.wfile.flush()


@pytest.fixture
def answering():
    """Start a server that gives these answers; its URL and what it was asked."""
    servers = []

    def start(*answers):
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Scripted)
        server.daemon_threads = True
        server.answers, server.asked = list(answers), []
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/w.pth", server.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def content():
    """A file of weights whose bytes differ from place to place."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(5000)}, buffer)
    return buffer.getvalue()


def _whole(content, **headers):
    return 200, {"Content-Length": str(len(content)), **headers}, content


def _cut(content, **headers):
    return 200, {"Content-Length": str(len(content)), **headers}, content[: len(content) // 2]


def _rest(content, start, named=None, **headers):
    span = f"bytes {start if named is None else named}-{len(content) - 1}/{len(content)}"
    headers = {"Content-Length": str(len(content) - start), "Content-Range": span, **headers}
    return 206, headers, content[start:]


V1_TAG, V2_TAG = {"ETag": '"v1"'}, {"ETag": '"v2"'}


@pytest.mark.parametrize(
    "second",
    [
        lambda c: _rest(c, len(c) // 2, **V2_TAG),  # the rest of another version
        lambda c: _rest(c, 100, **V1_TAG),  # from elsewhere, and it says so
        lambda c: _rest(c, len(c) // 2, named=0, **V1_TAG),
        lambda c: (206, {"Content-Length": "10", **V1_TAG}, c[-10:]),  # it does not say from where
        lambda c: _rest(c, len(c) // 2, **V1_TAG, **{"Content-Length": "7"}),
        lambda c: (206, {"Content-Range": "bytes x-y/z", **V1_TAG}, c),
    ],
    ids=["version", "elsewhere", "named", "unnamed", "length", "nonsense"],
)
def test_a_part_that_does_not_fit_starts_over(second, answering, content):
    url, asked = answering(_cut(content, **V1_TAG), second(content), _whole(content, **V2_TAG))
    assert fetch_url(url).read_bytes() == content
    assert asked == [None, f"bytes={len(content) // 2}-", None]


@pytest.mark.parametrize("start", [0, 100])
def test_a_part_that_was_not_asked_for_is_refused(start, answering, content, cache):
    url, _ = answering(_rest(content, start, **V1_TAG))
    with pytest.raises(DownloadError, match="another part of the file"):
        fetch_url(url)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "9" * 30, ""])
def test_a_length_that_is_none_is_one_error(length, answering, content, cache):
    url, _ = answering((200, {"Content-Length": length}, content))
    with pytest.raises(DownloadError, match=f"Content-Length is '{length}'"):
        fetch_url(url)
    assert _left(cache) == []


PAGE = b"<!DOCTYPE html><html><body>Please log in to the hotel's network</body></html>" * 50


@pytest.mark.parametrize(
    "body", [PAGE, PAGE[:20], b'{"error": "quota exceeded"}', b"\x1f\x8b" * 99]
)
@pytest.mark.parametrize("has_length", [True, False])
def test_what_is_no_file_of_weights_never_enters_the_cache(body, has_length, answering, cache):
    length = {"Content-Length": str(len(body))} if has_length else {}
    url, _ = answering((200, {"Content-Type": "application/octet-stream", **length}, body))
    with pytest.raises(DownloadError, match=r"w\.pth: the server sent .* not a weights file"):
        fetch_url(url)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_page_in_the_place_of_a_json_file_is_refused(answering, cache):
    url, _ = answering((200, {}, PAGE), (200, {}, b'{"model_type": "convnext"}'))
    url = url.replace(".pth", ".json")
    with pytest.raises(DownloadError, match="not a weights file"):
        fetch_url(url)
    assert fetch_url(url).read_bytes() == b'{"model_type": "convnext"}'


def test_an_endless_page_is_refused_by_its_start(answering):
    def endless():
        while True:
            yield PAGE

    url, _ = answering((200, {}, endless))
    with pytest.raises(DownloadError, match="not a weights file"):
        fetch_url(url)


def test_a_zip_file_of_unknown_length_that_was_cut_is_refused(answering, content, cache):
    url, _ = answering((200, {}, content[: len(content) // 2]))
    with pytest.raises(DownloadError, match="cut off"):
        fetch_url(url)
    assert _left(cache) == []


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/w.pth", "file:///etc/passwd", "data:,x"])
def test_a_redirect_to_another_protocol_is_not_followed(target, answering, cache):
    url, _ = answering((302, {"Location": target}, b""))
    with pytest.raises(DownloadError):
        fetch_url(url)
    assert _left(cache) == []


def test_a_redirect_leads_to_the_file_and_one_from_https_only_to_https(answering, content):
    there, _ = answering(_whole(content))
    here, _ = answering((302, {"Location": there}, b""))
    assert fetch_url(here).read_bytes() == content
    request = download.urllib.request.Request("https://example.invalid/w.pth")
    with pytest.raises(download._Refused, match=f"leads to '{there}', which is not followed"):
        download._Redirects().redirect_request(request, None, 302, "", {}, there)


def test_a_circle_of_redirects_is_one_error(answering):
    url, _ = answering((302, {"Location": "/w.pth"}, b""))
    with pytest.raises(DownloadError, match="302"):
        fetch_url(url)


@pytest.mark.parametrize(
    "there",
    ["http://[::bad/x", "http://[v9.x]/w", "http://...", f"http://{'a' * 300}.invalid/x",
     "http://127.0.0.1:99999/x", "http://127.0.0.1:port/x", "http:///x", "//[/x"],
)  # fmt: skip
def test_an_address_that_means_nothing_is_one_error_that_names_it(there, answering, cache):
    url, _ = answering((302, {"Location": there}, b""))
    with pytest.raises(DownloadError, match=re.escape(url)):
        fetch_url(url)
    if not there.startswith("//"):
        for use in (fetch_url, ConvNextBackbone.from_pretrained, ConvNextConfig.from_pretrained):
            with pytest.raises((DownloadError, FileNotFoundError), match=re.escape(there[:50])):
                use(there)
    assert _left(cache) == []


@pytest.mark.parametrize("tag", ["\x0b\x85", "\xff" * 9, "a\tb"])
def test_a_tag_of_odd_characters_is_sent_back_or_forgotten(tag, answering, content):
    url, _ = answering(_cut(content, ETag=tag), _whole(content, ETag=tag))
    with suppress(DownloadError):
        fetch_url(url)
    assert fetch_url(url).read_bytes() == content


def test_a_server_that_sends_a_byte_now_and_then_has_stalled(answering, content, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)

    def trickle():
        for byte in content:
            time.sleep(0.02)
            yield bytes([byte])

    url, asked = answering((200, {}, trickle))
    with pytest.raises(DownloadError, match=r"sent \d+ bytes in \d+ seconds"):
        fetch_url(url)
    assert len(asked) == download.ATTEMPTS


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_that_is_too_large_is_refused_and_the_limit_can_be_raised(
    has_length, answering, content
):
    length = {"Content-Length": str(2 << 30)} if has_length else {}

    def gibibytes():
        yield content

    url, _ = answering((200, length, gibibytes))
    limits = file_limits(download_gib=1 if has_length else 0)
    with limits, pytest.raises(DownloadError, match=r"larger than \d GiB"):
        fetch_url(url)
    url, _ = answering(_whole(content))
    assert fetch_url(url).read_bytes() == content


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", ".hidden", "a" * 300 + ".pth", "a/../b.pth", "?x"]
)
def test_names_of_files_stay_inside_the_cache(name, answering, content):
    url, _ = answering(_whole(content))
    path = fetch_url(url.replace("w.pth", name))
    assert path.read_bytes() == content
    assert path.parent.parent == Path(torch.hub.get_dir()) / "checkpoints"


# ------------------------------------------------------------------------------ names and ids


def test_name_of_the_catalogue_is_fetched_checked_and_described(server, monkeypatch):
    known = catalogue.get_weight("convnext_tiny.fb_in1k")
    entry = replace(known, tag="convnext_atto.local", url=server.url())
    for module in (catalogue, download, sources):
        monkeypatch.setattr(module, "WEIGHTS", {entry.tag: entry})
    where = resolve("convnext_atto.local")
    path = where.weights()
    assert where.entry is entry
    assert path == Path(torch.hub.get_dir()) / "checkpoints" / "weights.pth"
    assert resolve(server.url()).weights() == path
    assert resolve(server.url()).entry is entry


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tiny.fb_dinov3_lvd1689m", "no public link.*21b726bb"),
        ("convnext_tiny.no_such_tag", "of 'convnext_tiny' there are convnext_tiny"),
        ("convnext_tiny.fb_in1", r"did you mean 'convnext_tiny\.fb_in1k'"),
    ],
)
def test_name_that_cannot_be_had_says_why(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_a_server_out_of_reach_is_reported_with_the_copy_on_the_hub(monkeypatch):
    known = catalogue.get_weight("convnext_tiny.fb_in1k")
    values = {**vars(known), "tag": "convnext_atto.gone", "url": "http://127.0.0.1:9/w.pth"}
    entry = catalogue.WeightEntry(**values)
    monkeypatch.setattr(catalogue, "WEIGHTS", {entry.tag: entry})
    with pytest.raises(DownloadError, match=r"the hub has a copy, timm/convnext_tiny\.fb_in1k"):
        resolve(entry.tag).weights()


def test_the_empty_source_is_not_the_current_directory(tmp_path, monkeypatch):
    torch.save(V1.state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    assert resolve(".").weights() == Path(".")
    assert resolve(".").entry is None
    with pytest.raises(ValueError, match="source must not be empty"):
        ConvNextBackbone.from_pretrained("")


@pytest.mark.parametrize("ending", [*WEIGHT_SUFFIXES, ".json"])
def test_a_missing_file_is_not_asked_of_the_hub(ending, monkeypatch):
    monkeypatch.setattr(sources, "HubSource", None)
    with pytest.raises(FileNotFoundError, match=r"weights/model.*: there is no such file"):
        resolve(f"weights/model{ending}").weights()


def test_a_subfolder_that_is_missing_is_named(tmp_path):
    for use in (ConvNextBackbone.from_pretrained, ConvNextConfig.from_pretrained, open_weights):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nope"))) as raised:
            use(tmp_path, subfolder="nope")
        assert "is not a URL" not in str(raised.value)


def test_file_on_disk_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(V1.state_dict(), "convnext_tiny.fb_in1k")
    assert resolve("convnext_tiny.fb_in1k").weights() == Path("convnext_tiny.fb_in1k")
    assert resolve("convnext_tiny.fb_in1k").entry is None


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache with one repository, as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"),
                        raising=False)  # fmt: skip
    repository = tmp_path / "hub" / "models--someone--convnext"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


@pytest.mark.parametrize("source", ["someone/convnext", "hf_hub:someone/convnext",
                                    "someone/convnext@main"])  # fmt: skip
def test_cached_repository_is_used_without_a_request(source, hub):
    torch.save(V1.state_dict(), hub / "pytorch_model.bin")
    module = ConvNextBackbone.from_pretrained(source)
    assert torch.equal(module.stages[0][0].gamma, V1.stages[0][0].gamma)


def test_repository_that_is_not_cached_is_one_error_offline(hub):
    with pytest.raises(DownloadError, match=r"someone/else: it is not in the cache"):
        ConvNextBackbone.from_pretrained("someone/else")


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: the repository's name says how."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        body = self._answer()
        if body:
            self.wfile.write(body)

    def _answer(self):
        name, file = self.path.split("/")[2], self.path.rpartition("/")[2]
        refusals = {
            "gated": (403, "GatedRepo"),
            "missing": (404, "RepoNotFound"),
            "empty": (404, "EntryNotFound"),
            "broken": (400, ""),
        }
        if name == "sound" and file != "pytorch_model.bin":
            refusals["sound"] = (404, "EntryNotFound")
        if name in refusals:
            status, code = refusals[name]
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "refused")
            body = b""
        else:
            self.send_response(200)
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", '"0123456789abcdef"')
            body = self.server.content
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body


_ASK_THE_HUB = """
import sys
from convnext_backbone.weights import DownloadError, open_weights
for name in sys.argv[1:]:
    try:
        print(name, open_weights(f"someone/{name}").match)
    except DownloadError as error:
        print(name, str(error).replace(chr(10), " "))
"""


def _ask_the_hub(endpoint, tmp_path, names):
    # The hub's address is read when huggingface_hub is imported, hence the process of its own.
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", _ASK_THE_HUB, *names]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_hub_is_read_and_each_of_its_refusals_is_one_error(server, tmp_path):
    hub_server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    hub_server.content = server.content
    threading.Thread(target=hub_server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{hub_server.server_port}"
    names = ("sound", "gated", "missing", "empty", "broken")
    said = _ask_the_hub(endpoint, tmp_path, names)
    hub_server.shutdown()
    hub_server.server_close()
    assert said["sound"] == "facebook-v1"
    assert "is gated: accept its licence" in said["gated"]
    assert "there is no such repository" in said["missing"]
    assert "holds none of model.safetensors" in said["empty"]
    assert "out of reach" in said["broken"]
    again = _ask_the_hub(endpoint, tmp_path, ("sound",))  # the server is gone by now
    assert again["sound"] == "facebook-v1"


@pytest.mark.parametrize("name", ["my model.pth", "modèle.pth", "a%20b.pth", "w.pth?v=1&x=a b"])
def test_an_address_is_escaped_as_browsers_do(server, name):
    module = ConvNextBackbone.from_pretrained(server.url(name))
    assert torch.equal(module.stages[0][0].gamma, V1.stages[0][0].gamma)
