"""Everything of a study that is rolled out: policies, floors and references, on which starts, into which folders."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from la_reconvla import layout
from la_reconvla.conditions import NO_IMAGE
from la_reconvla.data.demonstrations import Demonstrations
from la_reconvla.data.starts import Start
from la_reconvla.episodes import EpisodeRecord, Label, read_episodes
from la_reconvla.sim.policies import Replay, Scripted, Uniform, swapped
from la_reconvla.sim.rollout import EnvSettings
from la_reconvla.study.cells import Cell, OfficialStarts
from la_reconvla.study.domains import Domain
from la_reconvla.study.evaluate import Evaluation
from la_reconvla.study.floors import VIEWS, expert_can, has_replay
from la_reconvla.study.presets import StudyConfig
from la_reconvla.study.starts import evaluation_starts, wrong_words
from la_reconvla.training.trained_policy import Trained


@dataclass(frozen=True, eq=False)
class Evaluations:
    """What a study rolls out.

    Attributes:
        config: the study.
        folder: where it is.
        domain: what its starts and environment come from.
        cells: all of them.
        places: official starts besides those of its placement.
        demonstrations: all that were collected; starts among them are not evaluated on.
        device: where policies act.
    """

    config: StudyConfig
    folder: Path
    domain: Domain
    cells: Sequence[Cell]
    places: Sequence[OfficialStarts]
    demonstrations: Demonstrations
    device: str

    @property
    def settings(self) -> EnvSettings:
        """The environment of all of them."""
        return self.domain.settings(self.config)

    def runs(self) -> Iterator[tuple[str, list[Evaluation], list[Start]]]:
        """What to call them, the policies, and their starts."""
        yield "Rollouts", self.at_home(), self.starts()
        for place in self.places:
            yield "Official states" if place.home else place.suite, self.at(place), self.starts(place)

    def starts(self, place: OfficialStarts | None = None) -> list[Start]:
        """Those at `place`, by default those of the study's placement."""
        c = self.config
        trained_on, cache = frozenset(self.demonstrations.starts), self.folder / layout.PLACEMENTS
        if place is None:
            return self.domain.starts(c, max(c.episodes, c.floor_episodes), trained_on, cache)
        return evaluation_starts(
            place.suite, place.tasks, "official", place.episodes, trained_on=trained_on, cache=cache
        )

    @functools.cached_property
    def swaps(self) -> tuple[tuple[int, str, str], ...]:
        """The wrong instruction for each (task, instruction), for the floor that gives it."""
        c, said = self.config, {(e.task or 0, e.instruction) for e in self.demonstrations.episodes}
        if self.domain.recorded is not None and len(said) < 2:
            return ()  # nobody can be told anything else: that floor is left out
        said |= {(start.task, start.instruction) for start in self.starts()}
        if len({text for _, text in said}) < 2:
            return wrong_words(c.suite, c.tasks, c.placement)
        return swapped(said)

    def at_home(self) -> list[Evaluation]:
        """On the starts of the study's placement."""
        c = self.config
        many, few = c.episodes * len(c.tasks), c.floor_episodes * len(c.tasks)
        result = []
        for cell in self.cells:
            label, blind = Label(cell.condition.id, cell.seed), cell.condition is NO_IMAGE
            policy = Trained(cell.folder, device=self.device)
            films = self.domain.films and not blind
            result.append(Evaluation(cell.folder, label, policy, few if blind else many, films))
            if cell.condition.id == c.floor_arm:
                for view in VIEWS:
                    policy = Trained(cell.folder, view, self.swaps, device=self.device)
                    folder = layout.floor(self.folder, view, cell.condition.id, cell.seed)
                    result.append(Evaluation(folder, replace(label, floor=view), policy, few))
        replay = Replay(self.folder / layout.DEMONSTRATIONS)
        references = self.folder / layout.REFERENCES
        return [
            *result,
            Evaluation(self.blind_replay, Label(None, None, "blind_replay"), replay, few),
            Evaluation(references / "expert", Label("expert", None), self.domain.expert, few),
            Evaluation(references / "random", Label("random", None), Uniform(), few),
        ]

    @property
    def blind_replay(self) -> Path:
        """Folder of that floor."""
        return self.folder / layout.FLOORS / "blind_replay"

    def at(self, place: OfficialStarts) -> list[Evaluation]:
        """The same policies and floors at `place`, as far as they can do its tasks, into a folder of their own."""
        swaps = self.swaps if place.home else wrong_words(place.suite, place.tasks, "official")
        result = []
        for e in self.at_home():
            policy, only = e.policy, e.only
            if isinstance(policy, Trained) and policy.view == "wrong_instruction":
                policy = replace(policy, swaps=swaps)
            elif isinstance(policy, Scripted):
                only = expert_can
            elif isinstance(policy, Replay):
                only = functools.partial(has_replay, self.demonstrations)
            folder = self.folder / place.folder / e.folder.relative_to(self.folder)
            result.append(Evaluation(folder, e.label, policy, only=only))
        return result

    @functools.cached_property
    def _asked(self) -> dict[Path, set[str]]:
        """Which starts each policy was to be evaluated on."""
        return {e.folder: {s.id for s in e.takes(starts)} for _, group, starts in self.runs() for e in group}

    def episodes(self, folder: Path) -> list[EpisodeRecord]:
        """Records of the starts that were asked for: another command may have begun more, for some arms only."""
        return [record for record in read_episodes(folder) if record.start.id in self._asked[folder]]
