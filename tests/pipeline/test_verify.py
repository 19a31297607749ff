"""Whatever was changed since it was saved is found, whichever file it is and however well it is covered up."""

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mnist.errors import RunError
from lora_mnist.pipeline import Request, finetune, verify
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run

from ..conftest import edited, flip_bit, rehash, snapshot, workspace


def test_verify_passes_on_an_honest_run(finished_run):
    before = snapshot(finished_run)
    findings = verify(Request(run=finished_run))
    assert findings.passed
    assert [entry.passed for entry in findings.adapters] == [True]
    (adapter,) = Run(finished_run).adapters()
    assert findings.adapters[0].proof == adapter.finetune.proof
    assert snapshot(finished_run) == before
    with pytest.raises(RunError, match="nine"):
        verify(Request(run=finished_run), ["nine"])


@pytest.mark.parametrize(
    "file",
    [
        *(f"base/{name}" for name in ("model.safetensors", "logits.safetensors", "evaluation.json", "history.csv")),
        *("base/run.json", "base/manifest.json", "A/manifest.json"),
        *(f"A/{name}" for name in ("adapter_model.safetensors", "adapter_config.json", "finetune.json")),
    ],
)
def test_verify_catches_one_changed_bit_in_any_file(run_copy, adapter, file):
    path = run_copy / file.replace("A/", f"adapters/{adapter.name}/")
    flip_bit(path, -20)
    findings = verify(Request(run=run_copy))
    assert not findings.passed
    assert str(path.parent) in findings.failures[0]
    assert path.name in findings.failures[0]
    if file.startswith("A/"):
        assert findings.adapters[0].proof is None
        assert findings.base.passed


def test_verify_sees_through_a_manifest_made_to_fit(run_copy, adapter):
    """Weights and manifest changed together: the fingerprint and the stored logits still tell."""
    flip_bit(run_copy / "base" / "model.safetensors", -20)
    rehash(run_copy / "base")
    assert "does not have the recorded fingerprint" in verify(Request(run=run_copy)).failures[0]


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


def test_verify_names_an_adapter_whose_logits_are_no_numbers(run_copy, adapter):
    path = adapter / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({name: tensor.abs().clamp(min=1e30) for name, tensor in tensors.items()}, path, metadata)
    rehash(adapter)
    (failure, *_) = verify(Request(run=run_copy)).failures
    assert failure.startswith(f"{adapter.name}: its logits differ by ")


def test_an_adapter_without_the_one_below_is_a_finding_of_verify_and_an_error_of_the_report(run_copy, adapter):
    upper = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name]).record.name
    shutil.rmtree(adapter)
    findings = verify(Request(run=run_copy))
    assert findings.failures == (f"{upper}: it was trained on top of {adapter.name}, which is not in the run",)
    with pytest.raises(RunError, match="which is not in the run"):
        write_report(Run(run_copy))


# The whole of it ------------------------------------------------------------------------------------------------------


def test_the_digest_shows_a_change_that_nothing_else_shows(cli, fails, run_copy, adapter):
    noted = Run(run_copy).digest()
    assert cli("verify", "--run", run_copy, "--digest", noted.upper())[0] == 0
    assert cli("verify", "--run", run_copy, "--digest", noted[:16])[0] == 0
    assert noted in cli("verify", "--run", run_copy)[1]
    assert json.loads(cli("verify", "--run", run_copy, "--json")[1])["digest"] == noted
    assert noted in cli("adapters", "--run", run_copy)[1]
    with edited(adapter / "finetune.json") as document:
        document["seed"] = 77
    assert cli("verify", "--run", run_copy)[0] == 0
    fails(5, "verify", "--run", run_copy, "--digest", noted, says=f"not {noted}")


@pytest.mark.parametrize("digest", ["", "0f3a", "0123456789abcde", "x" * 64, "0" * 65])
def test_what_is_no_digest_is_refused(fails, finished_run, digest):
    fails(2, "verify", "--run", finished_run, "--digest", digest, says="run digest")


@pytest.mark.parametrize(("key", "value"), [("digit", 3), ("name", "other"), ("proof", None)])
def test_a_forgery_that_shows_is_named(fails, run_copy, adapter, key, value):
    with edited(adapter / "finetune.json") as document:
        document[key] = value
    fails(5, "verify", "--run", run_copy, says=f"{adapter.name}: ")


def test_a_report_is_looked_at_too_and_an_old_one_is_only_noted(fails, succeeds, run_copy, adapter):
    write_report(Run(run_copy))
    assert "passed  report" in succeeds("verify", "--run", run_copy)
    page = run_copy / "report" / "index.html"
    page.write_text(page.read_text().replace("<h2>Provenance", "<h2>Forged"))
    fails(5, "verify", "--run", run_copy, says="index.html is not the saved file")
    write_report(Run(run_copy))
    for file, key, value in ((adapter / "finetune.json", "seed", 77), (page.with_name("report.json"), "adapters", [])):
        with edited(file) as document:
            document[key] = value
        assert "older than the run" in " ".join(succeeds("verify", "--run", run_copy).split())
        write_report(Run(run_copy))


@pytest.mark.parametrize("file", ["evaluation.json", "analysis.json"])
def test_numbers_that_do_not_follow_from_the_logits_are_named_by_their_file(run_copy, adapter, file):
    with edited(adapter / file) as document:
        split = document["splits"]["test"]
        if file == "evaluation.json":
            split["accuracy"] += 1e-4
        else:
            split["after"]["missed"] += 1
    failure = f"{adapter.name}: {file} does not follow from its logits"
    assert failure in verify(Request(run=run_copy)).failures


def test_a_folder_without_a_manifest_is_named_everywhere_and_verify_ends_with_5(cli, run_copy, adapter):
    (adapter / "manifest.json").unlink()
    for command in ("adapters", "verify", "evaluate"):
        code, _, err = cli(command, "--run", run_copy)
        assert (code, f"{adapter} has no manifest" in " ".join(err.split())) == (5 if command == "verify" else 0, True)


def test_an_adapter_that_was_deleted_is_not_missed(cli, run_copy, adapter):
    shutil.rmtree(adapter)
    for command in ("adapters", "verify", "evaluate", "report"):
        assert cli(command, "--run", run_copy)[0] == 0


def test_the_controls_logits_are_stored_and_compared(run_copy):
    name = finetune(workspace(run_copy, digit=3), control=True).record.name
    assert verify(Request(run=run_copy)).passed
    folder = run_copy / "adapters" / name
    logits = load_file(folder / "logits.safetensors")
    assert {"control.val", "control.test"} <= set(logits)
    save_file({**logits, "control.test": logits["control.test"].flip(0).contiguous()}, folder / "logits.safetensors")
    rehash(folder)
    assert verify(Request(run=run_copy)).failures == (f"{name}: analysis.json does not follow from its logits",)
