"""A web page to try methods on: pick or upload a video, ask, compare with all tokens.

The page is made with Gradio (extra ``demo``); :mod:`earlytom.app.server` serves it, ``earlytom
app`` starts it. What happens behind the page is in :mod:`earlytom.app.desk` and needs no Gradio.
"""

from earlytom.app.desk import Desk

__all__ = ["Desk"]
