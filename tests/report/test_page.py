"""The page and what lies beside it; what they say is `summary`'s, and how a browser shows it test_browser.py's."""

import base64
import csv
import hashlib
import json
import re
import shutil
import tomllib
from html.parser import HTMLParser

import html5lib
import numpy as np
import pytest

from lora_mnist.pipeline import extract, finetune, finetune_full, pretrain
from lora_mnist.report.numbers import report_of
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run

from ..conftest import smoke, snapshot, workspace


class Page(HTMLParser):
    """Sources, alternatives and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.sources, self.alts, self.places, self.words, self.ids, self.links = [], [], [], [], [], []
        self.hidden = ""
        self.feed(text)
        self.visible = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.hidden = tag if tag in ("style", "script", "svg") and not self.hidden else self.hidden
        self.sources += [value for key, value in attributes.items() if key == "src"]
        self.links += [value for key, value in attributes.items() if key == "href" and not value.startswith("data:")]
        self.ids += [value for key, value in attributes.items() if key == "id"]
        if tag in ("section", "h1", "h2", "h3"):
            self.places += [attributes["id"]] if "id" in attributes else []
        if tag == "img":
            self.alts.append(attributes.get("alt"))

    def handle_endtag(self, tag):
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, text):
        if not self.hidden:
            self.words.append(text)


def page_of(run) -> Page:
    return Page(written(run))


def written(run) -> str:
    """The page, made anew."""
    return write_report(Run(run)).read_text()


@pytest.fixture(scope="module")
def plain_run(finished_run, tmp_path_factory):
    """A run with one adapter; never changed."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def plain(plain_run):
    """The page of `plain_run`, whose report lies beside it."""
    return written(plain_run)


@pytest.fixture(scope="module")
def rich(rich_run):
    """Likewise."""
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
    html5lib.HTMLParser(strict=True).parse(plain)
    assert faults_of(plain.replace("</table>", "", 1))  # it would be noticed


def test_it_needs_nothing_from_elsewhere(rich, rich_run):
    page = Page(rich)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    beside = {file.name for file in (rich_run / "report").iterdir()}
    for link in page.links:
        assert link.removeprefix("#") in page.ids if link.startswith("#") else link in beside, link
    assert "http" not in page.visible


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


def test_only_what_is_more_than_chance_is_coloured(plain, plain_run):
    (section,) = report_of(Run(plain_run)).adapters
    cells = re.findall(r"<tfoot>.*?<td( class=\"\w+\")?>[+−\d,]+</td>\s*</tr></tfoot>", plain, re.DOTALL)
    errors = section.headline.errors
    wanted = "" if errors.p > 0.05 or not errors.change else f' class="{"good" if errors.change < 0 else "bad"}"'
    assert wanted in cells


def test_every_plot_leads_to_its_files(plain, plain_run):
    page, (name,) = Page(plain), Run(plain_run).adapter_names()
    for plot in (f"{name}-{kind}" for kind in ("trade", "errors", "strength_curve", "after", "change", "loss")):
        assert {f"{plot}.png", f"{plot}.svg"} <= set(page.links)
    tables = {link for link in page.links if link.endswith(".csv")}
    assert {f"{name}-{kind}.csv" for kind in ("trade", "digits", "strength_curve", "confusion", "layers")} <= tables


def test_a_caption_says_what_is_taken_for_what_how_sure_and_what_the_true_digit_gets(plain, plain_run):
    page = Page(plain)
    one = next(e for e in report_of(Run(plain_run)).adapters[0].examples if e.kind == "fixed")
    seen = [f"{100 * share:.0f} %" for share in (one.before.confidence, one.before.probability, one.after.confidence)]
    before, own, after = [{"0 %": "< 1 %", "100 %": "> 99 %"}.get(share, share) for share in seen]
    assert (
        f"A {one.label} #{one.index} before: taken for a {one.before.prediction} , {before} sure;"
        f" the {one.label} gets {own} after: right, {after} sure" in page.visible
    )


def test_a_page_says_what_is_told_and_the_digest_of_the_run(plain, plain_run):
    page = Page(plain)
    assert Run(plain_run).digest() in page.visible
    assert "are as the run recorded them" in page.visible


def test_a_page_is_small(plain, run_copy, adapter):
    size = len(plain.encode())
    assert size < 400_000  # and 2 MB are allowed; MNIST takes 0.3, ten adapters 2.0
    for i in range(3):
        shutil.copytree(adapter, adapter.with_name(f"copy{i}"))
    four = len(write_report(Run(run_copy)).read_bytes())
    assert four < 1_200_000
    assert four < 4 * size  # an image is there once, however many adapters it changed with


def test_every_picture_has_a_text_alternative_and_every_id_is_one(rich):
    page = Page(rich)
    assert len(page.alts) == len(page.sources)
    assert all(page.alts)
    assert len(page.ids) == len(set(page.ids))


def test_plots_numbers_and_settings_lie_beside_the_page(plain, plain_run):
    (adapter,) = Run(plain_run).adapter_names()
    names = {file.name for file in (plain_run / "report").iterdir()}
    kinds = ("after", "change", "errors", "trade", "strength_curve", "directions", "loss")
    plots = {f"{adapter}-{kind}" for kind in kinds} | {"base-confusion", "base-loss"}
    kinds = ("digits", "confusion", "strength_curve", "trade", "images", "layers", "loss")
    tables = {f"{adapter}-{kind}.csv" for kind in kinds} | {"adapters.csv"}
    tables |= {f"base-{kind}.csv" for kind in ("digits", "confusion", "loss")}
    recipes = {"base.toml", f"{adapter}.toml"}
    files = {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    assert names == files | tables | recipes | {"index.html", "report.json", "manifest.json"}


def test_the_same_run_gives_the_same_bytes(rich, rich_run):
    first = snapshot(rich_run / "report")
    write_report(Run(rich_run))
    assert snapshot(rich_run / "report") == first


def numbers_in(document) -> list[float]:
    if isinstance(document, dict):
        return [number for value in document.values() for number in numbers_in(value)]
    if isinstance(document, list):
        return [number for value in document for number in numbers_in(value)]
    return [document] if isinstance(document, int | float) and not isinstance(document, bool) else []


def strings_in(document) -> list[str]:
    if isinstance(document, dict):
        return [s for key, value in document.items() for s in (key, *strings_in(value))]
    if isinstance(document, list):
        return [s for value in document for s in strings_in(value)]
    return [document] if isinstance(document, str) else []


def test_every_number_on_the_page_is_one_of_the_json(rich, rich_run):
    page = Page(rich)
    document = json.loads((rich_run / "report" / "report.json").read_text())
    text = page.visible[: page.visible.rindex("How it was made")]
    for known in sorted((s for s in strings_in(document) if re.search(r"\d", s)), key=len, reverse=True):
        text = text.replace(known, " ")  # names, hashes, and the verdict, which has its own tests
    said = {"95", "99.5", "1.5", "1", "99", "0", "256"}  # in the sentences that explain
    said |= {str(int(part)) for part in re.findall(r"\d+", document["provenance"]["date"])}
    for number in map(abs, numbers_in(document)):
        said |= {f"{number:,}", f"{number:g}", f"{number:.2f}", f"{number:.3g}", f"{number:.1e}", f"{number:.2g}"}
        said |= {f"{100 * number:.{places}f}" for places in range(4)}
    for section in document["adapters"]:
        said |= {str(sum(one["kind"] == kind for one in section["examples"])) for kind in ("fixed", "broken")}
        if section["control"]:
            said.add("0.0001")
    found = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", re.sub(r"p < 0\.0001", "", text))
    assert len(found) > 300
    assert {number.rstrip(",") for number in found} - said == set()


def test_the_csv_holds_the_numbers_of_the_json(plain, plain_run):
    (adapter,) = Run(plain_run).adapter_names()
    section = json.loads((plain_run / "report" / "report.json").read_text())["adapters"][0]

    def table(name):
        with (plain_run / "report" / name).open(newline="") as file:
            return list(csv.DictReader(file))

    digits = table(f"{adapter}-digits.csv")
    assert [{key: float(value) for key, value in row.items()} for row in digits] == section["digits"]
    cells = table(f"{adapter}-confusion.csv")
    after = np.zeros((10, 10), int)
    for cell in cells:
        after[int(cell["true"]), int(cell["predicted"])] = int(cell["after"])
    assert after.tolist() == section["confusion"]["after"]
    strength_curve = table(f"{adapter}-strength_curve.csv")
    assert [float(row["accuracy"]) for row in strength_curve] == [
        point["accuracy"] for point in section["strength_curve"]["points"]
    ]


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


def test_the_settings_beside_it_are_toml_that_names_every_setting(plain, plain_run):
    (adapter,) = Run(plain_run).adapter_names()
    tuned = tomllib.loads((plain_run / "report" / f"{adapter}.toml").read_text())
    document = json.loads((plain_run / "adapters" / adapter / "finetune.json").read_text())
    assert tuned["finetune"] == {key: value for key, value in document["settings"].items() if value is not None}


def test_the_data_set_stands_in_the_first_line(plain):
    visible = Page(plain).visible
    assert "not MNIST" in visible[: visible.index("training")]


def test_a_run_without_adapters_gets_a_page_too(run_copy, adapter):
    shutil.rmtree(adapter)
    text = written(run_copy)
    assert faults_of(text) == []
    page = Page(text)
    assert "a base and no adapter" in page.visible
    assert page.places == ["base", "made", "words"]


def test_the_newest_adapter_comes_first(run_copy, adapter):
    shutil.copytree(adapter, adapter.with_name("newer"))
    (adapter.with_name("newer") / "manifest.json").touch()
    page = page_of(run_copy)
    sections = [place for place in page.places if ":" not in place or place.startswith("adapter:")]
    assert sections == ["side-by-side", "adapter:newer", f"adapter:{adapter.name}", "base", "made", "words"]
    table = [link for link in page.links[page.links.index("#words") + 1 :] if link.startswith("#adapter:")]
    assert table == ["#adapter:newer", f"#adapter:{adapter.name}"]


def test_awkward_runs_have_valid_pages(tmp_path):
    """A val of a few images, other layers, names that are used elsewhere, the same name twice, a high rank."""
    options = {"data": {"dataset": "digits", "val_share": 0.002}, "model": {"hidden": [12, 11]}}
    pretrain(smoke(tmp_path, **options))
    absent = Run(tmp_path).base.evaluation.splits["val"].images.index(0)
    write_report(Run(tmp_path))
    finetune_full(workspace(tmp_path, digit=absent, name="made", steps=5))
    page = page_of(tmp_path)
    assert "made (all weights)" in page.visible
    assert "side-by-side" in page.ids
    for name, more in (("made", {}), ("side-by-side", {"rank": 11}), ("last", {"targets": ["linear2"]})):
        finetune(workspace(tmp_path, digit=absent, name=name, **more))
    text = write_report(Run(tmp_path)).read_text()
    assert faults_of(text) == []
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert [place for place in page.places if place.startswith("adapter:")] == [
        "adapter:last",
        "adapter:side-by-side",
        "adapter:made",
    ]
    assert {"made.toml", "made.full.toml"} <= {file.name for file in (tmp_path / "report").iterdir()}


def test_what_applies_the_recommended_strength_names_the_whole_stack(rich, rich_run):
    first = Run(rich_run).on_top_of("on-top")[0]
    assert f"evaluate --adapter {first} --strength 1 --adapter on-top --strength" in Page(rich).visible


def test_shares_instead_of_counts_on_request(plain, plain_run, run_copy, adapter):
    counts = snapshot(plain_run / "report")
    page = Page(write_report(Run(run_copy), normalised=True).read_text())
    shares = snapshot(run_copy / "report")
    changed = {name for name in counts if shares[name] != counts[name]} - {"manifest.json"}
    plots = {f"{adapter.name}-after", f"{adapter.name}-change", "base-confusion"}
    assert changed == {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")} | {"index.html", "report.json"}
    assert "In per cent of the images of each true digit" in page.visible


def test_a_report_changes_nothing_else(run_copy):
    before = snapshot(run_copy)
    write_report(Run(run_copy))
    after = snapshot(run_copy)
    assert {name: content for name, content in after.items() if not name.startswith("report/")} == before
