"""What a study does not show, as far as its numbers tell: the last section of the report."""

from __future__ import annotations

from la_reconvla import drawing
from la_reconvla.analysis.decisions import FEW_SEEDS
from la_reconvla.analysis.results import ConditionResult, Results

FEW_SCENES = 8  # below, a bootstrap over scenes is known to give intervals that are too narrow


def limits(results: Results) -> list[str]:
    """What the study does not show, as far as its own numbers tell."""
    said = []
    seeds = min((len(c.cells) for c in results.conditions), default=0)
    if seeds == 1:
        said.append(
            "Each arm was trained once. How much success varies between trainings of the same arm was not measured, "
            "so a difference between arms may be luck."
        )
    elif seeds < FEW_SEEDS:
        said.append(
            f"Each arm was trained {seeds} times: that is too few to know how much training varies, and the "
            "intervals of arms are correspondingly wide."
        )
    if results.study.placement == "wide":
        said.append(
            "Two starts share each scene and its image, one for either target. Intervals of success that are not "
            "pooled over all arms count the two as independent and are therefore somewhat too narrow."
        )
    if len(results.looks) > 1:
        times = ", ".join(f"{look.date} with {look.seeds} seeds of {look.episodes} starts" for look in results.looks)
        said.append(
            f"The study was looked at {len(results.looks)} times while it grew ({times}). Unless its size was declared "
            "before, more looks find more that is not there."
        )
    if results.study.placement == "official" and results.study.suite != "recorded":
        said.append(
            "All starts are LIBERO's own initial states, between which the objects of a task move little (the note in "
            "the leakage table says how far): success shows use of the image only as far as it is above blind replay."
        )
    said.extend(_few_scenes(results))
    said.extend(_other_channels(results))
    said.extend(_weak_arms(results))
    said.append("Attention maps are not causes: a map on the object does not prove that the action depends on it.")
    if results.study.suite != "recorded":
        said.append("Everything happened in simulation, with rendered images and a simulator's contact physics.")
    said.append(
        "Only comparisons of the declared family are corrected for their number; other intervals are not corrected."
    )
    if arm := next((c for c in results.conditions if c.id == "R1"), None):
        said.append(reconvla(results, arm))
    else:
        said.append(
            "The ReconVLA arm (diffusion reconstruction of an annotated crop) is not part of this study, so nothing "
            "here compares with it."
        )
    return [*said, *results.study.limits]


def reconvla(results: Results, arm: ConditionResult) -> str:
    """What R1 has of the published ReconVLA, and what not."""
    head = results.study.settings.get("config", {}).get("denoiser", {})
    target = head.get("target", {})
    latent = target.get("kind") == "Latents"
    drawn = "latents of a VAE" if latent else f"{target.get('side') or 'all'} pixels per side of each patch"
    size = f", {arm.head_parameters / 1e6:.1f} M parameters" if arm.head_parameters else ""
    return (
        f"R1 has ReconVLA's region and kind of head on this study's backbone and budget: it draws {drawn} "
        f"({head.get('repeats', '?')} noise levels per sample, lambda {arm.weight}{size}). The published model has 7 "
        "billion parameters, draws latents with 4 noise levels, lambda 1.0 and 64 M parameters, and was pretrained too."
    )


def _few_scenes(results: Results) -> list[str]:
    """Held-out frames of so few scenes that their intervals mean little."""
    measured = [m.n for c in results.conditions for m in (c.action_error, c.aos, c.aid) if m is not None and m.n]
    measured += [c.scenes for c in results.comparisons if c.scenes]
    if not measured or min(measured) >= FEW_SCENES:
        return []
    return [
        f"Action error and attention were measured on the held-out frames of n = {min(measured)} scenes only. A "
        "bootstrap over so few gives intervals that are too narrow, and other scenes may give other numbers."
    ]


def _other_channels(results: Results) -> list[str]:
    """Arms whose maps are not made of the words' attention."""
    found = {c.id: c.grounding.channel for c in results.conditions if c.grounding and c.grounding.channel}
    other = {arm: drawing.readable(channel) for arm, channel in found.items() if channel != "language"}
    if not other:
        return []
    arms = "; ".join(f"{arm}: {channel}" for arm, channel in other.items())
    return [f"The attention maps of these arms are not those of the instruction's words, but a fallback ({arms})."]


def _weak_arms(results: Results) -> list[str]:
    """Arms that were not shown to succeed more often than each floor they were compared with."""
    against = results.against_floors("tsr")
    if not against and results.sequences is not None:
        return []  # average lengths were, with that of a policy without image
    if not against:
        return ["Success was compared with no floor: what a policy reaches without the image was not measured."]
    weak = [c for c in against if c.low <= 0]
    if not weak:
        return []
    pairs = "; ".join(f"{c.a} and {drawing.readable(c.b)}" for c in weak)
    return [f"Success was not shown to be above these floors, so it does not show use of the image there: {pairs}."]
