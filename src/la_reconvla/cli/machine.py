"""Commands on the machine: is it fit, what does training need of it, how fast is it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from la_reconvla.bench.settings import Settings
from la_reconvla.cli.options import Flat
from la_reconvla.study.options import IfGiven, PlanOptions


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


def plan(options: Flat[PlanOptions]) -> None:
    """Say what training a pretrained backbone needs, whether it fits, and what makes it fit; nothing is downloaded."""
    from la_reconvla.study.plan import plan_one, table, verdict

    planned = plan_one(options)
    console = Console()
    console.print(table(planned))
    console.print(verdict(planned), soft_wrap=True)


def bench(settings: Flat[Settings], out: IfGiven[Path] = None) -> None:
    """Measure how fast arms act, train and draw, and what limits them; tables, and as the last line JSON.

    Args:
        settings: what is measured and for how long.
        out: folder for bench.json, bench.md and bench.svg.
    """
    from la_reconvla.bench.run import bench as run

    run(settings, out)
