"""Stands behind the architectures in a vLLM that this package was not made for."""

from earlytom.errors import UnsupportedModelError
from earlytom.integrations.vllm.versions import unsupported

raise UnsupportedModelError(unsupported() or "this vLLM is supported; register again")
