"""The report in a real browser, which has to be installed; the tests say so where none is."""

import shutil

import pytest
from playwright.sync_api import Page, sync_playwright

from lora_mnist.pipeline import finetune, finetune_full
from lora_mnist.report.page import write_report
from lora_mnist.runs.rundir import Run

from ..conftest import workspace

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    """The page of a run with two adapters, a twin and a checkpoint."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("browser") / "run")
    finetune(workspace(run, digit=3, rank=1), twin=True)
    finetune_full(workspace(run, digit=3, steps=5))
    return write_report(Run(run))


def shown(browser, file, width: int, scheme: str = "light") -> tuple[Page, list[str]]:
    """The loaded page, and everything that a reader would call wrong with it."""
    page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda request: _note(troubles, request.url, file))
    page.goto(file.as_uri())
    broken = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    troubles += [f"picture: {alt}" for alt in page.evaluate(broken)]
    if page.evaluate("document.documentElement.scrollWidth") > width:
        troubles.append("it scrolls sideways")
    return page, troubles


def _note(troubles: list[str], url: str, file) -> None:
    if url != file.as_uri() and not url.startswith("data:"):
        troubles.append(f"request: {url}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_is_wrong_on_any_screen(browser, report, width, scheme):
    page, troubles = shown(browser, report, width, scheme)
    assert troubles == []
    assert page.evaluate("document.images.length") > 20


def test_text_stands_out_in_light_and_dark(browser, report):
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3) of body text, of what is quiet, and of good and bad."""
    contrast = """(selector) => {
      const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      const light = (colour) => { const [r, g, b] = channels(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ink = light(getComputedStyle(document.querySelector(selector)).color);
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      const paper = dark ? light("rgb(18, 18, 18)") : 1;  // Chromium's own canvas
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }"""
    for scheme in ("light", "dark"):
        page, _ = shown(browser, report, 1280, scheme)
        for selector in ("p", ".quiet", ".good", ".bad"):
            assert page.evaluate(contrast, selector) >= 4.5, (scheme, selector)


def test_the_alarm_works(browser, report):
    file = report.with_name("broken.html")
    text = report.read_text()
    wide = '<img src="http://127.0.0.1:9/x.png" alt="gone"><div style="width: 2000px">wide</div>'
    file.write_text(text.replace("</body>", f"{wide}<script>console.log('loud')</script></body>"))
    _, troubles = shown(browser, file, 390)
    for kind in ("console: loud", "picture: gone", "request: http://127.0.0.1:9/x.png", "it scrolls sideways"):
        assert any(trouble.startswith(kind) for trouble in troubles), kind
