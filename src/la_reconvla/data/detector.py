"""Boxes of the target from a zero-shot detector, which is asked for the thing that the instruction moves."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from la_reconvla.data.boxes import Filled
from la_reconvla.data.demonstrations import Episode
from la_reconvla.errors import UserError, unknown
from la_reconvla.method.variants.content_words import STOP_WORDS

PROMPTS = {
    "grounding-dino": "{}.",
    "mm-grounding-dino": "{}.",
    "owlv2": "a photo of a {}",
    "owlvit": "a photo of a {}",
}
"""How each family of detectors wants to be asked, by ``model_type``."""
DETECTOR_FILES = ("*.json", "*.txt", "*.safetensors")
BATCH = 8  # pictures that a detector is shown at once; it enlarges each to some 900 pixels
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_COLOURS = frozenset({"black", "blue", "brown", "green", "grey", "orange", "purple", "red", "white", "yellow"})


def moved_thing(text: str) -> str:
    """What the instruction is about to move, in lower case: "black bowl" of "Pick up the black bowl next to the plate".

    The words after the first verb, from the first that is none of `STOP_WORDS` to the next that is: no place, no
    destination. Of two things ("the soup and the sauce") the first. A rule for LIBERO's sentences, which begin with
    their verb.

    Raises:
        UserError: it names nothing.
    """
    words = list(_WORD.finditer(text))[1:]  # the first is the verb, also one that `STOP_WORDS` does not know
    ends = STOP_WORDS | {"not"}
    while words and words[0].group().lower() in ends:
        words.pop(0)
    end = 0
    while end < len(words) and (words[end].group().lower() not in ends or _joins_colours(words, end)):
        end += 1
    if not end:
        raise UserError(f"the instruction '{text}' names nothing to move: reword it, as 'pick up the black bowl'")
    return text[words[0].start() : words[end - 1].end()].lower()


def _joins_colours(words: list[re.Match[str]], i: int) -> bool:
    """Whether word `i` is the "and" of "yellow and white mug"."""
    around = {word.group().lower() for word in (words[i - 1], *words[i + 1 : i + 2])}
    return words[i].group().lower() == "and" and len(around) == 2 and around <= _COLOURS


@dataclass(frozen=True)
class Detector(Filled):
    """A zero-shot detector (Grounding DINO, OWLv2), asked for `moved_thing` of the episode's instruction.

    Attributes:
        source: id on the hub, or a folder.
        revision: commit on the hub; None for the newest.
        threshold: a box with a lower score does not count.
        every: detect in every n-th recorded frame only.
        device: of the model, as torch names it.
    """

    source: str
    revision: str | None = None
    threshold: float = 0.25
    every: int = 1
    device: str = "cpu"
    label = "detector"

    def __post_init__(self):
        if not 0 <= self.threshold < 1 or self.every < 1:
            raise UserError(f"give a threshold in [0, 1) and every >= 1, not {self.threshold} and {self.every}")

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The very weights, and how they are asked.

        Raises:
            UserError: the source cannot be had.
        """
        from la_reconvla.backbones.hub import hub_files
        from la_reconvla.backbones.pretrained import Pretrained

        hub_files(self.source, self.revision, ("config.json",), give="--source ")  # so that errors name our option
        weights = Pretrained(self.source, self.revision).pinned().revision
        return {"source": self.source, "revision": weights, "threshold": self.threshold, "every": self.every}

    def unfilled(self, episode: Episode) -> Float32[np.ndarray, "F 5"]:
        """The box of the highest score in each frame that is looked at, cut off at the picture's edges.

        Raises:
            UserError: the detector cannot be had, or the instruction names nothing.
        """
        thing, frames = moved_thing(episode.instruction), episode.frames()
        result = np.full((len(frames), 5), np.nan, dtype=np.float32)
        looked_at = np.arange(0, len(frames), self.every)
        for rows in np.split(looked_at, range(BATCH, len(looked_at), BATCH)):
            result[rows] = self._detect(frames[rows], thing)
        return result

    def _detect(self, frames: UInt8[np.ndarray, "m H W 3"], thing: str) -> Float32[np.ndarray, "m 5"]:
        import torch

        processor, model = _load_detector(self.source, self.identity["revision"], self.device)
        text = [PROMPTS[model.config.model_type].format(thing)] * len(frames)
        images = [Image.fromarray(frame) for frame in frames]
        inputs = processor(images=images, text=text, truncation=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        sizes = [(1, 1)] * len(frames)  # so that the library's pixels are fractions
        answers = processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=sizes
        )
        result = np.full((len(frames), 5), np.nan, dtype=np.float32)
        for row, answer in zip(result, answers, strict=True):
            if len(answer["scores"]):
                best = answer["scores"].argmax()
                left, top, right, bottom = answer["boxes"][best].clamp(0, 1).tolist()
                if left < right and top < bottom:
                    row[:] = left, top, right, bottom, answer["scores"][best].item()
        return result


@functools.lru_cache(maxsize=1)
def _load_detector(source: str, revision: str | None, device: str) -> tuple[Any, Any]:
    """Processor and model."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    from la_reconvla.backbones.hub import hub_files, quiet

    folder = hub_files(source, revision, DETECTOR_FILES, give="--source ")
    try:
        with quiet():
            only = {"local_files_only": True, "trust_remote_code": False}  # without the second the library asks
            kind = AutoConfig.from_pretrained(folder, **only).model_type
            if kind not in PROMPTS:
                raise unknown("family of detectors", kind, PROMPTS)
            # "pil" reads pictures alike everywhere: the other backend needs torchvision
            processor = AutoProcessor.from_pretrained(folder, backend="pil", **only)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True, **only)
    except (OSError, ImportError, ValueError, KeyError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{source} cannot be loaded as a detector ({first}): check its files") from error
    return processor, model.eval().to(device)
