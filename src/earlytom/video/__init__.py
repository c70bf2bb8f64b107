"""Video files -> sampled uint8 frames with exact timestamps; see :func:`load_video`."""

from earlytom.video.ahead import ReadAhead
from earlytom.video.loader import load_video, stream_video
from earlytom.video.sampling import Sampling
from earlytom.video.types import Frame, Video

__all__ = ["Frame", "ReadAhead", "Sampling", "Video", "load_video", "stream_video"]
