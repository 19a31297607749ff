import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from lora_mnist import stages
from lora_mnist.errors import RunError
from lora_mnist.report import write_report
from lora_mnist.request import Request
from lora_mnist.rundir import Run

from .conftest import SMOKE, snapshot

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what the page links to, and that every element is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources, self.alts = [], [], []
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for key, value in attributes.items() if key in ("src", "href")]
        if tag == "img":
            self.alts.append(attributes.get("alt"))
        assert tag != "script"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(run) -> Page:
    return Page(write_report(run).read_text())


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(run_copy):
    page = page_of(run_copy)
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(page.alts)


def test_every_picture_lies_beside_the_page(run_copy, adapter):
    write_report(run_copy)
    names = {file.name for file in (run_copy / "report").iterdir()}
    kinds = {f"{adapter.name}-{kind}.png" for kind in ("before", "after", "change", "errors", "loss")}
    assert names == kinds | {"base-confusion.png", "base-errors.png", "base-loss.png", "index.html", "manifest.json"}


def test_the_same_run_gives_the_same_bytes(run_copy):
    write_report(run_copy)
    first = snapshot(run_copy / "report")
    write_report(run_copy)
    assert snapshot(run_copy / "report") == first


def test_the_numbers_are_those_of_the_json(run_copy, adapter):
    page = page_of(run_copy)
    counts = json.loads((adapter / "analysis.json").read_text())["splits"]["test"]
    after = json.loads((adapter / "evaluation.json").read_text())["splits"]["test"]
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", page.text)]
    rows = [tuple(cells[i : i + 6]) for i in range(0, 18, 6)]
    for row, key in zip(rows, ("missed", "claimed", "errors"), strict=True):
        assert row[3:5] == (str(counts["before"][key]), str(counts["after"][key]))
    assert f"{100 * after['accuracy']:.2f} % after" in page.text


def test_the_data_set_stands_in_the_first_line(run_copy):
    body = page_of(run_copy).text.split("<body>")[1]
    assert "not MNIST" in body[: body.index("<h1>")]


def test_a_run_without_adapters_gets_a_page_too(run_copy, adapter):
    shutil.rmtree(adapter)
    page = page_of(run_copy)
    assert "a base and no adapter" in page.text
    assert len(page.alts) == 3


def test_an_adapter_of_another_base_is_refused_by_name(run_copy, adapter):
    stranger = stages.pretrain(Request(run=run_copy.with_name("other"), config="smoke", options={**SMOKE, "seed": 4}))
    assert stranger["base_seal"] != Run(run_copy).evaluation()["base_seal"]
    shutil.copytree(adapter, run_copy.with_name("other") / "adapters" / adapter.name)
    with pytest.raises(RunError, match=adapter.name):
        write_report(run_copy.with_name("other"))


def test_the_newest_adapter_comes_first(run_copy, adapter):
    shutil.copytree(adapter, adapter.with_name("newer"))
    (adapter.with_name("newer") / "manifest.json").touch()
    headings = re.findall(r"<h2>(.*?):", page_of(run_copy).text)
    assert headings == ["newer", adapter.name]


def test_a_report_changes_nothing_else(run_copy):
    before = snapshot(run_copy)
    write_report(run_copy)
    after = snapshot(run_copy)
    assert {name: content for name, content in after.items() if not name.startswith("report/")} == before
    assert Run(run_copy).has_base
