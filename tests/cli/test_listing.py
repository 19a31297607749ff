"""The adapters of a run, as they are listed on wide and narrow terminals."""

import io

from rich.console import Console

from lora_mnist.cli.listing import adapters
from lora_mnist.runs.listing import AdapterLine, Listing

from .test_tables import LARGEST, changed, printed

ROW = AdapterLine(
    name="digit9-full-r16",
    method="svd",
    digit=9,
    rank=16,
    parameters=2_807_010,
    on_top_of=(),
    before=LARGEST,
    after=LARGEST,
    proof=True,
    bytes=11_228_040,
)


def listing(*names) -> Listing:
    rows = tuple(changed(ROW, name=name) for name in names)
    return Listing(run="r", dataset="mnist", base_fingerprint="", digest="0" * 64, adapters=rows)


def test_adapters_take_a_line_each_even_with_large_counts():
    text = printed(adapters(listing(*(f"digit9-full-r{i}" for i in range(3)))))
    assert sum("digit9-full-r" in line for line in text.splitlines()) == 3
    assert sum(bool(line.strip()) for line in text.splitlines()) == 7
    assert all(len(line) <= 80 for line in text.splitlines())


def test_at_50_columns_they_keep_their_names_and_figures():
    console = Console(file=io.StringIO(), width=50, highlight=False)
    console.print(adapters(listing("digit9-full-r16", "a-name-of-one-s-own-that-is-rather-long")))
    lines = console.file.getvalue().splitlines()
    assert "digit9-full-r16" in lines
    assert "a-name-of-one-s-own-that-is-rather-long" in lines
    text = " ".join(" ".join(lines).split())
    facts = ("digit 9", "rank 16", "numbers 2.81 M", "missed 1135→1135", "errors 9999→9999", "proof passed", "11.2 MB")
    for fact in facts:
        assert text.count(fact) == 2
    assert all(len(line) <= 50 for line in lines)
