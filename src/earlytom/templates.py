"""Jinja2 templates that lie beside the modules that fill them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from earlytom.errors import MissingExtraError


def load_template(package: str, name: str, missing: str) -> Any:
    """Return a template that escapes every value and knows every name that it uses.

    Args:
        package: where the file is.
        name: of the file.
        missing: what to say where Jinja2 is not installed.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as e:
        raise MissingExtraError(missing) from e
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(files(package).joinpath(name).read_text("utf-8"))
