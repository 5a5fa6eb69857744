"""Frozen dataclasses in JSON: the class is named, never guessed, and newer fields have their defaults."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from la_reconvla import conditions, kinds
from la_reconvla.backbones.latents import Latents
from la_reconvla.conditions import CONDITIONS
from la_reconvla.errors import UserError
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.targets import Pixels
from la_reconvla.study.presets import preset


@dataclass(frozen=True)
class Cup:
    size: int
    colour: str = "blue"
    inside: Pixels = field(default_factory=Pixels)


@dataclass(frozen=True)
class Mug:
    size: int
    colour: str = "blue"
    inside: Pixels = field(default_factory=Pixels)


def written(value):
    return json.loads(json.dumps(kinds.to_json(value)))


@pytest.mark.parametrize(
    "value", [MAEDecoder(depth=2), Denoiser(), Denoiser(target=Latents("vae", fold=3)), Cup(3), Mug(3), None]
)
def test_a_value_comes_back(value):
    assert kinds.from_json(written(value), (MAEDecoder, Denoiser, Pixels, Latents, Cup, Mug)) == value


def test_classes_of_equal_fields_differ():
    assert asdict(Cup(3)) == asdict(Mug(3))
    assert written(Cup(3)) != written(Mug(3))


def test_every_arm_is_written_apart():
    """Masks, saliency sources, crops and heads: two arms that train differently never look alike in a file."""
    arms = {arm.reconstruction: json.dumps(written(arm.reconstruction)) for arm in CONDITIONS.values()}
    assert len(set(arms.values())) == len(arms)


def test_another_kind_or_none_is_refused():
    for raw in ({"kind": "Mug", "size": 3}, {"size": 3}):
        with pytest.raises(ValueError, match="is not one of"):
            kinds.from_json(raw, (Cup, Pixels))
    with pytest.raises(TypeError, match="depth"):
        kinds.from_json({"kind": "test_kinds.Cup", "size": 3, "depth": 1}, (Cup,))


def test_fields_that_a_file_lacks_have_their_defaults():
    cup = replace(Cup(3), inside=Pixels(side=4))
    older = written(cup)
    del older["colour"]
    assert kinds.with_defaults(older, cup) == written(cup)
    assert kinds.with_defaults(older, replace(cup, colour="red")) == written(cup), "the default, not what is compared"
    del older["inside"]["kind"]
    assert kinds.with_defaults(older, cup)["inside"] == {"side": 4}, "of another kind, and left alone"
    del older["inside"]
    assert kinds.with_defaults(older, cup)["inside"] == written(Pixels())
    assert "size" not in kinds.with_defaults({"kind": "test_kinds.Cup"}, cup), "there is no default"
    assert kinds.with_defaults("Cup(3)", cup) == "Cup(3)"
    cups = [{"kind": "test_kinds.Cup", "size": 1}, written(cup)]
    assert kinds.with_defaults(cups, (cup, cup))[0] == written(Cup(1))
    assert kinds.with_defaults(cups, (cup,)) == cups, "of another length"


def test_a_class_from_outside_is_named_by_its_import_path_and_read_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(kinds, "REGISTERED", {})
    assert written(Cup(3))["kind"] == "test_kinds.Cup"
    with pytest.raises(
        UserError,
        match=r"import test_kinds before .*--import test_kinds\).* above its class Cup",
    ):
        kinds.from_json(written(Cup(3)), (Pixels,))
    assert kinds.register(Cup) is Cup
    assert kinds.from_json(written(Cup(3)), (Pixels,)) == Cup(3)


def test_only_what_files_can_hold_is_registered():
    @dataclass
    class Changing:
        size: int = 1

    for kind in (Changing, Path):
        with pytest.raises(UserError, match="frozen dataclass"):
            kinds.register(kind)


def test_what_nobody_can_import_is_not_registered():
    """Worker processes are sent registered classes, and used to break on these."""

    @dataclass(frozen=True)
    class Local:
        size: int = 1

    with pytest.raises(UserError, match=r"Local cannot be imported.*a file of its own"):
        kinds.register(Local)
    script = (
        "from dataclasses import dataclass\n"
        "from la_reconvla import kinds\n\n"
        "@kinds.register\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    size: int = 1\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "Mine cannot be imported" in done.stderr, "a notebook is such a script without a file"


def test_another_class_of_the_same_name_is_refused_and_the_same_file_may_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "REGISTERED", {})
    monkeypatch.delitem(sys.modules, "twice", raising=False)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice.py").write_text(
            "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine:\n    size: int = 1\n"
        )

    def run(file: Path, module: str) -> type:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module, made)
        spec.loader.exec_module(made)
        return made.Mine

    first = kinds.register(run(tmp_path / "one" / "twice.py", "twice"))
    again = kinds.register(run(tmp_path / "one" / "twice.py", "twice"))
    assert kinds.REGISTERED["twice.Mine"] is again is not first
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "two" / "twice.py"), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    other = run(tmp_path / "two" / "twice.py", "elsewhere")
    other.__module__ = "__main__"  # `python two/twice.py`, which imports one/twice.py
    with pytest.raises(UserError, match=r"another class 'twice\.Mine' already, of .*one"):
        kinds.register(other)
    assert kinds.REGISTERED["twice.Mine"] is again


@pytest.mark.parametrize("how", [["mine.py"], ["-m", "mine"], ["-c", "import mine"]])
def test_a_script_and_its_workers_name_a_class_as_an_import_does(how, tmp_path):
    """What `python mine.py` saves, `import mine` reads; a worker process runs the script under a third name."""
    (tmp_path / "mine.py").write_text(
        "import multiprocessing\n"
        "from dataclasses import dataclass\n"
        "from la_reconvla import kinds\n\n"
        "@kinds.register\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    size: int = 1\n\n"
        "def names(_):\n"
        "    return sorted(kinds.REGISTERED)\n\n"
        "if __name__ in ('__main__', 'mine'):\n"
        "    from la_reconvla.processes import worker_pool\n"
        "    print(kinds.name_of(Mine))\n"
        "    if __name__ == '__main__':\n"
        "        with worker_pool(1) as pool:\n"
        "            print(*pool.submit(names, 0).result())\n"
    )
    done = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"mine.Mine"}


def test_a_study_gives_its_lambda_to_arms_whose_own_is_a_number():
    """One that changes while it trains is what the arm is."""

    @dataclass(frozen=True)
    class Annealed:
        label = "annealed"

        def __call__(self, progress: float) -> float:
            return 1 - progress

    changing = replace(conditions.C4, reconstruction=Reconstruction(weight=Annealed()))
    assert changing.with_weight(2.0) == changing.with_weight(None) == changing
    given = conditions.C4.with_weight(2.0).reconstruction
    assert given is not None
    assert given.weight_at(0.3) == 2.0
    assert conditions.C1.with_weight(2.0) == conditions.C1


def test_an_arm_takes_another_lambda_after_its_name() -> None:
    found = conditions.condition("C4-5")
    assert (found.id, found.name) == ("C4-5", "attention mask, lambda 5")
    assert found.reconstruction == conditions.C4.with_weight(5.0).reconstruction
    assert conditions.condition("G1-shuffled-0.25") == replace(
        conditions.G1_SHUFFLED.with_weight(0.25), id="G1-shuffled-0.25", name="gaze mask of another sample, lambda 0.25"
    )
    assert conditions.condition("C3-0.1") is conditions.C3_LOW
    toy = preset("known-answer")  # it has a weight of its own, for arms that do not name theirs
    assert toy.recon_weight == toy.arm("C4").reconstruction.weight == 2.0  # pyright: ignore[reportOptionalMemberAccess]
    assert toy.arm("C4-5") == found.with_reconstruction_head(toy.decoder)
    # one way to write each: two folders never hold the same arm; and what has no lambda takes none
    for id in (
        "C4-5.0",
        "C4-05",
        "C4-0",
        "C4-.5",
        "C4-1e3",
        "C4-0.5",
        "C1-5",
        "C3-0.3",
        "no-image-5",
        "C4-5-5",
        "C4-1",
        "C4-0.1",
        "C3-0.1-5",
    ):
        with pytest.raises(UserError, match=r"lambda after its name"):
            conditions.condition(id)


def test_an_arm_from_outside_is_known_by_its_id_and_no_other_takes_it(monkeypatch):
    monkeypatch.setattr(conditions, "CONDITIONS", dict(CONDITIONS))
    mine = conditions.Condition("mine", "mine", conditions.C4.reconstruction)
    assert conditions.add_condition(mine) is conditions.condition("mine") is conditions.add_condition(mine)
    with pytest.raises(UserError, match="another arm 'C4'"):
        conditions.add_condition(replace(mine, id="C4"))
    with pytest.raises(UserError, match="folder"):
        conditions.add_condition(replace(mine, id="../mine"))
    assert "mine" not in CONDITIONS
