"""Recordings drawn again: other picture sizes, cameras, instance maps or render quality, from their recorded states.

Every state of an episode is put into the simulator and drawn. The furniture's pose is not part of a state: it is read
from the compiled scene that the recording holds (``model_file``). So LIBERO's own demonstrations get instance maps, and
with them boxes of the target and attention overlap.

A recorded picture shows the scene as MuJoCo drew it at the end of a control step, whose positions are those at the
begin of its last physics step, 2 ms earlier than the state. A picture drawn from the state differs by that: some pixels
along the edges of what moves.
"""

from __future__ import annotations

import functools
import shutil
import xml.etree.ElementTree as ElementTree
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, UInt8

from la_reconvla import layout
from la_reconvla.data.demonstrations import Episode
from la_reconvla.data.hdf5 import open_demonstrations
from la_reconvla.data.hdf5_layout import SHARDS, opened
from la_reconvla.data.hdf5_writer import merge_files, write_pictures
from la_reconvla.data.samples import resize
from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.processes import explain_death, worker_pool
from la_reconvla.progress import progress
from la_reconvla.robot import Quality
from la_reconvla.sim.libero import LiberoEnv
from la_reconvla.sim.machine import default_workers, require_simulator
from la_reconvla.sim.options import RenderOptions
from la_reconvla.sim.tasks import Task, load_suite, official_start
from la_reconvla.storage import atomic_write, claim, locked, require_free_space

ELSEWHERE = 12.0  # mean difference in grey levels from which on a state does not show what was recorded
RENDERED = "rendered.json"
DIFFERENCE = "difference_from_recorded"  # attribute of a drawn episode, see `Rendered.difference`


@dataclass(frozen=True)
class View:
    """What is drawn; fields as in `RenderOptions`."""

    image_size: int
    quality: Quality
    frame_stride: int
    wrist: bool
    maps: bool
    allow_any_mujoco: bool


@dataclass(frozen=True)
class Rendered:
    """What became of a folder.

    Attributes:
        episodes: how many there are now.
        difference: largest mean difference of an episode's pictures from the recorded ones, in grey levels of 255.
    """

    episodes: int
    difference: float


def render(source: Path, out: Path, options: RenderOptions) -> Rendered:
    """Draw all demonstrations of a folder again, in worker processes; stopped, the same command goes on.

    Args:
        source: folder of demonstrations with states.
        out: folder to write to; one of other options is refused.
        options: what to draw.

    Raises:
        UserError: if a recording is of an unknown task (before anything is drawn), has no states, or states of another
            scene; if pictures show something else than the recorded ones.
    """
    recorded = open_demonstrations(source)
    for value, name in ((options.image_size, "--image-size"), (options.frame_stride, "--frame-stride")):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    view = View(
        options.image_size or recorded.image_size,
        options.quality or recorded.quality,
        options.frame_stride or recorded.frame_stride,
        options.wrist,
        options.maps,
        options.allow_any_mujoco,
    )
    for episode in recorded.episodes:
        task_of(episode)
    require_simulator(allow_any_mujoco=options.allow_any_mujoco)
    pictures = sum(len(range(0, len(episode.actions), view.frame_stride)) for episode in recorded.episodes)
    require_free_space(out, 2 * pictures * view.image_size**2 * (3 + 3 * view.wrist + view.maps))
    with locked(out):
        claim(out / RENDERED, {"schema": layout.SCHEMA, "source": recorded.hash, **asdict(view)})
        _draw_all(recorded.episodes, out, view, options.workers or default_workers())
        for path in dict.fromkeys(episode.path for episode in recorded.episodes):
            shards = [shard(out, episode) for episode in recorded.episodes if episode.path == path]
            if not (out / path.name).exists():
                merge_files(shards, out / path.name)
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        return Rendered(len(recorded.episodes), max(map(_stored_difference, out.glob("*.hdf5"))))


def _stored_difference(path: Path) -> float:
    with opened(path) as file:
        return max(float(demo.attrs.get(DIFFERENCE, 0.0)) for demo in file["data"].values())  # once not recorded


def task_of(episode: Episode) -> Task:
    """The task of a recording, by the suite and name that its file says.

    Raises:
        UserError: it names no suite, or none of the installed tasks.
    """
    if (suite := episode.suite) is None:
        raise UserError(f"{episode.path}: {episode.demo} names no suite of LIBERO: give recordings of its simulator")
    for task in load_suite(suite):
        if task.name == episode.task_name or task.index == episode.task:
            return task
    raise UserError(f"{episode.path}: '{episode.task_name}' is no task of {suite}; was the file renamed?")


def shard(out: Path, episode: Episode) -> Path:
    """The file of one drawn episode before all are merged."""
    return out / SHARDS / f"{episode.path.stem}-{episode.demo}.hdf5"


def _draw_all(episodes: tuple[Episode, ...], out: Path, view: View, workers: int) -> None:
    finished = [e for e in episodes if (out / e.path.name).exists() or shard(out, e).exists()]
    todo = [e for e in episodes if e not in finished]
    largest = 0.0
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    with progress("Rendering", total=len(episodes), unit="episodes", done=len(finished)) as bar:
        if todo:
            with worker_pool(min(workers, len(todo))) as pool, explain_death("rendering"):
                running = [pool.submit(_draw, episode, shard(out, episode), view) for episode in todo]
                for future in as_completed(running):
                    largest = max(largest, future.result())
                    bar.advance(1, f"largest mean difference {largest:.1f} of 255")


# ---------------------------------------------------------------- in a worker


@functools.lru_cache(1)
def _env(view: View) -> LiberoEnv:
    return LiberoEnv(
        image_size=view.image_size,
        wrist=view.wrist,
        quality=view.quality,
        allow_any_mujoco=view.allow_any_mujoco,
    )


def _draw(episode: Episode, path: Path, view: View) -> float:
    """Write the drawn episode; the mean difference of its pictures from the recorded ones."""
    env = _env(view)
    task, states = task_of(episode), episode.states()
    if len(states) != len(episode.actions):
        raise UserError(f"{episode.name} has {len(states)} states and {len(episode.actions)} actions")
    start = _start(episode, task, states[0])
    env.reset(start)
    with opened(episode.path) as file:
        arrange(env, str(file["data"][episode.demo].attrs.get("model_file", "")), episode.name)
    places = (start.destination, *(name for _, *names in episode.parts for name in names))
    names = task.shown(places) if view.maps else ()
    steps = np.arange(0, len(states), view.frame_stride)
    drawn: dict[str, list[np.ndarray]] = {"agentview_rgb": [], "eye_in_hand_rgb": [], "map": []}
    for step in steps:
        env.set_state(states[step])
        seen = env.observe()
        drawn["agentview_rgb"].append(seen.image)
        if seen.wrist is not None:
            drawn["eye_in_hand_rgb"].append(seen.wrist)
        if names:
            drawn["map"].append(env.segmentation(names))
    pictures = {name: np.stack(each) for name, each in drawn.items() if each}
    difference = _difference(episode, pictures["agentview_rgb"], steps)
    if difference > ELSEWHERE:
        raise UserError(
            f"{episode.name}: what its states show differs from its pictures by {difference:.0f} of 255 on average: "
            "they were recorded in another scene, or by a version of the simulator with other geometry"
        )
    _write(episode, path, pictures, names, start, view, difference)
    return difference


def _start(episode: Episode, task: Task, state: Float[np.ndarray, " s"]) -> Start:
    """A start with this task's furniture and goal; what it leaves open is overwritten by `arrange` and the states."""
    first = official_start(task, 0, seed=episode.start_seed or 0)
    return replace(
        first,
        state=state,
        target=episode.target or first.target,
        destination=episode.destination or first.destination,
        instruction=episode.instruction,
    )


def arrange(env: LiberoEnv, model_xml: str, name: str) -> None:
    """Put what no state moves where a recording's compiled scene has it.

    Raises:
        UserError: the scene is not the simulator's; `name` names the recording.
    """
    try:
        world = ElementTree.fromstring(model_xml).find("worldbody")
    except ElementTree.ParseError as error:
        raise UserError(
            f"{name} has no readable 'model_file' ({error}): where its furniture stood is unknown"
        ) from None
    model = env.sim.model
    for body in [] if world is None else world.findall("body"):
        if body.find("freejoint") is not None or any(j.get("type") == "free" for j in body.findall("joint")):
            continue  # the states move it
        if (named := body.get("name")) not in model.body_names:
            raise UserError(f"{name}: its scene has '{named}', and this task has not: it was recorded in another scene")
        number = model.body_name2id(named)
        for attribute, held in (("pos", model.body_pos), ("quat", model.body_quat)):
            if (text := body.get(attribute)) is not None:
                held[number] = np.array(text.split(), dtype=np.float64)


def _difference(episode: Episode, drawn: UInt8[np.ndarray, "F H W 3"], steps: np.ndarray) -> float:
    """Mean absolute difference from recorded pictures of the same steps, at the smaller of both sizes; 0 for none."""
    at = {int(step): i for i, step in enumerate(steps)}
    both = [(i, at[int(step)]) for i, step in enumerate(episode.frame_steps) if int(step) in at]
    if not both:
        return 0.0
    old, new = episode.frames()[[i for i, _ in both]], drawn[[j for _, j in both]]
    size = min(old.shape[1], new.shape[1])
    return float(np.abs(resize(old, size).astype(np.int16) - resize(new, size)).mean())


def _write(
    episode: Episode,
    path: Path,
    pictures: dict[str, np.ndarray],
    names: tuple[str, ...],
    start: Start,
    view: View,
    difference: float,
) -> None:
    """A file of one episode: the recorded one, with these pictures in the place of its own."""
    with atomic_write(path) as temporary, opened(episode.path) as source, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs.update(source["data"].attrs)
        task = task_of(episode)
        data.attrs.update(
            {
                "quality": view.quality,
                "image_size": view.image_size,
                "frame_stride": view.frame_stride,
                "macros_image_convention": "opengl",
                "suite": task.suite,
                "task_index": task.index,
                "task_name": task.name,
            }
        )
        source.copy(source["data"][episode.demo], data, "demo_0")
        group: Any = data["demo_0"]
        for name in [name for name in group["obs"] if name.endswith(("_rgb", "_depth"))]:
            del group["obs"][name]
        if "instances" in group:
            del group["instances"]
        for name, drawn in pictures.items():
            if name == "map":
                write_pictures(group.create_group("instances"), name, drawn, names)
            else:
                write_pictures(group["obs"], name, drawn)
        group.attrs.update({"instruction": start.instruction, "target": start.target, "destination": start.destination})
        group.attrs[DIFFERENCE] = difference
