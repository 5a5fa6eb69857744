"""The experiment as data. An arm is one value here and nothing else anywhere: no flag, no branch on a name.

====== =========== =============== ======== =========================================================
arm    mask        reconstruction  lambda   asks
====== =========== =============== ======== =========================================================
C1     none        none            -        the lower bound: the same policy, action loss only
C2     random      MAE             0.5      does *where* we mask matter, or only that we mask?
C3     attention   MAE             0.1, 1.0 is the result fragile in lambda?
C4     attention   MAE             0.5      the method
====== =========== =============== ======== =========================================================

Any arm that reconstructs with a fixed lambda takes another one after its name: ``C4-5`` is C4 with lambda 5.

The grid asks *what* is reconstructed and *by what*, at equal lambda, and in the small presets with heads of equal
parameters (`study.presets`). Masks are patches of the policy's own picture, crops are stretched over a picture of their
own, as in ReconVLA (arXiv 2508.10333). Gaze is the annotated target: only G1, G2, R1 and R2 get it.

============= ============== =============
what          MAE, one pass  diffusion
============= ============== =============
random        C2             D2
attention     C4             A1
gaze          G1             G2
random crop                  R2
gaze crop                    R1: ReconVLA
whole image                  R3
============= ============== =============

``C2-input`` and ``C4-input`` are the leak-free variants (`method.objective`); ``no-image`` is a floor: the policy of
C1 that never sees anything but grey; ``G1-shuffled`` is G1 with the boxes of other samples, for the study whose answer
is known (``study/known_answer.json``, preset ``known-answer``). The arms below `FOLLOWING` differ from C4 in one thing
each: what the mask follows (`method.saliency`) or how it is cut (`method.mask`). They are not part of the default
study, and neither is ``S2``, the opposite: it sees nothing but a budget of patches, which the action loss chooses, and
reconstructs nothing (`method.variants.budget`, after arXiv 2606.02735).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from la_reconvla.errors import UserError, unknown
from la_reconvla.method.mask import AttentionMask, RandomMask
from la_reconvla.method.reconstruction import Reconstruction, ReconstructorConfig
from la_reconvla.method.saliency import SaliencySource
from la_reconvla.method.variants.action_rows import ActionRows
from la_reconvla.method.variants.attention_heads import SinkRemoved
from la_reconvla.method.variants.budget import Budget
from la_reconvla.method.variants.content_words import ContentWords
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.gaze import GazeCrop, GazeMask, RandomCrop, ShuffledGazeMask, WholeImage
from la_reconvla.method.variants.inverted import InvertedMask
from la_reconvla.method.variants.learned import LearnedSource
from la_reconvla.method.variants.localisation_heads import LocalisationHeads
from la_reconvla.method.variants.regions import RegionMask, TwoRegionMask
from la_reconvla.method.variants.teacher import EMATeacher
from la_reconvla.method.variants.warm_up import WarmUp


@dataclass(frozen=True)
class Condition:
    """One arm.

    Attributes:
        id: short name, also the name of its folder.
        name: for people.
        reconstruction: what is added to the action loss; None for nothing.
        blind: train and act on a grey image.
        budget: how much of the picture the policy sees, in training and acting; None for all of it.
        head_start: optimizer steps that the reconstruction head learns alone before the policy's first one, see
            `la_reconvla.training.head_start`; 0 as published.

    Raises:
        ValueError: for a budget beside a reconstruction, or a head start without one that masks in the decoder.
    """

    id: str
    name: str
    reconstruction: Reconstruction | None = None
    blind: bool = False
    budget: Budget | None = None
    head_start: int = 0

    def __post_init__(self):
        if self.head_start and self.reconstruction is None:
            raise ValueError("only a head that reconstructs can learn before the policy")
        if self.head_start and self.reconstruction and self.reconstruction.mask_at == "input":
            raise ValueError("a head learns alone from features that stand still: those of hidden pixels do not")
        if self.budget is not None and self.reconstruction is not None:
            raise ValueError("an arm either reconstructs patches or hides all but a budget of them")

    @property
    def saliency(self) -> SaliencySource | None:
        """What the arm's mask or budget follows; None where it follows nothing."""
        if self.budget is not None:
            return self.budget.saliency
        return None if self.reconstruction is None else self.reconstruction.follows

    @property
    def learned_saliency(self) -> LearnedSource | None:
        """`saliency` where it learns while the policy trains."""
        return self.saliency if isinstance(self.saliency, LearnedSource) else None

    @property
    def annotation_free(self) -> bool:
        """Whether the arm is trained without boxes of the target."""
        return self.reconstruction is None or not self.reconstruction.region.needs_gaze

    def with_reconstruction_head(self, *choices: ReconstructorConfig) -> Condition:
        """The same arm with the one of `choices` that is of its kind, thus of another size; without one as it is."""
        own = self.reconstruction
        fits = [one for one in choices if own is not None and type(one) is type(own.reconstruction_head)]
        return replace(self, reconstruction=replace(own, reconstruction_head=fits[0])) if own and fits else self

    def with_weight(self, weight: float | None) -> Condition:
        """The same arm with this lambda; as it is without one, where nothing is reconstructed, or where its own lambda
        depends on the share of the training that is done: a number in its place would make another arm of it.
        """
        own = self.reconstruction
        if own is None or weight is None or callable(own.weight):
            return self
        return replace(self, reconstruction=replace(own, weight=weight))


C1 = Condition("C1", "action loss only")
C2 = Condition("C2", "random mask", Reconstruction(RandomMask()))
C3_LOW = Condition("C3-0.1", "attention mask, lambda 0.1", Reconstruction(AttentionMask(), weight=0.1))
C3_HIGH = Condition("C3-1.0", "attention mask, lambda 1.0", Reconstruction(AttentionMask(), weight=1.0))
C4 = Condition("C4", "attention mask", Reconstruction(AttentionMask(), weight=0.5))
C2_INPUT = Condition("C2-input", "random mask, leak-free", Reconstruction(RandomMask(), mask_at="input"))
C4_INPUT = Condition("C4-input", "attention mask, leak-free", Reconstruction(AttentionMask(), mask_at="input"))
S2 = Condition("S2", "all hidden but a learned budget", budget=Budget())
NO_IMAGE = Condition("no-image", "instruction only, grey image", blind=True)

FOLLOWING = (  # the others whose mask follows attention
    Condition("C4-words", "attention of content words", Reconstruction(saliency=ContentWords())),
    Condition("C4-localised", "attention of localisation heads", Reconstruction(saliency=LocalisationHeads())),
    Condition("C4-sinks", "attention without sinks", Reconstruction(saliency=SinkRemoved())),
    Condition("C4-actions", "attention of the action tokens", Reconstruction(saliency=ActionRows())),
    Condition("C4-teacher", "attention of an averaged teacher", Reconstruction(saliency=EMATeacher())),
    Condition("C4-region", "one region of attention", Reconstruction(RegionMask())),
    Condition("C4-two", "regions of target and destination", Reconstruction(TwoRegionMask())),
    Condition("C4-warmup", "attention mask after random ones", Reconstruction(WarmUp())),
    Condition("C4-inverted", "inverted attention mask", Reconstruction(InvertedMask())),
)

DIFFUSION = Denoiser()
R1 = Condition("R1", "gaze crop (ReconVLA)", Reconstruction(None, DIFFUSION, crop=GazeCrop()))
R2 = Condition("R2", "random crop", Reconstruction(None, DIFFUSION, crop=RandomCrop()))
R3 = Condition("R3", "whole image", Reconstruction(None, DIFFUSION, crop=WholeImage()))
G1 = Condition("G1", "gaze mask", Reconstruction(GazeMask()))
G1_SHUFFLED = Condition("G1-shuffled", "gaze mask of another sample", Reconstruction(ShuffledGazeMask()))
G2 = Condition("G2", "gaze mask, diffusion", Reconstruction(GazeMask(), DIFFUSION))
A1 = Condition("A1", "attention mask, diffusion", Reconstruction(AttentionMask(), DIFFUSION))
D2 = Condition("D2", "random mask, diffusion", Reconstruction(RandomMask(), DIFFUSION))

HEAD_START = tuple(  # of as many steps: after 2,000 C4's and G1's heads of `small` beat the mean picture, C2's does not
    replace(arm, id=f"{arm.id}-head", name=f"{arm.name}, head trained before", head_start=2000) for arm in (C2, C4, G1)
)

GRID = (C1, C2, D2, C4, A1, G1, G2, R1, R2, R3)
ARMS = (C1, C2, C3_LOW, C3_HIGH, C4)
CONDITIONS = {
    condition.id: condition
    for condition in (*ARMS, *GRID, G1_SHUFFLED, C2_INPUT, C4_INPUT, *FOLLOWING, *HEAD_START, S2, NO_IMAGE)
}


def add_condition(arm: Condition) -> Condition:
    """Make an arm of yours known by its id, to studies, declarations and reports. Returns `arm`.

    Raises:
        UserError: if the id is another arm's already, or cannot be the name of a folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", arm.id):
        raise UserError(f"'{arm.id}' cannot name a folder: letters, digits, '.', '_' and '-' can")
    if CONDITIONS.setdefault(arm.id, arm) != arm:
        raise UserError(f"there is another arm '{arm.id}' already ({CONDITIONS[arm.id].name}): choose another id")
    return arm


def find_condition(id: str) -> Condition | None:
    """The arm of this id, or one of `CONDITIONS` with another lambda, such as ``C4-5``; None if there is none."""
    if id in CONDITIONS:
        return CONDITIONS[id]
    found = WEIGHTED.fullmatch(id)
    if found is None or (arm := CONDITIONS.get(found[1])) is None or WEIGHTED.fullmatch(arm.id):
        return None
    other = replace(arm.with_weight(float(found[2])), id=id, name=f"{arm.name}, lambda {found[2]}")
    known = (replace(one, id=id, name=other.name) for one in CONDITIONS.values())
    return None if other in known else other  # C4-0.5 is C4, C4-1 is C3-1.0, and C1 has no lambda


def condition(id: str) -> Condition:
    """The arm of this id; see `find_condition`.

    Raises:
        UserError: if there is none, with near misses.
    """
    if (found := find_condition(id)) is None:
        raise UserError(
            f"{unknown('condition', id, CONDITIONS)} One that reconstructs takes another lambda after its name, as in "
            "C4-5; an arm of your own comes by --import MODULE"
        )
    return found


WEIGHTED = re.compile(r"(.+)-([1-9]\d*|(?:0|[1-9]\d*)\.\d*[1-9])")  # one way to write each weight: no zeros around it
NEAREST = 3  # more comparisons of one arm, none of them corrected, would find something by chance


def nearest(arm: Condition, arms: Sequence[Condition]) -> list[Condition]:
    """Those of `arms` that an arm of no declaration is compared with: its nearest, and those without reconstruction.

    Nearest are those that differ from it in the fewest fields of `Reconstruction` and, among these, have the nearest
    lambda halfway through the training. Ties stay, in the order of `arms`, at most `NEAREST` of them.
    """
    others = [other for other in arms if other.id != arm.id]
    apart = {other.id: _apart(arm, other) for other in others}
    near = [other for other in others if apart[other.id] == min(apart.values())][:NEAREST]
    return [other for other in others if other in near or other.reconstruction is None]


def _apart(one: Condition, other: Condition) -> tuple[int, float]:
    """How far two arms are apart: in so many fields, and by so much of lambda halfway through the training."""
    a, b = one.reconstruction, other.reconstruction
    differing = sum(getattr(a, f.name, None) != getattr(b, f.name, None) for f in fields(Reconstruction))
    weights = [0.0 if extra is None else extra.weight_at(0.5) for extra in (a, b)]
    differing += sum(getattr(one, f) != getattr(other, f) for f in ("head_start", "blind", "budget"))
    return differing, abs(weights[0] - weights[1])
