"""The report in a real browser, which has to be installed; the tests say so where none is."""

import csv
import re
import shutil

import pytest
from playwright.sync_api import Page

from lora_mnist.pipeline import finetune, finetune_full
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import FinetunedDocuments, RunDocuments

from ..conftest import serious, workspace

pytestmark = pytest.mark.slow


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


def opened(browser, file, scripts: bool = True) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 844}, java_script_enabled=scripts).new_page()
    page.goto(file.as_uri())
    return page


def troubles_of(browser, file, scheme: str, *widths: int) -> list[str]:
    """Everything that a reader would call wrong with the page, opened at the first width and resized to the others."""
    context = browser.new_context(viewport={"width": widths[0], "height": 844}, color_scheme=scheme)
    page = context.new_page()
    troubles: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    for width in widths:
        page.set_viewport_size({"width": width, "height": 844})
        if page.evaluate("document.documentElement.scrollWidth") > width:
            troubles.append(f"it scrolls sideways at {width}")
    broken = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    troubles += [f"picture: {alt}" for alt in page.evaluate(broken)]
    troubles += [f"request: {url}" for url in requests if url != file.as_uri() and not url.startswith("data:")]
    context.close()
    return troubles


def documents(file) -> list[FinetunedDocuments]:
    """Of every adapter."""
    return RunDocuments.model_validate_json(file.with_name("report.json").read_text()).adapters


def rows(file, table: str) -> list[dict[str, str]]:
    """A CSV file of the first adapter."""
    return list(csv.DictReader(file.with_name(f"{documents(file)[0].name}-{table}.csv").read_text().splitlines()))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_on_any_screen(browser, report, alone, scheme):
    for file in (report, alone):
        assert troubles_of(browser, file, scheme, 390, 1280, 1920) == []


def test_no_table_is_cut_on_a_phone(browser, report, alone):
    for file in (report, alone):
        page = _unfolded(browser, file)
        page.set_viewport_size({"width": 390, "height": 844})
        cut = "() => [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
        assert page.evaluate(f"({cut})().map(one => one.innerText)") == []
        first = page.locator(".folds td").first  # whose column is not above it any more
        assert first.evaluate("element => getComputedStyle(element, '::before').content") not in ("none", '""')


def test_axe_finds_nothing_serious_and_would(browser, report):
    page = _unfolded(browser, report)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious(page) == {}
    page.evaluate("document.querySelector('select').parentNode.replaceWith(document.querySelector('select'))")
    assert serious(page).keys() == {"select-name"}


def _unfolded(browser, file) -> Page:
    page = opened(browser, file)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.locator(".gallery [data-kind='']").first.click()
    return page


def test_the_slider_moves_the_point_and_the_numbers(browser, alone):
    page = opened(browser, alone)
    places = set()
    points = documents(alone)[0].analysis.strength_curve.splits["test"]
    base = next(point for point in points if point.strength == 0)
    for i, point in enumerate(points):
        page.locator(".slider input").fill(str(i))
        for key in ("missed", "false_alarms", "errors"):  # of the large numbers
            assert page.locator(f"[data-count='{key}']").inner_text() == f"{point.of(key):,}"
        for part in page.locator("[data-share]").all():  # of the small ones below
            share = point.of(part.get_attribute("data-share")) / int(part.get_attribute("data-of"))
            assert part.inner_text() == f"{100 * share:.2f}\N{NO-BREAK SPACE}%"
        assert page.locator(".not-as-kept").is_visible() == (point.strength != 1)  # says of what the verdict speaks
        for digit, (now, before) in enumerate(zip(point.wrong, base.wrong, strict=True)):  # of the row of digits
            change = f"{now - before:+,}".replace("-", "−") if now != before else "0"
            assert page.locator(f"[data-digit='{digit}']").inner_text() == change
        kept = page.locator("p.as-kept")  # which speaks of the adapter at strength 1
        assert kept.evaluate("element => getComputedStyle(element).visibility") == (
            "visible" if point.strength == 1 else "hidden"
        )
        for key in ("missed", "false_alarms", "errors"):
            assert page.locator(f".slider .{key}").inner_text() == f"{point.of(key):,}"
        strength = f"{point.strength:g}"
        assert page.locator(".slider .strength").inner_text() == strength
        mark, now = (
            page.locator(f"[data-plot$='/trade'] {one}") for one in (f".mark[data-strength='{strength}']", ".now")
        )
        place = now.get_attribute("cx"), now.get_attribute("cy")
        assert place == (mark.get_attribute("cx"), mark.get_attribute("cy"))
        assert page.locator("[data-plot$='/trade'] .now-label").text_content() == f"strength {strength}"
        assert f"{point.missed} missed" in mark.locator("title").text_content()
        places.add(place)
    assert len(places) > 1


def test_a_cell_shows_its_images(browser, alone):
    page, wrong = opened(browser, alone), rows(alone, "images")
    gallery = page.locator(".gallery")
    assert gallery.locator("li").count() == 0
    for which in ("before", "after"):
        counts = {(int(row["true"]), int(row["predicted"])): int(row[which]) for row in rows(alone, "confusion")}
        row, column = max((at for at in counts if at[0] != at[1]), key=counts.get)
        page.locator(f"table[data-matrix={which}] tbody tr").nth(row).locator("td button").and_(
            page.locator(f"[title^='{row} taken for {column}:'] button")
        ).click()
        here = {"label": str(row), f"prediction_{which}": str(column)}
        images = [one for one in wrong if one.items() >= here.items()]
        assert len(images) == counts[row, column]
        captions = gallery.locator("li").all_inner_texts()
        assert len(captions) == min(48, len(images))
        for one, caption in zip(images, captions, strict=False):
            assert f"#{one['index']}" in caption
            assert f"{which}: taken for a {column}" in caption
    gallery.locator("[data-kind=fixed]").click()
    fixed = [one for one in wrong if one["kind"] == "fixed"]
    assert f" of {len(fixed)} images" in gallery.locator(".how-many").inner_text()
    assert len(fixed) == documents(alone)[0].analysis.splits["test"].pairs.errors.fixed
    gallery.locator("select").select_option("3")
    assert f" of {sum(one['label'] == '3' for one in fixed)} images" in gallery.locator(".how-many").inner_text()
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
    page = opened(browser, alone)
    known = {key: [int(row[key]) for row in rows(alone, "digits")] for key in ("broken", "net")}
    table = page.locator("table.sortable").first
    table.get_by_role("button", name="broken").click()
    digits = [int(text.split()[0]) for text in table.locator("tbody th").all_inner_texts()]
    assert [known["broken"][digit] for digit in digits] == sorted(known["broken"], reverse=True)
    table.get_by_role("button", name="net").click()
    table.get_by_role("button", name="net").click()
    digits = [int(text.split()[0]) for text in table.locator("tbody th").all_inner_texts()]
    assert [known["net"][digit] for digit in digits] == sorted(known["net"])
    assert table.locator("th[aria-sort]").all_inner_texts() == ["net"]
    assert table.locator("tfoot").is_visible()


def test_without_scripts_every_number_is_there(browser, report, alone):
    for file in (report, alone):
        page = opened(browser, file, scripts=False)
        text = " ".join(page.locator("main").text_content().split())
        numbers = set(re.findall(r"[−+]?\d[\d,]*(?:\.\d+)?", text))
        for one in documents(file):
            test = one.analysis.splits["test"]
            wanted = [*one.evaluation.splits["test"].wrong, *test.fixed, *test.broken, *test.after.numbers]
            wanted += [count for point in one.analysis.strength_curve.splits["test"] for count in point.numbers]
            wanted += [count for row in one.evaluation.splits["test"].confusion for count in row if count]
            assert {f"{value:,}" for value in wanted} - numbers == set()
        assert page.locator(".slider").first.is_hidden()
        assert page.locator(".gallery").first.is_hidden()


def test_a_link_opens_what_it_leads_to(browser, report):
    name = documents(report)[0].name
    page = opened(browser, report)
    target = page.locator(f"[id='confusion:{name}']")
    assert not target.is_visible()
    page.evaluate("name => { location.hash = `confusion:${name}`; }", name)
    target.wait_for(state="visible")


def test_the_alarm_works(browser, report):
    file = report.with_name("broken.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    wide = '<img src="http://127.0.0.1:9/x.png" alt="gone"><div style="width: 2000px">wide</div>'
    file.write_text(text.replace("</body>", f"{wide}<script>console.log('loud')</script></body>"))
    troubles = troubles_of(browser, file, "light", 390)
    for kind in ("console: loud", "picture: gone", "request: http://127.0.0.1:9/x.png", "it scrolls sideways"):
        assert any(trouble.startswith(kind) for trouble in troubles), kind
