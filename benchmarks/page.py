"""The page with a network in it against our own logits, in headless Chromium: decisions, strokes, times, requests.

    python benchmarks/page.py PAGE --run DIR --adapter NAME [--data DIR] [--images 10000] [--drawings 1000]
        [--out build/bench]

PAGE is what `lora-mnist export --format html` wrote with that adapter. All test images go through the page's own code.
The drawings are skeletons of test images, drawn with the page's pen, and prepared by the page and by
`datasets/preprocess.py`.
"""

import base64
import os
import shutil
import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright
from timing import finish, machine

from lora_mnist.browser.one_file import pack_adapter, page_data, render
from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import DataError
from lora_mnist.lora import switch
from lora_mnist.pipeline import Request, open_workspace
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import logits_of

STRENGTHS = (0.0, 0.5, 1.0)
RASTER, SHEET = 280, 1000  # as in static/raster.js and static/sheet.js
AT_ONCE = 500  # images in one call
THROUGH = """([text, name, strength]) => {
  const bytes = bytesOf(text), on = name ? [choice.adapters.get(name)] : [], found = [];
  for (let i = 0; i < bytes.length; i += 784) {
    found.push(Array.from(network.logits(bytes.subarray(i, i + 784), on, strength)));
  }
  return found;
}"""
DRAWN = """(drawings) => drawings.map((strokes) => {
  const prepared = prepareStrokes(strokes), { data } = raster.getImageData(0, 0, RASTER, RASTER);
  const grey = Array.from({ length: RASTER * RASTER }, (_, i) => String.fromCharCode(data[4 * i + 3]));
  return [btoa(grey.join("")), prepared.problem ?? Array.from(prepared.pixels)];
})"""
STROKE = """() => {  // one more point of a stroke, until its bars are there
  sheet.clear(); drawn(); sheet.begin([620, 380]);
  const times = [];
  for (let i = 0; i < 200; i++) {
    const angle = i / 12, start = performance.now();
    sheet.extend([[500 + 120 * Math.cos(angle) + i, 380 + 120 * Math.sin(angle) + 2 * i]]);
    drawn();
    bars.getBoundingClientRect();  // layout too
    times.push(performance.now() - start);
  }
  return times;
}"""


def through(page: Page, images: torch.Tensor, adapter: str, strength: float) -> torch.Tensor:
    """(N, 28, 28) → (N, 10), by the page's code."""
    name = adapter if strength else ""
    parts = [base64.b64encode(part.numpy().tobytes()).decode() for part in images.split(AT_ONCE)]
    return torch.tensor([row for part in parts for row in page.evaluate(THROUGH, [part, name, strength])])


def skeleton(image: np.ndarray) -> np.ndarray:
    """bool (28, 28): strokes one pixel thin (Zhang and Suen, "A fast parallel algorithm for thinning", 1984)."""
    thin = np.pad(image > 100, 1)
    while True:
        before = thin.copy()
        for step in (0, 1):
            n = [
                np.roll(thin, shift, (0, 1))
                for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]
            count = sum(one.astype(int) for one in n)
            turns = sum(((~n[i]) & n[(i + 1) % 8]).astype(int) for i in range(8))
            up, right, down, left = n[0], n[2], n[4], n[6]
            free = (
                ~(up & right & down) & ~(right & down & left)
                if step == 0
                else ~(up & right & left) & ~(up & down & left)
            )
            thin = thin & ~((count >= 2) & (count <= 6) & (turns == 1) & free)
        if (thin == before).all():
            return thin[1:-1, 1:-1]


def strokes_of(image: np.ndarray) -> list[list[list[int]]]:
    """The skeleton's neighbours joined, each pair a stroke in the sheet's coordinates."""
    points = {(int(y), int(x)) for y, x in np.argwhere(skeleton(image))}

    def at(y: int, x: int) -> list[int]:
        return [round(SHEET * (x + 0.5) / 28), round(SHEET * (y + 0.5) / 28)]

    ahead = ((0, 1), (1, -1), (1, 0), (1, 1))
    pairs = [
        [at(y, x), at(y + down, x + right)]
        for y, x in points
        for down, right in ahead
        if (y + down, x + right) in points
    ]
    return pairs or [[at(y, x)] for y, x in points]


def prepared(grey: np.ndarray) -> np.ndarray | str:
    """What Python makes of it, or why nothing."""
    try:
        return prepare(grey)
    except DataError as error:
        return error.cause


def measured(page: Page, arguments: Namespace) -> Iterator[tuple[str, float | int | str]]:
    """What was measured, and how it came out."""
    work = open_workspace(Request(run=arguments.run, data=arguments.data, threads=1))
    model, _ = work.adapted([Applied(arguments.adapter)])
    images = work.dataset.test.images[: arguments.images]
    for strength in STRENGTHS:
        switch(model, {arguments.adapter: strength} if strength else {})
        ours, theirs = logits_of(model, images), through(page, images, arguments.adapter, strength)
        same = float((ours.argmax(1) == theirs.argmax(1)).double().mean())
        difference = float((ours.softmax(1) - theirs.softmax(1)).abs().max())
        yield f"strength {strength:g}: {len(images):,} test images decided alike, %", 100 * same
        yield f"strength {strength:g}: largest difference of a probability", difference

    drawings = [strokes_of(image.numpy()) for image in work.dataset.test.images[: arguments.drawings]]
    drawn = [one for i in range(0, len(drawings), 50) for one in page.evaluate(DRAWN, drawings[i : i + 50])]
    switch(model, {})

    def decided(one: Any) -> int | str:
        if isinstance(one, str):
            return one
        return int(logits_of(model, torch.tensor(np.asarray(one)).byte().view(1, 28, 28)).argmax())

    def canvas(text: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(RASTER, RASTER)

    pairs = [(decided(prepared(canvas(grey))), decided(theirs)) for grey, theirs in drawn]
    other = sum(one != two for one, two in pairs)
    refused = sum(isinstance(theirs, str) for _, theirs in pairs)
    right = sum(one == label for (_, one), label in zip(pairs, work.dataset.test.labels.tolist(), strict=False))
    yield f"{len(pairs):,} drawings as strokes: decided otherwise than prepared by Python", other
    yield f"{len(pairs):,} drawings as strokes: refused, and right", f"{refused}, {right}"

    times = page.evaluate(STROKE)
    yield "from a stroke to its bars, median, ms", statistics.median(times)
    yield "from a stroke to its bars, 90th percentile, ms", float(sorted(times)[180])

    adapters = [pack_adapter(model, arguments.adapter)]
    exact, _ = render(work, page_data(work, "fp32", adapters, [work.logits_with(())["test"].argmax(1)]), "fp32")
    file = arguments.page.with_suffix(".fp32.html")
    file.write_bytes(exact)
    page.goto(file.resolve().as_uri())
    switch(model, {arguments.adapter: 1.0})
    ours, theirs = logits_of(model, images[:1000]), through(page, images[:1000], arguments.adapter, 1.0)
    yield "with fp32 weights, 1,000 images: largest difference of a logit", float((ours - theirs).abs().max())
    file.unlink()


def main() -> None:
    """Open the page from the disk, without a network, and measure."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORA_MNIST_DATA", "data")))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--drawings", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True)
        page, asked = context.new_page(), []
        page.on("request", lambda one: asked.append(one.url))
        ready = []
        for _ in range(5):
            started = time.perf_counter()
            page.goto(arguments.page.resolve().as_uri())  # until the script has run
            ready.append(time.perf_counter() - started)
        rows = [("size, MB", arguments.page.stat().st_size / 1e6), ("ready from the disk, s", statistics.median(ready))]
        rows += measured(page, arguments)
        rows.append(("requests for anything but the page", sum(not url.startswith("file://") for url in asked)))
        browser.close()
    finish("page", [{"the page": name, "": value} for name, value in rows], arguments.out, machine(1))


if __name__ == "__main__":
    main()
