"""Behaviour that every method must show on every family, on models with packed towers."""

from tests.hf.test_matrix import *  # noqa: F403
