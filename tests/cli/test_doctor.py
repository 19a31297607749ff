import json

from lora_mnist import pipeline
from lora_mnist.pipeline import Check, Diagnosis


def test_every_check_has_a_line_and_the_code_is_the_first_ones(cli, tmp_path, monkeypatch):
    checks = (
        Check(name="disk", finding="5 GB free"),
        Check(name="data", finding="t10k is gone", way_out="Delete it.", exit_code=3),
        Check(name="runs/x", finding="no base", way_out="Make it.", exit_code=4),
    )
    diagnosis = Diagnosis(passed=False, checks=checks)
    asked = []
    monkeypatch.setattr(pipeline, "doctor", lambda *given: asked.append(given) or diagnosis)
    code, out, err = cli("doctor", tmp_path, "--data", tmp_path / "d", "--device", "cpu", "--threads", "3")
    assert (code, err) == (3, "")
    assert asked == [(tmp_path, tmp_path / "d", "cpu", 3)]
    good, data, run, end = out.splitlines()
    assert good == "good  disk: 5 GB free"
    assert data == "BAD   data: t10k is gone. Delete it."
    assert run.startswith("BAD ")
    assert end == "2 of 3 are not good."
    code, out, _ = cli("doctor", tmp_path, "--json")
    assert (code, json.loads(out)) == (3, json.loads(diagnosis.model_dump_json()))


def test_on_this_machine_it_ends_well_or_says_why(cli, run_copy):
    code, out, err = cli("doctor", run_copy, "--data", run_copy / "data", "--threads", "1")
    assert err == ""
    assert (code == 0) == out.endswith("All is well.\n")
    assert code == 0 or "BAD" in out
    assert "manifests and fingerprints are right" in " ".join(out.split())
