"""Whatever was changed since it was saved is found, whichever file it is and however well it is covered up."""

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mnist.errors import RunError
from lora_mnist.pipeline import Request, finetune, verify
from lora_mnist.report.page import write_report
from lora_mnist.runs.rundir import Run

from ..conftest import flip_bit, rehash, snapshot, take_out, workspace


def test_verify_passes_on_an_honest_run(finished_run):
    before = snapshot(finished_run)
    findings = verify(Request(run=finished_run))
    assert findings.passed
    assert [entry.passed for entry in findings.adapters] == [True]
    (adapter,) = Run(finished_run).adapters()
    assert findings.adapters[0].proof == adapter.tuning.proof
    assert snapshot(finished_run) == before


@pytest.mark.parametrize(
    "file", ["model.safetensors", "logits.safetensors", "evaluation.json", "history.csv", "run.json", "manifest.json"]
)
def test_verify_catches_one_flipped_bit_in_the_base(run_copy, file):
    flip_bit(run_copy / "base" / file, -20)
    findings = verify(Request(run=run_copy))
    assert not findings.passed
    assert file in findings.failures[0]


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "finetune.json"])
def test_verify_catches_one_flipped_bit_in_an_adapter(run_copy, adapter, file):
    flip_bit(adapter / file, -20)
    findings = verify(Request(run=run_copy))
    assert not findings.passed
    assert file in findings.failures[0]
    assert findings.adapters[0].proof is None
    assert findings.base.passed


def test_verify_takes_a_truncated_manifest_for_altered_bytes(run_copy, adapter):
    for folder in (adapter, run_copy / "base"):
        (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:30])
        assert str(folder) in verify(Request(run=run_copy)).failures[0]


def test_verify_sees_through_a_manifest_made_to_fit(run_copy, adapter):
    """Weights and manifest changed together: the seal and the stored logits still tell."""
    flip_bit(run_copy / "base" / "model.safetensors", -20)
    rehash(run_copy / "base")
    assert "is not the sealed one" in verify(Request(run=run_copy)).failures[0]


@pytest.mark.parametrize("change", ["order", "count", "name"])
@pytest.mark.parametrize("of_base", [True, False])
def test_verify_notices_logits_that_are_not_those_of_the_weights(run_copy, adapter, of_base, change):
    folder = run_copy / "base" if of_base else adapter
    logits = load_file(folder / "logits.safetensors")
    val = {"order": logits["val"].flip(0).contiguous(), "count": logits["val"][1:].clone(), "name": logits["val"]}
    others = {"test": logits["test"], "train" if change == "name" else "val": val[change]}
    save_file(others, folder / "logits.safetensors")
    rehash(folder)
    failure = f"{'base' if of_base else adapter.name}: the stored logits of val are not those of its weights"
    assert verify(Request(run=run_copy)).failures == (failure,)


def test_verify_tells_of_an_adapter_whose_logits_are_no_numbers(run_copy, adapter):
    path = adapter / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({name: tensor.abs().clamp(min=1e30) for name, tensor in tensors.items()}, path, metadata)
    rehash(adapter)
    (failure, *_) = verify(Request(run=run_copy)).failures
    assert failure.startswith(f"{adapter.name}: its logits differ by ")


def test_an_adapter_that_does_not_exist_is_named(finished_run):
    assert verify(Request(run=finished_run)).passed
    with pytest.raises(RunError, match="nine"):
        verify(Request(run=finished_run), ["nine"])


def test_an_adapter_without_the_one_below_is_a_finding_of_verify_and_an_error_of_the_report(run_copy, adapter):
    upper = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name]).record.name
    take_out(adapter)
    findings = verify(Request(run=run_copy))
    assert findings.failures == (f"{upper}: it was trained on top of {adapter.name}, which is not in the run",)
    with pytest.raises(RunError, match="which is not in the run"):
        write_report(Run(run_copy))
