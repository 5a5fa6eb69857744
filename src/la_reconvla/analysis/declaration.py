"""What a study judges, declared in a file before it runs: claims in words, the family of comparisons, level and margin.

The package's own file is ``hypotheses.json`` beside this one; ``study run --hypotheses FILE`` declares something else.
The text and its SHA-256 are written to ``study.json`` when a study begins and to ``results.json`` when it ends; a study
is judged by what it declared then, even if the file has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from la_reconvla.analysis.frames import FRAME_METRICS
from la_reconvla.analysis.measures import EPISODE_METRICS
from la_reconvla.analysis.results import Study
from la_reconvla.conditions import CONDITIONS, find_condition
from la_reconvla.errors import UserError, unknown
from la_reconvla.storage import parse_json

Key = tuple[str, str, str]
Rule = Literal["hull", "pooled"]
ALPHA = 0.05
NEWER = "interval", "size"  # fields that files of before lack
METRICS = (*EPISODE_METRICS, *FRAME_METRICS)


@dataclass(frozen=True)
class Size:
    """The size at which a study is judged: training seeds of each arm, starts of each task."""

    seeds: int
    episodes: int


@dataclass(frozen=True)
class Declaration:
    """What a study judges.

    Attributes:
        claims: what each verdict is about, in words.
        alpha: level of every test, two-sided: 0.05, as the intervals are of 95 %.
        same_within: success rates closer than this count as equal, as a share.
        family: comparisons (a, b, metric) that Holm's correction runs over.
        equivalence: the comparison that H1 judges, by two one-sided tests.
        exploratory: comparisons outside of the family, not corrected for their number.
        interval: the rule of intervals and p: ``pooled`` takes the variance between trainings from all arms
            (`la_reconvla.analysis.pooled`); ``hull``, from the pair alone (`la_reconvla.analysis.paired`), is that of
            studies that began without this field, and none can begin with it any more.
        size: of the study, after which it is judged; None where none was declared.
        text: the file, to the letter.
    """

    claims: Mapping[str, str]
    alpha: float
    same_within: float
    family: tuple[Key, ...]
    equivalence: Key
    exploratory: tuple[Key, ...]
    text: str
    interval: Rule = "hull"
    size: Size | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def arms(self) -> frozenset[str]:
        """Arms that a comparison names. By the pooled rule these tell how much trainings vary, whoever joins later."""
        keys = (*self.family, self.equivalence, *self.exploratory)
        return frozenset(arm for a, b, _ in keys for arm in (a, b))

    @property
    def losses(self) -> tuple[tuple[str, str], ...]:
        """Pairs of arms whose losses on other suites are compared. H4 judges the first, the arms of H1."""
        return tuple(dict.fromkeys((self.equivalence[:2], ("C4", "C2"), ("C4", "C1"))))

    def tests(self, arms: Iterable[str]) -> int:
        """How many tests of a study of these arms are corrected together, one at least: as
        `la_reconvla.analysis.comparing.all_comparisons` counts them.
        """
        known = {*arms}
        if self.pooled:
            return max(1, len(self.family) + len({"H1", "H4"} & {*self.claims}))
        return max(1, sum({a, b} <= known for a, b, _ in self.family))

    @property
    def pooled(self) -> bool:
        """Whether the rules that came with the pooled interval hold: correction as declared, checks, retained share."""
        return self.interval == "pooled"

    @classmethod
    def parse(cls, text: str, where: str) -> Declaration:
        """The declaration that a file holds; `where` names it in messages.

        Raises:
            UserError: it is not JSON, a field is missing, unknown or of another kind, a comparison names an arm or a
                metric that does not exist or is listed twice, or level or margin are no shares.
        """
        try:
            value = parse_json(text)
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON ({error}): correct it there") from None
        names = [name for name in cls.__dataclass_fields__ if name not in ("text", *NEWER)]
        if not isinstance(value, dict) or set(value) - set(NEWER) != set(names):
            found = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise UserError(
                f"{where} must hold exactly {', '.join(names)}, and may hold {', '.join(NEWER)}; it holds {found}"
            )
        for name in ("alpha", "same_within"):
            if not isinstance(value[name], float) or not 0 < value[name] < 0.5:
                raise UserError(f"{where}: {name} must be a share between 0 and 0.5, for example 0.05")
        if value["alpha"] != ALPHA:
            raise UserError(f"{where}: alpha must be {ALPHA}, which is what the intervals of 95 % are made for")
        if (interval := value.get("interval", "hull")) not in get_args(Rule):
            raise UserError(f"{where}: interval must be one of {', '.join(get_args(Rule))}, not {interval!r}")
        family = _keys(value["family"], f"{where}, family")
        return cls(
            claims=_claims(value["claims"], family, interval, where),
            alpha=value["alpha"],
            same_within=value["same_within"],
            family=family,
            equivalence=_keys([value["equivalence"]], f"{where}, equivalence")[0],
            exploratory=_keys(value["exploratory"], f"{where}, exploratory"),
            text=text,
            interval=interval,
            size=_size(value.get("size"), where),
        )

    @classmethod
    def read(cls, path: Path | str) -> Declaration:
        """The declaration in this file, or in the one of this name that comes with the package.

        Raises:
            UserError: there is no such file, or as `parse`.
        """
        ours = PACKAGED.with_name(Path(path).name)
        found = ours if str(path) == ours.name and ours.exists() and not Path(path).exists() else Path(path)
        try:
            return cls.parse(found.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: hypotheses cannot be read ({error}): give a JSON file like {POOLED}") from None


def _claims(value: Any, family: Sequence[Key], interval: Rule, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(claim, str) and claim for claim in value.values()):
        raise UserError(f"{where}: claims must give each hypothesis a sentence")
    if not value or any(id not in JUDGED and OVER not in id for id in value):
        raise UserError(
            f"{where}: claims must be about {', '.join(JUDGED)}, which is what a study judges, or about A{OVER}B, more "
            "successes of arm A than of arm B"
        )
    for id in value:
        a, over, b = id.partition(OVER)
        judged_by = ((a, b, "tsr"),) if over else GROUNDING if id == "H3" and interval == "pooled" else ()
        for key in judged_by:
            if key not in family:
                raise UserError(f"{where}: the claim {id} is judged by {json.dumps(key)}, which family must name")
    return value


def _size(value: Any, where: str) -> Size | None:
    if value is None:
        return None
    if (
        not isinstance(value, dict)
        or set(value) != {"seeds", "episodes"}
        or not all(type(count) is int and count > 0 for count in value.values())
    ):
        raise UserError(f'{where}: size looks like {{"seeds": 8, "episodes": 20}}: of each arm, and of each task')
    return Size(**value)


def _keys(value: Any, where: str) -> tuple[Key, ...]:
    if not isinstance(value, list) or not all(
        isinstance(key, list) and len(key) == 3 and all(isinstance(name, str) for name in key) for key in value
    ):
        raise UserError(f'{where}: comparisons look like ["C4", "C2", "tsr"]: two arms and a metric')
    for a, b, metric in value:
        for arm in (a, b):
            if find_condition(arm) is None:
                raise UserError(f"{where}: {unknown('condition', arm, CONDITIONS)}")
        if metric not in METRICS:
            raise UserError(f"{where}: {unknown('metric', metric, METRICS)}")
    if len(keys := tuple((a, b, metric) for a, b, metric in value)) > len(set(keys)):
        raise UserError(f"{where}: a comparison is listed twice")
    return keys


OVER = ">"
HEADLINE = f"C4{OVER}C2"
GROUNDING: tuple[Key, ...] = (("C4", "C2", "aos"), ("C4", "C1", "aos"))  # what H3 is judged by
CHECKS = ("image", "words")
"""What is no claim: it is not corrected with the others and gets no verdict."""
JUDGED = (HEADLINE, "H1", "H2", "H3", "H4", *CHECKS)
"""Ids of the verdicts, in their order; how each is judged is code, `la_reconvla.analysis.verdicts`."""
PACKAGED, POOLED = map(Path(__file__).with_name, ("hypotheses.json", "declared-2026-11.json"))
DECLARED = Declaration.read(PACKAGED)
BEFORE = replace(DECLARED, interval="hull")
"""What studies that declared nothing are judged by: the package's own claims, and the rule of before."""


def declared_in(study: Study) -> Declaration:
    """What this study declared before it ran."""
    return Declaration.parse(study.hypotheses, "study.hypotheses") if study.hypotheses else BEFORE
