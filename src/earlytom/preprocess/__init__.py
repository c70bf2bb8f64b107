"""Frames and questions -> model inputs, without torchvision; see :class:`Preprocessor`."""

from earlytom.preprocess.frames import FrameConfig, preprocess_video
from earlytom.preprocess.processor import Preprocessor

__all__ = ["FrameConfig", "Preprocessor", "preprocess_video"]
