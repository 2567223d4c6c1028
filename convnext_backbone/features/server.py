"""A local page to look into features: drag an image in, pick a stage, click a point.

The standard library's server, bound to this machine alone. It answers no other host name and no
other site, so a page on the internet cannot reach it through the user's browser.
"""

import hashlib
import io
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTP_PORT
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from ..images.reading import load_image
from .extractor import FeatureExtractor
from .pictures import METHODS, Panel, Scene, draw_panels, make_scene

HOST = "127.0.0.1"
_MAX_BYTES = 64 << 20  # of an uploaded file
_MAX_PORT = 65535
MAX_SCENES = 8  # images whose features are kept
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src 'self' blob:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class _RefusedError(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class FeatureServer(ThreadingHTTPServer):
    """The page's server on this machine; `serve_forever()` runs it, port 0 takes a free port."""

    daemon_threads = True

    def __init__(self, extractor: FeatureExtractor, port: int = 0) -> None:
        if not 0 <= port <= _MAX_PORT:
            raise ValueError(f"port must be from 0 to {_MAX_PORT}, got {port}")
        self.extractor = extractor
        self._scenes: OrderedDict[str, Scene] = OrderedDict()
        self._lock = threading.Lock()  # one image at a time through the network
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            text = f"cannot listen on {HOST}:{port}: {error.strerror}; choose another port"
            raise OSError(text) from error

    def add_bytes(self, data: bytes, name: str) -> dict[str, Any]:
        """Compute the features of an image file (ValueError if unusable).

        Return its key, name, width and height; others may be added before it is asked for.
        """
        key = hashlib.sha256(b"\0".join((name.encode(errors="replace"), data))).hexdigest()[:16]
        image = load_image(io.BytesIO(data), name)
        with self._lock:
            if key not in self._scenes:
                self._scenes[key] = make_scene(self.extractor, image, name)
                if len(self._scenes) > MAX_SCENES:
                    self._scenes.popitem(last=False)
            self._scenes.move_to_end(key)
            return _describe(key, self._scenes[key])

    def scene(self, key: str) -> Scene:
        """Return an image that is kept; KeyError if it is not, or no longer."""
        with self._lock:
            return self._scenes[key]

    def describe(self) -> dict[str, Any]:
        """Return what the page shows before any image is chosen."""
        fx = self.extractor
        with self._lock:
            images = [_describe(key, scene) for key, scene in reversed(self._scenes.items())]
        return {
            "weights": fx.source,
            "features": [
                {"name": name, "stride": fx.strides[name], "channels": fx.channels[name]}
                for name in fx.names
            ],
            "methods": [
                {"name": name, "label": method.label, "legend": method.legend}
                for name, method in METHODS.items()
            ],
            "images": images,
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that disconnected; see `socketserver.BaseServer`."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _describe(key: str, scene: Scene) -> dict[str, Any]:
    height, width = scene.size
    return {"key": key, "name": scene.name, "width": width, "height": height}


class _Handler(BaseHTTPRequestHandler):
    """Answers the page's requests."""

    server: FeatureServer
    server_version = "convnext-backbone"
    sys_version = ""
    timeout = 60  # seconds for a request to arrive

    def do_GET(self) -> None:
        """Serve the page, the list of images, an image or a map."""
        routes = {"/": self._page, "/api/info": self._info}
        self._respond({**routes, "/api/image": self._image, "/api/map": self._map})

    def do_POST(self) -> None:
        """Take an image file."""
        self._respond({"/api/images": self._upload})

    def _respond(self, routes: Mapping[str, Callable[[], None]]) -> None:
        try:
            self._check_origin()
            url = urlsplit(self.path)
            self.query = {k: v[-1] for k, v in parse_qs(url.query).items()}
            route = routes.get(url.path)
            if route is None:
                raise _RefusedError(HTTPStatus.NOT_FOUND, f"no such page: {self.path}")
            route()
        except _RefusedError as refused:
            self._send_json({"error": str(refused)}, refused.status)
        except ValueError as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _check_origin(self) -> None:
        port = self.server.server_port
        names = (HOST, "localhost")
        own = {f"{host}:{port}" for host in names}
        if port == HTTP_PORT:  # which browsers leave out
            own.update(names)
        if self.headers.get("Host") not in own:
            raise _RefusedError(HTTPStatus.FORBIDDEN, f"only {HOST}:{port} is served")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in own}:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "only this page's own requests are served")

    def _page(self) -> None:
        page = files(__package__).joinpath("page.html").read_bytes()
        self._send(page, "text/html; charset=utf-8")

    def _info(self) -> None:
        self._send_json(self.server.describe())

    def _image(self) -> None:
        self._send_panel(self._scene().shown)

    def _map(self) -> None:
        point = None
        if "x" in self.query or "y" in self.query:
            point = (self._number("x"), self._number("y"))
        feature, method = self.query.get("feature", ""), self.query.get("method", "")
        (panel,) = draw_panels([self._scene()], feature, method, point)
        self._send_panel(panel)

    def _upload(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "the size of the file is missing")
        if int(length) > _MAX_BYTES:
            self.close_connection = True
            reason = f"an image must be at most {_MAX_BYTES >> 20} MiB"
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
        data = self.rfile.read(int(length))
        self._send_json(self.server.add_bytes(data, self.query.get("name", "image")))

    def _scene(self) -> Scene:
        try:
            return self.server.scene(self.query.get("key", ""))
        except KeyError as error:
            reason = "this image is no longer kept: drag it in again"
            raise _RefusedError(HTTPStatus.NOT_FOUND, reason) from error

    def _number(self, name: str) -> float:
        try:
            return float(self.query[name])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{name} must be a number, got {self.query.get(name)!r}") from error

    def _send_panel(self, panel: Panel) -> None:
        buffer = io.BytesIO()
        Image.fromarray(panel.pixels).save(buffer, "PNG")
        scale = {} if panel.scale is None else {"X-Scale": json.dumps(panel.scale)}
        self._send(buffer.getvalue(), "image/png", headers=scale)

    def _send_json(self, values: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(values).encode(), "application/json", status)

    def _send(
        self,
        body: bytes,
        content_type: str,
        status: HTTPStatus = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
