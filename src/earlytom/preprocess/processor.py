"""Questions and videos -> the inputs of ``model.generate``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from earlytom.errors import ConfigError, EarlyTomError, UnsupportedModelError, VideoError
from earlytom.preprocess.checkpoint import check_source, read_json
from earlytom.preprocess.frames import FrameConfig
from earlytom.preprocess.packed import MODEL_TYPES, packed_inputs
from earlytom.preprocess.patches import PatchConfig
from earlytom.preprocess.pixels import Pixels, PixelWriter, preprocess_video
from earlytom.preprocess.settings import (
    chat_template,
    frame_settings,
    load_tokenizer,
    official_processor,
    tokens_per_frame,
)
from earlytom.preprocess.times import official_metadata
from earlytom.preprocess.tokens import tokenise
from earlytom.video.types import Frame, Video, check_frames

Clip = Video | Tensor | Pixels
Clips = Clip | Sequence[Clip | Sequence[Clip]]


class Preprocessor:
    """Builds model inputs with the checkpoint's own settings; see :meth:`from_pretrained`.

    The official processor is used where it can be loaded (it needs torchvision); otherwise the
    same inputs are built here, for LLaVA-OneVision and Qwen-VL checkpoints.

    Args:
        tokenizer: the checkpoint's tokenizer.
        frames: frame settings, or None if only the official processor will do.
        tokens_per_frame: visual tokens of a frame after pooling.
        chat_template: Jinja text, or None for the tokenizer's own.
        video_token: placeholder text of a video.
        image_token: placeholder text of an image.
        official: the official processor, or None.
        model_type: of the checkpoint; Qwen-VL models differ in how they are told the time.
    """

    def __init__(
        self,
        tokenizer: Any,
        frames: FrameConfig | PatchConfig | None = None,
        tokens_per_frame: int = 196,
        chat_template: str | None = None,
        video_token: str = "<video>",
        image_token: str = "<image>",
        official: Any | None = None,
        model_type: str = "llava_onevision",
    ) -> None:
        self.tokenizer = tokenizer
        self.frame_config = frames
        self.tokens_per_frame = tokens_per_frame
        self.chat_template = chat_template
        self.video_token, self.image_token = video_token, image_token
        self.official = official
        self.model_type = model_type
        self._placeholders: Callable[[list[int]], int] | None = None

    def use_layout(self, placeholder_count: Callable[[list[int]], int]) -> None:
        """Count placeholders of videos by ``placeholder_count(frames)`` instead of the default.

        For models in LLaVA-Video layout; the official processor does not know it.

        Raises:
            UnsupportedModelError: the official processor is in use.
        """
        if self.official is not None:
            raise UnsupportedModelError(
                "the official processor knows no LLaVA-Video layout; load the Preprocessor with "
                "official=False"
            )
        self._placeholders = placeholder_count

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, official: bool | None = None
    ) -> Preprocessor:
        """Read tokenizer, chat template and frame settings of a checkpoint.

        Args:
            source: checkpoint folder or Hub id.
            official: True insists on the official processor, False never uses it, None uses it if
                it can be loaded.

        Raises:
            EarlyTomError: no such checkpoint, or a broken one.
            UnsupportedModelError: neither LLaVA-OneVision nor Qwen-VL, and no official processor.
        """
        name = check_source(source)
        processor = None if official is False else official_processor(name)
        if official and processor is None:
            raise EarlyTomError(f"the official processor of {name} cannot be loaded here")
        config = read_json(name, "config.json") or {}
        kind = str(config.get("model_type")).removesuffix("_moe")
        if processor is None and kind not in ("llava_onevision", *MODEL_TYPES):
            raise UnsupportedModelError(
                f"model type {config.get('model_type')!r} needs its official processor (install "
                "torchvision); without it only llava_onevision and "
                f"{', '.join(MODEL_TYPES)} are supported"
            )
        ours = read_json(name, "processor_config.json") or {}
        tokenizer = processor.tokenizer if processor is not None else load_tokenizer(name)
        packed = kind in MODEL_TYPES
        video, image = ("<|video_pad|>", "<|image_pad|>") if packed else ("<video>", "<image>")
        own = processor is None
        return cls(
            tokenizer,
            frame_settings(name, ours, kind) if own else None,
            tokens_per_frame(config, ours) if own and not packed else 0,  # counted by others
            chat_template(name, ours),
            getattr(tokenizer, "video_token", None) or ours.get("video_token") or video,
            getattr(tokenizer, "image_token", None) or ours.get("image_token") or image,
            processor,
            kind,
        )

    @property
    def streams(self) -> bool:
        """Whether :meth:`pixels` works: not with the official processor, nor for Qwen-VL."""
        return self.official is None and not isinstance(self.frame_config, PatchConfig)

    # ------------------------------------------------------------------ use
    def __call__(
        self,
        videos: Clips,
        questions: str | Sequence[str],
        *,
        images: Any | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Build the inputs of one or several prompts (left padded).

        Args:
            videos: one video (a :class:`Video`, uint8 ``[T, H, W, 3]``, or :class:`Pixels`) for a
                single question; for a list of questions a list with one video, or a list of
                videos, per question.
            questions: one question or a list of them.
            images: images that precede the question, only with the official processor.
            device: where to put the tensors.
            dtype: of ``pixel_values_videos``.

        Returns:
            What the model's ``generate`` takes. For LLaVA-OneVision: ``input_ids`` and
            ``attention_mask`` ``[B, L]`` int64 with ``T * tokens_per_frame + 1`` placeholders per
            video, and ``pixel_values_videos`` ``[videos, T, 3, h, w]``. For Qwen-VL see
            :func:`earlytom.preprocess.packed.packed_inputs`.

        Raises:
            VideoError: videos of wrong shape, or not one entry per question; of unequal length,
                unless the model takes patches.
            ConfigError: a question that holds a placeholder, or images without official processor.
        """
        texts, clips = self._pair(videos, questions)
        if images is not None and self.official is None:
            raise ConfigError("images need the official processor (install torchvision)")
        n_images = 0 if images is None else len(images) if isinstance(images, list) else 1
        if n_images and len(texts) > 1:
            raise ConfigError("images are supported with a single question only")
        prompts = [self.prompt(t, len(c), n_images) for t, c in zip(texts, clips, strict=True)]
        flat = [c for row in clips for c in row]
        counts = sorted({_count(c) for c in flat})
        if len(counts) > 1 and self.model_type not in MODEL_TYPES:
            raise VideoError(
                "all videos of a batch need the same number of frames, got "
                f"{', '.join(map(str, counts))}; sample them with the same `frames`"
            )
        bos = self.tokenizer.bos_token
        text_args = {"padding": True, "padding_side": "left"}
        text_args["add_special_tokens"] = not (bos and prompts[0].startswith(bos))
        if self.official is not None:
            out = self._official_inputs(prompts, flat, images, text_args)
        else:
            out = self._own_inputs(prompts, flat, text_args, dtype)
        done = {}
        for name, value in out.items():  # seconds per patch stay exact, positions follow from them
            pixels = name.startswith("pixel_values") and value.is_floating_point()
            done[name] = value.to(device=device, dtype=dtype if pixels else None)
        return done

    def pixels(self, frames: Iterable[Frame], dtype: torch.dtype | None = None) -> Pixels:
        """Resize and normalise frames one by one, as they come.

        The result, given to the call above in place of the video, makes the same inputs bit for
        bit as all frames at once.

        Args:
            frames: of one video, in order, such as :func:`earlytom.video.stream_video` gives.
            dtype: of ``pixel_values_videos``, float32 if None.

        Raises:
            VideoError: no frame came.
            UnsupportedModelError: the processor takes all frames at once (see ``streams``).
        """
        config = self.frame_config
        if self.official is not None or isinstance(config, PatchConfig):
            raise UnsupportedModelError("this model's processor takes all frames at once")
        writer: PixelWriter | None = None
        for frame in frames:
            if writer is None:
                writer = PixelWriter(config, frame.limit, dtype)
            writer.write(frame.image[None])
            del frame  # the next one may take its memory
        if writer is None:
            raise VideoError("a video needs at least one frame")
        return Pixels(writer.pixels())

    def prompt(self, question: str, n_videos: int = 1, n_images: int = 0) -> str:
        """Return the chat prompt of ``question`` with one placeholder per video and image."""
        for token in (self.video_token, self.image_token):
            if token in question:
                raise ConfigError(f"a question must not contain the placeholder {token!r}")
        content = [{"type": "image"}] * n_images + [{"type": "video"}] * n_videos
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        renderer = self.tokenizer if self.official is None else self.official
        try:
            text: str = renderer.apply_chat_template(
                chat, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
            )
        except Exception as e:  # no template, or Jinja errors inside it
            raise EarlyTomError(f"the chat template cannot be applied: {e}") from e
        if text.count(self.video_token) != n_videos:
            raise UnsupportedModelError(
                f"the chat template wrote {text.count(self.video_token)} video placeholders "
                f"{self.video_token!r} for {n_videos} videos"
            )
        return text

    def decode(self, token_ids: Tensor) -> str:
        """Return the text of generated ids ``[n]``, special tokens removed."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    # ------------------------------------------------------------------ inside
    def _pair(self, videos: Any, questions: Any) -> tuple[list[str], list[list[Clip]]]:
        if isinstance(questions, str):
            row = [videos] if isinstance(videos, Clip) else list(videos)
            return [questions], [row]
        rows = [[v] if isinstance(v, Clip) else list(v) for v in videos]
        if not questions or len(rows) != len(questions):
            raise VideoError(f"got {len(questions)} questions but videos for {len(rows)}")
        return list(questions), rows

    def _own_inputs(
        self,
        prompts: list[str],
        clips: list[Clip],
        text_args: dict[str, Any],
        dtype: torch.dtype | None,
    ) -> dict[str, Tensor]:
        if isinstance(self.frame_config, PatchConfig):
            decoded = _decoded(clips)
            return packed_inputs(
                self.tokenizer, prompts, decoded, self.frame_config, self.model_type,
                self.video_token, text_args, dtype,
            )  # fmt: skip
        n = 0
        if clips and self._placeholders is not None:
            n = self._placeholders([_count(clips[0])])
        elif clips:
            n = _count(clips[0]) * self.tokens_per_frame + 1
        out = tokenise(self.tokenizer, prompts, self.video_token, [n] * len(clips), text_args)
        if clips:
            pixels = [
                c.values
                if isinstance(c, Pixels)
                else preprocess_video(_images(c), self.frame_config, dtype=dtype)
                for c in clips
            ]
            out["pixel_values_videos"] = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
        return out

    def _official_inputs(
        self,
        prompts: list[str],
        clips: list[Clip],
        images: Any,
        text_args: dict[str, Any],
    ) -> dict[str, Tensor]:
        media: dict[str, Any] = {} if images is None else {"images": images}
        if decoded := _decoded(clips):
            media["videos"] = [_images(c).permute(0, 3, 1, 2) for c in decoded]
            times = [official_metadata(c) for c in decoded]
            media["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": times}
        assert self.official is not None
        out = self.official(
            text=prompts, **media, text_kwargs=text_args, common_kwargs={"return_tensors": "pt"}
        )
        return dict(out)


def _images(clip: Video | Tensor) -> Tensor:
    """Return the frames ``[T, H, W, 3]``."""
    return clip.frames if isinstance(clip, Video) else clip


def _decoded(clips: Sequence[Clip]) -> list[Video | Tensor]:
    found = [c for c in clips if not isinstance(c, Pixels)]
    if len(found) < len(clips):
        raise UnsupportedModelError("this model's processor takes decoded frames, not pixels")
    return found


def _count(clip: Clip) -> int:
    if isinstance(clip, Pixels):
        return int(clip.values.shape[1])
    frames = _images(clip)
    check_frames(frames)
    return len(frames)
