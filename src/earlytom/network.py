"""Addresses that the servers listen on."""

from __future__ import annotations

import socket
import urllib.request
from typing import Any

from earlytom.errors import ConfigError, EarlyTomError


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: name or address of an interface.
        port: 0 to 65535; 0 takes a free one.

    Raises:
        ConfigError: ``port`` out of range.
        EarlyTomError: the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be in 0..65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise EarlyTomError(f"cannot listen on {host} port {port}: {reason}") from e


def http_url(host: str, port: int) -> str:
    """Return the address of a server that a client on this machine can use.

    Args:
        host: that the server listens on; IPv6 addresses get their brackets.
        port: likewise.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_url(url: str, timeout: float) -> Any:
    """Open an address of a server of ours, past any proxy that the environment names.

    Args:
        url: what to get.
        timeout: in seconds.

    Raises:
        OSError: no answer, or one that is an error.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return direct.open(url, timeout=timeout)
