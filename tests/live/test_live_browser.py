"""The page of `try` in a real browser, over the toy: what is typed, dragged and pressed, at both sizes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from toy_page import FIRST, TOKEN, toy_session

from browsers import DESK, PHONE, Opened, browser
from la_reconvla.live.server import HOST, application
from la_reconvla.storage import read_jsonl

__all__ = ["browser"]  # the fixture
pytestmark = pytest.mark.slow  # a browser takes seconds to start
# WCAG's contrast of every text with what is behind it, computed from the colours that the browser drew with.
CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("h1, h2, p, span, label, button, li, dt, dd, small, input, select")]
    .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.disabled && !one.closest("#screen"))
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || one.value)
    .map((one) => {
      const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
      return [one.textContent || one.id, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}
"""
UNNAMED = """
() => [...document.querySelectorAll("button, input, select, canvas, img, progress")].filter((one) =>
  !one.ariaLabel && !one.textContent.trim() && !(one.labels && one.labels.length) && !one.alt && !one.ariaHidden).length
"""


class Served:
    """A page in a thread with an event loop of its own."""

    def __init__(self, log: Path):
        self.log, self.loop = log, asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.open()

    def open(self) -> None:
        self.session = toy_session(self.log)
        self.port = self.run(self._open())
        self.address = f"http://{HOST}:{self.port}/?token={TOKEN}"

    async def _open(self) -> int:
        self.runner = web.AppRunner(application(self.session, TOKEN), shutdown_timeout=1)
        await self.runner.setup()
        await web.TCPSite(self.runner, HOST, self.port).start()
        await self.session.work("choose", FIRST)
        await self.session.work("limit", 40)
        return self.runner.addresses[0][1]

    def run(self, task: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(task, self.loop).result(30)

    def close(self) -> None:
        self.run(self.runner.cleanup())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "actions.jsonl")
    yield served
    served.close()
    served.loop.call_soon_threadsafe(served.loop.stop)


class Tab(Opened):
    """A tab of `try` that has shown its first frame."""

    def __init__(self, browser: Any, address: str, size: dict[str, int], scheme: str = "light") -> None:
        super().__init__(browser, address, size, scheme)
        self.until("frame !== null && state !== null && !$('play').disabled")

    def until(self, condition: str) -> None:
        for _ in range(1200):  # a minute: machines that run tests are busy
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never came: {condition}; the page says {self.page.inner_text('body')[:600]}")


def test_two_typed_instructions_give_other_actions(browser: Any, served: Served) -> None:
    tab = Tab(browser, served.address, DESK)
    for colour in ("black", "white"):
        tab.page.click("#again")
        tab.until("frame.step === 0 && !state.busy")
        tab.page.fill("#words", f"push {colour}")
        tab.page.press("#words", "Enter")
        tab.until(f"frame.words === 'push {colour}' && frame.step > 3")
        tab.page.evaluate("state.playing && $('play').click()")  # it says Pause, unless the episode is over already
        tab.until("!state.playing")
    assert tab.complaints == []
    assert {url.split("?")[0].rsplit(":", 1)[0] for url in tab.requests if not url.startswith("data:")} <= {
        f"http://{HOST}",
        f"ws://{HOST}",
    }
    tab.page.close()
    rows = read_jsonl(served.log)
    told = [[r["action"] for r in rows if r["instruction"] == f"push {colour}"][:3] for colour in ("black", "white")]
    assert len(told[0]) == len(told[1]) == 3
    assert told[0] != told[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_fits_and_can_be_read(browser: Any, served: Served, size: dict[str, int], scheme: str) -> None:
    tab = Tab(browser, served.address, size, scheme)
    tab.page.fill("#words", "push the unpronounceable-word-without-any-room-to-break-" + 80 * "x")
    tab.page.press("#words", "Enter")
    tab.until("!$('note').hidden")
    tab.page.click("#play")
    tab.page.fill("#words", " ")
    tab.page.press("#words", "Enter")
    tab.until("$('notices').children.length === 1")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert tab.page.evaluate(CONTRAST) == []
    assert tab.page.evaluate(UNNAMED) == 0
    box = tab.page.locator("#words").bounding_box()
    assert box["y"] + box["height"] < size["height"]  # picture and words on the first screen
    assert tab.complaints == []
    tab.page.close()


def test_the_overlay_obeys_its_slider(browser: Any, served: Served) -> None:
    tab = Tab(browser, served.address, DESK)
    assert tab.page.evaluate("[$('heat').width, $('heat').height]") == [2, 2]
    alpha = "[...$('heat').getContext('2d').getImageData(0, 0, 2, 2).data].filter((_, i) => i % 4 === 3)"
    shown = tab.page.evaluate(alpha)
    assert shown == sorted(shown)  # the toy's scores rise
    assert shown[0] < shown[-1] == 255
    for strength in (0, 30, 100):
        tab.page.evaluate(f"$('strength').value = {strength}; $('strength').dispatchEvent(new Event('input'))")
        assert tab.page.evaluate("Number(getComputedStyle($('heat')).opacity)") == strength / 100
    tab.page.click("#step")
    tab.until("frame.step === 1")
    assert tab.page.evaluate("Number($('heat').style.opacity)") == 1  # the next picture keeps it
    tab.page.get_by_role("button", name="above").click()
    tab.until("frame.camera === 'above'")
    assert tab.page.evaluate("$('heat').hidden")
    tab.page.close()


def test_things_are_dragged_with_the_mouse_and_the_keyboard(browser: Any, served: Served) -> None:
    tab = Tab(browser, served.address, DESK)
    ring = tab.page.get_by_role("button", name="Move red tile")
    box = ring.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + 60, y + 40, steps=4)
    tab.page.mouse.up()
    tab.until("frame.placed_by_hand && !state.busy")
    assert tab.page.inner_text("#badge") == "Moved by hand"
    tab.page.click("#shuffle")
    tab.until("!frame.placed_by_hand && !state.busy")
    ring = tab.page.get_by_role("button", name="Move white tile")
    ring.focus()
    ring.press("ArrowUp")
    ring.press("Enter")
    tab.until("frame.placed_by_hand && !state.busy")
    tab.page.click("#step")
    tab.until("frame.step === 1")
    assert tab.page.locator("#handles button").count() == 0  # once it has moved nothing can be dragged
    assert tab.complaints == []
    tab.page.close()


def test_a_second_tab_shows_what_the_first_does_and_the_page_comes_back(browser: Any, served: Served) -> None:
    first, second = Tab(browser, served.address, DESK), Tab(browser, served.address, PHONE, "dark")
    first.until("state.tabs === 2")
    assert "1 other tab" in first.page.inner_text("#link")
    second.page.get_by_label("arm 1").check()
    first.until("frame.arm === 'arm 1' && !state.busy")
    assert first.page.get_by_label("arm 1").is_checked()
    served.loop.call_soon_threadsafe(
        lambda: [connection.transport.abort() for connection in served.runner.server.connections]
    )
    first.until("$('link').className === 'lost'")
    first.until("$('link').className === 'live' && !$('play').disabled")
    first.page.click("#step")
    first.until("frame.step === 1")
    served.close()
    first.until("$('link-text').textContent.startsWith('The program has ended')")
    assert first.page.locator("#play").is_disabled()
    served.open()
    first.page.close()
    second.page.close()
