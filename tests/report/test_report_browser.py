"""The report in a real browser: Debian's Chromium, driven by playwright, on a page whose files are real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import PHASES, STEPS, with_evidence, write_study
from test_results import study_results

from browsers import DESK, PHONE, Opened, browser
from la_reconvla.report import write as report

__all__ = ["browser"]  # the fixture
pytestmark = pytest.mark.slow  # a browser takes seconds to start
OPEN = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
METADATA = """
() => Promise.all([...document.querySelectorAll("video")].map((video) => new Promise((done) => {
  if (video.readyState >= 1) return done(true);
  video.addEventListener("loadedmetadata", () => done(true));
  video.addEventListener("error", () => done(video.error.message));
})))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_study(tmp_path_factory.mktemp("runs") / "study", with_evidence(study_results()))
    return report.write_report(folder).as_uri()


@pytest.fixture(scope="module")
def desk(browser: Any, address: str) -> Iterator[Opened]:
    opened = Opened(browser, address, DESK)
    opened.page.evaluate(OPEN)
    yield opened
    opened.page.close()


def visible(page: Any) -> dict[str, str]:
    """Which picture each stack of the slider shows, by its name without the step."""
    names = page.eval_on_selector_all(
        ".slider img", "all => all.filter((one) => one.checkVisibility()).map((one) => one.alt)"
    )
    return dict(name.split(" at ") for name in names)


def test_the_page_is_silent_and_asks_for_nothing(desk: Opened, address: str) -> None:
    assert desk.page.evaluate(METADATA) == [True] * 6  # two of them again on the first screen
    assert desk.complaints == []
    assert [url for url in desk.requests if not url.startswith("data:")] == [address]


def test_every_picture_is_drawn_and_every_video_plays(desk: Opened) -> None:
    widths = desk.page.eval_on_selector_all("img", "all => all.map((one) => one.naturalWidth)")
    assert len(widths) > 20
    assert min(widths) > 0
    for index in range(3):
        video = desk.page.locator("video").nth(index)
        video.evaluate("(video) => video.play()")
        desk.page.wait_for_function("(video) => video.currentTime > 0", arg=video.element_handle())
        assert video.evaluate("(video) => video.videoWidth") > 0
        video.evaluate("(video) => video.pause()")


def test_everything_to_look_at_has_a_name(desk: Opened) -> None:
    """The names are those that the browser tells a screen reader, not attributes of the source."""
    unnamed = desk.page.evaluate(
        """() => [...document.querySelectorAll("img, video, svg, input, button, .scroll")]
            .filter((one) => !(one.alt || one.ariaLabel || one.textContent).trim())
            .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    slider = desk.page.get_by_role("slider", name="Moment of the episode")
    assert slider.count() == 1
    assert desk.page.get_by_role("img", name="C4 attention at step 0, reach").count() == 1
    assert desk.page.get_by_role("button", name="Play", exact=True).count() >= 1


def test_the_slider_moves_all_arms_together(desk: Opened) -> None:
    page = desk.page
    slider = page.get_by_role("slider", name="Moment of the episode")
    stacks = {"camera", *(f"{arm} attention" for arm in ("C1", "C2", "C4"))}
    stacks |= {"C2 reconstruction (random)", "C4 reconstruction (attention)"}
    shown, sources = [], []
    slider.focus()
    for step in range(len(STEPS)):
        shown.append(visible(page))
        sources.append(
            page.eval_on_selector_all(".slider img", "all => all.filter((o) => o.checkVisibility()).map((o) => o.src)")
        )
        assert page.locator(".slider output").inner_text() == f"step {STEPS[step]}, {PHASES[step]}"
        assert slider.get_attribute("aria-valuetext") == f"step {STEPS[step]}, {PHASES[step]}"
        page.keyboard.press("ArrowRight")
    assert [set(each) for each in shown] == [stacks] * len(STEPS)
    for step, each in enumerate(shown):
        assert set(each.values()) == {f"step {STEPS[step]}, {PHASES[step]}"}
    assert len({source for each in sources for source in each}) == len(stacks) * len(STEPS)
    assert set(visible(page).values()) == {"step 0, reach"}  # past the end it begins again
    page.keyboard.press("ArrowLeft")
    assert set(visible(page).values()) == {"step 30, place"}
    slider.fill("1")  # as a finger or a mouse does
    assert set(visible(page).values()) == {"step 10, reach"}


def test_it_plays_by_itself_and_stops(desk: Opened) -> None:
    page = desk.page
    before = visible(page)
    page.locator(".slider").get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(
        "(text) => document.querySelector('.slider output').textContent !== text", arg=next(iter(before.values()))
    )
    page.locator(".slider").get_by_role("button", name="Pause").click()  # the films of the first screen have one too
    at = visible(page)
    page.wait_for_timeout(700)
    assert visible(page) == at


def test_videos_of_one_start_play_together(desk: Opened) -> None:
    page = desk.page
    first = page.locator("#side-by-side")
    assert first.locator("figcaption strong").all_inner_texts() == ["words", "none"]
    page.reload()  # they begin by themselves
    page.wait_for_function(
        "() => [...document.querySelectorAll('#side-by-side video')].every((v) => v.currentTime > 0)"
    )
    assert page.locator("#videos video").evaluate_all("all => all.every((video) => video.paused)"), "no other"
    page.evaluate(OPEN)


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_first_screen_says_what_was_found(browser: Any, address: str, size: dict[str, int]) -> None:
    opened = Opened(browser, address, size)
    page = opened.page
    below = size["height"]
    for found in ("h1", ".reason", ".dots >> nth=2", "#side-by-side video >> nth=0", "#side-by-side video >> nth=1"):
        box = page.locator(found).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= below, found
    videos = [page.locator("#side-by-side video").nth(i).bounding_box() for i in (0, 1)]
    assert videos[0]["y"] == videos[1]["y"], "beside each other"  # type: ignore[index]
    assert len(page.locator("h1").inner_text().split()) <= 20
    dots = page.locator(".arm").evaluate_all(
        "all => all.map((arm) => [arm.querySelector('.n').textContent, arm.querySelectorAll('.dots i').length,"
        " arm.querySelectorAll('.dots i.success').length])"
    )
    assert len(dots) == 3
    assert all(count == f"{successes}/{episodes}" for count, episodes, successes in dots)
    drawn = page.locator(".dots i").evaluate_all("all => all.map((one) => one.getBoundingClientRect().width)")
    assert min(drawn) >= 4
    assert page.evaluate("document.documentElement.scrollHeight") <= (6000 if size is DESK else 8 * below)
    page.close()


def test_terms_explain_themselves_to_the_keyboard(browser: Any, address: str) -> None:
    opened = Opened(browser, address, DESK)
    page = opened.page
    page.keyboard.press("Tab")
    shown = "(one => [one.tagName, one.title, getComputedStyle(one, '::after').content])(document.activeElement)"
    tag, title, after = page.evaluate(shown)
    assert (tag, title) == ("ABBR", "C4: attention mask")
    assert "C4: attention mask" in after
    page.close()


def test_a_link_into_the_evidence_opens_it(browser: Any, address: str) -> None:
    opened = Opened(browser, address, DESK)
    page = opened.page
    curves = page.locator("#curves details").first
    assert not curves.evaluate("(one) => one.open")
    page.locator("#findings a[href='#curves']").click()
    page.wait_for_function("() => document.querySelector('#curves details').open")
    assert page.locator("#curves picture img").first.is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, address: str, scheme: str) -> None:
    """Contrast, names and structure, of everything unfolded, by axe-core's rules for WCAG 2 A and AA."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = browser.new_page(viewport=DESK, color_scheme=scheme, bypass_csp=True)
    page.goto(address)
    page.evaluate(OPEN)
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21aa"]}
    found = axe.Axe().run(page, options=options).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found] == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_it_fits_the_screen_in_both_colours(
    browser: Any, address: str, tmp_path: Path, size: dict[str, int], scheme: str
) -> None:
    opened = Opened(browser, address, size, scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    background, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    levels = [sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in (background, ink)]
    assert (levels[0] > levels[1]) == (scheme == "light")
    assert abs(levels[0] - levels[1]) > 400
    page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    assert (tmp_path / f"{scheme}.png").stat().st_size > 10_000
    assert opened.complaints == []
    page.close()


def test_it_prints(browser: Any, address: str, tmp_path: Path) -> None:
    """On paper every step of the episode is there, what was folded is open, and what cannot be used is gone."""
    opened = Opened(browser, address, DESK)
    page = opened.page
    content = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert content.startswith(b"%PDF")
    page.emulate_media(media="print")
    open_now = "document.querySelector('#facts td').checkVisibility({contentVisibilityAuto: true})"
    page.wait_for_function(open_now)  # the style of paper is there with the next frame
    assert page.evaluate(open_now)
    assert page.locator(".slider img:visible").count() == page.locator(".slider img").count()
    assert page.locator("video:visible, nav:visible, input:visible, button:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    page.close()


def test_without_its_script_the_page_still_shows_everything(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=DESK)
    page = context.new_page()
    page.goto(address)
    page.locator("#timeline summary").first.click()
    assert page.get_by_role("img", name="C4 attention at step 0, reach").is_visible()
    assert page.locator(".live:visible").count() == 0
    context.close()
