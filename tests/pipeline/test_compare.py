import shutil

import pytest
import torch
from scipy.stats import binomtest

from lora_mnist.datasets.dataset import load
from lora_mnist.errors import DataError, RunError
from lora_mnist.pipeline import Request, finetune, finetune_full, pretrain
from lora_mnist.pipeline.compare import compare
from lora_mnist.runs.run import Run

from ..conftest import flip_bit, smoke, snapshot, workspace

LABELS = load("mnist-5k", None, 0.25, 0).test.labels


def right(saved) -> torch.Tensor:
    return saved.logits()["test"].argmax(1) == LABELS


def networks_of(path):
    run = Run(path)
    return run.base, *run.adapters(), *run.full_checkpoints()


def by_hand(first: torch.Tensor, second: torch.Tensor, which: torch.Tensor) -> tuple[int, int, float]:
    only_first, only_second = int((first & ~second & which).sum()), int((second & ~first & which).sum())
    changed = only_first + only_second
    return only_second, only_first, binomtest(only_first, changed).pvalue if changed else 1.0


@pytest.fixture
def two(run_copy, tmp_path):
    """A run with a base, an adapter, one for another digit and a checkpoint; and one with another base and adapter."""
    finetune(workspace(run_copy, digit=3))
    finetune_full(workspace(run_copy, digit=3))
    pretrain(smoke(tmp_path / "other", seed=5))
    finetune(workspace(tmp_path / "other", digit=3))
    return run_copy, tmp_path / "other"


def test_pairs_are_what_scipy_says_of_the_same_images(two):
    before = [snapshot(path) for path in two]
    found = compare(two)
    networks = {network.number: network for network in found.networks}
    saved = [(path, one) for path in two for one in networks_of(path)]
    for network, (path, one) in zip(found.networks, saved, strict=True):
        test = one.evaluation.splits["test"]
        assert (network.run, network.name, network.dataset) == (str(path), one.name, one.evaluation.dataset)
        assert (network.images, network.errors) == (test.count, test.errors)
        assert network.adapter is None or network.adapter.after == one.analysis.splits["test"].after
    numbers = sorted(networks)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(i, j) for i in numbers for j in numbers if i < j]
    changed = 0
    for pair in found.pairs:
        first, second = (right(saved[number - 1][1]) for number in (pair.first, pair.second))
        fixed, broken, p = by_hand(first, second, torch.ones_like(first))
        assert (pair.errors.fixed, pair.errors.broken) == (fixed, broken)
        assert pair.errors.p == pytest.approx(p, rel=1e-12)
        adapters = [networks[number].adapter for number in (pair.first, pair.second)]
        digits = {adapter.digit for adapter in adapters if adapter}
        if len(digits) == 1:
            fixed, broken, p = by_hand(first, second, pair.digit == LABELS)
            assert {pair.digit} == digits
            assert (pair.missed.fixed, pair.missed.broken) == (fixed, broken)
            assert pair.missed.p == pytest.approx(p, rel=1e-12)
            changed += fixed + broken
        else:
            assert pair.digit is None
            assert pair.missed is None
    assert changed > 0
    assert [snapshot(path) for path in two] == before


def test_only_the_adapters_that_are_named(two):
    found = compare(two, ["digit3-r2", "digit3-full"])
    assert [(one.number, one.name) for one in found.networks] == [
        (1, "digit3-r2"),
        (2, "digit3-full"),
        (3, "digit3-r2"),
    ]
    assert [(pair.first, pair.second) for pair in found.pairs] == [(1, 2), (1, 3), (2, 3)]
    assert compare(two, ["digit3-full"]).pairs == ()


def test_an_adapter_that_no_run_has_is_an_error_that_names_those_there_are(two):
    names = Run(two[0]).adapter_names()
    with pytest.raises(RunError, match=rf"no adapter 'base' in .* or .*\. There is {', '.join(names)}, digit3-full\."):
        compare(two, [names[0], "base"])


def test_other_test_images_make_no_pair(finished_run, tmp_path, mnist):
    path = tmp_path / "mnist"
    options = {"data": {"dataset": "mnist"}, "pretrain": {"epochs": 1, "batch_size": 600}}
    pretrain(Request(run=path, data=mnist, config="smoke", options=options))
    found = compare([finished_run, path], data=tmp_path / "no-data")  # one base of MNIST: nothing to test there
    assert [one.dataset.name for one in found.networks] == ["mnist-5k", "mnist-5k", "mnist"]
    assert [(pair.first, pair.second) for pair in found.pairs] == [(1, 2)]
    assert [[one.number for one in same] for same in found.datasets.values()] == [[1, 2], [3]]
    shutil.copytree(path, tmp_path / "copy")
    assert [(pair.first, pair.second) for pair in compare([path, tmp_path / "copy"], data=mnist).pairs] == [(1, 2)]
    with pytest.raises(DataError, match="missing"):
        compare([path, tmp_path / "copy"], data=tmp_path / "no-data")


def test_a_run_named_twice_is_one_and_one_without_a_base_or_damaged_is_an_error(finished_run, run_copy, adapter):
    assert compare([finished_run, finished_run]) == compare([finished_run])
    with pytest.raises(RunError, match="no base"):
        compare([finished_run, run_copy / "nowhere"])
    flip_bit(adapter / "logits.safetensors")
    with pytest.raises(RunError, match=r"logits\.safetensors"):
        compare([run_copy])
