"""What `extract` and `merge` made: the answer first."""

import shutil
from pathlib import Path

import pytest

from lora_mnist.cli import conversions
from lora_mnist.pipeline import extract, finetune_full, merge
from lora_mnist.settings.request import Applied

from ..conftest import workspace
from .test_results import joined, printed

HERE = Path("runs/default")


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory) -> Path:
    path = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("conversions") / "run"))
    finetune_full(workspace(path, digit=3))
    return path


@pytest.fixture(scope="module")
def extracted(run):
    return extract(workspace(run), rank=2)


def test_what_was_extracted_takes_16_lines_at_most(extracted):
    lines = printed(conversions.extracted(extracted, HERE))
    assert len(lines) <= 16
    assert max(map(len, lines)) <= 80
    text = joined(conversions.extracted(extracted, HERE))
    facts, test = extracted.record.extraction, extracted.analysis.splits["test"]
    energies = [100 * layer.energy for layer in facts.layers.values()]
    assert f"{min(energies):.3g} to {max(energies):.3g} % of the change's energy" in text
    assert (
        f"digit3-full: {facts.of_checkpoint.missed:,} missed, {facts.of_checkpoint.false_alarms:,} false_alarms" in text
    )
    assert f"where the adapter has {test.after.errors:,}" in text
    assert text.endswith("lora-mnist report --open")


def test_a_merged_network_says_how_good_and_how_exact_it_is(run, extracted):
    work = workspace(run)
    merged = merge(work, [Applied(extracted.record.name, 0.5)])
    base = work.run.base.evaluation
    lines = printed(conversions.merged(merged, base, Path("my runs")))
    assert len(lines) <= 8
    text = " ".join(" ".join(lines).split())
    before, after = (100 * one.splits["test"].accuracy for one in (base, merged.evaluation))
    assert f"{before:.2f} → {after:.2f} % on test" in text
    assert "the base + digit3-full-r2 at strength 0.5" in text
    assert f"{merged.largest_difference:.1e} of {merged.largest_logit:.3g}" in text
    assert f"saved {merged.file}" in text
    assert text.replace(" \\ ", " ").endswith(f"lora-mnist evaluate --run 'my runs' --checkpoint {merged.name}")
