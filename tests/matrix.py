"""The shared matrix: every method here runs on every family, dtype and prompt shape.

A new method joins with one row in ``METHODS``, a new family with one entry in
``tests.families.FAMILIES`` or beside it (``core=False``).
"""

from __future__ import annotations

from earlytom import Compose, EarlyTom
from earlytom.method import Method
from earlytom.methods import (
    EVS,
    IPCV,
    Afterimage,
    DyCoke,
    FastV,
    FastVID,
    FiCoCo,
    FrameFusion,
    HoliTom,
    LowResolution,
    MustDrop,
    PiToMe,
    PoolSpace,
    PoolTime,
    PruMerge,
    PruneVid,
    PyramidDrop,
    RandomTokens,
    SparseVLM,
    ToMe,
    UniformFrames,
    UniformSpatial,
    VidCom2,
    VisionZip,
)
from tests.toys import TOYS
from tests.toys_patches import PATCH_TOYS

# one method per kind of stage, for families that do not run all of them in the default tier
REPRESENTATIVE = (
    "earlytom-budget",
    "earlytom-official",
    "afterimage",
    "tome",
    "visionzip",
    "evs",
    "fastv",
    "framefusion",
    "holitom",
    "dycoke-decode",
    "toy-merge_last_layer",
    "toy-inner",
    "toy-patches-restored",
    "compose-earlytom-holitom",
)
FEW_PROMPTS = ("one_video", "batch_mixed", "image_only")  # likewise
# of the other methods on the family that runs all: the other prompts are parts of these
MOST_PROMPTS = ("two_videos", "batch_mixed", "image_only")
OFFICIAL = EarlyTom(
    policy="official", merge_layers=(1, 3), retention_ratio=0.25, tau=0.5, max_window=6
)
METHODS: dict[str, Method] = {
    **{f"toy-{k}": v for k, v in {**TOYS, **PATCH_TOYS}.items()},
    "earlytom-budget": EarlyTom(retention_ratio=0.25),
    "earlytom-budget-10%": EarlyTom(retention_ratio=0.1),
    "earlytom-budget-frames": EarlyTom(
        retention_ratio=0.25,
        merge_layers=(0, 2),
        frames=(6, 3),
        fuse="average",
        positions="respace",
    ),
    "earlytom-embeddings": EarlyTom(retention_ratio=0.25, merge_layers=(-1, 2)),
    "earlytom-official": OFFICIAL,
    "earlytom-official-inner": EarlyTom(
        policy="official", merge_layers=(1, 3), retention_ratio=0.3, inner_merge_layer=2
    ),
    "earlytom-paper": EarlyTom(policy="paper", merge_layers=(1, 3), retention_ratio=0.25, tau=0.5),
    "earlytom-global": EarlyTom(retention_ratio=0.25, selection="global"),
    "earlytom-window": EarlyTom(retention_ratio=0.25, selection="window"),
    "earlytom-uniform": EarlyTom(retention_ratio=0.25, selection="uniform", merge_rest=True),
    "afterimage": Afterimage(retention_ratio=0.25),
    "afterimage-10%": Afterimage(retention_ratio=0.1, encoder_budget=0.4, layer=0, even_share=0),
    "evs": EVS(retention_ratio=0.25),
    "evs-official": EVS(policy="official", retention_ratio=0.3),
    "vidcom2": VidCom2(retention_ratio=0.25),
    "vidcom2-official": VidCom2(policy="official", retention_ratio=0.25),
    "vidcom2-vllm": VidCom2(policy="vllm", retention_ratio=0.3, positions="respace"),
    "visionzip": VisionZip(retention_ratio=0.3),
    "visionzip-official": VisionZip(policy="official", retention_ratio=0.5),
    "random": RandomTokens(retention_ratio=0.25, seed=3),
    "uniform-frames": UniformFrames(retention_ratio=0.4),
    "uniform-spatial": UniformSpatial(retention_ratio=0.25),
    "pool-space": PoolSpace(retention_ratio=0.5),
    "pool-time": PoolTime(retention_ratio=0.4, positions="keep"),
    "ipcv": IPCV(retention_ratio=0.5),
    "ipcv-dart": IPCV(retention_ratio=0.3, budget="behind", pruner="dart", encoder_layer=2),
    "resize": LowResolution(retention_ratio=0.5),
    "resize-10%": LowResolution(retention_ratio=0.1),
    "holitom": HoliTom(retention_ratio=0.25),
    "holitom-few-static": HoliTom(retention_ratio=0.4, tau=0.95, beta=None, positions="keep"),
    "holitom-official": HoliTom(policy="official", retention_ratio=0.3),
    "holitom-inner": HoliTom(retention_ratio=0.5, inner_merge_layer=2),
    "dycoke": DyCoke(retention_ratio=0.4),
    "dycoke-10%": DyCoke(retention_ratio=0.1),
    "dycoke-official": DyCoke(policy="official", retention_ratio=0.5),
    "dycoke-decode": DyCoke(retention_ratio=0.5, decode_ratio=0.3, decode_from=2),
    "dycoke-decode-official": DyCoke(
        policy="official", retention_ratio=0.5, decode_ratio=0.3, decode_from=1, threshold=0.999
    ),
    "prunevid": PruneVid(retention_ratio=0.25),
    "prunevid-official": PruneVid(policy="official", retention_ratio=0.3),
    "prunevid-inner": PruneVid(retention_ratio=0.5, inner_prune_layer=2),
    "prunevid-inner-official": PruneVid(
        policy="official", retention_ratio=0.5, inner_prune_layer=3, inner_ratio=0.6
    ),
    "fastv": FastV(retention_ratio=0.5),
    "fastv-official": FastV(policy="official", retention_ratio=0.3, layer=2, budget="behind"),
    "pyramiddrop": PyramidDrop(retention_ratio=0.4),
    "pyramiddrop-official": PyramidDrop(policy="official"),
    "sparsevlm": SparseVLM(retention_ratio=0.5),
    "sparsevlm-v2": SparseVLM(retention_ratio=0.4, version="v2.0", heads=2),
    "sparsevlm-official": SparseVLM(policy="official", retention_ratio=0.6),
    "sparsevlm-v2-official": SparseVLM(policy="official", version="v2.0", layers=(1,), kept=(5,)),
    "framefusion": FrameFusion(retention_ratio=0.3),
    "framefusion-prune": FrameFusion(retention_ratio=0.6, tau=1.0),
    "framefusion-official": FrameFusion(policy="official", retention_ratio=0.4, tau=0.0),
    "prumerge": PruMerge(retention_ratio=0.25),
    "prumerge-plus": PruMerge(retention_ratio=0.5, plus=True),
    "prumerge-official": PruMerge(policy="official", plus=True, adaptive=True),
    "fastvid": FastVID(retention_ratio=0.25),
    "fastvid-one-segment": FastVID(retention_ratio=0.6, segments=1, tau=-1.0, anchor_step=8),
    "fastvid-official": FastVID(policy="official", retention_ratio=0.4),
    "tome": ToMe(retention_ratio=0.25),
    "tome-falling": ToMe(
        retention_ratio=0.4, inflection=-0.5, proportional=False, positions="keep"
    ),
    "tome-official": ToMe(policy="official", retention_ratio=0.75),
    "pitome": PiToMe(retention_ratio=0.25),
    "pitome-official": PiToMe(policy="official", retention_ratio=0.5),
    "ficoco": FiCoCo(retention_ratio=0.25),
    "ficoco-official": FiCoCo(policy="official", retention_ratio=0.4),
    "mustdrop": MustDrop(retention_ratio=0.25),
    "mustdrop-official": MustDrop(policy="official", retention_ratio=0.5, positions="respace"),
    "compose-earlytom-holitom": Compose(EarlyTom(), HoliTom(retention_ratio=0.25)),
    "compose-earlytom-fastvid": Compose(EarlyTom(), FastVID(retention_ratio=0.3)),
    "compose-official-visionzip": Compose(OFFICIAL, VisionZip(retention_ratio=0.25)),
    "compose-tome-holitom": Compose(ToMe(retention_ratio=0.5), HoliTom(retention_ratio=0.25)),
    "compose-tome-fastv": Compose(ToMe(retention_ratio=0.8), FastV(retention_ratio=0.5)),
    "compose-evs-inner": Compose(
        encoder=EarlyTom(frames=(6, 4)),
        tokens=EVS(retention_ratio=0.4),
        inner=HoliTom(inner_merge_layer=2),
        positions="respace",
    ),
}
