"""Every document of a run comes back as it was stored, and one that is not ours is told by file and field."""

import json
import shutil

import pytest

from lora_mnist import SCHEMA
from lora_mnist.errors import AlteredError, RunError
from lora_mnist.pipeline import Applied, Request, finetune, finetune_full, verify
from lora_mnist.pipeline.convert import extract, merge
from lora_mnist.report.page import write_report
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import MergeRecord

from ..conftest import edited, rehash, workspace

READERS = {
    "run.json": lambda run: run.record,
    "evaluation.json": lambda run: run.base.evaluation,
    "provenance.json": lambda run: run.base.provenance,
    "finetune.json": lambda run: run.adapters()[0].finetune,
    "analysis.json": lambda run: run.adapters()[0].analysis,
}


def place_of(path, file):
    """The folder in which a run has that file."""
    return (
        path / "base"
        if file in ("run.json", "evaluation.json", "provenance.json")
        else next((path / "adapters").iterdir())
    )


@pytest.fixture(scope="module")
def full_run(finished_run, tmp_path_factory):
    """A run with a document of every kind: with a control, on top of another, of all weights, extracted, merged."""
    path = shutil.copytree(finished_run, tmp_path_factory.mktemp("full") / "run")
    (adapter,) = Run(path).adapter_names()
    finetune(workspace(path, digit=3, name="control"), control=True)
    finetune(workspace(path, digit=1, name="upper"), on_top_of=[adapter])
    finetune_full(workspace(path, digit=3))
    extract(workspace(path), 2)
    merge(workspace(path), [Applied(adapter, 0.5)])
    return path


def test_every_document_comes_back_as_it_was_stored(full_run):
    run, seen = Run(full_run), set()

    def same(saved, name, document):
        text = saved.file(name).read_text()
        assert json.dumps(document.model_dump(mode="json"), indent=1) + "\n" == text
        seen.add((saved.folder.parent.name, name))

    same(run.base, "run.json", run.record)
    merged = run.checkpoint(f"{run.adapter_names()[0]}-merged")
    same(merged, "merge.json", merged.document("merge.json", MergeRecord))
    for saved in (run.base, *run.adapters(), *run.checkpoints()):
        same(saved, "evaluation.json", saved.evaluation)
        same(saved, "provenance.json", saved.provenance)
        if saved.is_finetuned:
            same(saved, "finetune.json", saved.finetune)
            same(saved, "analysis.json", saved.analysis)
    stored = {
        (file.parent.parent.name, file.name)
        for file in full_run.rglob("*.json")
        if file.name not in ("manifest.json", "contents.json", "adapter_config.json")
    }
    assert seen == stored - {(full_run.parent.name, "run.json")}  # the copy at the top


def put(document, key, value):
    """Change one value in nested tables and lists: `put(document, "splits.test.count", 3)`."""
    *parents, last = key.split(".")
    for parent in parents:
        document = document[int(parent) if isinstance(document, list) else parent]
    if value is ...:
        del document[last]
    else:
        document[last] = value


DAMAGES = {
    "run.json": [
        ("settings.seed", "0"),
        ("settings.data", ...),
        ("dataset.name", "cifar"),
        ("dataset.val", 1.5),
        ("base_fingerprint", None),
        ("mine", 1),
    ],
    "provenance.json": [("versions.torch", 2), ("seconds", "1"), ("date", ...), ("mine", 1)],
    "evaluation.json": [
        ("dataset", "mnist-5k"),
        ("adapters", [{"name": "a"}]),
        ("splits", {}),
        ("splits.val.count", True),
    ],
    "finetune.json": [
        ("method", "dora"),
        ("digit", 10),
        ("settings", None),
        ("settings.rank", 0),
        ("settings.mine", 1),
        ("parameters", 3),
        ("parameters.layers.0.weight", ["24", 784]),
        ("proof.passed", 1),
        ("guard.tried", None),
        ("on_top_of", [1]),
        ("mine", 1),
    ],
    "analysis.json": [
        ("splits", []),
        ("splits.test.after.false_alarms", ...),
        ("threshold.chosen_on", "train"),
        ("examples.0.label", 10),
        ("strength_curve.splits.val.0.strength", "0"),
        ("layers.linear1.singular_values", [None]),
        ("mine", 1),
    ],
}


@pytest.mark.parametrize(("file", "key", "value"), [(file, *one) for file, many in DAMAGES.items() for one in many])
def test_a_field_that_is_not_ours_is_named_with_its_file(run_copy, file, key, value):
    folder = place_of(run_copy, file)
    with edited(folder / file) as document:
        put(document, key, value)
    with pytest.raises(AlteredError) as caught:
        READERS[file](Run(run_copy))
    assert str(folder / file) in caught.value.cause
    assert f"`{key}" in caught.value.cause
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 360  # of a whole table no more than 200 characters


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("splits.test.wrong", [0] * 9, "must have no fewer entries than 10"),
        ("splits.test.confusion", [[0] * 10] * 11, "must have no more entries than 10"),
        ("splits.test.count", -1, "(=-1) must be greater than or equal to 0"),
        ("splits.test.count", ..., "is missing"),
        ("splits.test.mine", 1, "(=1) is not known"),
        ("splits.test", [], "(=[]) must be a table"),
    ],
)
def test_the_rule_is_said_in_words(run_copy, key, value, rule):
    with edited(run_copy / "base" / "evaluation.json") as document:
        put(document, key, value)
    with pytest.raises(AlteredError) as caught:
        _ = Run(run_copy).base.evaluation
    assert caught.value.cause.endswith(f"{rule}.")


@pytest.mark.parametrize(
    ("folder", "key", "value"),
    [
        ("checkpoints/digit3-full", "settings.learning_rate", 0),
        ("checkpoints/digit3-full", "settings.alpha", 1.0),
        ("checkpoints/digit3-full", "parameters.trained", "all"),
        ("adapters/digit3-full-r2", "settings.steps", 2),
        ("adapters/digit3-full-r2", "extraction.layers.linear1.energy", None),
        ("adapters/digit3-full-r2", "extraction.of_checkpoint.errors", -1),
    ],
)
def test_of_whatever_kind_it_is(full_run, tmp_path, folder, key, value):
    place = shutil.copytree(full_run / folder, tmp_path / folder)
    with edited(place / "finetune.json") as document:
        put(document, key, value)
    saved = Run(tmp_path).checkpoint(place.name) if "checkpoints" in folder else Run(tmp_path).adapters()[0]
    with pytest.raises(AlteredError, match=rf"finetune\.json: `{key}"):
        _ = saved.finetune


@pytest.mark.parametrize(
    ("file", "table"),
    [("evaluation.json", "splits"), ("analysis.json", "splits"), ("analysis.json", "strength_curve.splits")],
)
@pytest.mark.parametrize(("old", "new"), [("val", "train"), ("test", "Test")])
def test_a_split_of_another_name_is_refused(run_copy, file, table, old, new):
    with edited(place_of(run_copy, file) / file) as document:
        *parents, last = table.split(".")
        inner = document[parents[0]] if parents else document
        inner[last] = {new if name == old else name: part for name, part in inner[last].items()}
    with pytest.raises(AlteredError, match=rf"{file}: `{table}`.* must hold test, may hold val, and nothing else"):
        READERS[file](Run(run_copy))


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b"", b"{", b"{}", b"\xff", b"[" * 5000])
@pytest.mark.parametrize("file", READERS)
def test_what_is_no_such_document_at_all_is_one_error(run_copy, file, content):
    folder = place_of(run_copy, file)
    (folder / file).write_bytes(content)
    rehash(folder)
    with pytest.raises(RunError) as caught:
        READERS[file](Run(run_copy))
    assert str(folder / file if file != "run.json" or content != b"{}" else run_copy) in caught.value.cause
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_a_number_that_json_does_not_know_is_refused(run_copy, number):
    path = run_copy / "base" / "evaluation.json"
    document = json.loads(path.read_text())
    accuracy = b'"accuracy": ' + json.dumps(document["splits"]["test"]["accuracy"]).encode()
    path.write_bytes(path.read_bytes().replace(accuracy, b'"accuracy": ' + number))
    rehash(path.parent)
    with pytest.raises(AlteredError, match=r"evaluation\.json: `splits\.(val|test)\.accuracy`"):
        _ = Run(run_copy).base.evaluation


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1, str(SCHEMA), None])
def test_a_run_of_another_version_says_so(run_copy, schema):
    path = run_copy / "base" / "run.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({"schema_version": schema, "other": document}))  # whatever else it may hold
    rehash(path.parent)
    with pytest.raises(RunError, match=f"its schema is {schema}, not {SCHEMA}"):
        _ = Run(run_copy).record


def test_a_file_that_is_not_there_is_named(run_copy):
    for file, reader in READERS.items():
        place_of(run_copy, file).joinpath(file).unlink()
        with pytest.raises(RunError, match=file):
            reader(Run(run_copy))


@pytest.mark.parametrize(
    ("key", "value"), [("count", 0), ("count", 7), ("wrong", [400] * 10), ("confusion", [[0] * 10] * 10)]
)
def test_counts_that_do_not_add_up_are_not_ours(run_copy, key, value):
    with edited(run_copy / "base" / "evaluation.json") as document:
        document["splits"]["test"][key] = value
    with pytest.raises(AlteredError, match=r"evaluation.json: `splits.test` .*must"):
        _ = Run(run_copy).base.evaluation


def test_a_split_that_is_not_stored_is_a_finding(run_copy, adapter):
    with edited(adapter / "evaluation.json") as document:
        del document["splits"]["val"]
    findings = verify(Request(run=run_copy))
    (failure,) = findings.failures
    assert failure == f"{adapter.name}: evaluation.json does not follow from its logits"
    with pytest.raises(AlteredError, match=r"evaluation.json has no val"):
        write_report(Run(run_copy))
