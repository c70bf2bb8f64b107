"""Lets torchvision be imported beside a torch without CUDA; for the test environment only.

Wheels of torchvision on PyPI are built for CUDA: their operators cannot be loaded here, and then
``torchvision._meta_registrations`` fails on two that are not even declared. They are declared just
before it is imported, in every process: a ``.pth`` file imports this module. Nothing calls them.
"""

import importlib.abc
import sys

_WHERE = "torchvision._meta_registrations"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == _WHERE:
            sys.meta_path.remove(self)
            import torch
            from torchvision.extension import _has_ops

            if not _has_ops():
                for name in ("nms", "qnms"):
                    torch.library.define(f"torchvision::{name}", _SCHEMA)


sys.meta_path.insert(0, _Declare())
