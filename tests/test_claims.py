"""What the README claims of real MNIST, with one seed each; the programs in benchmarks/ measure more."""

import html

import numpy as np
import pytest
import torch
from PIL import Image

from lora_mnist.cli import tables as terminal
from lora_mnist.datasets.preprocess import prepare
from lora_mnist.evaluation.results import OffClaim
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.pipeline import Applied, Request, finetune_full, open_workspace, verify
from lora_mnist.pipeline.convert import extract, merge
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run
from lora_mnist.training.model import logits_of

from .cli.conftest import words
from .conftest import resume

pytestmark = pytest.mark.slow


def whole_run(config, mnist, folder):
    request = Request(run=folder, data=mnist, config=config, options={"data": {"dataset": "mnist"}})
    return resume(request), Run(folder)


def opened(run, mnist, **asked):
    return open_workspace(Request(run=run.path, data=mnist, options={"finetune": asked}))


@pytest.fixture(scope="module")
def classic(mnist, tmp_path_factory):
    return whole_run("classic", mnist, tmp_path_factory.mktemp("classic"))


@pytest.fixture(scope="module")
def rare(mnist, tmp_path_factory):
    return whole_run("rare", mnist, tmp_path_factory.mktemp("rare"))


def test_classic_has_the_published_parameters_and_accuracy(classic):
    tuned, run = classic
    table = tuned.record.parameters
    assert (table.base, table.added, table.total) == (2_807_010, 6_794, 2_813_804)
    assert 0.945 <= run.base.evaluation.splits["test"].accuracy <= 0.972
    assert run.record.dataset.train == 60_000


def test_classic_fixes_the_nines_and_the_forgetting_is_plain_to_see(classic):
    tuned, run = classic
    test = tuned.analysis.splits["test"]
    assert test.after.missed < 0.25 * test.before.missed
    assert test.after.errors > test.before.errors
    verdict = verdict_of(tuned.analysis, 9)
    assert verdict.kind == "forgot others"
    assert 7 in verdict.facts.worse
    assert verdict.words in html.unescape(write_report(run).read_text()).replace("\N{NO-BREAK SPACE}", " ")


def test_classic_with_lora_off_is_the_base_bit_for_bit(classic):
    proof = classic[0].record.proof
    assert proof.passed
    assert proof.off == OffClaim(passed=True, images=10_000, images_that_differ=0)
    assert proof.frozen.bytes == 4 * 2_807_010


def test_a_rare_nine_is_repaired_at_rank_1(rare):
    tuned, _ = rare
    val, test = (tuned.analysis.splits[split] for split in ("val", "test"))
    assert tuned.record.parameters.added == 6_794
    assert tuned.record.digit == 9
    assert tuned.record.weakest_on_val
    assert test.before.missed >= 400
    assert test.after.missed <= 0.15 * test.before.missed
    assert test.after.errors <= 0.45 * test.before.errors
    assert val.after.errors < val.before.errors
    assert tuned.analysis.threshold.splits["test"].errors >= 1.2 * test.after.errors
    assert verdict_of(tuned.analysis, 9).words.startswith("A repair")


def test_full_fine_tuning_extraction_and_merging(rare, mnist):
    tuned, run = rare
    full = finetune_full(opened(run, mnist, steps=50))
    kept = extract(opened(run, mnist), 8).record.extraction
    assert kept.of_checkpoint.errors == full.analysis.splits["test"].after.errors
    assert all(0 < layer.energy < 1 for layer in kept.layers.values())
    merged = merge(opened(run, mnist), [Applied(tuned.record.name)])
    assert merged.largest_difference <= 1e-5 * merged.largest_logit


def test_both_verify_from_their_files(classic, rare, mnist):
    for _, run in (classic, rare):
        assert verify(Request(run=run.path, data=mnist)).passed


def test_at_80_columns_the_real_tables_are_whole(rare):
    tuned, run = rare
    assert "…" not in words(terminal.finetuning(tuned), terminal.evaluation(run.base.evaluation))


def test_digits_drawn_anywhere_are_recognised_as_in_the_data_set(rare, mnist):
    """docs/play.md, on a tenth of the test images; `benchmarks/drawing.py` draws them all, in three ways."""
    tuned, run = rare
    work = opened(run, mnist)
    repaired, _ = work.adapted([Applied(tuned.record.name)])
    random = np.random.default_rng(0)
    images, labels = work.images["test"][::10], work.labels["test"][::10]
    seen = torch.from_numpy(np.stack([prepare(drawn(image, random)) for image in images.numpy()]))
    right = [int((logits_of(repaired, one).argmax(1) == labels).sum()) for one in (images, seen)]
    assert abs(right[0] - right[1]) <= 10


def drawn(image, random):
    """At a random place, size and polarity, uint8 (200, 300)."""
    side = int(random.integers(40, 200))
    top, left = random.integers(0, 200 - side), random.integers(0, 300 - side)
    canvas = np.zeros((200, 300), np.uint8)
    canvas[top : top + side, left : left + side] = Image.fromarray(image).resize((side, side))
    return 255 - canvas if random.random() < 0.5 else canvas
