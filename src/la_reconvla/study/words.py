"""Does a word's attention find what it means? On held-out scenes, beside the controls that could explain it away.

Every question is a sentence and a scene in which it means exactly one visible thing. Asked is

- **named**: is the thing named looked at more than every other thing in the scene? Chance is 1 in m;
- **distinguished**: of two alike things that a relation distinguishes, is the one meant looked at more? Chance is 1/2.
  By what distinguishes them: another thing (next to it, between two), a place (left, centre), a held-out pair of
  things;
- **pointing**, **auroc**: see `la_reconvla.analysis.attention_overlap`; *pointing, large* is asked of things that
  fill a quarter of a patch;
- **aid**: against the same sentence with another thing's name in it.

A thing's patches are those of which it fills a quarter, or, if it fills none so far, the one of which it fills most.
How much it is looked at is their highest score. Where two things share that patch, a win counts half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from la_reconvla import drawing
from la_reconvla.analysis import attention_overlap as grounding
from la_reconvla.backbones.paligemma import PaliGemmaBackbone, SmallPaliGemma
from la_reconvla.contracts import Features, PolicyInput
from la_reconvla.data.captions import NOUNS, VISIBLE, Captioner
from la_reconvla.data.samples import patch_coverage, spread_indices
from la_reconvla.data.scenes import Scenes
from la_reconvla.method.saliency import MEAN, SaliencySource
from la_reconvla.method.variants.attention_heads import SinkRemoved
from la_reconvla.method.variants.content_words import ContentWords
from la_reconvla.method.variants.learned import LearnedSource
from la_reconvla.method.variants.localisation_heads import LocalisationHeads
from la_reconvla.progress import progress
from la_reconvla.randomness import seeded
from la_reconvla.storage import write_content, write_json
from la_reconvla.study.word_questions import Question, questions
from la_reconvla.text_table import TextTable
from la_reconvla.training.pretraining_data import pictures, whiten
from la_reconvla.training.start_weights import StartWeights

SCORES = (
    "named",
    "distinguished_by_things",
    "distinguished_by_places",
    "distinguished_held_out",
    "pointing",
    "pointing_large",
    "auroc",
    "aid",
)
MAPS: tuple[SaliencySource, ...] = (MEAN, ContentWords(), LocalisationHeads(), SinkRemoved())
"""Nothing has asked anything of the action tokens yet, and a teacher is a later average: neither has a map here."""
BESIDE = 5  # rows of `compare` beside those: wrong word, mean map, landmark, random weights, centre prior
EVERYWHERE = "all"
FRAMES = 64  # training scenes that localisation heads are chosen on
SHOWN = 6  # pictures in the figure
REPLICATES = 2000  # of the bootstrap
FILLED = 0.25  # share of a patch that a thing must fill for the patch to be one of its patches

Looker = Callable[[UInt8[np.ndarray, "b H W 3"], list[str]], Float[np.ndarray, "*s b n"]]


def patch_shares(scenes: Scenes, grid: tuple[int, int]) -> Float[np.ndarray, "m o n"]:
    """Share of each patch that each instance fills, float32."""
    return np.stack([patch_coverage(scenes.maps == i + 1, grid) for i in range(len(scenes.instances))], 1)


def looked_at(maps: Float[np.ndarray, "q n"], shares: Float[np.ndarray, "q o n"]) -> Float[np.ndarray, "q o"]:
    """How much each thing is looked at, see the module; -inf for what is not in the scene."""
    return np.where(patches_of(shares), maps[:, None], -np.inf).max(-1)


def patches_of(shares: Float[np.ndarray, "*q n"]) -> Bool[np.ndarray, "*q n"]:
    """Which patches are a thing's, see the module."""
    return (shares >= np.minimum(FILLED, shares.max(-1, keepdims=True))) & (shares > 0)


@dataclass(frozen=True, eq=False)
class Answers:
    """What came of the questions; one value each, NaN where it does not apply."""

    named: Float[np.ndarray, " q"]
    named_chance: Float[np.ndarray, " q"]
    distinguished_by_things: Float[np.ndarray, " q"]
    distinguished_by_places: Float[np.ndarray, " q"]
    distinguished_held_out: Float[np.ndarray, " q"]
    pointing: Float[np.ndarray, " q"]
    pointing_large: Float[np.ndarray, " q"]
    auroc: Float[np.ndarray, " q"]
    aid: Float[np.ndarray, " q"]

    def means(self) -> dict[str, float]:
        """The mean of each, over the questions to which it applies."""
        return {name: float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for name, v in vars(self).items()}


def judge(
    asked: Sequence[Question],
    maps: Float[np.ndarray, "q n"],
    wrong: Float[np.ndarray, "q n"],
    scenes: Scenes,
    shares: Float[np.ndarray, "m o n"],
) -> Answers:
    """Score maps, one per question; `wrong` are those of the wrong word, `shares` the `patch_shares` of the scenes."""
    shares = shares[[q.scene for q in asked]]
    targets = np.array([q.target for q in asked])
    alike = np.array([q.alike for q in asked])
    each = np.arange(len(asked))
    visible = scenes.pixels[[q.scene for q in asked]] >= VISIBLE
    scores = np.where(visible, looked_at(maps, shares), -np.inf)
    meant = scores[each, targets]
    rivals = scores.copy()
    rivals[each, targets] = -np.inf
    alone, paired = alike < 0, alike >= 0
    twin = scores[each, np.maximum(alike, 0)]
    apart = np.where(paired, _won(meant, twin), np.nan)
    held_out = np.array([q.expression.held_out for q in asked])
    by_things = np.array([bool(q.expression.others) for q in asked])
    target = shares[each, targets]
    measured = grounding.measure(maps, patches_of(target).astype(float))
    large = target.max(-1) >= FILLED
    return Answers(
        named=np.where(alone, _won(meant, rivals.max(1)), np.nan),
        named_chance=np.where(alone, 1 / visible.sum(1), np.nan),
        distinguished_by_things=np.where(by_things & ~held_out, apart, np.nan),
        distinguished_by_places=np.where(by_things, np.nan, apart),
        distinguished_held_out=np.where(held_out, apart, np.nan),
        pointing=measured.pointing,
        pointing_large=np.where(large, measured.pointing, np.nan),
        auroc=measured.auroc,
        aid=grounding.instruction_difference(maps, wrong),
    )


def _won(meant: Float[np.ndarray, " q"], rival: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    return np.where(meant > rival, 1.0, np.where(meant == rival, 0.5, 0.0))


def ask(look: Looker, asked: Sequence[Question], scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Maps [*s q n] under each question's sentence and under the same with the wrong word."""
    maps: list[list[np.ndarray]] = [[], []]
    for at in range(0, len(asked), 64):
        part = asked[at : at + 64]
        images = scenes.images[[q.scene for q in part]]
        maps[0].append(look(images, [q.text for q in part]))
        maps[1].append(look(images, [q.wrong for q in part]))
    return np.concatenate(maps[0], -2), np.concatenate(maps[1], -2)


def mean_maps(asked: Sequence[Question], maps: Float[np.ndarray, "q n"]) -> Float[np.ndarray, "q n"]:
    """The control that looks at everything nameable at once: the mean map of all sentences about the same scene."""
    scene: Int[np.ndarray, " q"] = np.array([q.scene for q in asked])
    return np.stack([maps[scene == s].mean(0) for s in scene])


def centre_priors(scenes: Scenes, grid: tuple[int, int]) -> dict[str, Float[np.ndarray, " n"]]:
    """The control that ignores things and words: where things are on average in each arena's (training) scenes."""
    shares, arenas = patch_shares(scenes, grid).sum(1), np.array(scenes.arenas)
    return {arena: shares[arenas == arena].mean(0) + 1e-6 for arena in set(scenes.arenas)}


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, eq=False)
class WordRow:
    """Answers of one kind of map to one set of questions.

    Attributes:
        whose: saliency source of the pretrained weights, other weights, or a control.
        wordings: ``held-out`` or ``trained``.
        answers: to all questions.
    """

    whose: str
    wordings: str
    answers: Answers

    def scores(self, scene: Int[np.ndarray, " q"], chosen: Bool[np.ndarray, " q"]) -> dict[str, dict[str, float]]:
        """Mean, 95 % interval and number of questions of each score that applies to some of the `chosen`.

        Questions about one scene are not independent: the bootstrap draws scenes.
        """
        scores = {}
        for name, values in vars(self.answers).items():
            if (asked := np.isfinite(values) & chosen).any():
                _, of = np.unique(scene[asked], return_inverse=True)
                sums, counts = np.bincount(of, values[asked]), np.bincount(of)
                draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), REPLICATES)
                low, high = np.quantile((draws @ sums) / (draws @ counts), (0.025, 0.975))
                mean = float(values[asked].mean())
                scores[name] = {"mean": mean, "low": float(low), "high": float(high), "questions": int(asked.sum())}
        return scores


def looking(backbone: PaliGemmaBackbone, states: Mapping[SaliencySource, torch.Tensor | None] | None = None) -> Looker:
    """Where a backbone looks: by the mean, or [s b n] by each of some sources with what they have learned."""

    @torch.no_grad()
    def look(images: UInt8[np.ndarray, "b H W 3"], texts: list[str]) -> Float[np.ndarray, "*s b n"]:
        features = _features(backbone, images, texts)
        if states is None:
            return MEAN(features).numpy()
        return np.stack([source(replace(features, saliency_state=state)).numpy() for source, state in states.items()])

    return look


def _features(backbone: PaliGemmaBackbone, images: np.ndarray, texts: list[str]) -> Features:
    features = backbone(PolicyInput(pictures(images), texts), attention="instruction")
    features.texts = texts
    return features


def fitted(backbone: PaliGemmaBackbone, source: SaliencySource, scenes: Scenes) -> torch.Tensor | None:
    """What `source` learns from some training scenes and sentences about them, without labels."""
    if not isinstance(source, LearnedSource) or not source.frames:
        return None
    some = spread_indices(len(scenes), FRAMES)
    captioner, rng = Captioner(scenes), np.random.default_rng(0)
    said = [(i, caption.text) for i in some if (caption := captioner.caption(rng, int(i)))]
    with torch.no_grad():
        return source.fit([_features(backbone, scenes.images[[i for i, _ in said]], [t for _, t in said])])


def compare(
    config: SmallPaliGemma, others: Mapping[str, SmallPaliGemma], train: Scenes, test: Scenes, seed: int = 0
) -> Iterator[tuple[WordRow, list[Question]]]:
    """Every map on every question: the pretrained weights by saliency source, other weights, and the controls.

    The *wrong word* is the map under the sentence with another thing's name, judged as if it were this one's: what
    remains of a score under it is not due to the word. The *landmark* is the map under the name of the thing that a
    relation refers to, judged as if it were the one related: who looks near the plate for "the bowl next to the
    plate" need not know bowls.

    Raises:
        UserError: as `StartWeights.of` and `StartWeights.load_into`.
    """
    trained, fresh = started(config), _fresh(config, train, seed)
    states = {source: fitted(trained, source, train) for source in MAPS}
    priors, shares = centre_priors(train, config.grid), patch_shares(test, config.grid)
    for wordings in ("held-out", "trained"):
        asked = questions(test, seed, held_out_wordings=wordings == "held-out")

        def row(whose: str, maps: np.ndarray, wrong: np.ndarray, about: list[Question], wordings=wordings):
            return WordRow(whose, wordings, judge(about, maps, wrong, test, shares)), about

        for source, maps, wrong in zip(MAPS, *ask(looking(trained, states), asked, test), strict=True):
            yield row(source.label, maps, wrong, asked)
            if source is MEAN:
                yield row("wrong word", wrong, maps, asked)
                everything = mean_maps(asked, maps)
                yield row("mean map", everything, everything, asked)
        related = [replace(q, text=q.landmark) for q in asked if q.landmark]
        if related:
            yield row("landmark", *ask(looking(trained), related, test), related)
        for name, other in others.items():
            yield row(name, *ask(looking(started(other)), asked, test), asked)
        yield row("random weights", *ask(looking(fresh), asked, test), asked)
        always = np.stack([priors[test.arenas[q.scene]] for q in asked])
        yield row("centre prior", always, always, asked)


def started(config: SmallPaliGemma) -> PaliGemmaBackbone:
    """The backbone with its start weights, for looking.

    Raises:
        UserError: as `StartWeights.of` and `StartWeights.load_into`.
    """
    backbone = config.build()
    if (start := StartWeights.of(config)) is not None:
        start.load_into(backbone)
    return backbone.eval()


def _fresh(config: SmallPaliGemma, scenes: Scenes, seed: int) -> PaliGemmaBackbone:
    with seeded(seed, "weights"):
        backbone = config.build()
    whiten(backbone, scenes)
    return backbone.eval()


def measure_words(weights: Sequence[str], train: Scenes, test: Scenes, out: Path, seed: int = 0) -> list[TextTable]:
    """Measure, write ``words.json``, ``words.md`` and ``words.png`` into `out`; returns the tables without intervals.

    Args:
        weights: files of pretrained weights; the first is looked at by every source, the others by the mean.
        train: scenes that controls are made of.
        test: scenes to ask about.
        out: folder.
        seed: of the questions and of the random weights.

    Raises:
        UserError: as `StartWeights.of` and `StartWeights.load_into`.
    """
    # A scene has one picture and no robot: what else a policy sees is left out, as in pretraining's captions.
    alone = {"wrist": False, "proprio": "none"}
    first, *rest = (replace(StartWeights.read(name).config, **alone) for name in weights)
    arenas = np.array(test.arenas)
    records = []
    rows = compare(first, {str(config.weights): config for config in rest}, train, test, seed)
    with progress("Measuring", total=2 * (len(MAPS) + len(rest) + BESIDE), unit="maps") as bar:
        for row, asked in rows:
            scene = np.array([q.scene for q in asked])
            for arena in (EVERYWHERE, *sorted(set(test.arenas))):
                if arena == EVERYWHERE or row.whose == MEAN.label:
                    chosen = np.ones(len(asked), bool) if arena == EVERYWHERE else arenas[scene] == arena
                    scores = row.scores(scene, chosen)
                    records.append({"whose": row.whose, "wordings": row.wordings, "arenas": arena, "scores": scores})
            bar.advance(note=row.whose)
    everywhere = [record for record in records if record["arenas"] == EVERYWHERE]
    by_arena = [record for record in records if record["arenas"] != EVERYWHERE]
    full, brief = (
        [
            _table("Where words look", "map", "whose", everywhere, intervals),
            _table(f"By arena, map {MEAN.label}", "arena", "arenas", by_arena, intervals),
        ]
        for intervals in (True, False)
    )
    of = {
        "weights": {config.weights: config.weights_hash for config in (first, *rest)},
        "scenes": {split: {"count": len(s), "hash": s.hash} for split, s in (("train", train), ("test", test))},
    }
    write_json(out / "words.json", {**of, "seed": seed, "rows": records})
    write_content(out / "words.md", "\n\n".join(table.markdown() for table in full) + "\n")
    write_content(out / "words.png", picture(started(first), test))
    return brief


def _table(title: str, first: str, key: str, records: Sequence[dict[str, Any]], intervals: bool) -> TextTable:
    def cell(record: dict[str, Any], name: str) -> str:
        score = record["scores"].get(name)
        if score is None:
            return "-"
        mean = f"{score['mean']:.3f}"
        return f"{mean} [{score['low']:.3f}, {score['high']:.3f}] of {score['questions']}" if intervals else mean

    header = (first, "wordings", *(name.replace("_", " ") for name in ("named_chance", *SCORES)))
    rows = []
    for record in records:
        chance = record["scores"].get("named_chance")
        cells = [cell(record, name) for name in SCORES]
        rows.append((record[key], record["wordings"], f"{chance['mean']:.3f}" if chance else "-", *cells))
    return TextTable(title, header, rows, keys=2)


def picture(backbone: PaliGemmaBackbone, scenes: Scenes) -> bytes:
    """PNG: scenes of different arenas, and where the words for up to three of their things look."""
    asked = questions(scenes)
    images, titles, columns = [], [], [[] for _ in range(3)]
    for scene in spread_indices(len(scenes), SHOWN):
        alone = [q for q in asked if q.scene == scene and q.alike < 0][:3]
        if not alone:
            continue
        images.append(scenes.images[scene])
        texts = [f"the {NOUNS[q.expression.target_kind][0]}" for q in alone]  # short enough for the title
        titles.append("; ".join(texts))
        padded = [texts[min(i, len(texts) - 1)] for i in range(3)]
        maps = looking(backbone)(scenes.images[[scene] * 3], padded)
        for column, each in zip(columns, maps, strict=True):
            column.append(each)
    named = {name: np.stack(column) for name, column in zip(("first", "second", "third"), columns, strict=True)}
    return drawing.attention_grid(np.stack(images), titles, named, backbone.grid)
