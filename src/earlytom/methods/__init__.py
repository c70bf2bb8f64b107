"""One file per published method; importing this package registers them."""

from earlytom.method import list_methods, load_method, method_class
from earlytom.methods.baselines import (
    PoolSpace,
    PoolTime,
    RandomTokens,
    UniformFrames,
    UniformSpatial,
)
from earlytom.methods.dycoke import DyCoke
from earlytom.methods.earlytom import EarlyTom
from earlytom.methods.evs import EVS
from earlytom.methods.holitom import HoliTom
from earlytom.methods.prumerge import PruMerge
from earlytom.methods.prunevid import PruneVid
from earlytom.methods.vidcom2 import VidCom2
from earlytom.methods.visionzip import VisionZip

__all__ = [
    "EVS",
    "DyCoke",
    "EarlyTom",
    "HoliTom",
    "PoolSpace",
    "PoolTime",
    "PruMerge",
    "PruneVid",
    "RandomTokens",
    "UniformFrames",
    "UniformSpatial",
    "VidCom2",
    "VisionZip",
    "list_methods",
    "load_method",
    "method_class",
]
