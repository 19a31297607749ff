"""The playground in a real browser, which has to be installed; the tests say so where none is."""

import os
import re
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from playwright.sync_api import Page, expect

from lora_mnist.pipeline import Request, open_workspace, verify
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import logits_of

from ..browser.conftest import NINE, draw
from ..conftest import serious, snapshot
from .conftest import Client, serving

pytestmark = pytest.mark.slow

RELOADED = "net::ERR_ABORTED"  # what a reload does to a request
SEVEN = [[[300, 250], [700, 250], [450, 820]]]


@pytest.fixture(scope="module")
def there(run):
    with serving(run) as client:
        yield client


@contextmanager
def opened(browser, client: Client, width: int = 1280, **more):
    """The page, which ends without anything that a reader would call wrong with it."""
    viewport = {"width": width, "height": 844}
    context = browser.new_context(viewport=viewport, **more)
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("requestfailed", lambda one: None if one.failure == RELOADED else troubles.append(one.url))
    page.on("request", lambda one: None if one.url.startswith(client.address) else troubles.append(one.url))
    page.goto(client.address)
    expect(page.locator("#adapters input").first).to_be_visible()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert troubles == []
    context.close()


def put_aside(page: Page, digit: int, strokes=NINE) -> None:
    draw(page, strokes)
    page.locator("#labels button").nth(digit).click()


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_is_wrong_on_any_screen(browser, there, width):
    with opened(browser, there, width, color_scheme="dark") as page:
        assert serious_in_both_schemes(page) == {}
        put_aside(page, 7, SEVEN)
        expect(page.locator("#tray li")).to_have_count(1)
        draw(page)
        expect(page.locator("#sentence")).to_contain_text("The base sees a")
        row = page.locator("#sheet").evaluate("c => [...c.getContext('2d').getImageData(0, 340, 300, 1).data]")
        ink, paper = row[4 * 255 + 3], row[3]
        assert (ink, paper) == (255, 0)
        page.locator("summary").click()
        assert serious_in_both_schemes(page) == {}
        page.locator("#strength").evaluate("slider => document.querySelector('[for=strength]').remove()")
        assert any(rule.startswith("label") for rule in serious(page))  # it would be noticed


def serious_in_both_schemes(page: Page) -> dict[str, str]:
    found = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        found |= serious(page)
    return found


def test_the_page_shows_what_torch_computes(browser, run, there):
    first, second = (one["name"] for one in there.ask("/api/run")[2]["adapters"])
    work = open_workspace(Request(run=run))
    with opened(browser, there) as page:
        draw(page)
        for names, strength in (([first], 1), ([first], 1.5), ([first, second], 0.4), ([second], 0), ([], 1)):
            for name in (first, second):
                page.locator(f"#adapters input[value={name}]").set_checked(name in names)
            page.locator("#strength").fill(str(strength))
            pixels = torch.tensor(page.evaluate("Array.from(subject.pixels)"), dtype=torch.uint8).view(1, 28, 28)
            model, _ = work.adapted([Applied(name, strength) for name in names])
            base, adapted = (logits_of(one, pixels)[0].softmax(0) for one in (work.base, model))
            words = rf"The base sees an? {int(base.argmax())} \("
            adapts = rf".*{' and '.join(names)}.* it is (still )?an? {int(adapted.argmax())} \(" if names else r".*\)\."
            expect(page.locator("#sentence")).to_have_text(re.compile(words + adapts))
            for side, shares in (("base", base), ("adapted", adapted if names else torch.zeros(10))):
                texts = page.locator(f"#bars tbody .{side} span").all_inner_texts()
                found = [int(text.strip("<> %") or 0) for text in texts]
                assert found == pytest.approx([min(100 * share, 99.4) for share in shares.tolist()], abs=0.61)


def test_undo_and_clear(browser, there):
    with opened(browser, there) as page:
        undo, clear = page.locator("#undo"), page.locator("#clear")
        expect(page.locator("#sentence")).to_contain_text("Fixed.", timeout=30_000)  # an example
        clear.click()
        expect(undo).to_be_disabled()
        draw(page)
        expect(page.locator("#sentence")).to_contain_text("The base sees a")
        for _ in NINE:
            undo.click()
        expect(undo).to_be_disabled()
        expect(page.locator("#sentence")).to_have_text("Draw a digit, and see what the network reads.")
        page.evaluate("gallery.update().then(showExample)")  # there is no other example
        expect(page.locator("#hint")).to_be_visible()


def test_everything_can_be_done_by_keys(browser, there):
    with opened(browser, there) as page:
        page.keyboard.press("Tab")
        expect(page.locator("#sheet")).to_be_focused()
        page.keyboard.press("Shift+ArrowUp")
        page.keyboard.press("Space")
        expect(page.locator("#sentence")).to_have_text(re.compile("The base sees|Pen down"))
        for _ in range(4):
            page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Space")
        page.keyboard.press("ArrowRight")
        seen = page.locator("#seen")
        expect(seen).to_have_attribute("aria-label", re.compile("scaled and centred"))
        page.keyboard.press("1")
        expect(page.locator("#tray li")).to_have_text("1×")
        for _ in range(60):  # on to the only drawing's button
            page.keyboard.press("Tab")
            if page.locator("#tray button").evaluate("button => button === document.activeElement"):
                break
        page.keyboard.press("Enter")
        expect(page.locator("#tray li")).to_have_count(0)
        expect(page.locator("#sheet")).to_be_focused()


def test_a_finger_draws(browser, there):
    with opened(browser, there, width=390, has_touch=True) as page:
        box, session = page.locator("#sheet").bounding_box(), page.context.new_cdp_session(page)
        for kind, place in (("touchStart", (0.5, 0.2)), ("touchMove", (0.5, 0.5)), ("touchMove", (0.5, 0.8))):
            at = {"x": box["x"] + place[0] * box["width"], "y": box["y"] + place[1] * box["height"]}
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        expect(page.locator("#sentence")).to_contain_text("The base sees a")
        assert page.evaluate("scrollY") == 0


def test_two_digits_are_refused_with_advice(browser, there):
    with opened(browser, there) as page:
        draw(page, [[[150, 200], [150, 800]], [[850, 200], [850, 800]]])
        expect(page.locator("#sentence")).to_contain_text("The picture holds 2 digits")
        expect(page.locator("#sentence")).to_contain_text("Undo takes back the last stroke.")
        page.locator("#undo").click()
        expect(page.locator("#sentence")).to_contain_text("The base sees a")


def test_a_lesson_from_the_drawings_to_the_adapter(browser, run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    taken = next((run / "adapters").iterdir()).name
    with serving(run, steps=1200) as client, opened(browser, client) as page:
        for i in range(5):  # no two alike
            put_aside(page, 9, [NINE[0], [[630, 360], [580 + 30 * i, 820]]])
            put_aside(page, 7, [[*SEVEN[0][:2], [450 - 30 * i, 820]]])
        expect(page.locator("#tray li")).to_have_count(10)
        page.reload()
        expect(page.locator("#tray li")).to_have_count(10)
        page.get_by_role("button", name="Teach 10 drawings").click()
        expect(page.get_by_role("progressbar")).to_be_visible()
        expect(page.locator(".how-far")).to_have_text(
            re.compile(r"Step [\d,]+ of [\d,]+ · loss \d\.\d\d"), timeout=60_000
        )
        draw(page)  # it still answers
        expect(page.locator("#sentence")).to_contain_text("The base sees a")
        expect(page.locator("#decision")).to_be_visible(timeout=60_000)
        lesson = client.teacher.state.lesson
        for count in (f"{lesson.unseen.before} → {lesson.unseen.after}", f"{lesson.val.before} → {lesson.val.after}"):
            expect(page.locator(".lesson-result")).to_contain_text(count)
        expect(page.locator("#decision h3")).to_be_focused()
        expect(page.locator("#adapters input[value='this lesson']")).to_be_checked()  # to be tried
        expect(page.locator("#sentence")).to_contain_text("with this lesson")
        assert serious(page) == {}
        with opened(browser, client) as other:
            expect(other.locator("#whose")).to_have_text("Another tab began this lesson, with drawings of its own.")
            expect(other.locator("#adapters input[value='this lesson']")).not_to_be_checked()
        page.locator("#name").fill(taken)
        page.get_by_role("button", name="Keep").click()
        expect(page.locator("#outcome")).to_contain_text("is finished already")
        page.locator("#name").fill("my-hand")
        page.get_by_role("button", name="Keep").click()
        expect(page.locator("#outcome")).to_have_text("Kept as my-hand. It is on now.", timeout=30_000)
        expect(page.locator("#adapters input[value=my-hand]")).to_be_checked()
        expect(page.locator("#adapters input[value='this lesson']")).to_have_count(0)
        page.reload()
        expect(page.locator("#adapters input[value=my-hand]")).to_be_checked()
    findings = verify(Request(run=run))
    assert findings.passed, findings.failures
    assert "my-hand" in [one.name for one in findings.adapters]
    assert len(list((run / "adapters" / "my-hand" / "drawings").rglob("*.png"))) == 10


def test_a_lesson_that_is_cancelled_killed_or_discarded_leaves_nothing(browser, run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    before = snapshot(run)
    with serving(run, steps=100_000) as client, opened(browser, client) as page:
        for digit in (7, 9):
            put_aside(page, digit)
        outcome, teach = page.locator("#outcome"), page.get_by_role("button", name="Teach 2 drawings")
        teach.click()
        expect(page.locator(".how-far")).to_contain_text("Step", timeout=60_000)
        page.get_by_role("button", name="Cancel").click()
        expect(outcome).to_have_text("Cancelled. Nothing was kept.")
        teach.click()
        expect(page.locator(".how-far")).to_contain_text("Step", timeout=60_000)
        assert client.ask("/api/teaching/start", {"drawings": [{"pixels": "00" * 784, "label": 1}]})[0] == 409
        os.kill(client.teacher.process.pid, signal.SIGKILL)
        expect(outcome).to_contain_text("was killed by signal 9 in the middle of the training")
        expect(outcome).to_contain_text("The run is as it was before.")
        teach.click()  # and once more, before it has begun
        expect(page.locator(".how-far")).to_have_text("Opening the run …")
        expect(outcome).to_be_hidden()
        os.kill(client.teacher.process.pid, signal.SIGKILL)
        expect(outcome).to_contain_text("was killed by signal 9")
        expect(teach).to_be_enabled()
    assert snapshot(run) == before
