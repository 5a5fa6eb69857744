"""What a study consists of, and the presets. Every number of a run is one of these fields."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from la_reconvla.backbones.latents import Latents
from la_reconvla.backbones.paligemma import SmallPaliGemma
from la_reconvla.backbones.pretrained import Pretrained
from la_reconvla.backbones.shared import BackboneConfig
from la_reconvla.backbones.trained_weights import Freeze, Lora
from la_reconvla.conditions import ARMS, CONDITIONS, GRID, NO_IMAGE, Condition, condition
from la_reconvla.data.starts import PlacementKind
from la_reconvla.errors import UserError, unknown
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.variants.autoregressive import DecodingName
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.targets import Pixels
from la_reconvla.robot import Fit, Quality
from la_reconvla.training.loop import TrainConfig

# What small diffusion heads draw: 48 numbers per patch, about as many as the published latents have. Noise in all of a
# patch's 588 to 2352 pixels does not pass through tokens of 44 to 240 numbers.
COARSE = Pixels(side=4)

# What the small presets train: a backbone that has acted before (docs/base.md), and reconstruction heads that are cheap
# beside it. Both have equal parameters to 5 %; the denoiser takes about 1.5 times the operations.
ACTING = SmallPaliGemma(mlp=2, chunk=12, wrist=True, stem="conv", weights="base")
RECOVERING = 1 / 3  # of their scenes are recorded from a mistake on
LIGHT = MAEDecoder(depth=2, width=128, attention_heads=4)
LIGHT_DENOISER = Denoiser(depth=2, width=108, attention_heads=4, repeats=1, target=COARSE)


@dataclass(frozen=True)
class StudyConfig:
    """One study.

    Attributes:
        preset: name of the preset that it came from.
        suite: LIBERO suite, or ``toy`` (`la_reconvla.sim.toy`).
        tasks: indices of its tasks.
        placement: where demonstrations and evaluation starts come from.
        also_official: evaluate also on this many official initial states per task.
        elsewhere: other suites on whose official states every arm, floor and reference is evaluated too.
        elsewhere_episodes: episodes of them per task and policy.
        demos: demonstrations for each task, held-out ones included.
        held_out: share of the scenes kept for held-out frames.
        quality: render quality of everything.
        frame_stride: control steps between recorded frames.
        mistakes: share of scenes that are recorded from a state after a mistake, see `la_reconvla.sim.options`.
        backbone: the policy's backbone; its image size is also the size that frames are rendered at.
        cameras: names of the main camera and of one beside it, see `la_reconvla.robot.Inputs`; () for the data's.
        fit: what becomes of pictures that are not square.
        decoding: of actions: all in one pass, token by token, or drawn from noise.
        decoder: size of the MAE decoder in every arm that has one.
        denoiser: size of the diffusion head in every arm that has one. In the presets with a small backbone it has the
            parameters of `decoder` to 5 % and draws one noise level per sample: its operations are 1.5 times those of
            `decoder`, which are a small part of a step.
        recon_weight: lambda of every arm that reconstructs; None leaves each its own. One that changes while an arm
            trains is what that arm is, and stays.
        gaze: where the target's boxes come from for arms that are told of it: ``masks`` of the simulator, or a file
            written by ``la-reconvla data boxes``.
        train: how to train.
        spread: standard deviation of the soft action labels in bins.
        seeds: training seeds; each arm is trained once with each.
        conditions: ids of the arms.
        episodes: evaluation episodes per task and trained policy.
        floor_episodes: the same for floors and references.
        floor_arm: arm whose policy is rolled out with a grey image and a wrong instruction.
        frames: held-out frames on which action error and attention are measured.
        judged: give a verdict on each hypothesis; False where a study is too small to mean anything.
    """

    preset: str = "custom"
    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = (0, 1, 2)
    placement: PlacementKind = "wide"
    also_official: int = 0
    elsewhere: tuple[str, ...] = ()
    elsewhere_episodes: int = 10
    demos: int = 50
    held_out: float = 0.15
    quality: Quality = "fast"
    frame_stride: int = 2
    mistakes: float = 0.0
    backbone: BackboneConfig = field(default_factory=SmallPaliGemma)
    cameras: tuple[str, ...] = ()
    fit: Fit = "squeeze"
    decoder: MAEDecoder = field(default_factory=MAEDecoder)
    decoding: DecodingName = "parallel"
    denoiser: Denoiser = field(default_factory=Denoiser)
    recon_weight: float | None = None
    gaze: str = "masks"
    train: TrainConfig = field(default_factory=TrainConfig)
    spread: float = 4.0
    seeds: tuple[int, ...] = (0,)
    conditions: tuple[str, ...] = tuple(arm.id for arm in ARMS)
    episodes: int = 10
    floor_episodes: int = 10
    floor_arm: str = "C1"
    frames: int = 300
    judged: bool = True

    def __post_init__(self):
        for name in ("tasks", "seeds", "conditions", "elsewhere", "cameras"):
            values = getattr(self, name)
            if not values and name not in ("elsewhere", "cameras"):
                raise UserError(f"a study needs at least one of its {name}")
            if len(set(values)) < len(values):
                raise UserError(f"{name} are listed twice: {', '.join(map(str, values))}")
        for name in ("demos", "episodes", "floor_episodes", "elsewhere_episodes", "frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.placement == "wide" and self.demos < 4:
            raise UserError(f"demos must be at least 4, not {self.demos}: two scenes of two, one of them held out")
        backbone = self.backbone
        if isinstance(backbone, SmallPaliGemma) and backbone.freeze_vision and backbone.weights is None:
            raise UserError("freeze_vision keeps random weights that see nothing: name weights, or let it train")
        for id in self.conditions:
            condition(id)
        if NO_IMAGE.id in self.conditions:
            raise UserError(f"'{NO_IMAGE.id}' is a floor and is always part of a study: leave it out of the conditions")

    def arm(self, id: str) -> Condition:
        """The arm of this id as this study trains it.

        Raises:
            UserError: if there is none, with near misses.
        """
        chosen = condition(id).with_reconstruction_head(self.decoder, self.denoiser)
        return chosen.with_weight(self.recon_weight) if id in CONDITIONS else chosen  # C4-5 has said its own

    def changed(self, **changes: Any) -> StudyConfig:
        """The same study with some numbers replaced, wherever they live: here, in the backbone, decoder or schedule.

        `la_reconvla.study.options` names what may be changed. None changes nothing; weights are taken away by "none".
        `backbone` is the source of a pretrained one, which gets the preset's settings. `grid` means the
        conditions of the grid.
        Fewer episodes mean fewer for the floors too, and a floor's arm that is not trained is replaced by the last arm.
        A study on official states is not evaluated on them a second time.

        Raises:
            UserError: from the parts, for values that do not fit.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        parts = {}
        if given.pop("grid", False):
            if "conditions" in given:
                raise UserError("--grid is a choice of conditions: leave one of the two out")
            given["conditions"] = tuple(arm.id for arm in GRID)
        if given.get("weights") == "none":
            given |= {"weights": None, "freeze_vision": False}
        if (latents := given.pop("latents", None)) is not None:
            self = replace(self, denoiser=replace(self.denoiser, target=Latents.of(latents)))
        if (source := given.pop("backbone", None)) is not None:
            self = replace(self, backbone=_pretrained(self.backbone, source))
        if own := {name: given.pop(name) for name in ("lora_rank", "quantize", "dtype") if name in given}:
            self = replace(self, backbone=_adapted(self.backbone, **own))
        if "weights" in given and isinstance(self.backbone, Pretrained):
            raise UserError("weights is for the small backbone: a pretrained one brings its own, leave --weights out")
        for part in ("backbone", "decoder", "train"):
            own = getattr(self, part)
            mine = {f.name: given.pop(f.name) for f in fields(own) if f.name in given}
            parts[part] = replace(own, **mine)
        if "episodes" in given:
            given.setdefault("floor_episodes", min(given["episodes"], self.floor_episodes))
        if given.get("placement") == "official":
            if given.get("also_official"):
                raise UserError("also_official adds official states to wide ones: with official ones, give --episodes")
            if given.get("suite", self.suite) in given.get("elsewhere", ()):
                raise UserError("the study is on the official states of its suite already: leave that out of elsewhere")
            given["also_official"] = 0
        if self.floor_arm not in (arms := given.get("conditions", self.conditions)):
            given.setdefault("floor_arm", arms[-1])
        return replace(self, **given, **parts)


def _pretrained(before: BackboneConfig, source: str) -> Pretrained:
    """The pretrained backbone `source` in the place of another."""
    if isinstance(before, Pretrained):
        return replace(before, source=source, revision=None)
    return Pretrained(source, chunk=before.chunk, proprio=before.proprio, wrist=before.wrist)


def _adapted(before: BackboneConfig, lora_rank: int | None = None, **changes: Any) -> Pretrained:
    """A pretrained backbone that is kept or trained in another way; rank 0 trains without adapters."""
    if not isinstance(before, Pretrained):
        raise UserError("lora_rank, quantize and dtype are for a pretrained backbone: give --backbone too")
    if lora_rank is not None:
        changes["lora"] = replace(before.lora or Lora(), rank=lora_rank) if lora_rank else None
    return replace(before, **changes)


PRESETS = {
    preset.preset: preset
    for preset in (
        StudyConfig(
            preset="smoke",
            tasks=(0,),
            also_official=1,
            demos=4,
            held_out=0.4,
            frame_stride=8,
            backbone=SmallPaliGemma(image_size=56, patch=14, width=48, vision_layers=1),
            decoder=MAEDecoder(depth=1, width=48, attention_heads=4),
            denoiser=Denoiser(depth=1, width=44, attention_heads=4, repeats=1, sampling=10, target=COARSE),
            train=TrainConfig(steps=30, batch_size=8, warmup=5, save_every=10, check_every=10),
            conditions=("C1", "C2", "C4"),
            episodes=1,
            floor_episodes=1,
            frames=24,
            judged=False,
        ),
        StudyConfig(  # a toy in which grounding is needed by construction: does the machinery find it, and only it?
            preset="known-answer",
            suite="toy",
            tasks=(0,),
            demos=144,
            frame_stride=1,
            backbone=SmallPaliGemma(
                image_size=32,
                patch=16,
                width=48,
                vision_layers=1,
                language_layers=2,
                attention_heads=1,
                kv_heads=1,
                mlp=2,
                chunk=1,
                saliency_layers=2,
            ),
            decoder=MAEDecoder(depth=1, width=32, attention_heads=4),
            recon_weight=2.0,
            train=TrainConfig(steps=450, batch_size=32, learning_rate=2e-3, warmup=20, save_every=450),
            spread=8.0,
            seeds=(0, 1, 2, 3),
            conditions=("C2", "G1", "G1-shuffled"),
            episodes=64,
            floor_episodes=32,
            floor_arm="G1",
            frames=64,
        ),
        StudyConfig(
            preset="quick",
            tasks=(0, 1),
            demos=12,
            frame_stride=4,
            mistakes=RECOVERING,
            backbone=replace(ACTING, freeze_vision=True),
            decoder=LIGHT,
            denoiser=LIGHT_DENOISER,
            train=TrainConfig(steps=80, optimizer="muon", batch_size=32, learning_rate=1e-3, warmup=10, shift=4),
            episodes=4,
            floor_episodes=2,
            frames=60,
        ),
        StudyConfig(
            preset="small",
            tasks=(0, 1, 2),
            also_official=10,
            demos=50,
            mistakes=RECOVERING,
            backbone=ACTING,
            decoder=LIGHT,
            denoiser=LIGHT_DENOISER,
            train=TrainConfig(steps=400, optimizer="muon", batch_size=32, learning_rate=5e-4, warmup=30, shift=4),
            seeds=(0, 1, 2),
            episodes=20,
            floor_episodes=5,  # each seed has its own floors: 45 episodes of each
            frames=600,
        ),
        StudyConfig(  # the published setting on one 16 GB card: see docs/backbones.md for memory and time
            preset="paper",
            tasks=(0, 1, 2),
            also_official=10,
            demos=50,
            backbone=Pretrained(
                "google/paligemma-3b-pt-224", chunk=8, freeze=Freeze(vision=True), lora=Lora(rank=16), dtype="fp16"
            ),
            train=TrainConfig(
                steps=5000,
                batch_size=16,
                accumulate=4,
                learning_rate=2e-4,
                warmup=100,
                precision="fp16",
                save_every=250,
                check_every=500,
            ),
            seeds=(0, 1, 2),
            episodes=20,
            floor_episodes=20,
            frames=600,
        ),
    )
}


def preset(name: str) -> StudyConfig:
    """The preset of this name.

    Raises:
        UserError: if there is none, with near misses.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
