"""Which vLLM this package was made for."""

from __future__ import annotations

SUPPORTED = (0, 32)


def unsupported(version: str | None = None) -> str | None:
    """Return why the installed vLLM cannot be used, or None if it can.

    Args:
        version: to look at instead of the installed one.
    """
    if version is None:
        version = installed()
    parts = version.split(".")[:2]
    if parts == [str(n) for n in SUPPORTED]:
        return None
    wanted = ".".join(map(str, SUPPORTED))
    return f"earlytom works with vLLM {wanted}.*, found {version or 'no version'}"


def installed() -> str:
    """Return the version of vLLM, or an empty string without one."""
    try:
        import vllm
    except ImportError:
        return ""
    return str(getattr(vllm, "__version__", ""))
