"""A policy for others: a folder that loads anywhere, with a model card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi, ModelCard, ModelCardData, errors

from la_reconvla import layout
from la_reconvla.analysis.summaries import rate
from la_reconvla.backbones.pretrained import KNOWN, Pretrained
from la_reconvla.conditions import CONDITIONS
from la_reconvla.episodes import View, read_episodes
from la_reconvla.errors import UserError
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.storage import atomic_write, read_json, read_jsonl
from la_reconvla.study.heldout import read_held_out
from la_reconvla.training.checkpoint import PolicyConfig
from la_reconvla.training.exporting import export_policy
from la_reconvla.training.trackers import METRICS

CARD = "README.md"
LIMITS = (
    "Trained and evaluated in simulation only (LIBERO, MuJoCo), on demonstrations of "
    "the tasks above. Nothing is known of other tasks, scenes, cameras or robots.",
    "Do not run it on a real robot: nothing here limits forces, speeds or the workspace.",
    "One seed. A success rate means something only above its floors: the same policy shown a grey image or told "
    "another instruction, and a demonstration replayed blindly.",
    "An attention map shows where the words look, not why the policy acts.",
)


def export(run: Path, out: Path, merged: bool = False) -> Path:
    """Write the policy and its card to `out`; see `la_reconvla.training.exporting.export_policy`."""
    config = export_policy(run, out, merged)
    with atomic_write(out / CARD) as temporary:
        temporary.write_text(str(card(run, config)), encoding="utf-8")
    return out


def push(run: Path, repo: str, merged: bool = False, private: bool = False) -> str:
    """Upload the policy to the hub, where `la_reconvla.training.checkpoint.load_policy` finds it as `repo`.

    Raises:
        UserError: if it would not load elsewhere, or the hub refuses.
    """
    backbone = PolicyConfig.load(run).backbone
    if isinstance(backbone, Pretrained) and not merged and Path(backbone.source).is_dir():
        raise UserError(f"{run} needs the weights in {backbone.source}, which nobody else has: push it with --merged")
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder), merged)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Policy by la-reconvla")
        except errors.HFValidationError as error:
            raise UserError(f"'{repo}' is no name of a repository: give user/name") from error
        except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, OSError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the hub refuses {repo} ({first}): run `hf auth login` with a token that may write"
            ) from error
    return repo


def card(run: Path, config: PolicyConfig) -> ModelCard:
    """Data, condition, results, limits.

    Args:
        run: the run, for its curves and evaluations.
        config: of what is published.
    """
    backbone, source = config.backbone, _source(PolicyConfig.load(run))
    licence = "gemma" if source in KNOWN else None
    data = ModelCardData(
        license=licence,
        base_model=source if source and not Path(source).is_dir() else None,
        library_name="la-reconvla",
        pipeline_tag="robotics",
        tags=["robotics", "vision-language-action", "libero", "la-reconvla"],
    )
    arm, train = CONDITIONS.get(config.condition), read_jsonl(run / METRICS)
    extra = arm.reconstruction if arm else None
    lines = [
        f"# LA-ReconVLA, condition {config.condition}, seed {config.seed}",
        "",
        "A vision-language-action policy: an image and an instruction in, a chunk of seven-dimensional actions out.",
        "",
        "## Condition",
        "",
        f"- {config.condition}: {arm.name if arm else 'not among the named ones'}"
        + (f"; {_objective(extra)}" if extra else ""),
        f"- backbone: {source or 'a small PaliGemma trained from random weights'}"
        + (f" at {backbone.revision}" if isinstance(backbone, Pretrained) and source == backbone.source else ""),
        *([f"- what trained: {_trained(PolicyConfig.load(run))}"] if source else []),
        f"- actions in a chunk: {backbone.chunk}, {config.decoding} decoding; robot state: {backbone.proprio}; "
        f"wrist camera: {backbone.wrist}",
        "",
        "## Data",
        "",
        f"- {len(config.train_starts)} initial states of {', '.join(_suites(config)) or 'an unnamed suite'}",
        *_origin(config),
        f"- frames of {config.image_size} px, render quality '{config.quality}', hash {config.data_hash}",
        "",
        "## Results",
        "",
        *(list(_results(run)) or ["- none: it has not been evaluated in closed loop"]),
        *([f"- training loss of the actions at the end: {train[-1]['action_loss']:.3f}"] if train else []),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in LIMITS),
        *([f"- {source} has a licence of its own; it holds for these weights too."] if source else []),
        "",
        "## Use",
        "",
        "```python",
        "from la_reconvla.training.checkpoint import load_policy",
        "",
        'policy, config = load_policy("user/name")  # or a folder',
        "```",
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _origin(config: PolicyConfig) -> list[str]:
    """The run that its training started from."""
    if (origin := config.origin) is None:
        return []
    return [f"- it began with the weights {origin.weights_hash} of {origin.run}: {len(origin.starts)} further states"]


def _objective(extra: Reconstruction) -> str:
    place = "" if extra.mask is None else f", masked at the {extra.mask_at}"
    lamda = getattr(extra.weight, "label", extra.weight)
    return f"{extra.region.label}, {extra.reconstruction_head.label} head, lambda {lamda}{place}"


def _source(config: PolicyConfig) -> str | None:
    return config.backbone.source if isinstance(config.backbone, Pretrained) else None


def _trained(config: PolicyConfig) -> str:
    b: Any = config.backbone
    how = f"LoRA of rank {b.lora.rank}" if b.lora else "all weights"
    where = "" if b.freeze.last is None else f" of the last {b.freeze.last} layers"
    seeing = "the vision tower stayed" if b.freeze.vision else "the vision tower too"
    return f"{how}{where} of the language model; {seeing}; base in {b.quantize or b.dtype}"


def _suites(config: PolicyConfig) -> list[str]:
    """Suite and task of each start, with how many there are."""
    counts: dict[str, int] = {}
    for start in config.train_starts:
        suite, task, placement, *_ = start.split("/")
        name = f"{suite} task {task} ({placement})"
        counts[name] = counts.get(name, 0) + 1
    return [f"{name}: {count}" for name, count in sorted(counts.items())]


def _other_terms(folder: Path) -> str:
    """The step limit and the instruction of an evaluation that took the place of its tasks' own."""
    if not (path := folder / layout.EVALUATION).exists():
        return ""
    held = read_json(path)
    limit, told = held.get("settings", {}).get("max_steps"), held.get("instruction")
    return (f", at most {limit} steps" if limit else "") + (f", told '{told}'" if told else "")


def _results(run: Path) -> Iterator[str]:
    """Success of each evaluation, action error and attention on held-out frames, from the files of the run."""
    for path in sorted(run.rglob(layout.EPISODES)):
        if found := rate(read_episodes(path.parent)):
            where = path.parent.relative_to(run) if path.parent != run else "the study's starts"
            where = f"{where}{_other_terms(path.parent)}"
            yield (
                f"- success, {where}: {found.successes} of {found.episodes} episodes, {100 * found.rate:.1f} % "
                f"(95 % interval {100 * found.low:.1f} to {100 * found.high:.1f})"
            )
    if (run / layout.HELD_OUT).exists():
        found = read_held_out(run)
        names: dict[View, str] = {"true": "true view", "grey_image": "grey image", "wrong_instruction": "other words"}
        for view, name in names.items():
            if errors := [record.action_error for record in found.views.get(view, ())]:
                yield f"- action error on held-out frames, {name}: {np.mean(errors):.3f} of the action range"
