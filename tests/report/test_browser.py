"""The report in a real browser, which has to be installed; the tests say so where none is."""

import json
import re
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from lora_mnist.pipeline import finetune, finetune_full
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run

from ..conftest import workspace


@pytest.fixture(scope="module")
def alone(finished_run, tmp_path_factory):
    """The page of a run with one adapter."""
    return write_report(Run(shutil.copytree(finished_run, tmp_path_factory.mktemp("alone") / "run")))


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    """The page of a run with two adapters, a control and a checkpoint."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("browser") / "run")
    finetune(workspace(run, digit=3, rank=1), control=True)
    finetune_full(workspace(run, digit=3, steps=5))
    return write_report(Run(run))


def opened(browser, file, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, java_script_enabled=scripts
    )
    page = context.new_page()
    page.goto(file.as_uri())
    return page


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


def section_of(file) -> dict:
    """The first adapter's section of report.json."""
    return json.loads(file.with_name("report.json").read_text())["adapters"][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280, 1920])
def test_nothing_is_wrong_on_any_screen(browser, report, alone, width, scheme):
    for file in (report, alone):
        page, troubles = shown(browser, file, width, scheme)
        assert troubles == []
        assert page.evaluate("document.images.length") > 20


def test_the_window_is_used(browser, alone):
    for width, least in ((1280, 600), (1920, 650)):
        wide = opened(browser, alone, width).locator("svg.plot").first.bounding_box()["width"]
        assert wide >= least
    page = opened(browser, alone, 1280)
    for seen in (".verdict", ".cards", ".chips", "svg.plot"):  # the answer fits into the first screen
        box = page.locator(seen).first.bounding_box()
        assert box["y"] + box["height"] <= 844, seen


def test_text_stands_out_in_light_and_dark(browser, report):
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3) of body text, of what is quiet, and of good and bad."""
    contrast = """(selector) => {
      const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      const light = (colour) => { const [r, g, b] = channels(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ink = light(getComputedStyle(document.querySelector(selector)).color);
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }"""
    for scheme in ("light", "dark"):
        page, _ = shown(browser, report, 1280, scheme)
        for selector in ("p", ".quiet", ".good", ".bad", "svg.plot"):
            assert page.evaluate(contrast, selector) >= 4.5, (scheme, selector)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, report, scheme):
    assert _serious(_unfolded(browser, report, scheme)) == []


def test_axe_would_find_something_serious(browser, alone):
    page = _unfolded(browser, alone, "light")
    assert _serious(page) == []
    page.evaluate("document.querySelector('select').parentNode.replaceWith(document.querySelector('select'))")
    assert _serious(page) == ["select-name"]


def _unfolded(browser, file, scheme: str) -> Page:
    page = opened(browser, file, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.locator(".gallery [data-kind='']").first.click()
    return page


def _serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [one["id"] for one in found if one["impact"] in ("serious", "critical")]


def test_the_slider_moves_the_point_and_the_numbers(browser, alone):
    page = opened(browser, alone)
    places = set()
    for i, point in enumerate(section_of(alone)["trade"]["strength"]):
        page.locator(".slider input").fill(str(i))
        for key in ("missed", "false_alarms", "errors"):
            assert page.locator(f".slider .{key}").inner_text() == f"{point[key]:,}"
        strength = f"{point['strength']:g}"
        assert page.locator(".slider .strength").inner_text() == strength
        mark, now = (
            page.locator(f"[data-plot$='/trade'] {one}") for one in (f".mark[data-strength='{strength}']", ".now")
        )
        place = now.get_attribute("cx"), now.get_attribute("cy")
        assert place == (mark.get_attribute("cx"), mark.get_attribute("cy"))
        assert f"{point['missed']} missed" in mark.locator("title").text_content()
        places.add(place)
    assert len(places) > 1


def test_a_cell_shows_its_images(browser, alone):
    section, page = section_of(alone), opened(browser, alone)
    gallery = page.locator(".gallery")
    assert gallery.locator("li").count() == 0
    for which in ("before", "after"):
        matrix = section["confusion"][which]
        row, column = max(((r, c) for r in range(10) for c in range(10) if r != c), key=lambda at: matrix[at[0]][at[1]])
        page.locator(f"table[data-matrix={which}] tbody tr").nth(row).locator("td button").and_(
            page.locator(f"[title^='{row} taken for {column}:'] button")
        ).click()
        images = [one for one in section["wrong_images"] if one["label"] == row and one[which]["prediction"] == column]
        assert len(images) == matrix[row][column]
        captions = gallery.locator("li").all_inner_texts()
        assert len(captions) == min(48, len(images))
        for one, caption in zip(images, captions, strict=False):
            assert f"#{one['index']}" in caption
            assert f"{which}: taken for a {column}" in caption
    gallery.locator("[data-kind=fixed]").click()
    fixed = [one for one in section["wrong_images"] if one["kind"] == "fixed"]
    assert f" of {len(fixed)} images" in gallery.locator(".how-many").inner_text()
    assert len(fixed) == section["headline"]["errors"]["fixed"]
    gallery.locator("select").select_option("3")
    assert f" of {sum(one['label'] == 3 for one in fixed)} images" in gallery.locator(".how-many").inner_text()
    gallery.locator("select").select_option("")
    gallery.locator("li button").first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert dialog.locator("canvas").bounding_box()["width"] > 200
    assert f"#{fixed[0]['index']}" in dialog.inner_text()
    ink = dialog.locator("canvas").evaluate("c => Math.min(...c.getContext('2d').getImageData(0, 0, 28, 28).data)")
    assert ink < 100  # something is drawn
    dialog.locator("button").click()
    assert not dialog.is_visible()


def test_a_table_sorts_both_ways(browser, alone):
    page, rows = opened(browser, alone), section_of(alone)["digits"]
    table = page.locator("table.sortable").first
    table.get_by_role("button", name="broken").click()
    digits = [int(text.split()[0]) for text in table.locator("tbody th").all_inner_texts()]
    assert [rows[digit]["broken"] for digit in digits] == sorted((row["broken"] for row in rows), reverse=True)
    table.get_by_role("button", name="net").click()
    table.get_by_role("button", name="net").click()
    digits = [int(text.split()[0]) for text in table.locator("tbody th").all_inner_texts()]
    assert [rows[digit]["net"] for digit in digits] == sorted(row["net"] for row in rows)
    assert table.locator("th[aria-sort]").all_inner_texts() == ["net"]
    assert table.locator("tfoot").is_visible()


def test_without_scripts_every_number_is_there(browser, report, alone):
    for file in (report, alone):
        page = opened(browser, file, scripts=False)
        text = " ".join(page.locator("main").text_content().split())
        numbers = set(re.findall(r"[−+]?\d[\d,]*(?:\.\d+)?", text))
        for section in json.loads(file.with_name("report.json").read_text())["adapters"]:
            wanted = [value for row in section["digits"] for value in (row["before"], row["after"], row["broken"])]
            wanted += [value for point in section["trade"]["strength"] for value in (point["missed"], point["errors"])]
            wanted += [value for matrix in section["confusion"].values() for row in matrix for value in row if value]
            wanted += [count["after"]["count"] for count in section["headline"].values()]
            assert {f"{value:,}" for value in wanted} - numbers == set()
        assert page.locator(".slider").first.is_hidden()
        assert page.locator(".gallery").first.is_hidden()


def test_a_link_opens_what_it_leads_to(browser, report):
    name = section_of(report)["name"]
    page = opened(browser, report)
    target = page.locator(f"[id='confusion:{name}']")
    assert not target.is_visible()
    page.evaluate("name => { location.hash = `confusion:${name}`; }", name)
    target.wait_for(state="visible")


def test_words_are_explained_to_the_pointer_and_to_the_keyboard(browser, alone):
    page = opened(browser, alone)
    word = page.locator("a.term").first
    word.focus()
    assert word.get_attribute("title") in word.evaluate("word => getComputedStyle(word, '::after').content")
    assert page.locator(word.get_attribute("href")).count() == 1


def test_it_is_printed_on_five_pages_at_the_most(browser, alone):
    printed = opened(browser, alone).pdf(prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 5


def test_the_policy_refuses_any_other_script(browser, alone):
    file = alone.with_name("planted.html")
    file.write_text(alone.read_text().replace("</body>", "<script>document.title = 'planted'</script></body>"))
    assert opened(browser, file).title() != "planted"


def test_the_alarm_works(browser, report):
    file = report.with_name("broken.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    wide = '<img src="http://127.0.0.1:9/x.png" alt="gone"><div style="width: 2000px">wide</div>'
    file.write_text(text.replace("</body>", f"{wide}<script>console.log('loud')</script></body>"))
    _, troubles = shown(browser, file, 390)
    for kind in ("console: loud", "picture: gone", "request: http://127.0.0.1:9/x.png", "it scrolls sideways"):
        assert any(trouble.startswith(kind) for trouble in troubles), kind
