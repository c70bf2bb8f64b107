"""See what a method kept of a video: data, one HTML page, pictures, a video.

>>> from earlytom.inspect import inspect_video, render_page
>>> found = inspect_video(qa, video, "what moves?", {"earlytom": EarlyTom()})  # doctest: +SKIP
>>> Path("report.html").write_text(render_page(found))  # doctest: +SKIP
"""

from earlytom.inspect.collect import inspect_video
from earlytom.inspect.data import Inspection, MethodRun
from earlytom.inspect.page import render_page

__all__ = ["Inspection", "MethodRun", "inspect_video", "render_page"]
