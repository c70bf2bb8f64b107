"""What the engine needs to know about a model family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.stages import Grid, Shape, VideoState


class Adapter:
    """One live model of one family, seen through the names that the engine uses.

    A family is one subclass. The default methods suit encoders that take every frame as a row of
    the batch (SigLIP and CLIP towers).

    Attributes:
        inner: the module that owns ``get_video_features`` and the language model.
        tower: the vision encoder.
        layers: its layers, in order.
        projectors: modules behind the encoder that run on whole frames; behind them every video
            must have its original number of frames again.
        language_model: the decoder, called with keyword arguments.
        packed: whether the encoder takes the patches of all frames as rows of one matrix.
        position_axes: numbers that make up the position of a column (3 for M-RoPE).
        checkpoints: examples on the Hugging Face Hub.
        features_name: method of ``inner`` that turns pixels into features of the language model.
        language_name: attribute of ``inner`` that is the language model.
        pooling_name: method of ``inner`` that pools ``[frames, patches, dim]`` of videos behind the
            projector, None without one.
        images_name: method of ``inner`` that turns images into features of the language model.
        packer_name: method of ``inner`` that joins the crops of its images (``pack_image_features``
            of LLaVA), None without one.
        no_images: why tokens of images cannot be selected, None where they can.
        no_image_signals: why the encoder's signals of images are out of reach, None where they are
            not.
        masked_layers: whether encoder layers take an attention mask.
        resizable: whether frames may be given to the encoder at a lower resolution.
        patch_grid: (height, width) of the patches of a frame inside the encoder, or None where
            patches cannot be reduced (a layer must be attention, second norm, MLP).
        patch_size: pixels along a side of a patch.
        pooling: patches along a side of a token, after the pooling of the model.
        class_tokens: tokens in front of the patches of a frame inside the encoder (CLS). Methods
            never see them, no reduction touches them.
        entry_class_tokens: of these, how many :attr:`entry` still gets.
        kept_class_tokens: of these, how many the projector returns.
        whole_grids: the model joins blocks of patches into a token, so that a frame must be a
            whole square grid again behind the encoder.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    packed: ClassVar[bool] = False
    position_axes: ClassVar[int] = 1
    checkpoints: ClassVar[tuple[str, ...]] = ()
    features_name: ClassVar[str] = "get_video_features"
    language_name: ClassVar[str] = "language_model"
    pooling_name: ClassVar[str | None] = None
    images_name: ClassVar[str] = "get_image_features"
    packer_name: ClassVar[str | None] = None
    no_images: ClassVar[str | None] = None
    no_image_signals: ClassVar[str | None] = None
    masked_layers: ClassVar[bool] = True
    resizable: ClassVar[bool] = True

    inner: nn.Module
    tower: nn.Module
    layers: nn.ModuleList
    projectors: list[nn.Module]
    language_model: nn.Module
    patch_grid: tuple[int, int] | None = None
    patch_size: int = 0
    pooling: int = 2
    class_tokens: int = 0
    entry_class_tokens: int = 0
    kept_class_tokens: int = 0
    whole_grids: bool = False

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner
        self._grid: Grid | None = None

    @property
    def grid(self) -> Grid:
        """(height, width) of the tokens of a frame; UnsupportedModelError where videos differ."""
        if self._grid is None:
            raise UnsupportedModelError(
                f"videos of {type(self.inner).__name__} have token grids of their own; "
                "this needs one that is fixed"
            )
        return self._grid

    @grid.setter
    def grid(self, grid: Grid) -> None:
        self._grid = grid

    @classmethod
    def limits(cls) -> dict[str, str]:
        """Return what the layout rules out, by stage (see :mod:`earlytom.models.support`).

        A text starts with ``no:`` or ``partly:`` and says what is missing; a stage without one
        works with every method.
        """
        found, patches = {}, []
        if cls.packed:
            found["patches"] = "no: the encoder takes the patches of all frames as one sequence"
        if cls.whole_grids:
            patches.append(
                "blocks of patches become a token: reductions need a token stage behind them "
                "(`Compose`), which gives the grid back"
            )
            if cls.resizable:
                patches.append("a lower resolution must be square")
        if not cls.resizable:
            patches.append("no lower resolution: positions come from a mask of patches")
        if not cls.masked_layers:
            patches.append("no proportional attention: encoder layers take no mask")
        if patches and not cls.packed:
            found["patches"] = "partly: " + "; ".join(patches)
        if cls.position_axes > 1:
            found["LLM"] = "partly: positions of several axes cannot be renumbered inside"
        return found

    # ------------------------------------------------------------------ structure
    @property
    def usable_layers(self) -> int:
        """Number of encoder layers whose output reaches the projector."""
        return len(self.layers)

    def check_encoder_layers(self, layers: Iterable[int], first: int = 0) -> None:
        """Raise ConfigError unless all ``layers`` are among the usable ones.

        Args:
            layers: layers that something happens in, or behind.
            first: lowest that is allowed; -1 stands for the patch embeddings.
        """
        for layer in layers:
            if not first <= layer < self.usable_layers:
                raise ConfigError(
                    f"encoder layer {layer} is out of range; "
                    f"this model uses layers {first}..{self.usable_layers - 1}"
                )

    def check_patches(self, what: str, hint: str = "") -> None:
        """Raise UnsupportedModelError if single patches of a frame cannot be left out.

        Args:
            what: who wants that, e.g. ``"tome reduces patches"``.
            hint: what to do instead.
        """
        if self.patch_grid is None:
            raise UnsupportedModelError(
                f"{what} inside the vision encoder, which is not possible in "
                f"{type(self.inner).__name__}{hint}"
            )

    @property
    def entry(self) -> nn.Module:
        """First module behind the encoder that is called with states of frames, in order."""
        return self.projectors[0]

    @property
    def pooler(self) -> nn.Module | None:
        """:attr:`entry` if it is a module that pools patches in front of the projector."""
        return None

    def encoder_grid(self, tokens: tuple[int, int]) -> tuple[int, int]:
        """Return the patch grid at which frames come out as a grid of ``tokens``."""
        return self.pooling * tokens[0], self.pooling * tokens[1]

    @property
    def patch_count(self) -> int:
        """Patches of a frame inside the encoder."""
        assert self.patch_grid is not None
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def projected(self) -> int:
        """Rows of a frame behind the projector, class tokens not counted."""
        return self.patch_count

    def projector_rows(self, patches: int, full: int) -> int:
        """Return the rows of a frame that the projector gets.

        Args:
            patches: left of a frame, class tokens not counted.
            full: patches at the encoder's input.
        """
        return self.kept_class_tokens + patches

    def frame_patches(self, grid: Grid) -> int:
        """Patches of a frame at the input of the encoder, if it has a ``grid`` of tokens."""
        height, width = self.patch_grid or grid
        return height * width

    @property
    def encoder_width(self) -> int:
        """Width of the encoder states."""
        config: Any = self.inner.config.vision_config  # type: ignore[union-attr]
        return int(config.hidden_size)

    @property
    def deep_layers(self) -> tuple[int, ...]:
        """Encoder layers whose output has a projector of its own (deepstack)."""
        return ()

    @property
    def deep_projectors(self) -> tuple[nn.Module, ...]:
        """Those projectors."""
        return ()

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one frame after pooling."""
        return self.grid[0] * self.grid[1]

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """Layers of the language model."""
        layers = self.language_model.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def video_token_id(self) -> int:
        """Id of the video placeholder token."""
        return int(self.inner.config.video_token_id)  # type: ignore[union-attr,arg-type]

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of an encoder or decoder layer."""
        for name in ("self_attn", "attn", "attention"):
            module = getattr(layer, name, None)
            if isinstance(module, nn.Module):
                return module
        raise UnsupportedModelError(f"{type(layer).__name__} has no attention module known here")

    def flat_rope(self, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return cos and sin of decoder layers as ``[batch, L, head dim]``, axes joined."""
        return rope

    @property
    def pooling_head(self) -> nn.Module | None:
        """Attention-pooling head of the encoder (``probe`` and ``attention``), None without one."""
        for path in ("head", "vision_model.head"):
            try:
                head = self.tower.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(getattr(head, "attention", None), nn.MultiheadAttention):
                return head
        return None

    def second_norm(self, layer: nn.Module) -> nn.Module:
        """Return the norm between attention and MLP of an encoder layer."""
        return find_submodule(layer, "layer_norm2", "norm2", "layernorm_after")

    def mlp(self, layer: nn.Module) -> nn.Module:
        """Return the MLP of an encoder layer."""
        return find_submodule(layer, "mlp")

    def add_mlp(self, layer: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        """Return what an encoder layer makes of its states and the output of its MLP."""
        return hidden + output

    def embeddings(self) -> nn.Module:
        """Return the patch embeddings, called with pixels ``[frames, 3, height, width]``."""
        return find_submodule(self.tower, "embeddings", "vision_model.embeddings")

    # ------------------------------------------------------------------ data
    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """Return the frames of every video from the arguments of ``get_video_features``."""
        raise NotImplementedError

    def video_shapes(self, arguments: dict[str, Any]) -> list[Shape]:
        """Return frames, and (height, width) of the tokens of each, of every video."""
        return [(t, self.grid) for t in self.frame_counts(arguments)]

    def split_videos(self, hidden: Tensor, videos: Sequence[VideoState]) -> list[Tensor]:
        """Split encoder states into ``[frames present, patches, ...]`` per video."""
        return self.split_frames(hidden, [v.n_frames for v in videos])

    def encoder_rows(self, videos: Sequence[VideoState]) -> int:
        """Rows of the encoder states of the frames present."""
        return sum(v.n_frames for v in videos)

    def segment_frames(self, layer: int, videos: Sequence[VideoState]) -> list[int]:
        """For every attention segment of a packed layer, the rows of the frame it belongs to."""
        raise NotImplementedError

    def split_projected(self, output: Tensor, videos: Sequence[VideoState]) -> list[Tensor]:
        """Split the output of a projector into ``[frames present, rows, dim]`` per video."""
        return list(output.split([v.n_frames for v in videos]))

    def layer_inputs(
        self, layer: int, kwargs: dict[str, Any], videos: Sequence[VideoState]
    ) -> dict[str, Any]:
        """Return the arguments of an encoder layer for the frames present, states apart."""
        return kwargs

    def pool_video(self, x: Tensor, grid: Grid | None) -> Tensor:
        """Pool ``[frames, patches, dim]`` of a video whose frames have a ``grid`` of tokens."""
        return self.pool(x)

    def video_placeholders(self, frames: int, grid: Grid | None) -> int:
        """Placeholder tokens of one video of so many frames of a ``grid`` of tokens."""
        return self.placeholder_count([frames])

    def split_frames(self, hidden: Tensor, frames: list[int]) -> list[Tensor]:
        """Split encoder states into ``[frames, patches, dim]`` per video."""
        return list(hidden.split(frames))

    def join_frames(self, videos: list[Tensor]) -> Tensor:
        """Undo :meth:`split_frames`."""
        return videos[0] if len(videos) == 1 else torch.cat(videos)

    def pool(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Pool ``[frames, patches, dim]`` to ``[frames, tokens, dim]`` as the model does.

        Args:
            x: patches without class tokens.
            grid: of the patches, None for ``patch_grid``; only a ``pooler`` is asked for others.
        """
        return x

    def placeholder_count(self, frames: list[int]) -> int:
        """Placeholder tokens that a prompt with videos of so many frames must hold."""
        raise NotImplementedError

    def take_tokens(self, rows: Tensor, n_frames: int) -> Tensor:
        """Return the visual tokens ``[frames, tokens, dim]`` among the rows of one video."""
        total = n_frames * self.tokens_per_frame
        return rows[:total].unflatten(0, (n_frames, self.tokens_per_frame))

    def put_tokens(self, rows: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        """Undo :meth:`take_tokens`; rows of other tokens (newlines) stay or become NaN.

        Args:
            rows: ``[rows, dim]`` of one video.
            tokens: ``[frames, tokens, dim]``, NaN where a token was dropped.
            kept: ``[frames, tokens]`` bool.
        """
        return torch.cat([tokens.flatten(0, 1), rows[kept.numel() :]])

    def write_deep(self, output: Any, layers: list[list[Tensor]]) -> Any:
        """Return ``output`` with other deepstack features: per layer ``[rows, dim]`` per video."""
        raise NotImplementedError

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """Return per video the rows ``[frames * tokens + extra, dim]`` that will be scattered."""
        raise NotImplementedError

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Return ``output`` with its rows replaced (same row counts)."""
        raise NotImplementedError


def find_submodule(root: nn.Module, *paths: str) -> nn.Module:
    """Return the first of ``paths`` that exists below ``root``.

    Raises:
        UnsupportedModelError: none exists.
    """
    for path in paths:
        try:
            return root.get_submodule(path)
        except AttributeError:
            continue
    raise UnsupportedModelError(f"{type(root).__name__} has none of: {', '.join(paths)}")
