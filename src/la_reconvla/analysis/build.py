"""From what was measured to results: summaries, comparisons and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from la_reconvla.analysis.comparing import all_comparisons
from la_reconvla.analysis.counterfactual import counterfactual
from la_reconvla.analysis.declaration import declared_in
from la_reconvla.analysis.evidence import Evidence, FloorEvidence, OtherStartsEvidence
from la_reconvla.analysis.leakage import withheld
from la_reconvla.analysis.measures import Leak, Rate
from la_reconvla.analysis.results import Arm, Floor, OtherStarts, Picture, Reference, Results, Study, Timeline, Video
from la_reconvla.analysis.summaries import condition_summary, following, measure_frames, rate, stages
from la_reconvla.analysis.verdicts import judge
from la_reconvla.conditions import Condition
from la_reconvla.episodes import EpisodeRecord
from la_reconvla.layout import SCHEMA


def build(
    study: Study,
    arms: Sequence[tuple[Arm, Evidence]],
    floors: Sequence[FloorEvidence] = (),
    references: Mapping[str, Sequence[EpisodeRecord]] | None = None,
    *,
    conditions: Sequence[Condition] = (),
    elsewhere: Sequence[OtherStartsEvidence] = (),
    leakage: Sequence[Leak] = (),
    pictures: Iterable[Picture] = (),
    videos: Iterable[Video] = (),
    timelines: Iterable[Timeline] = (),
) -> Results:
    """All results of a study from its records: summaries, comparisons, corrections and, where it is judged, verdicts.

    Args:
        study: facts of the run, and what it declared: those of the declared comparisons whose data exist are made.
        arms: each condition with what was measured of it.
        floors: what was measured without image, with a grey one, with a wrong instruction, or by blind replay.
        references: episodes of the scripted expert, of a random policy.
        conditions: the arms as values; those that no declared comparison names are compared with the nearest of them.
        elsewhere: episodes on other starts.
        leakage: what training and evaluation share; where they share what they must not, nothing is decided.
        pictures: for the report.
        videos: for the report.
        timelines: for the report.
    """
    evidence, declared = {arm.id: found for arm, found in arms}, declared_in(study)
    comparisons = all_comparisons(evidence, floors, elsewhere, declared, conditions)
    return Results(
        schema=SCHEMA,
        study=study,
        conditions=tuple(condition_summary(arm, found) for arm, found in arms),
        floors=tuple(
            Floor(
                f.id,
                f.condition,
                rate(f.episodes),
                measure_frames(f.frames, "action_error"),
                stages(f.episodes),
                counterfactual(f.episodes),
                following(f.episodes),
            )
            for f in floors
        ),
        references=tuple(
            Reference(name, found, stages(episodes), counterfactual(episodes), following(episodes))
            for name, episodes in (references or {}).items()
            if (found := rate(episodes)) is not None
        ),
        elsewhere=tuple(
            OtherStarts(
                e.placement,
                e.label,
                found,
                stages(e.episodes),
                e.suite,
                e.condition,
                e.floor,
                e.change,
                counterfactual(e.episodes),
                following(e.episodes),
                _by_wording(e),
            )
            for e in elsewhere
            if (found := rate(e.episodes)) is not None
        ),
        comparisons=comparisons,
        hypotheses=tuple(withheld(judge(comparisons, declared, len(study.tasks) or None), leakage))
        if study.judged
        else (),
        leakage=tuple(leakage),
        pictures=tuple(pictures),
        videos=tuple(videos),
        timelines=tuple(timelines),
    )


def _by_wording(e: OtherStartsEvidence) -> dict[str, Rate]:
    """Success by the kind of what was said."""
    kinds = {
        kind: [r for r in e.episodes if e.wordings.get(r.start.instruction) == kind] for kind in e.wordings.values()
    }
    return {kind: found for kind, episodes in kinds.items() if (found := rate(episodes))}
