from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from earlytom.errors import ConfigError, EarlyTomError
from earlytom.network import http_url, listen, open_url


def test_listen():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(EarlyTomError, match=f"cannot listen on 127.0.0.1 port {port}: Address"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"port must be in 0..65535, got 65536"):
        listen("127.0.0.1", 65536)
    with pytest.raises(EarlyTomError, match=r"cannot listen on 256.1.1.1 port 0: "):
        listen("256.1.1.1", 0)


def test_url():
    assert http_url("box", 80) == "http://box:80"
    assert http_url("::1", 7860) == "http://[::1]:7860"
    assert http_url("0.0.0.0", 7860) == "http://127.0.0.1:7860"


def test_no_proxy_stands_between(monkeypatch):
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = http_url("127.0.0.1", server.server_port)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        with open_url(url + "/health", timeout=10) as answer:
            assert answer.status == 200
        with pytest.raises(OSError, match="404"):
            open_url(url + "/other", timeout=10)
        server.shutdown()
