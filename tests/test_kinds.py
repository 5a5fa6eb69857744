"""Frozen dataclasses in JSON: the class is named, never guessed, and newer fields have their defaults."""

import json
from dataclasses import asdict, dataclass, field, replace

import pytest

from la_reconvla import kinds
from la_reconvla.backbones.latents import Latents
from la_reconvla.conditions import CONDITIONS
from la_reconvla.method.decoder import MAEDecoder
from la_reconvla.method.variants.denoiser import Denoiser
from la_reconvla.method.variants.targets import Pixels


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
        with pytest.raises(ValueError, match="is not one of Cup"):
            kinds.from_json(raw, (Cup, Pixels))
    with pytest.raises(TypeError, match="depth"):
        kinds.from_json({"kind": "Cup", "size": 3, "depth": 1}, (Cup,))


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
    assert "size" not in kinds.with_defaults({"kind": "Cup"}, cup), "there is no default"
    assert kinds.with_defaults("Cup(3)", cup) == "Cup(3)"
    cups = [{"kind": "Cup", "size": 1}, written(cup)]
    assert kinds.with_defaults(cups, (cup, cup))[0] == written(Cup(1))
    assert kinds.with_defaults(cups, (cup,)) == cups, "of another length"
