"""The environment against LIBERO's own `ControlEnv`, MuJoCo's rays and the camera's geometry."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from la_reconvla.sim.env import Env

pytest.importorskip("libero", reason="needs the sim extra")

from la_reconvla.data.starts import Start
from la_reconvla.errors import UserError
from la_reconvla.sim import prepare
from la_reconvla.sim.libero import RESET_ATTEMPTS, LiberoEnv
from la_reconvla.sim.prepare import check_mujoco
from la_reconvla.sim.tasks import load_task, official_start

SIZE = 128
INSTANCES = ("akita_black_bowl_1", "akita_black_bowl_2", "plate_1", "cookies_1", "wooden_cabinet_1", "flat_stove_1")
sim = pytest.mark.sim


def start_of(task: int, index: int = 3) -> Start:
    return official_start(load_task("libero_spatial", task), index)


def reaching_down(steps: int, seed: int = 0) -> np.ndarray:
    """Random actions that press the arm into the scene, so that contacts are part of the comparison."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, 7))
    actions[:, 2] = -np.abs(actions[:, 2])
    return actions


def trajectory(env: LiberoEnv, start: Start, actions: np.ndarray) -> np.ndarray:
    env.reset(start)
    states = [env.state()]
    for action in actions:
        env.step(action[None], stop_at_success=False)
        states.append(env.state())
    return np.array(states)


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    with LiberoEnv(image_size=SIZE, wrist=True, proprio=True) as shared:
        yield shared


# ---------------------------------------------------------------- physics


@sim
@pytest.mark.parametrize("task", [0, 4])
def test_states_and_official_pictures_are_liberos_own_bit_for_bit(env, task):
    start, actions = start_of(task), reaching_down(30)
    ours = trajectory(env, start, actions)
    from libero.libero.envs.env_wrapper import ControlEnv

    plain = ControlEnv(bddl_file_name=str(env.task.bddl), use_camera_obs=False, has_offscreen_renderer=True)
    plain.seed(start.seed)
    plain.reset()
    plain.set_init_state(start.state)
    for _ in range(10):
        plain.step([0.0] * 6 + [-1.0])
    theirs = [plain.get_sim_state()]
    for action in actions:
        plain.step(action)
        theirs.append(plain.get_sim_state())
    agentview, wrist = (
        plain.sim.render(camera_name=camera, width=SIZE, height=SIZE)[::-1, ::-1]
        for camera in ("agentview", "robot0_eye_in_hand")
    )
    plain.close()
    assert np.array_equal(ours, np.array(theirs))
    seen = env.observe()
    assert np.array_equal(seen.image, agentview)
    assert seen.wrist is not None
    assert np.array_equal(seen.wrist, wrist)
    assert seen.image.flags.c_contiguous
    assert seen.instruction == start.instruction


@sim
def test_replay_is_bit_exact_whatever_happened_in_between(env):
    start, actions = start_of(0), reaching_down(20)
    first = trajectory(env, start, actions)
    trajectory(env, start_of(0, index=8), reaching_down(7, seed=1))
    env.observe()
    assert np.array_equal(trajectory(env, start, actions), first)
    with LiberoEnv() as other:
        assert np.array_equal(trajectory(other, start, actions), first)


@sim
def test_furniture_stands_where_the_seed_says_after_any_number_of_resets():
    """In a scene with an open drawer LIBERO draws one more number in each reset than in the one before."""
    found = []
    with LiberoEnv() as env:
        for _ in range(2):
            env.reset(start_of(4))
            found.append(env.sim.model._model.body_pos.copy())
    assert np.array_equal(*found)


@sim
def test_how_actions_are_cut_into_chunks_does_not_matter(env):
    actions = reaching_down(16)
    single = trajectory(env, start_of(0), actions)[-1]
    env.reset(start_of(0))
    for chunk in np.split(actions, [3, 4, 11]):
        env.step(chunk)
    assert np.array_equal(env.state(), single)


@sim
def test_the_seed_moves_the_furniture_and_nothing_else_does(env):
    def cabinet(seed: int) -> np.ndarray:
        env.reset(replace(start_of(0), seed=seed))
        return env.poses()["wooden_cabinet_1"].position

    first, other, again = cabinet(0), cabinet(1), cabinet(0)
    assert np.array_equal(first, again)
    assert 1e-4 < np.abs(first - other).max() < 0.03


@sim
def test_actions_are_clipped_and_checked(env):
    start = start_of(0)
    env.reset(start)
    env.step(np.full((3, 7), 1.0))
    clipped = env.state()
    env.reset(start)
    env.step(np.full((3, 7), 50.0))
    assert np.array_equal(env.state(), clipped)
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN or infinity"):
            env.step(np.array([[0.0] * 7, [bad, *[0.0] * 6]]))
    assert np.array_equal(env.state(), clipped)  # nothing of a bad chunk was executed
    with pytest.raises(UserError, match="shape"):
        env.step(np.zeros(7))


@sim
def test_states_of_another_scene_and_damaged_states_are_refused(env):
    start = start_of(0)
    with pytest.raises(UserError, match="another scene"):
        env.reset(replace(start, state=start.state[:-1]))
    with pytest.raises(UserError, match="damaged"):
        env.reset(replace(start, state=np.where(np.arange(len(start.state)) == 5, np.nan, start.state)))
    with pytest.raises(UserError, match="akita_black_bowl_1"):
        env.reset(replace(start, target="akita_black_bowl_7"))


# ---------------------------------------------------------------- episodes


def with_bowl_on_plate(start: Start, env: LiberoEnv, bowl: str) -> Start:
    """`start` with `bowl` a little above the plate's centre."""
    env.reset(start)
    model, _ = env._physics()
    state = start.state.copy()
    at, plate = (1 + int(model.joint(f"{name}_joint0").qposadr[0]) for name in (bowl, "plate_1"))
    state[at : at + 2] = state[plate : plate + 2]
    state[at + 2] += 0.02
    return replace(start, state=state)


@sim
@pytest.mark.parametrize("bowl", ["akita_black_bowl_1", "akita_black_bowl_2"])
def test_the_target_of_the_start_is_the_one_that_counts(env, bowl):
    placed = with_bowl_on_plate(start_of(2), env, bowl)
    for target in ("akita_black_bowl_1", "akita_black_bowl_2"):
        env.reset(replace(placed, target=target))
        outcome = env.step(np.tile([0.0] * 6 + [-1.0], (8, 1)))
        assert outcome.success == (target == bowl)
        assert outcome.done == outcome.success
        assert outcome.steps == (1 if outcome.success else 8)


@sim
def test_collection_goes_on_after_success(env):
    env.reset(with_bowl_on_plate(start_of(2), env, "akita_black_bowl_1"))
    outcome = env.step(np.tile([0.0] * 6 + [-1.0], (8, 1)), stop_at_success=False)
    assert (outcome.steps, outcome.success, outcome.done) == (8, True, False)


@sim
def test_the_step_limit_ends_an_episode():
    with LiberoEnv(max_steps=5) as short:
        short.reset(start_of(0))
        still = np.zeros((3, 7))
        assert [short.step(still).steps for _ in range(3)] == [3, 2, 0]
        assert short.step(still).done
        short.reset(start_of(0))
        assert not short.step(still).done


@sim
def test_resets_are_bounded_and_other_failures_are_not_swallowed(env, monkeypatch):
    from robosuite.utils.errors import RandomizationError

    env.reset(start_of(0))
    attempts = []

    def crowded() -> None:
        attempts.append(1)
        raise RandomizationError

    monkeypatch.setattr(env._env, "reset", crowded)
    with pytest.raises(UserError, match="another seed"):
        env.reset(start_of(0))
    assert len(attempts) == RESET_ATTEMPTS

    def broken() -> None:
        raise MemoryError

    monkeypatch.setattr(env._env, "reset", broken)
    with pytest.raises(MemoryError):
        env.reset(start_of(0))


@sim
def test_closing_twice_and_using_a_closed_environment():
    environment = LiberoEnv(image_size=16)
    assert isinstance(environment, Env)
    with pytest.raises(UserError, match="reset"):
        environment.observe()
    environment.reset(start_of(0))
    assert environment.observe().image.shape == (16, 16, 3)
    environment.close()
    environment.close()
    with pytest.raises(UserError, match="reset"):
        environment.state()


LEFT_OPEN = """
import atexit
import mujoco
from la_reconvla.sim.prepare import choose_opengl
choose_opengl()
from la_reconvla.sim.renderer import Renderer

held = []
atexit.register(held.clear)  # the last to be called: what a module holds goes after all handlers, too
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><camera name="eye" pos="0 0 3"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
for _ in range(3):
    held.append(Renderer(model, 16, "fast"))
    held[-1].image(model, data, "eye")
held[0].close()
"""


@sim
def test_a_process_that_ends_with_open_renderers_says_nothing():
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, check=True)
    for complaint in ("Exception ignored", "Traceback", "EGLError"):  # Mesa may have warnings of its own
        assert complaint not in done.stderr


# ---------------------------------------------------------------- pictures


@sim
def test_objects_are_seen_where_the_camera_projects_them(env):
    """Fails for any other turn or mirroring of images or masks."""
    env.reset(start_of(2))
    model, data = env._physics()
    camera = model.camera("agentview").id
    focal = SIZE / 2 / np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    masks = env.masks(INSTANCES)
    for name in ("akita_black_bowl_1", "akita_black_bowl_2", "plate_1", "cookies_1"):
        x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ (env.poses()[name].position - data.cam_xpos[camera])
        upright = SIZE / 2 - focal * y / -z, SIZE / 2 + focal * x / -z
        expected = upright[0], SIZE - 1 - upright[1]  # 180 degrees of an upside-down picture: left and right change
        rows, columns = np.nonzero(masks[name])
        assert abs(rows.mean() - expected[0]) < 6  # a bowl's body is at its foot, below the middle of its picture
        assert abs(columns.mean() - expected[1]) < 2


@sim
def test_masks_agree_with_rays_cast_from_the_camera(env):
    import mujoco

    env.reset(start_of(4))
    env.step(reaching_down(5))
    model, data = env._physics()
    names = (*INSTANCES, "robot")
    segmentation = env.segmentation(names)
    camera = model.camera("agentview").id
    focal = SIZE / 2 / np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    bodies = [model.body(int(model.geom_bodyid[geom])).name for geom in range(model.ngeom)]
    prefixes = [("robot0", "gripper0", "mount0") if name == "robot" else (name,) for name in names]
    visual = np.array([0, 1, 0, 0, 0, 0], dtype=np.uint8)
    hit, agree, seen = np.zeros(1, dtype=np.int32), 0, set()
    pixels = np.random.default_rng(0).integers(0, SIZE, (200, 2))
    for row, column in pixels:
        ray = np.array([(SIZE - 1 - column + 0.5 - SIZE / 2) / focal, -(row + 0.5 - SIZE / 2) / focal, -1.0])
        direction = data.cam_xmat[camera].reshape(3, 3) @ ray
        mujoco.mj_ray(model, data, data.cam_xpos[camera], direction, visual, 1, -1, hit)
        body = bodies[hit[0]] if hit[0] >= 0 else ""
        expected = next((i + 1 for i, prefix in enumerate(prefixes) if body.startswith(prefix)), 0)
        agree += expected == segmentation[row, column]
        seen.add(expected)
    assert len(seen) >= 4
    assert agree >= 190  # the rest lies on outlines


@sim
def test_masks_and_their_map_are_two_forms_of_one_thing(env):
    env.reset(start_of(0))
    masks = env.masks((*INSTANCES, "gripper", "robot", "flat_stove_1_cook_region"))
    segmentation = env.segmentation(INSTANCES)
    assert segmentation.dtype == np.uint8
    for i, name in enumerate(INSTANCES):
        assert masks[name].dtype == bool
        assert np.array_equal(segmentation == i + 1, masks[name])
        assert masks[name].sum() > 50
    table = env.masks(("main_table_plate_region",))["main_table_plate_region"]  # stands for the table
    assert table.mean() > 0.2
    assert not (table & (segmentation > 0)).any()
    assert masks["gripper"].any()
    assert (masks["robot"] >= masks["gripper"]).all()
    assert masks["robot"].sum() > masks["gripper"].sum()
    assert np.array_equal(masks["flat_stove_1_cook_region"], masks["flat_stove_1"])  # a region stands for its owner
    with pytest.raises(UserError, match="did you mean plate_1"):
        env.masks(("plate_2",))


@sim
def test_fast_pictures_differ_but_show_the_same_and_leave_official_ones_alone(env):
    start = start_of(0)
    env.reset(start)
    before = env.observe().image
    with LiberoEnv(image_size=SIZE, quality="fast") as fast:
        fast.reset(start)
        image = fast.observe().image
        masks = fast.segmentation(INSTANCES)
        assert np.array_equal(env.observe().image, before)  # drawn while the other context exists
        assert np.array_equal(fast.observe().image, image)
    assert np.array_equal(env.observe().image, before)
    assert np.array_equal(env.segmentation(INSTANCES), masks)
    difference = np.abs(image.astype(float) - before).mean()
    assert 0.5 < difference < 15
    with pytest.raises(UserError, match="official"):
        LiberoEnv(quality="oficial")  # type: ignore[arg-type]


@sim
def test_pictures_after_a_reset_are_those_of_a_fresh_environment(env):
    start = start_of(0, index=9)
    env.reset(start)
    with LiberoEnv(image_size=SIZE) as fresh:
        fresh.reset(start)
        assert np.array_equal(fresh.observe().image, env.observe().image)


@sim
def test_nothing_is_drawn_until_asked(env, monkeypatch):
    import mujoco

    env.reset(start_of(0))
    env.observe()
    drawn = []
    render = mujoco.mjr_render
    monkeypatch.setattr(mujoco, "mjr_render", lambda *args, **kw: drawn.append(1) or render(*args, **kw))
    env.reset(start_of(0))
    env.step(np.zeros((8, 7)))
    env.poses(), env.proprio(), env.raw_observation(), env.state(), env.model_xml()
    assert len(drawn) == 0
    env.observe()
    assert len(drawn) == 2  # agentview and wrist
    env.masks(INSTANCES)
    assert len(drawn) == 3


@sim
def test_proprioception_and_poses_are_robosuites(env):
    from robosuite.utils.transform_utils import quat2axisangle

    env.reset(start_of(0))
    env.step(reaching_down(4))
    raw, proprio, poses = env.raw_observation(), env.proprio(), env.poses()
    expected = [raw["robot0_eef_pos"], quat2axisangle(raw["robot0_eef_quat"]), raw["robot0_gripper_qpos"]]
    assert proprio.dtype == np.float32
    assert np.allclose(proprio, np.concatenate(expected), atol=1e-6)
    observed = env.observe().proprio
    assert observed is not None
    assert np.array_equal(observed, proprio)
    assert np.allclose(poses["gripper"].position, raw["robot0_eef_pos"])
    for name in ("akita_black_bowl_1", "plate_1"):
        assert np.allclose(poses[name].position, raw[f"{name}_pos"])
        assert np.allclose(poses[name].quaternion, raw[f"{name}_quat"])
    assert {"wooden_cabinet_1", "flat_stove_1"} <= set(poses)


# ---------------------------------------------------------------- the machine


@pytest.mark.parametrize("version", ["3.2.7", "3.3.3", "3.4.0", "2.3.7"])
def test_a_mujoco_with_other_physics_is_refused(version):
    with pytest.raises(UserError, match=r"mujoco>=3\.3,<3\.3\.3"):
        check_mujoco(version)


@pytest.mark.parametrize("version", ["3.3.0", "3.3.1", "3.3.2"])
def test_the_right_mujoco_is_accepted(version):
    check_mujoco(version)


@pytest.mark.parametrize(
    ("libraries", "chosen"), [({"EGL", "OSMesa"}, "egl"), ({"EGL"}, "egl"), ({"OSMesa"}, "osmesa"), (set(), None)]
)
def test_the_opengl_that_is_there_is_chosen(monkeypatch, libraries, chosen):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name in libraries else None)
    if chosen is None:
        with pytest.raises(UserError, match="apt-get install"):
            prepare.choose_opengl()
    else:
        prepare.choose_opengl()
        assert prepare.os.environ["MUJOCO_GL"] == chosen


@pytest.mark.sim
def test_a_scene_that_lacks_a_file_says_which(monkeypatch):
    env = LiberoEnv()

    def lacks(**_):
        raise FileNotFoundError(2, "No such file or directory", "/assets/custom_objects/red.xml")

    monkeypatch.setattr("libero.libero.envs.env_wrapper.ControlEnv", lacks)
    with pytest.raises(prepare.CannotStart, match=r"needs /assets/custom_objects/red\.xml, which is missing; "):
        env.reset(official_start(load_task("libero_spatial", 0), 0))
