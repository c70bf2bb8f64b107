"""Video files -> sampled uint8 frames with exact timestamps; see :func:`load_video`."""

from earlytom.video.loader import load_video
from earlytom.video.sampling import Sampling
from earlytom.video.types import Video

__all__ = ["Sampling", "Video", "load_video"]
