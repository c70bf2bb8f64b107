"""One file per published method; importing this package registers them."""

from earlytom.compose import Compose
from earlytom.method import list_methods, load_method, method_class
from earlytom.methods.afterimage import Afterimage
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
from earlytom.methods.fastv import FastV
from earlytom.methods.fastvid import FastVID
from earlytom.methods.ficoco import FiCoCo
from earlytom.methods.framefusion import FrameFusion
from earlytom.methods.holitom import HoliTom
from earlytom.methods.ipcv import IPCV
from earlytom.methods.mustdrop import MustDrop
from earlytom.methods.pitome import PiToMe
from earlytom.methods.prumerge import PruMerge
from earlytom.methods.prunevid import PruneVid
from earlytom.methods.pyramiddrop import PyramidDrop
from earlytom.methods.resize import LowResolution
from earlytom.methods.sparsevlm import SparseVLM
from earlytom.methods.tome import ToMe
from earlytom.methods.vidcom2 import VidCom2
from earlytom.methods.visionzip import VisionZip

__all__ = [
    "EVS",
    "IPCV",
    "Afterimage",
    "Compose",
    "DyCoke",
    "EarlyTom",
    "FastV",
    "FastVID",
    "FiCoCo",
    "FrameFusion",
    "HoliTom",
    "LowResolution",
    "MustDrop",
    "PiToMe",
    "PoolSpace",
    "PoolTime",
    "PruMerge",
    "PruneVid",
    "PyramidDrop",
    "RandomTokens",
    "SparseVLM",
    "ToMe",
    "UniformFrames",
    "UniformSpatial",
    "VidCom2",
    "VisionZip",
    "list_methods",
    "load_method",
    "method_class",
]
