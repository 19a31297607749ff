"""What holds on CUDA, beside the CPU: the same order of images, the same repair, and no waiting within a step."""

import warnings
from pathlib import Path

import pytest
import torch

from lora_mnist.datasets import dataset as data
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.pipeline import FinetuneResult, Request, finetune, pretrain, verify
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.training.device import prepare_device
from lora_mnist.training.loop import WINDOW, TrainingData, train
from lora_mnist.training.model import MLP
from lora_mnist.training.train import with_adapter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here: nothing is shown of one")

DIGITS = {"data": {"dataset": "mnist-5k"}}


def whole_run(folder: Path, device: str) -> tuple[Run, FinetuneResult]:
    """The default recipe on the embedded digits."""
    work, _ = pretrain(Request(run=folder, options=DIGITS, device=device))
    return Run(folder), finetune(work)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {device: whole_run(tmp_path_factory.mktemp(device), device) for device in ("cpu", "cuda")}


def test_both_devices_see_the_same_images_in_the_same_order(runs):
    (on_cpu, cpu), (on_cuda, cuda) = runs["cpu"], runs["cuda"]
    # rounding, which Adam makes larger: its first steps are as long for a tiny gradient as for any other
    assert on_cuda.base.losses()[:10] == pytest.approx(on_cpu.base.losses()[:10], rel=1e-3)
    tuned, expected = on_cuda.adapter(cuda.record.name).losses(), on_cpu.adapter(cpu.record.name).losses()
    assert tuned[:10] == pytest.approx(expected[:10], rel=1e-2)  # on two bases, which differ by rounding
    assert len(tuned) == len(expected)


def test_both_devices_end_alike(runs):
    (on_cpu, cpu), (on_cuda, cuda) = runs["cpu"], runs["cuda"]
    for run in (on_cpu, on_cuda):
        assert run.base.evaluation.splits["test"].accuracy > 0.95
    assert sum(on_cuda.base.losses()[-50:]) == pytest.approx(sum(on_cpu.base.losses()[-50:]), rel=0.2)
    assert cuda.record.digit == cpu.record.digit
    analyses = [provenance.analysis for provenance in (cpu, cuda)]
    verdicts = [verdict_of(one, cpu.record.digit) for one in analyses]
    assert verdicts[0].kind == verdicts[1].kind
    assert cuda.record.proof.passed


@pytest.mark.parametrize(("made_on", "verified_on"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_run_is_verified_on_either_device(runs, made_on, verified_on):
    run, _ = runs[made_on]
    assert verify(Request(run=run.path, device=verified_on)).failures == ()


def test_equal_runs_give_equal_bytes(runs, tmp_path):
    again, _ = whole_run(tmp_path, "cuda")
    first, _ = runs["cuda"]
    assert again.record.base_fingerprint == first.record.base_fingerprint
    for name in ("adapter_model.safetensors", "logits.safetensors"):
        (adapter,) = again.adapters()
        assert adapter.file(name).read_bytes() == first.adapter(adapter.name).file(name).read_bytes()


@pytest.mark.parametrize("adapted", [False, True])
def test_images_live_on_the_device_and_no_step_waits_for_it(adapted):
    device = prepare_device("cuda")
    settings = resolve([load_config("default"), DIGITS], "mnist-5k")
    dataset = data.load("mnist-5k", Path(), 0.25, 0, device)
    assert dataset.train.images.is_cuda
    assert dataset.train.labels.is_cuda
    model = MLP((64, 32)).to(device)
    if adapted:
        model = with_adapter(model, "a", settings.finetune, seed=0)
    recipe = settings.finetune if adapted else settings.pretrain

    def waits(steps: int) -> int:
        batches = torch.randint(len(dataset.train), (steps, 16))
        warps = torch.zeros(steps, 16, 4, device=device) + torch.tensor([0.0, 1.0, 0.0, 0.0], device=device)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(model, TrainingData(dataset.train.images, dataset.train.labels, batches, warps), recipe)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in seen)

    waits(WINDOW - 1)  # warm-up
    assert waits(10) == waits(WINDOW - 1) > 0  # only before and after all steps
