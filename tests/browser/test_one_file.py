"""The page with a network in it, opened from the disk: what it computes is what torch and Python compute."""

import base64
import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from lora_mnist.browser import one_file
from lora_mnist.browser.one_file import export_page, page_data, render
from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import DataError, UsageError
from lora_mnist.lora import switch, whole_modules_of
from lora_mnist.pipeline import Request, open_workspace
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import logits_of

from ..conftest import serious
from .conftest import draw

THROUGH = """([text, names, strength]) => {
  const bytes = bytesOf(text), on = names.map((name) => choice.adapters.get(name)), found = [];
  for (let i = 0; i < bytes.length; i += 784) {
    found.push(Array.from(network.logits(bytes.subarray(i, i + 784), on, strength)));
  }
  return found;
}"""
PREPARED = """(pictures) => pictures.map(([text, width, height]) => {
  const prepared = prepare(bytesOf(text), width, height);
  return prepared.problem ?? Array.from(prepared.pixels);
})"""


@pytest.fixture(scope="module")
def work(run):
    return open_workspace(Request(run=run, threads=1))


@pytest.fixture(scope="module")
def exported(work):
    return export_page(work, [Applied(name) for name in work.run.adapter_names()])


@pytest.fixture
def opened(browser):
    """Open a file without a network; it may ask for nothing, and nothing may be wrong with it."""
    contexts, troubles, files = [], [], []

    def open_file(file, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda one: files.append(one.url))
        page.goto(file.resolve().as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert troubles == []
    assert len(files) == len(contexts)  # the page itself, each time
    assert all(one.startswith("file://") for one in files)


def through(page, images: torch.Tensor, names, strength: float) -> torch.Tensor:
    """(N, 28, 28) → (N, 10), by the page's code."""
    return torch.tensor(page.evaluate(THROUGH, [text_of(images.numpy()), names, strength]))


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(np.uint8).tobytes()).decode()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp16", "fp32"])
def test_the_page_computes_what_torch_computes(opened, work, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(one_file, "KINDS", (kind,))
    monkeypatch.setattr(one_file, "SAME", 0.99)  # in int8 so small a network decides 0.35 % otherwise
    names, file = work.run.adapter_names(), tmp_path / "page.html"
    export_page(work, [Applied(name) for name in names], file)
    page, images = opened(file), work.dataset.test.images
    model, _ = work.adapted([Applied(name) for name in names])
    within = {"int8": 0.05, "fp16": 0.002, "fp32": 1e-4}[kind]
    for on, strength in (([], 0), (names[:1], 0), (names[:1], 0.5), (names[1:], 1), (names, 1.5)):
        switch(model, dict.fromkeys(on, strength))
        ours, theirs = logits_of(model, images), through(page, images, on, strength)
        assert (ours.softmax(1) - theirs.softmax(1)).abs().max() < within
        assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= (0.99 if kind == "int8" else 1)
        if kind == "fp32":
            assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.slow
def test_a_base_that_wants_its_pixels_otherwise(opened, work, tmp_path):
    base = copy.deepcopy(work.base)
    base.mean, base.std, base.linear1.bias = 0.3, -0.5, None  # as an imported one may
    page = replace(work, base=base)
    (tmp_path / "page.html").write_bytes(
        render(page, page_data(page, "fp32", [], [torch.zeros(1000).long()]), "fp32")[0]
    )
    images = work.dataset.test.images
    theirs = through(opened(tmp_path / "page.html"), images, [], 0)
    assert (logits_of(base, images) - theirs).abs().max() < 1e-4


def pictures(images: torch.Tensor) -> dict[str, np.ndarray]:
    """Digits of many sizes, places and polarities, and what is refused."""
    random, made = np.random.default_rng(5), {}
    for number, image in enumerate(images[:60].numpy()):
        side, canvas = int(random.integers(30, 250)), np.zeros(random.integers(250, 300, 2), np.uint8)
        top, left = (int(random.integers(0, room - side + 1)) for room in canvas.shape)
        digit = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        canvas[top : top + side, left : left + side] = digit
        made[f"digit {number}"] = (
            255 - canvas if number % 3 == 0 else np.where(canvas > 110, 255, 0) if number % 3 == 1 else canvas
        )
    blank = np.zeros((280, 280), np.uint8)

    def inked(*boxes: tuple[int, int, int, int], level: int = 255) -> np.ndarray:
        picture = blank.copy()
        for top, left, height, width in boxes:
            picture[top : top + height, left : left + width] = level
        return picture

    bar = (60, 50, 160, 24)
    made |= {
        "blank": blank,
        "faint": inked(bar, level=20),
        "grey": inked(bar, level=30),
        "dot": inked((130, 130, 20, 20)),
    }
    made |= {"edge": np.eye(280, dtype=np.uint8) * 255, "three": inked(bar, (60, 120, 160, 24), (60, 200, 160, 24))}
    # nothing is symmetric: where the centre lies between two pixels, the last bit of a sum decides
    # on both sides of every threshold: how far apart, how long, how much ink, how many small pieces
    made |= {f"apart by {gap}": inked(bar, (70, 74 + gap, 150, 19)) for gap in (20, 28, 31, 33, 36, 60)}
    made |= {f"long {side}": inked(bar, (60, 180, side, 24)) for side in (60, 78, 82, 120)}
    made |= {f"wide {side}": inked(bar, (60, 180, 100, side)) for side in (2, 3, 4, 6)}
    made |= {f"speck of {side}": inked(bar, (10, 200, side, side)) for side in (6, 10, 12, 16)}
    for grey in (80, 115, 140):  # and how dark a piece is somewhere
        made[f"as dark as {grey}"] = np.maximum(inked(bar), inked((60, 180, 120, 24), level=grey))
    paper = (40 + random.integers(-3, 4, blank.shape)).astype(np.uint8)  # five standard deviations of it are 15 levels
    for more in (12, 18):  # which a twentieth of the darkest ink, 11, is not
        faint = np.where(inked((60, 50, 200, 17)), 40 + more, paper)
        made[f"{more} above the paper"] = np.where(inked(bar), 255, faint)
    for small in (2, 5, 8):  # no squares: Python takes six of those for an LED matrix, which nobody draws
        crumbs = ((20 + 30 * i, 200, *((9, 1) if i % 2 else (1, 9))) for i in range(small))
        made[f"{small} crumbs"] = inked((60, 50, 60, 6), *crumbs)
    spread = ((10 + 50 * (i // 8), 10 + 33 * (i % 8), *((9, 1) if i % 2 else (1, 9))) for i in range(40))
    made["many crumbs"] = inked(*spread)
    return made


def prepared(grey: np.ndarray) -> np.ndarray | str:
    """What Python makes of it, or why nothing."""
    try:
        return prepare(grey)
    except DataError as error:
        return error.cause


@pytest.mark.slow
def test_pictures_are_prepared_as_python_does(opened, exported, work):
    page, made = opened(Path(exported.file)), pictures(work.dataset.test.images)
    sent = [[text_of(one), one.shape[1], one.shape[0]] for one in made.values()]
    refused = 0
    for name, grey, found in zip(made, made.values(), page.evaluate(PREPARED, sent), strict=True):
        expected = prepared(grey.astype(np.uint8))
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected, name
            refused += 1
        else:  # the last bit of a sum can decide how a grey level is rounded
            assert np.abs(np.array(found) - expected.ravel()).max() <= 1, name
    assert 10 <= refused <= 25


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1920])  # test_playground.py has those between
def test_nothing_is_wrong_on_any_screen(opened, exported, width):
    page = opened(Path(exported.file), viewport={"width": width, "height": 844})
    draw(page)
    expect(page.locator("#sentence")).to_contain_text("The base sees a")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert serious(page) == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sheet, bars = (page.locator(one).bounding_box() for one in ("#sheet", "#bars"))
    top, bottom = min(sheet["y"], bars["y"]), max(one["y"] + one["height"] for one in (sheet, bars))
    assert bottom - top < 640  # both can be seen at once, on a phone too


@pytest.mark.slow
def test_images_are_sorted_by_what_becomes_of_them_and_one_can_be_taken(opened, exported, work):
    page = opened(Path(exported.file))
    expect(page.locator("#random-fixed")).to_be_enabled()
    name = page.evaluate("choice.names.join()")
    model, _ = work.adapted([Applied(name)])
    shown = torch.tensor(page.evaluate("held.images.indices"))
    test = work.dataset.test
    before, after = (logits_of(one, test.images[shown]).argmax(1) == test.labels[shown] for one in (work.base, model))
    for kind, mask in {"fixed": ~before & after, "broken": before & ~after, "wrong": ~before & ~after}.items():
        page.locator(f"#kinds [data-kind={kind}]").click()
        assert page.locator("#thumbs button:visible").count() == int(mask.sum())
    page.locator("#random-fixed").click()
    expect(page.locator("#sentence")).to_have_text(re.compile(r"^Test image [\d,]+ is an? \d\. .* Fixed\.$"))
    page.locator(f"#adapters input[value={name}]").uncheck()
    page.locator("#kinds [data-kind=fixed]").click()
    expect(page.locator("#no-thumb")).to_be_visible()
    page.locator("#kinds [data-kind=all]").click()
    page.locator("#thumbs button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_contain_text(f"Test image {int(shown[1]):,} is a")


@pytest.mark.slow
def test_a_picture_from_the_disk(opened, exported, work, tmp_path):
    page, image = opened(Path(exported.file)), work.dataset.test.images[3].numpy()
    Image.fromarray(255 - image).resize((400, 400), Image.Resampling.BICUBIC).save(tmp_path / "digit.png")
    page.locator("#file").set_input_files(tmp_path / "digit.png")
    expect(page.locator("#sentence")).to_contain_text("The base sees a")
    (tmp_path / "no.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "no.png")
    expect(page.locator("#trouble")).to_have_text(re.compile("no.png is no picture that this browser can read"))


def test_it_holds_weights_and_no_results(exported):
    page = Path(exported.file).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    held = json.loads(re.search(r'id="held">(.*?)</script>', page)[1])
    assert held.keys() == {"kind", "mean", "std", "layers", "adapters", "on", "test", "images"}
    assert held["images"].keys() == {"pixels", "labels", "indices"}
    assert exported.same_decisions >= one_file.SAME
    assert exported.base_fingerprint in page
    assert exported.run_digest in page


def test_the_command_writes_it_once_and_says_what_was_checked(succeeds, fails, run_copy, adapter, tmp_path):
    where = ["export", "--format", "html", "--run", run_copy, "--adapter", adapter.name]
    printed = succeeds(*where)
    assert re.search(r"of [\d,]+ held-out images decided as in fp32", printed.replace("\n          ", " "))
    assert (run_copy / "exports" / f"{adapter.name}.html").is_file()
    fails(2, *where, says="exists already")
    document = json.loads(succeeds(*where, "--out", tmp_path / "a.html", "--json"))
    assert (document["format"], document["weights"]) == ("html", "fp16")  # see above
    assert document["bytes"] == (tmp_path / "a.html").stat().st_size
    succeeds("export", "--format", "html", "--run", run_copy, "--out", tmp_path / "base.html")  # the base alone
    fails(2, *where, "--format", "pdf", says="html")


@pytest.mark.parametrize("right", ["int8", "fp16", "fp32"])
def test_the_smallest_weights_that_keep_the_decisions_are_taken(work, tmp_path, monkeypatch, right):
    kinds = ("int8", "fp16", "fp32")
    keeps = dict(zip(kinds, [kinds.index(kind) >= kinds.index(right) for kind in kinds], strict=True))
    monkeypatch.setattr(one_file, "store_weight", lambda weight, kind: (weight, weight, weight * keeps[kind]))
    assert export_page(work, out=tmp_path / "page.html").weights == right


def test_an_adapter_that_trains_whole_modules_is_refused(work, monkeypatch):
    monkeypatch.setattr(one_file, "whole_modules_of", lambda model, name: {"linear3": whole_modules_of(model, name)})
    with pytest.raises(UsageError, match="trains modules whole"):
        export_page(work, [Applied(work.run.adapter_names()[0])])
