"""Frames and questions -> model inputs, without torchvision; see :class:`Preprocessor`."""

from earlytom.preprocess.frames import FrameConfig
from earlytom.preprocess.patches import PatchConfig, Patches, patchify_video
from earlytom.preprocess.pixels import Pixels, PixelWriter, preprocess_video
from earlytom.preprocess.processor import Preprocessor

__all__ = [
    "FrameConfig",
    "PatchConfig",
    "Patches",
    "PixelWriter",
    "Pixels",
    "Preprocessor",
    "patchify_video",
    "preprocess_video",
]
