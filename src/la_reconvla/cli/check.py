"""Commands that look ahead: is the machine fit, does a training fit it, does a study suffice, how fast is all of it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from la_reconvla.bench.settings import Settings
from la_reconvla.cli.options import Flat, Group
from la_reconvla.sim.options import IfGiven
from la_reconvla.study.options import ModelOptions, PlanOptions, StepOptions
from la_reconvla.text_table import tell


def machine(out: Path = Path(".")) -> None:
    """Check this machine: OpenGL, MuJoCo, memory, disk. Each failing check names the command that repairs it.

    Args:
        out: folder for runs; its disk is checked.
    """
    from la_reconvla.sim.machine import check_machine, print_checks

    checks = check_machine(out)
    print_checks(checks)
    if not all(check.ok for check in checks):
        raise SystemExit(1)


def plan(step: Flat[StepOptions], model: Group[ModelOptions]) -> None:
    """Estimate memory, time, disk and downloads of training a pretrained backbone; suggest what makes it fit.

    Only the backbone's config.json is read: no weights are downloaded.

    Args:
        step: the training step and the device.
        model: what is trained.
    """
    tell(
        f"Planning one training step of {model.backbone} on {step.device}: only its config.json is read, and the step "
        "is traced, not run. This takes up to a few minutes.",
        Console(stderr=True),
    )
    from la_reconvla.study.disk import space
    from la_reconvla.study.plan import hours, plan_one, table, verdict

    planned = plan_one(PlanOptions(**vars(step), **vars(model)))
    Console().print(table(planned))
    tell(verdict(planned))
    tell(hours(planned))
    tell(space(planned))


def power(
    seeds: int = 3,
    tasks: int = 3,
    episodes: int = 20,
    arms: int = 2,
    between_seeds: float = 0.1,
    agreement: float = 0.0,
    tests: int = 1,
    shared: int = 1,
) -> None:
    """Estimate how many episodes a difference needs, and the power of a study of this size.

    Args:
        seeds: training seeds of each arm.
        tasks: number of tasks.
        episodes: evaluation episodes per task and trained policy.
        arms: of the study, that declared comparisons name; with 2 the two are judged alone.
        between_seeds: standard deviation of an arm's success rate between its seeds, as a share.
        agreement: correlation of two arms' outcomes on one start, 0 to 1.
        tests: comparisons of a declaration, which are corrected together.
        shared: starts of a task that share a scene; 2 for wide placements.
    """
    from la_reconvla.analysis.power import planned, power_explained, power_table

    of = {"arms": arms, "between_seeds": between_seeds, "agreement": agreement, "shared": shared}
    rows = planned(seeds, tasks, episodes, **of, tests=tests)
    Console().print(power_table(rows, seeds))
    tell(power_explained(seeds, tasks, episodes, tests))


def speed(settings: Flat[Settings], out: IfGiven[Path] = None) -> None:
    """Measure how fast arms act, train and draw, and what limits them.

    Prints tables. Where standard output is no terminal, the last line is JSON.

    Args:
        settings: what is measured, and for how long.
        out: folder for bench.json, bench.md and bench.svg.
    """
    from la_reconvla.bench.run import bench

    bench(settings, out)
