"""Addresses that the servers listen on."""

from __future__ import annotations

import socket

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
    """Return the address of a server; IPv6 addresses get their brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
