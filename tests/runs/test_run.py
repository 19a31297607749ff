import json
import shutil

import pytest

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.pipeline import Applied, Request, evaluate, finetune, open_workspace, verify
from lora_mnist.pipeline.convert import merge
from lora_mnist.report.page import write_report
from lora_mnist.runs.atomic import manifest_of
from lora_mnist.runs.listing import documents_of, list_adapters
from lora_mnist.runs.run import Run

from ..conftest import edited, rehash, snapshot, workspace


def test_a_run_lies_as_designed(finished_run):
    found = {str(file.relative_to(finished_run)) for file in finished_run.rglob("*") if file.is_file()}
    outcome = {"history.csv", "evaluation.json", "logits.safetensors", "provenance.json", "manifest.json"}
    base = {f"base/{name}" for name in outcome | {"model.safetensors", "run.json"}}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "finetune.json", "analysis.json"}
    adapter |= {"pictures.safetensors", "README.md"}
    name = Run(finished_run).adapter_names()[0]
    assert found == {"run.json"} | base | {f"adapters/{name}/{file}" for file in outcome | adapter}


def test_the_copy_at_the_top_follows_the_base(run_copy):
    record = (run_copy / "base" / "run.json").read_bytes()
    assert (run_copy / "run.json").read_bytes() == record
    (run_copy / "run.json").write_text("edited")
    Run(run_copy).tidy()
    assert (run_copy / "run.json").read_bytes() == record


def test_a_killed_replacement_is_finished_by_the_next_writer(run_copy, adapter):
    """The new base is in place, the process died before it removed the old adapters."""
    stranger = shutil.copytree(adapter, adapter.with_name("stranger"))
    for path, key, base in (
        (run_copy / "base" / "run.json", "replaced_fingerprint", "of the old base"),
        (adapter / "evaluation.json", "base_fingerprint", "of the old base"),
        (stranger / "evaluation.json", "base_fingerprint", "of a third base"),
    ):
        with edited(path) as document:
            document[key] = base
    assert Run(run_copy).adapter_names() == ["stranger"]  # readers go past it
    with pytest.raises(RunError, match="no adapter"):
        Run(run_copy).require_adapter(adapter.name)
    assert finetune(workspace(run_copy, name=adapter.name)).kept  # it is not in the way of another
    assert Run(run_copy).adapter_names() == ["stranger", adapter.name]


def test_what_a_killed_writer_set_aside_is_read_there_and_put_back_by_the_next_writer(run_copy, adapter):
    """As between the two renames of its replacement."""
    request = Request(run=run_copy)
    merged = merge(open_workspace(request), [Applied(adapter.name)]).name

    def seen():
        return documents_of(Run(run_copy)), list_adapters(Run(run_copy)), verify(request)

    expected, whole = seen(), snapshot(run_copy)
    for place in (run_copy / "base", adapter, run_copy / "checkpoints" / merged):
        place.rename(place.with_name(f".{place.name}.old"))
    before = snapshot(run_copy)
    assert seen() == expected
    assert expected[-1].passed
    work = open_workspace(request)
    assert evaluate(work, [Applied(adapter.name)]).splits == evaluate(work, checkpoint=merged).splits
    assert set(Run(run_copy).adapter(adapter.name).pictures()) >= {"examples", "wrong"}
    assert snapshot(run_copy) == before
    with Run(run_copy).writing():
        pass
    assert snapshot(run_copy) == whole


def test_adapters_come_oldest_first_and_only_whole_ones(run_copy, adapter):
    younger = adapter.with_name("a-younger-one")
    shutil.copytree(adapter, younger)
    (younger / "manifest.json").touch()
    adapter.with_name("half").mkdir()
    assert Run(run_copy).adapter_names() == [adapter.name, younger.name]


def test_what_was_stored_comes_back(finished_run):
    run = Run(finished_run)
    (adapter,) = run.adapters()
    for saved in (run.base, adapter):
        logits = saved.logits()
        assert set(logits) == {"val", "test"}
        assert logits["test"].shape == (saved.evaluation.splits["test"].count, 10)
    assert len(adapter.losses()) == 20
    pictures = adapter.pictures()
    assert len(pictures["examples"]) == len(adapter.analysis.examples)


@pytest.mark.parametrize("content", [None, "[]"])
def test_a_damaged_adapter_can_be_made_again(run_copy, adapter, content):
    record = adapter / "finetune.json"
    record.unlink() if content is None else record.write_text(content)
    work = open_workspace(Request(run=run_copy, options={"finetune": {"name": adapter.name}}, force=True))
    assert finetune(work).kept
    assert Run(run_copy).require_adapter(adapter.name).finetune.name == adapter.name


def test_a_damaged_adapter_is_not_in_the_way_of_a_checkpoint(run_copy, adapter):
    merged = merge(open_workspace(Request(run=run_copy)), [Applied(adapter.name)])
    shutil.copytree(adapter, adapter.with_name("other"))
    (adapter.with_name("other") / "finetune.json").write_text("[]")
    work = open_workspace(Request(run=run_copy, options={"finetune": {"name": merged.name}}, force=True))
    assert merge(work, [Applied(adapter.name)]).name == merged.name


@pytest.mark.parametrize("name", ["a\0", "a\ud800", "../x", "", "/etc/passwd"])
def test_a_manifest_with_other_names_than_files_have_is_damaged(run_copy, adapter, name):
    path = adapter / "manifest.json"
    path.write_bytes(manifest_of(json.loads(path.read_text())["files"] | {name: "0" * 64}))  # its own hash fits
    with pytest.raises(AlteredError, match=r"manifest.json is damaged"):
        Run(run_copy).require_adapter(adapter.name)


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("base", "history.csv", ""),
        ("base", "history.csv", "step\n1\n"),
        ("adapter", "history.csv", "loss\nx\n"),
        ("adapter", "pictures.safetensors", "x"),
    ],
)
def test_a_report_names_the_file_that_is_not_what_it_should_be(run_copy, adapter, kind, file, content):
    folder = run_copy / "base" if kind == "base" else adapter
    (folder / file).write_text(content)
    rehash(folder)
    with pytest.raises(AlteredError, match=file):
        write_report(Run(run_copy))


def test_what_is_missing_is_named_with_what_is_there(run_copy, adapter):
    shutil.copytree(adapter, adapter.with_name("second"))
    with pytest.raises(RunError, match=rf"no adapter 'third' .* It has {adapter.name}, second\."):
        Run(run_copy).require_adapter("third")


def test_the_table_of_losses_has_a_head_and_a_line_for_every_step(run_copy):
    head, *lines = (run_copy / "base" / "history.csv").read_text().splitlines()
    assert head == "step,learning_rate,loss,val_loss,val_accuracy"
    assert [line.partition(",")[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
    curve = Run(run_copy).base.val_curve()
    assert [step for step, *_ in curve] == [len(lines) * tenth // 10 for tenth in range(1, 11)]
    assert all(loss > 0 and 0 <= accuracy <= 1 for _, loss, accuracy in curve)
    assert len(Run(run_copy).adapters()[0].val_curve()) == 10
