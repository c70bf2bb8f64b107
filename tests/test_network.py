import pytest

from earlytom.errors import ConfigError, EarlyTomError
from earlytom.network import http_url, listen


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
