"""Commands on trained policies: roll one out, give it to others, put it behind a port."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from la_reconvla import layout
from la_reconvla.cli.options import Flat, Group
from la_reconvla.live.options import TryOptions
from la_reconvla.serving.lerobot_folder import SCHEME
from la_reconvla.sim.options import IfGiven
from la_reconvla.study.options import (
    UNTRAINED,
    EvaluateOptions,
    FloorOptions,
    MachineOptions,
    RolloutOptions,
    StartOptions,
)
from la_reconvla.training.run_folders import folder_here


def evaluate(
    run: Positional[str],
    rollouts: Flat[RolloutOptions],
    start: Group[StartOptions],
    floor: Group[FloorOptions],
    machine: Group[MachineOptions],
    cluster: IfGiven[str] = None,
) -> None:
    """Evaluate a policy in closed loop, by default on starts that it was not trained on.

    Args:
        run: a run folder, expert, random, user/name on the Hugging Face hub, a policy server, ws://host:port, or a
            policy that LeRobot saved, lerobot:folder.
        rollouts: how many episodes, and where results go.
        start: initial states of the rollouts.
        floor: the floors that success is compared with.
        machine: processes and device.
        cluster: roll out on a cluster of Ray, auto or ray://HOST:10001 (docs/ray.md).
    """
    if run not in UNTRAINED and "://" not in run and not run.startswith(SCHEME):
        folder_here(run)  # before what takes seconds to import
    from la_reconvla.execution.on_ray import cluster as jobs_on
    from la_reconvla.study.evaluate_one import evaluate_one

    with jobs_on(cluster):
        evaluate_one(run, EvaluateOptions(**vars(rollouts), **vars(start), **vars(floor), **vars(machine)))


def folder(run: Positional[Path], out: Path, merged: bool = False) -> None:
    """Write a policy and its model card to a folder.

    Args:
        run: run folder.
        out: folder to write to.
        merged: merge the adapters into the backbone's weights and write all of them; by default only trained weights.
    """
    found = _found(run)
    from la_reconvla.study.publish import export

    print(export(found, out, merged))


def hub(
    source: Positional[Path],
    repo: str,
    merged: bool = False,
    weights: bool = False,
    license: IfGiven[str] = None,
    datasets: tuple[str, ...] = (),
    private: bool = False,
) -> None:
    """Upload a policy, a study or demonstrations to the Hugging Face hub, with a card (docs/sharing.md).

    Args:
        source: run folder, study folder, or folder of demonstrations.
        repo: user/name.
        merged: of a policy, with the backbone's weights, adapters merged; by default only trained weights.
        weights: of a study, with the weights of its policies; by default its records and results only.
        license: id as the hub spells it; by default the one that follows, where backbone and data say it.
        datasets: repositories of the demonstrations that it was trained on, for the card.
        private: make a new repository private.
    """
    found = source if source.is_dir() else _found(source)
    from la_reconvla.study.cards import Labels
    from la_reconvla.study.publish import push
    from la_reconvla.text_table import tell

    labels = Labels(repo.removeprefix("datasets/"), license, datasets)
    done = push(found, labels, merged=merged, weights=weights, private=private)
    tell(f"get it with `la-reconvla share pull {done.repo} --revision {done.revision} --out FOLDER`")


def pull(repo: Positional[str], out: Path, revision: IfGiven[str] = None) -> None:
    """Download a policy, a study or demonstrations from the Hugging Face hub. Stopped, it goes on with the next file.

    Args:
        repo: user/name, or datasets/user/name.
        out: folder to make; it appears when everything is there.
        revision: commit, tag or branch; the newest commit by default.
    """
    from la_reconvla.study.publish import pull as run

    print(run(repo, out, revision))


def lerobot(run: Positional[Path], out: Path) -> None:
    """Write a policy as LeRobot saves one. LeRobot itself is not needed for it.

    Args:
        run: run folder.
        out: folder to write to, a pretrained_model of LeRobot's.
    """
    found = _found(run)
    from la_reconvla.lerobot.sharing import to_lerobot

    print(to_lerobot(found, out))


def from_lerobot(folder: Positional[Path], out: Path) -> None:
    """Write a policy of this package that LeRobot trained as a run. LeRobot itself is not needed for it.

    Args:
        folder: pretrained_model of a checkpoint of LeRobot's.
        out: run folder to write to.
    """
    from la_reconvla.lerobot.sharing import from_lerobot as run

    print(run(folder, out))


def serve(
    run: Positional[str],
    port: int = 8000,
    host: str = "127.0.0.1",
    token_file: IfGiven[Path] = None,
    instruction: tuple[str, ...] = (),
    device: str = "auto",
    clients: int = 4,
) -> None:
    """Serve a policy to robots and simulators by websocket and msgpack, in openpi's wire format. Ctrl-C ends it.

    Args:
        run: a run folder, base, or user/name on the Hugging Face hub.
        port: to listen on; 0 takes a free one.
        host: address to listen on; others than this machine's own need a token.
        token_file: file whose first line clients must send, as openpi's client does with its api_key.
        instruction: instructions to record the fast path for before the port opens; others take seconds when they are
            first said.
        device: auto, cpu, cuda or mps.
        clients: at once.
    """
    folder_here(run)  # before what takes seconds to import
    from la_reconvla.serving.start import start

    start(run, host, port, token_file, instruction, device, clients)


def try_(run: Positional[str], options: Flat[TryOptions]) -> None:
    """Try policies in the live simulator, on a page of this machine: type, drag, watch. Ctrl-C ends it.

    Args:
        run: a study folder, a run folder, base, or user/name on the Hugging Face hub.
        options: how the page begins.
    """
    if not (Path(run) / layout.STUDY).exists():
        folder_here(run)  # before what takes seconds to import
    from la_reconvla.live.start import start

    start(run, options)


def _found(run: Path) -> Path:
    """The folder of a run, or of its download; a missing one shows before anything heavy is imported."""
    if (here := folder_here(run)) is not None:
        return here
    from la_reconvla.training.checkpoint import find_run

    return find_run(run)
