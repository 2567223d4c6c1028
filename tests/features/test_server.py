"""The local page: its requests answered, and only its own."""

import http.client
import io
import json
import os
import socket
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_backbone import ConvNextBackbone
from convnext_backbone.cli.main import main
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.features.pictures import METHODS, draw_panels
from convnext_backbone.features.server import HOST, MAX_SCENES, FeatureServer

SHAPE = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    backbone = ConvNextBackbone(**SHAPE, out_features=("stage2", "stage4"))
    return FeatureExtractor(backbone, size="native", norm=False)


@pytest.fixture(scope="module")
def server(extractor):
    with FeatureServer(extractor) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def port(server):
    return server.server_port


def _ask(port, path, data=None, method=None, **headers):
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def _png(height=45, width=61, seed=0):
    generator = np.random.default_rng(seed)
    buffer = io.BytesIO()
    array = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _upload(port, **kwargs):
    answer, body = _ask(port, "/api/images?name=noise.png", _png(**kwargs))
    assert answer.status == 200
    return json.loads(body)


def test_the_page_is_one_file_that_asks_nothing_of_the_internet(port):
    answer, body = _ask(port, "/")
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.getheader("Content-Security-Policy")
    page = body.decode()
    assert "http://" not in page
    assert "https://" not in page

    seen = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append((tag, dict(attributes)))

    Tags().feed(page)
    assert not [a for tag, a in seen if tag in ("script", "img", "link") and "src" in a]
    assert ("html", {"lang": "en"}) in seen


def test_info_lists_features_and_methods(port):
    _, body = _ask(port, "/api/info")
    info = json.loads(body)
    assert info["features"] == [
        {"name": "stage2", "stride": 8, "channels": 16},
        {"name": "stage4", "stride": 32, "channels": 32},
    ]
    assert [method["name"] for method in info["methods"]] == list(METHODS)
    assert all(method["label"] and method["legend"] for method in info["methods"])


def test_an_uploaded_image_comes_back_as_the_network_saw_it(port):
    image = _upload(port)
    assert (image["width"], image["height"], image["name"]) == (61, 45, "noise.png")
    answer, body = _ask(port, f"/api/image?key={image['key']}")
    assert answer.getheader("Content-Type") == "image/png"
    shown = np.array(Image.open(io.BytesIO(body))).astype(int)
    assert np.abs(shown - np.array(Image.open(io.BytesIO(_png())))).max() <= 1
    _, body = _ask(port, "/api/info")
    assert image in json.loads(body)["images"]


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_the_library(port, server, method):
    key = _upload(port)["key"]
    answer, body = _ask(port, f"/api/map?key={key}&feature=stage2&method={method}&x=20&y=30")
    assert answer.status == 200
    (panel,) = draw_panels([server.scene(key)], "stage2", method, (20, 30))
    assert np.array_equal(np.array(Image.open(io.BytesIO(body))), panel.pixels)
    scale = json.loads(answer.getheader("X-Scale", "null"))
    assert scale == (None if panel.scale is None else list(panel.scale))


def test_old_images_give_way_to_new_ones(port):
    first = _upload(port, seed=100)["key"]
    for seed in range(101, 109):
        _upload(port, height=32, width=32, seed=seed)
    answer, body = _ask(port, f"/api/image?key={first}")
    assert answer.status == 404
    assert "drag it in again" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/etc/passwd", 404, "no such page"),
        ("/../setup.cfg", 404, "no such page"),
        ("/api/map?key=KEY&feature=stage9&method=pca", 400, "feature must be one of"),
        ("/api/map?key=KEY&feature=stage2&method=x", 400, "method must be one of"),
        ("/api/map?key=KEY&feature=stage2&method=similarity", 400, "needs a point"),
        ("/api/map?key=KEY&feature=stage2&method=similarity&x=1", 400, "y must be a number"),
        ("/api/map?key=KEY&feature=stage2&method=similarity&x=nan&y=1", 400, "must lie in"),
        ("/api/map?key=KEY&feature=stage2&method=similarity&x=999&y=1", 400, "must lie in"),
    ],
)
def test_wrong_requests_get_one_line(port, path, status, error):
    key = _upload(port)["key"]
    answer, body = _ask(port, path.replace("KEY", key))
    assert answer.status == status
    reason = json.loads(body)["error"]
    assert error in reason
    assert "\n" not in reason


@pytest.mark.parametrize("data", [b"", b"text", _png()[:500]])
def test_what_is_no_image_is_refused(port, data):
    answer, body = _ask(port, "/api/images?name=x.jpg", data)
    assert answer.status == 400
    assert "cannot read image 'x.jpg'" in json.loads(body)["error"]


def test_too_much_is_refused_before_it_is_read(port):
    answer, body = _ask(port, "/api/images", b"", "POST", **{"Content-Length": str(1 << 40)})
    assert answer.status == 413
    assert "at most 64 MiB" in json.loads(body)["error"]


def test_other_hosts_and_other_sites_are_refused(port):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        answer, _ = _ask(port, "/api/info", **headers)
        assert answer.status == 403
    answer, _ = _ask(port, "/api/info", Origin=f"http://{HOST}:{port}")
    assert answer.status == 200


def test_on_the_port_of_http_which_browsers_leave_out_the_page_is_served(extractor):
    with FeatureServer(extractor) as server:
        free, server.server_port = server.server_port, 80  # what only root may listen on
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for host in (HOST, "localhost", f"{HOST}:80", "localhost:80"):
                assert _ask(free, "/api/info", Host=host)[0].status == 200, host
                origin = {"Host": host, "Origin": f"http://{host}"}
                assert _ask(free, "/api/info", **origin)[0].status == 200, host
            for host in ("evil.example", f"{HOST}:{free}", f"{HOST}:8080"):
                assert _ask(free, "/api/info", Host=host)[0].status == 403, host
            origin = {"Host": HOST, "Origin": "http://evil.example"}
            assert _ask(free, "/api/info", **origin)[0].status == 403
        finally:
            server.shutdown()
            thread.join()


def test_on_other_ports_a_host_without_its_port_is_refused(port):
    for host in (HOST, "localhost"):
        assert _ask(port, "/api/info", Host=host)[0].status == 403


@pytest.mark.parametrize("target", ["http://[", "http://]/api/info", "http://[::1/?key=1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_target_that_is_no_url_is_answered_in_one_line(method, target, port, capsys):
    with socket.create_connection((HOST, port), timeout=30) as connection:
        head = f"{method} {target} HTTP/1.0\r\nHost: {HOST}:{port}\r\n\r\n"
        connection.sendall(head.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.status == 400
    assert "\n" not in json.loads(body)["error"]
    assert capsys.readouterr().err == ""


def test_the_server_is_bound_to_this_machine_and_says_when_a_port_is_taken(extractor, port):
    assert HOST == "127.0.0.1"
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .* choose another"):
        FeatureServer(extractor, port)


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_what_is_no_port_is_refused(extractor, wrong):
    with pytest.raises(ValueError, match=f"port must be from 0 to 65535, got {wrong}"):
        FeatureServer(extractor, wrong)


@pytest.mark.parametrize(
    ("error", "printed"),
    [(BrokenPipeError(), False), (TimeoutError(), False), (RuntimeError("a bug"), True)],
)
def test_a_browser_that_went_away_is_passed_over_in_silence(extractor, error, printed, capsys):
    with FeatureServer(extractor) as server:
        try:
            raise error
        except type(error):
            server.handle_error(None, (HOST, 1))
    assert ("a bug" in capsys.readouterr().err) == printed


def test_an_image_that_others_push_out_at_once_is_still_described(extractor):
    with FeatureServer(extractor) as server:
        described = server.add_bytes(_png(height=45, width=61), "first.png")
        for seed in range(MAX_SCENES):
            server.add_bytes(_png(height=33, width=33, seed=seed), f"{seed}.png")
        assert {**described, "key": ""} == {
            "key": "",
            "name": "first.png",
            "width": 61,
            "height": 45,
        }
        with pytest.raises(KeyError):
            server.scene(described["key"])


def test_images_that_the_page_cannot_keep_are_refused_before_it_is_served(tmp_path, capsys):
    ConvNextBackbone(**SHAPE).save_pretrained(tmp_path / "weights")
    (tmp_path / "images").mkdir()
    for seed in range(MAX_SCENES + 1):
        (tmp_path / "images" / f"{seed}.png").write_bytes(_png(seed=seed))
    command = ["visualize", "--weights", str(tmp_path / "weights"), "--serve", "--port", "0"]
    assert main([*command, str(tmp_path / "images")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--serve shows at most {MAX_SCENES} images, got {MAX_SCENES + 1}" in line
    os.mkfifo(tmp_path / "pipe.png")
    assert main([*command, str(tmp_path / "pipe.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pipe.png is a FIFO" in line
