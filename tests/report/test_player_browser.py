"""The report's player in a real browser, on films that are known pixel by pixel."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report_browser import OPEN
from tiny_films import COUNTS, GRID, RATE, STARTS, picture, target, write_filmed_study

from browsers import DESK, PHONE, Opened, browser
from la_reconvla.report.write import write_report

__all__ = ["browser"]  # the fixture
pytestmark = pytest.mark.slow
TIMES = "() => [...document.querySelectorAll('#videos .take:not([hidden]) video')].map((video) => video.currentTime)"
SETTLED = """() => [...document.querySelectorAll('#videos .take:not([hidden]) video')]
    .every((video) => !video.seeking && video.readyState >= 2)"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_filmed_study(tmp_path_factory.mktemp("runs") / "study")).as_uri()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Opened]:
    found = Opened(browser, address, DESK)
    found.page.evaluate(OPEN)
    found.page.wait_for_function(SETTLED)
    yield found
    assert found.complaints == []
    found.page.close()


def move(page: Any, time: float) -> None:
    page.locator("#videos .player .scrub").evaluate(
        "(range, time) => { range.value = time; range.dispatchEvent(new Event('input')); }", time
    )
    page.wait_for_function(SETTLED)
    page.wait_for_timeout(120)  # until the picture is on the screen


def screen(page: Any, arm: int) -> np.ndarray:
    """What is to be seen of a film, int [H W 3]."""
    shot = page.locator("#videos .take:not([hidden]) .screen").nth(arm).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def strength(page: Any, value: float) -> None:
    page.locator("#videos .player .strength").evaluate(
        "(range, value) => { range.value = value; range.dispatchEvent(new Event('input')); }", value
    )


def outline(page: Any, on: bool) -> None:
    page.locator("#videos .player .outlined").set_checked(on)


def test_one_scrubber_moves_all_films_to_within_a_tenth_of_a_second(opened: Opened) -> None:
    for time in (0.0, 0.43, 1.0, 1.21, 1.9, 0.2):
        move(opened.page, time)
        ends = [(count - 0.5) / RATE for count in COUNTS.values()]
        assert opened.page.evaluate(TIMES) == pytest.approx([min(time, end) for end in ends], abs=0.1)
        for arm, name in enumerate(COUNTS):  # and what is shown is the picture of that time
            outline(opened.page, False)
            strength(opened.page, 0)
            number = min(int(time * RATE + 1e-4), COUNTS[name] - 1)
            expected = picture(number, name)[50, 32].astype(int)
            shown = screen(opened.page, arm)
            assert shown[shown.shape[0] * 50 // 64, shown.shape[1] // 2] == pytest.approx(expected, abs=8), (time, name)


def test_films_play_together_and_stay_together(opened: Opened) -> None:
    page = opened.page
    page.locator("#videos .player .speed").select_option("0.5")
    page.locator("#videos").get_by_role("button", name="Play", exact=True).click()
    for _ in range(5):
        page.wait_for_timeout(150)
        first, second = page.evaluate(TIMES)
        assert abs(min(first, (COUNTS["C4"] - 0.5) / RATE) - second) < 0.1
    assert first > 0.1
    page.locator("#videos").get_by_role("button", name="Pause").click()
    page.wait_for_function(SETTLED)
    at = page.evaluate(TIMES)
    page.wait_for_timeout(300)
    assert page.evaluate(TIMES) == at
    page.locator("#videos .player .speed").select_option("4")
    page.locator("#videos").get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("() => document.querySelector('#videos .player .play').textContent === 'Play'")
    assert page.locator("#videos .player output").inner_text() == "2.2 s of 2.2 s"


def test_at_strength_0_the_raw_picture_is_seen_and_at_1_the_attention(opened: Opened) -> None:
    page = opened.page
    move(page, 0.5)
    outline(page, False)
    strength(page, 0)
    bare = screen(page, 1)
    page.add_style_tag(content=".attention, .outline { visibility: hidden }")
    assert np.array_equal(bare, screen(page, 1)), "nothing is drawn over the raw picture"
    page.add_style_tag(content=".attention, .outline { visibility: visible !important }")
    strength(page, 1)
    seen = screen(page, 1)
    side = seen.shape[0] // GRID[0]
    row, column = divmod(5, GRID[1])  # the patch that has the attention
    bright = seen[row * side + 4 : (row + 1) * side - 4, column * side + 4 : (column + 1) * side - 4]
    assert bright.mean((0, 1)) == pytest.approx([252, 255, 164], abs=4), "the end of the ramp, opaque"
    assert seen[: side - 4, : side - 4].mean() < bare[: side - 4, : side - 4].mean(), "others are darkened"


def test_one_scale_for_all_arms_of_a_start(opened: Opened) -> None:
    """C1's attention is less sharp than C4's, and so less bright."""
    page = opened.page
    outline(page, False)
    strength(page, 1)
    bright = []
    for arm in range(2):
        seen = screen(page, arm)
        side = seen.shape[0] // 4
        bright.append(seen[side + 4 : 2 * side - 4, side + 4 : 2 * side - 4].mean())
    assert bright[0] < bright[1] - 20
    most = 16 * 40 / 55
    assert page.locator("#videos .player .most").inner_text() == f"{most:.1f} ×"


def test_the_target_is_outlined_where_the_instance_map_has_it(opened: Opened) -> None:
    move(opened.page, 0.5)
    drawn = opened.page.locator("#videos .take:not([hidden]) .outline").first.evaluate(
        """(canvas) => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]
            .filter((_, index) => index % 4 === 3)"""
    )
    edge, mask = np.reshape(drawn, (64, 64)) > 0, target(2)
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    assert np.array_equal(edge, beside & ~mask)


def test_the_keyboard_does_all(opened: Opened) -> None:
    page = opened.page
    said = page.locator("#videos .player output")
    page.locator("#videos .player").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert said.inner_text() == "0.4 s of 2.2 s"
    page.keyboard.press("ArrowLeft")
    assert said.inner_text() == "0.2 s of 2.2 s"
    page.keyboard.press("Shift+ArrowRight")
    assert said.inner_text() == "1.2 s of 2.2 s"
    page.keyboard.press("End")
    assert said.inner_text() == "2.2 s of 2.2 s"
    page.keyboard.press("Home")
    page.keyboard.press("a")
    assert float(page.locator("#videos .player .strength").input_value()) == 0
    page.keyboard.press("a")
    assert float(page.locator("#videos .player .strength").input_value()) == 0.6
    page.keyboard.press("o")
    assert not page.locator("#videos .player .outlined").is_checked()
    page.keyboard.press(" ")
    page.wait_for_function("() => document.querySelector('#videos .player .play').textContent === 'Pause'")
    page.keyboard.press(" ")
    for key, start in (("n", STARTS[1]), ("n", STARTS[0]), ("p", STARTS[1])):
        page.keyboard.press(key)
        assert page.locator("#videos .take:not([hidden])").get_attribute("data-start") == start
    page.locator("#videos .player .scrub").focus()
    page.keyboard.press("ArrowRight")  # the range does not move as well
    assert said.inner_text() == "0.2 s of 2.2 s"


def test_below_each_film_it_says_what_is_reached(opened: Opened) -> None:
    page = opened.page
    now = page.locator("#videos .take:not([hidden]) .now")
    move(page, 0.3)
    assert now.all_inner_texts() == ["step 4 · 28.0 cm away · gripper 7.5 cm open"] * 2
    move(page, 1.0)
    assert now.nth(0).inner_text() == "step 20 · 20.0 cm away · gripper 5.5 cm open · approached"
    assert now.nth(1).inner_text() == "step 20 · 20.0 cm away · gripper 5.5 cm open · approached, grasped"
    move(page, 2.1)  # C4 has ended
    assert now.nth(1).inner_text().startswith("step 24 ·")
    marks = page.locator("#videos .take:not([hidden]) svg").nth(1).locator(".stagemark title").all_text_contents()
    assert marks == ["approached", "grasped"]


def test_it_fits_a_phone(browser: Any, address: str) -> None:
    opened = Opened(browser, address, PHONE)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert opened.complaints == []
    opened.page.close()


def test_on_paper_it_says_how_each_ended(browser: Any, address: str) -> None:
    opened = Opened(browser, address, DESK)
    opened.page.emulate_media(media="print")
    assert opened.page.locator("#videos .player video:visible, .player input:visible").count() == 0
    ended = opened.page.locator("#videos .player .paper li").all_inner_texts()
    assert ended[0].startswith("lift it: ")
    assert ended[0].endswith("(the arms disagree)")
    opened.page.close()
