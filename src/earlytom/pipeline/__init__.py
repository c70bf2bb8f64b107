"""One call from video and question to answer; see :class:`VideoQA`."""

from earlytom.pipeline.qa import Answer, VideoQA
from earlytom.pipeline.timing import Timings

__all__ = ["Answer", "Timings", "VideoQA"]
