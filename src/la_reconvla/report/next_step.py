"""What would decide what a study left open: seeds by the power of its own test, the command, and the time it takes."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from la_reconvla.analysis.declaration import declared_in
from la_reconvla.analysis.measures import Power
from la_reconvla.analysis.power import needed
from la_reconvla.analysis.results import Results
from la_reconvla.report.phrases import leading, led_by
from la_reconvla.study.films import STARTS
from la_reconvla.text_table import TextTable, duration

LISTED = 12  # seeds that a command lists; more of them in a row are counted by the shell
AIM = 0.2  # the difference of success rates that is looked for unless a larger one was measured


@dataclass(frozen=True)
class Step:
    """The command that would decide more, and what it could decide; `said` is the terminal's last line too."""

    why: str
    command: str
    said: str = ""

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        return [self.why, f"  {self.command}", *filter(None, [self.said])]


def next_step(results: Results) -> Step | None:
    """None where the leading claim is decided, more would be exploratory, or no command is known."""
    seeds, judged = seeds_of(results), leading(results)
    if not results.study.command or not seeds or (judged and judged.verdict in ("supported", "refuted")):
        return None
    if not results.study.judged:
        return Step("For numbers that mean something:", "la-reconvla study run quick")
    words, size = _without(shlex.split(results.study.command), "--seeds"), declared_in(results.study).size
    starts = _starts(results)
    if size is not None:
        at_least = starts or size.episodes  # where nothing was rolled out only seeds can join
        if len(seeds) > size.seeds or at_least > size.episodes or (len(seeds), at_least) == (size.seeds, size.episodes):
            return None
        if at_least < size.episodes:
            words = [*_without(words, "--episodes"), "--episodes", str(size.episodes)]
        found = min((row.points for row in results.power if row.seeds and row.seeds <= size.seeds), default=None)
        said = f"Verdicts are given at the declared size, {size.seeds} seeds of {size.episodes} starts a task"
        said += "" if found is None else f", which finds {100 * found:.0f} points four times in five"
        said += f"{_time(results, size.seeds, size.episodes)}."
        return Step("To decide, add what was declared:", _command(words, seeds, size.seeds), said)
    row = aimed_at(results)
    if row is None or row.seeds is None:
        return Step("To decide more, add seeds:", _command(words, seeds, max(3, 2 * len(seeds))))
    said = f"{row.seeds} seeds, {row.needed} episodes per arm, find a difference of {100 * row.points:.0f} points four "
    said += f"times in five{_time(results, row.seeds, starts)}."
    return Step("To decide more, add seeds:", _command(words, seeds, row.seeds), said)


def aimed_at(results: Results) -> Power | None:
    """The difference that the next step looks for: `AIM`, or the largest of those asked about that was measured.

    Where the study has the seeds for it already, the next smaller one; where no number of seeds suffices, the next
    larger one. None in results of before.
    """
    c, now = led_by(results), len(seeds_of(results))
    measured = abs(c.difference) if c and c.agreement else 0.0
    rows = sorted((row for row in results.power if row.seeds is not None and row.seeds > now), key=lambda r: r.points)
    wanted = max((row.points for row in results.power if row.points <= max(AIM, measured)), default=0.0)
    smaller = [row for row in rows if row.points <= wanted]
    return smaller[-1] if smaller else next(iter(rows), None)


def seeds_of(results: Results) -> list[int]:
    """Training seeds of the study."""
    return sorted({cell.seed for arm in results.conditions for cell in arm.cells})


def time_to(results: Results, seeds: int, starts: int) -> float | None:
    """Seconds that so many seeds, and starts of a task, take beyond those of the study, at its pace on its machine.

    None where a part was not timed, or was done elsewhere and came as records.
    """
    parts, now = results.study.wall_seconds, (len(seeds_of(results)), _starts(results))
    if not {"training", "rollouts"} <= set(parts) or not all(now) or not starts:
        return None
    alone = [training_seconds(results, cell.train) or 0.0 for arm in results.conditions for cell in arm.cells]
    if parts["training"] * (results.study.hardware.get("cores") or 1) < sum(alone) / 2:
        return None
    more, rolled = seeds / now[0], seeds * starts / (now[0] * now[1])
    trained = parts["training"] + parts.get("held-out frames", 0.0)
    filmed, before = (min(STARTS, count * len(results.study.tasks)) for count in (starts, now[1]))
    drawn = parts.get("statistics and pictures", 0.0) * (filmed / before - 1)  # films of the first seed alone
    return trained * (more - 1) + parts["rollouts"] * (rolled - 1) + drawn


def training_seconds(results: Results, facts: dict[str, Any]) -> float | None:
    """Seconds that a training took: recorded, or from its steps and its median speed."""
    if facts.get("seconds") is not None:
        return facts["seconds"]
    batch = results.study.settings.get("config", {}).get("train", {}).get("batch_size")
    if batch is None or not facts.get("samples_per_second") or facts.get("steps") is None:
        return None
    return facts["steps"] * batch / facts["samples_per_second"]


def step_table(results: Results) -> TextTable:
    """What each difference would take by the study's own test, as `la_reconvla.analysis.power` says, and how long."""
    rows = []
    for row in results.power if any(row.seeds for row in results.power) else ():
        seconds = None if row.seeds is None else time_to(results, row.seeds, _starts(results))
        more = "–" if seconds is None else "none" if seconds <= 0 else duration(seconds)
        rows.append((f"{100 * row.points:.0f} points", needed(row), f"{100 * row.power:.0f} %", more))
    header = ("difference", "needed for 80 % power", "power so far", "more time here")
    return TextTable("What would find a difference of success", header, rows)


def same_power(results: Results) -> str:
    """The command of ``check power`` that gives the rows of `step_table`; empty in results that have none of it."""
    spread = next((row.between_seeds for row in results.power if row.between_seeds is not None), None)
    starts = _starts(results)
    if spread is None or not starts:
        return ""
    declared, arms = declared_in(results.study), [arm.id for arm in results.conditions]
    of = {
        "seeds": len(seeds_of(results)),
        "tasks": len(results.study.tasks),
        "episodes": starts,
        "arms": sum(arm in declared.arms for arm in arms) if declared.pooled else 2,
        "between-seeds": spread,
        "tests": declared.tests(arms),
        "shared": 2 if results.study.placement == "wide" else 1,
    }
    return "la-reconvla check power " + " ".join(f"--{name} {value}" for name, value in of.items())


def _time(results: Results, seeds: int, starts: int) -> str:
    seconds = time_to(results, seeds, starts)
    return "" if seconds is None else f"; about {duration(seconds)} more on the machine of this study"


def _starts(results: Results) -> int:
    """Starts of each task that each policy was rolled out on."""
    episodes = max((c.tsr.episodes for c in results.conditions if c.tsr), default=0)
    return episodes // max(1, len(seeds_of(results)) * len(results.study.tasks))


def _command(words: Sequence[str], seeds: Sequence[int], count: int) -> str:
    added = itertools.islice((seed for seed in itertools.count() if seed not in seeds), count - len(seeds))
    every = sorted([*seeds, *added])
    row = every == list(range(every[0], every[-1] + 1)) and len(every) > LISTED
    listed = f"$(seq {every[0]} {every[-1]})" if row else " ".join(map(str, every))
    return f"{shlex.join([*words, '--seeds'])} {listed}"


def _without(words: Sequence[str], option: str) -> list[str]:
    """A command line without an option and its values, given as ``--option value`` or ``--option=value``."""
    begin = next((i for i, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    rest = itertools.dropwhile(lambda word: not word.startswith("--"), words[begin + 1 :])
    return [*words[:begin], *rest]
