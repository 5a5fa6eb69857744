"""``la-reconvla``: subcommands and nothing else. What they do lives in the rooms below.

Imports are inside the functions, so that ``doctor`` works where half of the machine is broken.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, Optional

import tyro
from rich.console import Console
from rich.text import Text

from la_reconvla.errors import UserError

app = tyro.extras.SubcommandApp()
Positional = tyro.conf.Positional
Ints = Optional[tuple[int, ...]]  # noqa: UP045 (tyro reads it at run time on Python 3.10)
Names = Optional[tuple[str, ...]]  # noqa: UP045
Quantize = Optional[Literal["nf4"]]  # noqa: UP045
Precision = Optional[Literal["fp32", "bf16", "fp16"]]  # noqa: UP045
Decoding = Optional[Literal["parallel", "autoregressive"]]  # noqa: UP045
Proprio = Optional[Literal["none", "gripper", "all"]]  # noqa: UP045
Placement = Optional[Literal["official", "wide"]]  # noqa: UP045


@app.command
def doctor(out: Path = Path(".")) -> None:
    """Check this machine: OpenGL, MuJoCo, memory, disk. Each failing check names the command that repairs it.

    Args:
        out: folder that runs will be written to; its disk is checked.
    """
    from la_reconvla.sim.machine import check_machine, print_checks

    checks = check_machine(out)
    print_checks(checks)
    if not all(check.ok for check in checks):
        raise SystemExit(1)


@app.command
def collect(
    out: Path,
    suite: str = "libero_spatial",
    tasks: tuple[int, ...] = (0, 1, 2),
    demos: int = 50,
    placement: Literal["official", "wide"] = "official",
    quality: Literal["official", "fast"] = "official",
    image_size: int = 128,
    frame_stride: int = 1,
    wrist: bool = True,
    maps: bool = True,
    noise: float = 0.1,
    workers: int = 0,
    seed: int = 0,
    allow_any_mujoco: bool = False,
) -> None:
    """Record demonstrations of the scripted expert in LIBERO's HDF5 layout. Stopped, it goes on by the same command.

    Args:
        out: folder to write to.
        suite: LIBERO suite.
        tasks: indices of its tasks.
        demos: successful episodes a task.
        placement: LIBERO's own initial states, or wide ones (objects moved, two things to ask for in each scene).
        quality: render quality; training and evaluation refuse to mix them.
        image_size: rows and columns of the frames.
        frame_stride: control steps between frames; 1 is LIBERO's own layout.
        wrist: also record the wrist camera.
        maps: also record which instance each pixel shows; without, a third more episodes a minute.
        noise: standard deviation of the action noise; labels stay clean.
        workers: processes; 0 takes as many as cores and memory allow.
        seed: of the noise.
        allow_any_mujoco: record with a MuJoCo whose physics is known to differ.
    """
    from la_reconvla.sim.collect import CollectConfig
    from la_reconvla.sim.collect import collect as run

    summary = run(
        CollectConfig(
            out=out,
            suite=suite,
            tasks=tasks,
            demos=demos,
            placement=placement,
            quality=quality,
            image_size=image_size,
            frame_stride=frame_stride,
            wrist=wrist,
            maps=maps,
            noise=noise,
            workers=workers,
            seed=seed,
            allow_any_mujoco=allow_any_mujoco,
        )
    )
    print(summary)


@app.command
def annotate(
    demonstrations: Positional[Path],
    out: Path,
    source: str = "masks",
    threshold: float = 0.25,
    every: int = 1,
    device: str = "auto",
) -> None:
    """Write where the target is in every frame, for arms that are told. Stopped, it goes on by the same command.

    Args:
        demonstrations: folder with ``*_demo.hdf5`` files.
        out: the file of boxes, ``*.jsonl``.
        source: masks, the simulator's own instance maps, or a zero-shot detector: an id on the hub or a folder.
        threshold: lowest score of a detector's box that counts.
        every: show a detector only every so many recorded frames.
        device: of a detector: auto, cpu, cuda or mps.
    """
    from la_reconvla.data.annotate import Detector, summary, write_boxes
    from la_reconvla.data.gaze import SUFFIX, Masks
    from la_reconvla.data.hdf5 import open_demonstrations
    from la_reconvla.progress import progress
    from la_reconvla.train import pick_device

    if out.suffix != SUFFIX:
        raise UserError(f"{out}: a file of boxes is called *{SUFFIX}, which is how training knows it: name it so")
    opened = open_demonstrations(demonstrations)
    annotator = Masks()
    if source != annotator.label:
        annotator = Detector(source, threshold=threshold, every=every, device=str(pick_device(device)))
    with progress("Annotating", total=len(opened.episodes), unit="episodes") as bar:
        write_boxes(opened, annotator, out, bar)
    print(summary(opened, out))


@app.command
def train(
    demonstrations: Path,
    out: Path,
    condition: str = "C4",
    seed: int = 0,
    preset: str = "small",
    backbone: str | None = None,
    weights: str | None = None,
    lora_rank: int | None = None,
    quantize: Quantize = None,
    dtype: Precision = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    learning_rate: float | None = None,
    shift: int | None = None,
    device: str | None = None,
    chunk: int | None = None,
    decoding: Decoding = None,
    proprio: Proprio = None,
    wrist: bool | None = None,
    max_tokens: int | None = None,
    norm_pixels: bool | None = None,
    gaze: str | None = None,
    latents: str | None = None,
) -> None:
    """Train one policy on a folder of demonstrations, LIBERO's own files included.

    Args:
        demonstrations: folder with ``*_demo.hdf5`` files.
        out: run folder; a killed run goes on in it.
        condition: arm, for example C1 or C4.
        seed: of weights, batches and masks.
        preset: where backbone, decoder and schedule come from; the options below replace single numbers.
        backbone: a pretrained one in the preset's place: an id on the hub or a folder.
        weights: what the preset's small backbone starts from: base, words-7x7, a file of pretrain, or none.
        lora_rank: of a pretrained backbone's adapters; 0 trains it without.
        quantize: nf4 keeps a pretrained backbone's linear layers in 4 bits; needs a GPU.
        dtype: of a pretrained backbone's weights.
        steps: optimizer steps.
        batch_size: samples a step.
        accumulate: micro-batches that a step's samples are divided into, for less memory.
        learning_rate: peak of the schedule.
        shift: move training pictures by up to so many pixels at random.
        device: auto, cpu, cuda or mps.
        chunk: actions decoded and executed at once; 1 is the published setting.
        decoding: parallel, all actions of a chunk in one pass; autoregressive, token by token as RT-2 and OpenVLA do.
        proprio: robot state: none (published), the gripper's width, or all of it.
        wrist: use the wrist camera too.
        max_tokens: longest instruction in tokens.
        norm_pixels: reconstruct pixels normalised in each patch.
        gaze: for arms that are told where the target is: masks of the simulator, or a file of the command annotate.
        latents: what diffusion heads draw: latents of this VAE (id on the hub or folder) in the place of pixels.
    """
    from la_reconvla.study.ablation import train_one

    changes = {
        "backbone": backbone,
        "weights": weights,
        "lora_rank": lora_rank,
        "quantize": quantize,
        "dtype": dtype,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "shift": shift,
        "device": device,
        "chunk": chunk,
        "decoding": decoding,
        "proprio": proprio,
        "wrist": wrist,
        "max_tokens": max_tokens,
        "norm_pixels": norm_pixels,
        "gaze": gaze,
        "latents": latents,
    }
    train_one(demonstrations, out, condition, seed, preset, changes)
    print(out)


@app.command
def evaluate(
    run: Positional[str],
    episodes: int = 10,
    suite: str = "libero_spatial",
    tasks: Ints = None,
    placement: Literal["official", "wide"] = "wide",
    workers: int = 0,
    out: Path | None = None,
    device: str = "auto",
    view: Literal["true", "grey_image", "wrong_instruction"] = "true",
    floors: bool = False,
    demonstrations: Path | None = None,
    allow_train_starts: bool = False,
    allow_any_mujoco: bool = False,
) -> None:
    """Roll a policy out in closed loop on starts that it was not trained on, unless told otherwise.

    Args:
        run: a run folder, or ``expert`` or ``random``.
        episodes: starts of each task.
        suite: LIBERO suite.
        tasks: indices of its tasks; by default those that the policy was trained on, also for what LIBERO-PRO made of
            their suite, all of another suite, and for expert and random 0 to 2.
        placement: kind of starts; LIBERO-PRO's suites and libero_10 have official ones only.
        workers: processes; 0 takes one a core.
        out: where ``episodes.jsonl`` and videos go; by default a folder inside the run.
        device: of the policy: auto, cpu, cuda or mps.
        view: what a trained policy is shown: the true view, or, for its floors, a grey image or a wrong instruction.
        floors: evaluate the policy's floors on the same starts too: grey image, wrong instruction, and, as far as they
            are there, the run without image beside it and blind replay.
        demonstrations: what blind replay replays; by default those of the study that the run is part of.
        allow_train_starts: take the starts that training takes (wide: the training placements; official: from number 0
            up) and say how many of them this policy was trained on.
        allow_any_mujoco: evaluate on a MuJoCo with which scores are not comparable.
    """
    from la_reconvla.study.evaluate import evaluate_one

    evaluate_one(
        run,
        episodes,
        suite,
        tasks,
        placement,
        workers,
        out,
        allow_any_mujoco,
        device,
        allow_train_starts,
        view,
        floors,
        demonstrations,
    )


@app.command
def compare(
    run: Positional[str],
    other: Positional[str],
    out: Path,
    episodes: int = 50,
    suite: str = "libero_spatial",
    tasks: Ints = None,
    placement: Literal["official", "wide"] = "wide",
    workers: int = 0,
    device: str = "auto",
    allow_any_mujoco: bool = False,
) -> None:
    """Roll two trained policies out on the same starts and stop as soon as it is decided which is better.

    Stopped before, it goes on by the same command and decides the same. Needs pip install 'la-reconvla[sequential]': a
    test made for looking after every pair, whose licence, CC BY-NC 4.0, allows no commercial use. Its level is 5 %,
    one-sided, for either policy. It speaks of these two policies, not of training again. Finished studies are compared
    by the command report.

    Args:
        run: a run folder.
        other: another, of the same image size and render quality.
        out: folder of comparison.json and of the records, which are those of the command evaluate.
        episodes: starts of each task at most, up to 500 altogether; not to be changed after the first rollout.
        suite: LIBERO suite.
        tasks: indices of its tasks; by default those that both policies are evaluated on.
        placement: kind of starts, of which neither policy was trained on any.
        workers: processes; 0 takes one a core.
        device: of the policies: auto, cpu, cuda or mps.
        allow_any_mujoco: evaluate on a MuJoCo with which scores are not comparable.
    """
    from la_reconvla.study.head_to_head import compare as run_both

    print(run_both((run, other), out, episodes, suite, tasks, placement, workers, device, allow_any_mujoco))


@app.command
def ablate(
    preset: str = "quick",
    out: Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    lora_rank: int | None = None,
    quantize: Quantize = None,
    dtype: Precision = None,
    seeds: Ints = None,
    conditions: Names = None,
    grid: bool = False,
    suite: str | None = None,
    tasks: Ints = None,
    placement: Placement = None,
    demos: int | None = None,
    steps: int | None = None,
    episodes: int | None = None,
    also_official: int | None = None,
    elsewhere: Names = None,
    elsewhere_episodes: int | None = None,
    shift: int | None = None,
    chunk: int | None = None,
    decoding: Decoding = None,
    proprio: Proprio = None,
    wrist: bool | None = None,
    max_tokens: int | None = None,
    norm_pixels: bool | None = None,
    gaze: str | None = None,
    latents: str | None = None,
    device: str | None = None,
    hypotheses: Path | None = None,
    workers: int = 0,
) -> None:
    """Collect, train every condition, evaluate in closed loop, judge and report. Stopped, it goes on cell by cell.

    Args:
        preset: smoke, quick, small, paper or known-answer; the options below replace numbers, for all arms alike.
        out: study folder; ``runs/<preset>`` by default.
        backbone: a pretrained one in the preset's place: an id on the hub or a folder.
        weights: what the preset's small backbone starts from: base, words-7x7, a file of pretrain, or none.
        lora_rank: of a pretrained backbone's adapters; 0 trains it without.
        quantize: nf4 keeps a pretrained backbone's linear layers in 4 bits; needs a GPU.
        dtype: of a pretrained backbone's weights.
        seeds: training seeds; more may join a finished study.
        conditions: arms, for example C1 C2 C4; more may join a finished study.
        grid: all arms of the grid: what is reconstructed, and by which head.
        suite: LIBERO suite that is learnt, for example libero_goal; give its tasks too.
        tasks: indices of the suite's tasks.
        placement: where things stand, in training and evaluation: wide, or LIBERO's own initial states.
        demos: demonstrations a task.
        steps: optimizer steps.
        episodes: evaluation episodes a task; more may join a finished study.
        also_official: evaluate on so many of LIBERO's own initial states a task too; may join a finished study.
        elsewhere: other suites to evaluate everything on, for example libero_spatial_lan; may join a finished study.
        elsewhere_episodes: official states of each of their tasks; 10 by default.
        shift: move training pictures by up to so many pixels at random.
        chunk: actions decoded and executed at once; 1 is the published setting.
        decoding: parallel, all actions of a chunk in one pass; autoregressive, token by token as RT-2 and OpenVLA do.
        proprio: robot state: none (published), the gripper's width, or all of it.
        wrist: use the wrist camera too.
        max_tokens: longest instruction in tokens.
        norm_pixels: reconstruct pixels normalised in each patch.
        gaze: for arms that are told where the target is: masks of the simulator, or a file of the command annotate.
        latents: what diffusion heads draw: latents of this VAE (id on the hub or folder) in the place of pixels.
        device: of training and policies: auto, cpu, cuda or mps.
        hypotheses: what the study judges, a file like the package's ``study/hypotheses.json``; kept with the study when
            it begins, and not to be changed after that.
        workers: processes; 0 takes one a core.
    """
    from la_reconvla.conditions import GRID
    from la_reconvla.study.ablation import ablate as run

    if grid and conditions:
        raise UserError("--grid is a choice of conditions: leave one of the two out")
    changes = {
        "backbone": backbone,
        "weights": weights,
        "lora_rank": lora_rank,
        "quantize": quantize,
        "dtype": dtype,
        "seeds": seeds,
        "conditions": tuple(arm.id for arm in GRID) if grid else conditions,
        "suite": suite,
        "tasks": tasks,
        "placement": placement,
        "demos": demos,
        "steps": steps,
        "episodes": episodes,
        "also_official": also_official,
        "elsewhere": elsewhere,
        "elsewhere_episodes": elsewhere_episodes,
        "shift": shift,
        "chunk": chunk,
        "decoding": decoding,
        "proprio": proprio,
        "wrist": wrist,
        "max_tokens": max_tokens,
        "norm_pixels": norm_pixels,
        "gaze": gaze,
        "latents": latents,
        "device": device,
    }
    folder = run(preset, out, workers, changes, hypotheses)
    print(f"report: {folder / 'report.html'}")


@app.command
def look(
    backbone: str,
    image: Path,
    instruction: str,
    out: Path = Path("map.png"),
    against: str | None = None,
    per_head: bool = False,
    layers: int | None = None,
    device: str = "auto",
) -> None:
    """Draw where an instruction looks in a picture, and print whose attention that is and its numbers.

    Args:
        backbone: a model on the hub (its id) or in a folder, or the folder of a run.
        image: the picture; one that is not square is squeezed.
        instruction: what the robot is told.
        out: the PNG.
        against: another instruction, for comparison.
        per_head: one row a layer, one column a head.
        layers: how many of the last layers are read; 3 by default, a run in its own.
        device: auto, cpu, cuda or mps.
    """
    from la_reconvla.study.look import look as run

    print("\n".join(run(backbone, image, instruction, out, against, per_head, layers, device)))


@app.command
def scenes(out: Path, scenes: int = 8000, image_size: int = 112, workers: int = 1, seed: int = 0) -> None:
    """Render LIBERO's arenas and objects in random arrangements, to learn words from. Stopped, it goes on.

    Args:
        out: folder to write to.
        scenes: training scenes; a fifth as many are rendered for tests.
        image_size: rows and columns of the pictures.
        workers: processes.
        seed: of the arrangements.
    """
    from la_reconvla.sim.scenes import ScenesConfig, render

    count = render(ScenesConfig(out, scenes, image_size=image_size, workers=workers, seed=seed))
    print(f"{out}: {count} scenes")


@app.command
def pretrain(
    scenes: Path,
    out: Path,
    demonstrations: tuple[Path, ...] = (),
    hold_out: Names = None,
    objective: Literal["contrast", "captioning", "masked-words"] = "contrast",
    patch: int = 16,
    stem: Literal["patch", "conv", "efficientnet-lite0"] = "patch",
    weights: str | None = None,
    steps: int = 5000,
    batch_size: int = 32,
    demonstration_batch: int = 64,
    words_weight: float = 0.1,
    learning_rate: float = 1e-3,
    optimizer: Literal["adamw", "muon"] = "adamw",
    device: str = "auto",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Teach the small backbone words from captions, and hands from demonstrations. Stopped, it goes on.

    Args:
        scenes: folder that the command scenes wrote.
        out: folder of weights and curves; its backbone.safetensors is what --weights takes. With demonstrations it is
            also a run that evaluate takes.
        demonstrations: folders that the command collect wrote, of tasks that no study is to test; none for words alone.
        hold_out: tasks, as suite/task, whose instructions must not be demonstrated: such episodes are left out. By
            default those that the presets test, and some more of Object and Goal.
        objective: what is minimised over pictures and sentences.
        patch: side of a patch in pixels; pictures have 112.
        stem: how pixels become patches: one linear map a patch, four convolutions, or the first part of a network
            trained on ImageNet.
        weights: what to go on from: a name or file as the option --weights of train takes it; random ones by default.
        steps: optimizer steps.
        batch_size: pictures with sentences a step.
        demonstration_batch: samples of demonstrations a step.
        words_weight: of the loss over pictures and sentences beside the action loss.
        learning_rate: peak of the schedule.
        optimizer: adamw, or muon for the backbone's matrices.
        device: auto, cpu or cuda.
        seed: of weights, pictures and sentences.
        threads: of the processor.
    """
    from la_reconvla.checkpoint import pinned
    from la_reconvla.data.scenes import load_scenes
    from la_reconvla.pretrain import OBJECTIVES, STUDIED, PretrainConfig, base_samples, instructions_of
    from la_reconvla.pretrain import pretrain as run
    from la_reconvla.progress import progress

    size = replace(PretrainConfig().backbone, patch=patch, stem=stem, weights=weights)
    size = pinned(replace(size, chunk=24 if demonstrations else size.chunk))
    config = PretrainConfig(
        size,
        OBJECTIVES[objective],
        steps=steps,
        batch_size=batch_size,
        demonstration_batch=demonstration_batch,
        words_weight=words_weight,
        learning_rate=learning_rate,
        optimizer=optimizer,
        device=device,
        seed=seed,
        threads=threads,
    )
    pictures = load_scenes(scenes, "train")
    samples = held_out = None
    if demonstrations:
        samples, held_out = base_samples(demonstrations, size, instructions_of(hold_out or STUDIED))
    with progress("Pretraining", total=steps, unit="steps") as bar:
        print(run(pictures, config, out, bar, samples, held_out))


@app.command
def words(scenes: Path, out: Path, weights: tuple[str, ...] = ("base",), seed: int = 0) -> None:
    """Measure on held-out scenes whether the attention of words finds what they mean, beside its controls.

    Args:
        scenes: folder that the command scenes wrote.
        out: folder for words.json, words.md and words.png.
        weights: base, words-7x7 or files of pretrain; the first is measured in detail.
        seed: of the questions, and of the random weights beside them.
    """
    from la_reconvla.data.scenes import load_scenes
    from la_reconvla.study.words import report

    console = Console()
    console.width = max(console.width, 120)  # eleven columns
    for table in report(weights, load_scenes(scenes, "train"), load_scenes(scenes, "test"), out, seed):
        console.print(table.rich())
    print(out / "words.md")


@app.command
def plan(
    backbone: str = "google/paligemma-3b-pt-224",
    device: Literal["t4", "l4", "a10g", "a100", "h100", "cpu"] = "t4",
    condition: str = "C4",
    batch_size: int = 16,
    accumulate: int = 4,
    chunk: int = 8,
    lora_rank: int = 16,
    quantize: Literal["none", "nf4"] = "none",
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    checkpointing: bool = True,
    train_vision: bool = False,
    last: int | None = None,
) -> None:
    """Say what training a pretrained backbone needs, whether it fits, and what makes it fit; nothing is downloaded.

    Args:
        backbone: id on the hub, or a folder with a ``config.json``.
        device: where; cpu is this machine.
        condition: arm, for example C1 or C4.
        batch_size: samples a step.
        accumulate: micro-batches that they are divided into.
        chunk: actions decoded at once.
        lora_rank: rank of the adapters; 0 trains the language model in full.
        quantize: nf4 keeps the linear layers in 4 bits.
        dtype: of the weights that stay; auto takes the half precision that the device has.
        checkpointing: compute layers again in the backward pass.
        train_vision: train the vision tower too.
        last: train only so many of the last language layers.
    """
    from la_reconvla.study.plan import plan_one, table, verdict

    planned = plan_one(
        backbone,
        device,
        condition,
        batch_size,
        accumulate,
        chunk,
        lora_rank,
        quantize,
        dtype,
        checkpointing,
        train_vision,
        last,
    )
    console = Console()
    console.print(table(planned))
    console.print(verdict(planned), soft_wrap=True)


@app.command
def power(
    seeds: int = 3, tasks: int = 3, episodes: int = 20, between_seeds: float = 0.0, agreement: float = 0.0
) -> None:
    """Say how many episodes differences need, and how likely a study of this size finds them, before it runs.

    Args:
        seeds: training seeds of each arm.
        tasks: number of tasks.
        episodes: evaluation episodes for each task and trained policy.
        between_seeds: standard deviation of an arm's success rate between its seeds, as a share.
        agreement: correlation of two arms' outcomes on one start, 0 to 1.
    """
    from la_reconvla.study.power import planned, power_table

    rows = planned(seeds, tasks, episodes, between_seeds=between_seeds, agreement=agreement)
    Console().print(power_table(rows, seeds).rich())


@app.command
def bench(
    backbone: tuple[str, ...] = ("quick", "small"),
    device: str = "auto",
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    threads: int = 1,
    repeats: int = 20,
    seconds: float = 60.0,
    only: tuple[Literal["control", "training", "picture", "limit", "data"], ...] = (
        *("control", "training", "picture", "limit", "data"),
    ),
    demonstrations: Path | None = None,
    episodes: int = 3,
    out: Path | None = None,
) -> None:
    """Measure how fast arms act, train and draw, and what limits them; tables, and as the last line JSON.

    Args:
        backbone: presets (their sizes), ids on the hub, or folders with a config.json; weights are random.
        device: auto, cpu, cuda or mps.
        dtype: of the arithmetic; auto takes what the device does well.
        threads: of the CPU.
        repeats: rounds, in each of which every arm runs once.
        seconds: a section of one backbone begins no further round after so many.
        only: sections; data includes the simulator where it is installed.
        demonstrations: folder with *_demo.hdf5 files for the loader; noise is written and read without one.
        episodes: of the simulator; 0 leaves it out.
        out: folder for bench.json, bench.md and bench.svg.
    """
    from la_reconvla.study.bench import Settings
    from la_reconvla.study.bench import bench as run

    run(Settings(backbone, device, dtype, threads, repeats, seconds, only, demonstrations, episodes), out)


@app.command
def export(run: Positional[Path], out: Path, merged: bool = False) -> None:
    """Write a policy and its card to a folder that others can load.

    Args:
        run: run folder.
        out: folder to write to.
        merged: add the adapters to the backbone's weights and write those too; by default only what was trained goes.
    """
    from la_reconvla.study.publish import export as write

    print(write(run, out, merged))


@app.command
def push(run: Positional[Path], repo: str, merged: bool = False, private: bool = False) -> None:
    """Upload a policy and its card to the Hugging Face hub.

    Args:
        run: run folder.
        repo: user/name.
        merged: with the backbone's weights, adapters added; by default only what was trained goes.
        private: make a new repository private.
    """
    from la_reconvla.study.publish import push as upload

    print(f"load it with load_policy('{upload(run, repo, merged, private)}')")


@app.command
def report(
    study: Positional[Path],
    other: Positional[Path | None] = None,
    out: Path | None = None,
    figures: Path | None = None,
) -> None:
    """Draw ``report.html`` again from a study's ``results.json``, or compare two studies on one page.

    Args:
        study: study folder.
        other: another study, to compare the first one with.
        out: the page of the comparison; comparison.html in the first study's folder by default.
        figures: folder for the study's charts as SVG files, for a light and a dark page.
    """
    from la_reconvla.study.compare import write_comparison
    from la_reconvla.study.report import write_figures, write_report

    if other is not None and figures is not None:
        raise UserError("--figures is for one study: leave the second out")
    if other is not None:
        print(write_comparison(study, other, out))
    elif out is not None:
        raise UserError("--out is for a comparison: name a second study")
    else:
        for path in [write_report(study), *(write_figures(study, figures) if figures else [])]:
            print(path)


def main() -> None:
    """Entry point: a `UserError` is one line, Ctrl-C says how to go on."""
    console = Console(stderr=True)
    try:
        app.cli(prog="la-reconvla", description="Does a policy act better when it reconstructs what its words look at?")
    except UserError as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it was")
        sys.exit(130)
