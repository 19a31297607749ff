import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora_mnist.errors import ProofError, UsageError
from lora_mnist.lora.merge import merged_copy
from lora_mnist.pipeline import Applied, Request, open_workspace, pretrain
from lora_mnist.pipeline import export as export_file
from lora_mnist.pipeline.export import export
from lora_mnist.runs.run import Run

from ..conftest import printed_by, smoke, snapshot, workspace

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def test_onnxruntime_gives_the_stored_logits(run_copy, adapter):
    work = workspace(run_copy)
    provenance = export(work, [Applied(adapter.name)])
    assert provenance.file == str(run_copy / "exports" / f"{adapter.name}.onnx")
    session = onnxruntime.InferenceSession(provenance.file, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["N", 28, 28])
    images = work.dataset.test.images.numpy()
    stored = load_file(adapter / "logits.safetensors")["test"].numpy()
    for count in (1, len(images)):
        (logits,) = session.run(["logits"], {"images": images[:count]})
        assert np.abs(logits - stored[:count]).max() <= 1e-4 * np.abs(stored).max()
    assert provenance.images == sum(len(part) for part in work.dataset.held_out.values())
    assert 0 <= provenance.largest_difference <= 1e-4 * provenance.largest_logit


def test_the_file_says_what_it_was_made_of(run_copy, adapter):
    provenance = export(workspace(run_copy), [Applied(adapter.name, 0.5)])
    model = onnx.load(provenance.file)
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}["lora_mnist"])
    run = Run(run_copy)
    assert about["base_fingerprint"] == run.base.evaluation.base_fingerprint
    assert about["adapters"] == [{"name": adapter.name, "strength": 0.5}]
    assert about["dataset"] == {"name": "mnist-5k", "sha256": run.record.dataset.sha256}
    assert [(one.domain, one.version) for one in model.opset_import] == [("", provenance.opset)] == [("", 18)]
    assert model.ir_version == 8
    content = (run_copy / "exports" / f"{adapter.name}.onnx").read_bytes()
    assert export_file.__file__.encode() not in content  # nor any other place on this machine
    assert str(run_copy.parent).encode() not in content


def test_the_same_network_is_the_same_file(run_copy, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        export(workspace(run_copy), out=tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_torch_reads_its_file_without_this_package(run_copy):
    provenance = export(workspace(run_copy), format="torch")
    script = f"""
import json, sys, torch
kept = {{"lora_mnist.json": ""}}
network = torch.export.load({provenance.file!r}, extra_files=kept).module()
assert not any(name.startswith("lora_mnist") for name in sys.modules)
logits = network(torch.zeros(1, 28, 28, dtype=torch.uint8))
print(json.dumps([json.loads(kept["lora_mnist.json"])["run"], logits.tolist()]))
"""
    run, logits = json.loads(printed_by(script))
    assert run == run_copy.name
    base = workspace(run_copy).base
    assert logits[0] == pytest.approx(base(torch.full((1, 28, 28), -0.1307 / 0.3081))[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_network_that_is_not_ours_is_not_written(run_copy, adapter, monkeypatch, format):
    def damaged(model):
        plain = merged_copy(model)
        plain.linear1.weight[0, 0] += 5
        plain.linear1.weight[:, 300:500] *= 1.01
        return plain

    monkeypatch.setattr(export_file, "merged_copy", damaged)
    before = snapshot(run_copy)
    with pytest.raises(ProofError, match="differ from ours"):
        export(workspace(run_copy), [Applied(adapter.name)], format)
    assert snapshot(run_copy) == before


def test_nothing_is_replaced_unasked(run_copy, tmp_path):
    out = tmp_path / "mine.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        export(workspace(run_copy), out=out)
    assert out.read_bytes() == b"mine"
    with pytest.raises(UsageError, match="is a folder"):
        export(workspace(run_copy), out=tmp_path)
    forced = open_workspace(Request(run=run_copy, force=True))
    assert export(forced, out=out).bytes == out.stat().st_size > 1000
    assert not (run_copy / "exports").exists()


def test_exports_go_with_their_base(run_copy, caplog):
    export(workspace(run_copy), format="torch")
    pretrain(replace(smoke(run_copy, seed=1), force=True))
    assert not (run_copy / "exports").exists()
    assert "base.pt2" in caplog.text


def test_an_unknown_format_is_refused_and_a_missing_package_named(finished_run, monkeypatch):
    monkeypatch.setattr(export_file, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(UsageError, match="torchscript"):
        export(workspace(finished_run), format="torchscript")
    with pytest.raises(UsageError, match=r"onnxruntime, not installed here.*\.\[onnx\]"):
        export(workspace(finished_run))
