"""What the page says, and what lies beside it. Its numbers are in test_tables.py, the browser is in test_browser.py."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import html5lib
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.pipeline import finetune, finetune_full, pretrain
from lora_mnist.pipeline.convert import extract
from lora_mnist.report.page import LEVELS, matrix_cells, rounded_probability, write_report
from lora_mnist.runs.listing import documents_of
from lora_mnist.runs.run import Run

from ..conftest import smoke, snapshot, workspace


class Page:
    """Sources, text alternatives, sections, ids, links and visible text of a page."""

    def __init__(self, text: str):
        root = html5lib.parse(text, namespaceHTMLElements=False)
        elements = list(root.iter())
        self.sources, self.ids, links = ([e.get(key) for e in elements if e.get(key)] for key in ("src", "id", "href"))
        self.links = [link for link in links if not link.startswith("data:")]
        self.alts = [e.get("alt") for e in elements if e.tag == "img"]
        self.sections = [e.get("id") for e in elements if e.tag == "section"]
        for hidden in [e for e in elements if str(e.tag).rpartition("}")[2] in ("style", "script", "svg")]:
            tail = hidden.tail
            hidden.clear()
            hidden.tail = tail
        self.visible = " ".join(" ".join(root.itertext()).split())


def written(run) -> str:
    """The page, made anew."""
    return write_report(Run(run)).read_text()


@pytest.fixture(scope="module")
def plain_run(finished_run, tmp_path_factory):
    """A run with one adapter; never changed."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def plain(plain_run):
    """Its page, with the report beside it."""
    return written(plain_run)


@pytest.fixture(scope="module")
def rich(rich_run):
    return written(rich_run)


@pytest.fixture(scope="module")
def rich_run(finished_run, tmp_path_factory):
    """A run with everything that a report can show: a stack, a control, all weights, and an extracted adapter."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("rich") / "run")
    first = Run(run).adapter_names()[0]
    finetune(workspace(run, digit=3, rank=1), control=True)
    finetune(workspace(run, digit=8, name="on-top"), on_top_of=[first])
    finetune_full(workspace(run, digit=3, steps=5))
    extract(workspace(run), 2)
    return run


def faults_of(text: str) -> list:
    """What a parser of the HTML standard finds wrong."""
    parser = html5lib.HTMLParser()
    parser.parse(text)
    return parser.errors


def test_the_page_is_valid_html(rich, plain):
    assert faults_of(rich) == []
    assert "mnist-5k (5,000 images of MNIST)" in Page(rich).visible
    html5lib.HTMLParser(strict=True).parse(plain)
    assert faults_of(plain.replace("</table>", "", 1))  # it would be noticed


def test_it_needs_nothing_from_elsewhere(rich, rich_run):
    page = Page(rich)
    assert all(source.startswith("data:image/") for source in page.sources)
    beside = {file.name for file in (rich_run / "report").iterdir()}
    for link in page.links:
        assert link.removeprefix("#") in page.ids if link.startswith("#") else link in beside, link
    assert "http" not in page.visible
    assert len(page.alts) == len(page.sources)
    assert all(page.alts)
    assert len(page.ids) == len(set(page.ids))
    first = Run(rich_run).on_top_of("on-top")[0]
    assert f"evaluate --run .. --adapter {first} --strength 1 --adapter on-top --strength" in page.visible
    assert Run(rich_run).digest() in page.visible


def test_one_script_runs_and_a_policy_names_it_and_the_style_by_their_hashes(rich):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', rich)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", rich, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert rules == {**nothing, "img-src": "data:"}
    assert re.findall(r"<script [^>]*>", rich) == ['<script type="application/json" id="data">']
    assert not re.search(r"<[^>]* (style|on\w+)=", rich)


def test_plots_take_the_colours_of_the_page(rich):
    for drawing in re.findall(r"<svg.*?</svg>", rich, re.DOTALL):
        assert re.findall(r"#[0-9a-f]{6}", drawing) == []
        assert set(re.findall(r'(?:fill|stroke)="(?!none|currentColor|var\(--)([^"]*)"', drawing)) == set()


def test_a_caption_says_what_is_taken_for_what_how_sure_and_what_the_true_digit_gets(plain, plain_run):
    run = Run(plain_run)
    (adapter,) = run.adapters()
    one = next(example for example in adapter.analysis.examples if example.kind == "fixed")
    before, after = (saved.logits()["test"][one.index].double().softmax(0) for saved in (run.base, adapter))
    sure, own, sure_after = map(rounded_probability, map(float, (before.max(), before[one.label], after.max())))
    caption = (
        f"A {one.label} #{one.index} before: taken for a {one.before.prediction} , {sure} sure;"
        f" the {one.label} gets {own} after: right, {sure_after} sure"
    )
    assert caption.replace("\N{NO-BREAK SPACE}", " ") in Page(plain).visible


def test_a_page_is_small_and_holds_an_image_once_however_many_adapters_it_changed_with(plain, run_copy, adapter):
    assert len(plain) < 400_000  # and 2 MB are allowed; MNIST takes 0.3, ten adapters 2.0
    for i in range(3):
        shutil.copytree(adapter, adapter.with_name(f"copy{i}"))
    assert len(written(run_copy)) < min(1_200_000, 4 * len(plain))


def test_plots_numbers_and_settings_lie_beside_the_page(plain, plain_run):
    (adapter,) = Run(plain_run).adapter_names()
    names = {file.name for file in (plain_run / "report").iterdir()}
    kinds = ("after", "change", "errors", "trade", "strength_curve", "directions", "loss")
    plots = {f"{adapter}-{kind}" for kind in kinds} | {"base-confusion", "base-loss"}
    kinds = ("digits", "scores", "confusion", "strength_curve", "trade", "images", "layers", "loss")
    tables = {f"{adapter}-{kind}.csv" for kind in kinds} | {"adapters.csv"}
    tables |= {f"base-{kind}.csv" for kind in ("digits", "scores", "confusion", "loss")}
    recipes = {"base.toml", f"{adapter}.toml"}
    files = {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    assert names == files | tables | recipes | {"index.html", "report.json", "manifest.json"}


def test_the_headline_is_what_the_run_stored(rich, rich_run):
    """Counts, McNemar's p by scipy and the colour that follows, Wilson's intervals by scipy, F1, of every adapter."""

    def exact(fixed: int, broken: int) -> float:
        return binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0

    def colour(fixed: int, broken: int, p: float) -> str:
        return "quiet" if p > 0.05 or fixed == broken else "good" if fixed > broken else "bad"

    for stored in documents_of(Run(rich_run)).adapters:
        section = re.search(rf'<section id="adapter:{stored.name}">.*?</section>', rich, re.DOTALL)[0]
        text = Page(section).visible.replace(",", "").replace("\N{NO-BREAK SPACE}", " ")
        test, evaluated, digit = stored.analysis.splits["test"], stored.evaluation.splits["test"], stored.finetune.digit
        assert verdict_of(stored.analysis, digit).words.replace(",", "") in text
        digits = list(zip(test.fixed, test.broken, strict=True))
        corrected = multipletests([exact(*one) for one in digits], method="holm")[1]
        colours = {f"digit={i}": colour(*one, p) for i, (one, p) in enumerate(zip(digits, corrected, strict=True))}
        of_digit = evaluated.images[digit]
        sizes = {"missed": of_digit, "false_alarms": evaluated.count - of_digit, "errors": evaluated.count}
        for key, images in sizes.items():
            cells = []
            for count in (test.before.of(key), test.after.of(key)):
                interval = binomtest(count, images).proportion_ci(0.95, "wilson")
                low, high = (abs(100 * end) for end in interval)
                cells.append(f"{count} {100 * count / images:.2f} % ( {low:.2f} to {high:.2f} % )")
            pair = getattr(test.pairs, key)
            p = corrected[digit] if key == "missed" else exact(pair.fixed, pair.broken)
            colours[f"change={key}"] = colour(pair.fixed, pair.broken, p)
            change = f"{pair.broken - pair.fixed:+}".replace("-", "−").replace("+0", "0")
            wanted = f"of {images} {' '.join(cells)} {change} p {f'= {p:.2g}' if p >= 1e-4 else '< 0.0001'}"
            assert re.sub(r"\W+", " ", wanted) in re.sub(r"\W+", " ", text)
        found = re.findall(r'data-(change|digit)="(\w+)" class="(\w+)"', section)
        assert {f"{kind}={name}": shown for kind, name, shown in found} == colours
        del colours[f"digit={digit}"], colours["change=missed"]
        assert ("None beyond chance" in text) == ("bad" not in colours.values())
        hits = [of_digit - one.missed for one in (test.before, test.after)]
        taken = [hit + one.false_alarms for hit, one in zip(hits, (test.before, test.after), strict=True)]
        f1 = [f"{200 * hit / (of_digit + all_taken):.2f} %" for hit, all_taken in zip(hits, taken, strict=True)]
        assert f"F1 of {digit}: {' → '.join(f1)}" in text


def test_cells_share_one_scale_and_a_change_is_coloured_by_its_sign():
    def matrix(**cells: int):
        """Ten of every digit right, and errors by true and predicted digit: `e49=3`."""
        rows = [[10 * (row == column) for column in range(10)] for row in range(10)]
        for name, count in cells.items():
            rows[int(name[1])][int(name[2])] = count
        return tuple(map(tuple, rows))

    before, after = matrix(e49=6, e94=1), matrix(e49=12, e72=3)
    cells = {which: matrix_cells(before, after, which, False) for which in ("before", "after", "change")}
    assert cells["before"][4][9] == ("6", f"b{LEVELS}")
    assert cells["after"][4][9] == ("12", f"b{LEVELS}")
    assert (cells["before"][9][4], cells["after"][7][2]) == (("1", "b1"), ("3", "b3"))
    assert (cells["after"][9][4], cells["after"][4][4]) == (("·", ""), ("10", "right"))
    assert (cells["change"][4][9], cells["change"][9][4]) == (("+6", f"o{LEVELS}"), ("−1", "p1"))
    assert matrix_cells(before, after, "change", True)[4][9].text == "+37.5"  # of the 16 before


def test_its_sections_have_the_names_that_the_documentation_has(plain):
    table = (Path(__file__).parents[2] / "docs" / "commands.md").read_text().partition("## The report")[2]
    named = [name for name in re.findall(r"^\| ([a-z -]+) \|", table, re.MULTILINE) if name != "section"]
    nav = re.search(r"<nav.*?</nav>", plain, re.DOTALL)[0]
    assert re.findall(r">([^<]+)</a>", nav) == [name.capitalize() for name in named if name != "side by side"]


def test_every_command_that_stands_in_its_text_is_complete(plain, plain_run, cli, monkeypatch):
    found = re.findall(r"<code>lora-mnist (.*?)</code>", plain)
    found = [command for command in found if " " in command]  # a name alone is none
    assert len(found) >= 1
    monkeypatch.chdir(plain_run / "report")
    for command in found:
        code, _, err = cli(*command.split())
        assert code == 0, (command, err)


def test_the_commands_on_the_page_make_the_same_run_again(rich, rich_run, cli, monkeypatch):
    commands = re.search(r"<pre>(.*?)</pre>", rich, re.DOTALL)[1].splitlines()
    assert len(commands) == 6
    monkeypatch.chdir(rich_run / "report")
    for line in commands:
        code, _, err = cli(*line.split()[1:], "--quiet")
        assert code == 0, (line, err)
    again = rich_run.parent.parent / rich_run.parent.name / "again"
    one, other = (
        {name: content for name, content in snapshot(folder).items() if name.endswith("model.safetensors")}
        for folder in (rich_run, again)
    )
    assert one == other
    assert len(one) == 6


def test_a_run_without_adapters_gets_a_page_too_and_links_its_export(run_copy, adapter):
    shutil.rmtree(adapter)
    (run_copy / "exports").mkdir()
    (run_copy / "exports" / "digit8-r2.html").write_text("a page")
    text = written(run_copy)
    assert faults_of(text) == []
    page = Page(text)
    assert "a base and no adapter" in page.visible
    assert page.sections == ["base", "made", "words"]
    assert "../exports/digit8-r2.html" in page.links
    assert (run_copy / "report" / "../exports/digit8-r2.html").is_file()


def test_awkward_runs_have_valid_pages(tmp_path):
    """A val of a few images, other layers, names that are used elsewhere, the same name twice, a high rank."""
    options = {"data": {"dataset": "mnist-5k", "val_share": 0.002}, "model": {"hidden": [12, 11]}}
    pretrain(smoke(tmp_path, **options))
    absent = Run(tmp_path).base.evaluation.splits["val"].images.index(0)
    write_report(Run(tmp_path))
    finetune_full(workspace(tmp_path, digit=absent, name="made", steps=5))
    page = Page(written(tmp_path))
    assert "made (all weights)" in page.visible
    assert "side-by-side" in page.ids
    for name, more in (("made", {}), ("side-by-side", {"rank": 11}), ("last", {"targets": ["linear2"]})):
        finetune(workspace(tmp_path, digit=absent, name=name, **more))
    text = written(tmp_path)
    assert faults_of(text) == []
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    names = [place.partition(":")[2] for place in page.sections if place.startswith("adapter:")]
    assert names == ["last", "side-by-side", "made"]
    assert {"made.toml", "made.full.toml"} <= {file.name for file in (tmp_path / "report").iterdir()}


def test_shares_instead_of_counts_on_request(plain, plain_run, run_copy, adapter):
    counts = snapshot(plain_run / "report")
    page = Page(write_report(Run(run_copy), normalised=True).read_text())
    shares = snapshot(run_copy / "report")
    changed = {name for name in counts if shares[name] != counts[name]} - {"manifest.json"}
    plots = {f"{adapter.name}-after", f"{adapter.name}-change", "base-confusion"}
    assert changed == {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")} | {"index.html"}
    assert "In per cent of the images of each true digit" in page.visible


def test_a_report_changes_nothing_else_and_is_the_same_bytes_again(plain, plain_run, finished_run, tmp_path):
    run = shutil.copytree(plain_run, tmp_path / "run")
    before = snapshot(run)
    others = {name: content for name, content in before.items() if not name.startswith("report/")}
    assert others == snapshot(finished_run)
    write_report(Run(run))
    assert snapshot(run) == before


def test_hostile_names_are_only_text(run_copy, adapter):
    """Folders may be renamed to what no command would name them."""
    name = """"><img src=x onerror=alert(1)><script>'&amp;"""
    adapter.rename(adapter.with_name(name))
    text = written(run_copy)
    assert faults_of(text) == []
    page = Page(text)
    assert name in page.visible
    assert all(source.startswith("data:image/") for source in page.sources)
    assert len(re.findall("<script", text)) == 2  # the data, and the page's own
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert list(json.loads(data)["adapters"]) == [name]
