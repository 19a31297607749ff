"""Every field of every document is forged, and the manifest made to fit: `verify` notices, or the field is told."""

import copy
import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
from pydantic import ValidationError

from lora_mnist.errors import LoraMnistError
from lora_mnist.evaluation.proof import Plain, prove
from lora_mnist.evaluation.results import Analysis
from lora_mnist.pipeline import (
    Applied,
    Request,
    again,
    again_whole,
    extract,
    finetune,
    finetune_full,
    merge,
    open_workspace,
)
from lora_mnist.pipeline import workspace as workspace_room
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.runs.likeness import first_difference
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import Evaluation
from lora_mnist.runs.told import TOLD, is_told

from ..conftest import rehash, workspace


@pytest.fixture(scope="module")
def rich(finished_run, tmp_path_factory):
    """A run with a document of every kind: with a control, on top of another, of all weights, extracted, merged."""
    path = shutil.copytree(finished_run, tmp_path_factory.mktemp("rich") / "run")
    (adapter,) = Run(path).adapter_names()
    finetune(workspace(path, digit=3, name="control"), control=True)
    finetune(workspace(path, digit=1, name="upper"), on_top_of=[adapter])
    finetune_full(workspace(path, digit=3, name="full"))
    extract(workspace(path, name="extracted"), 2)
    merge(workspace(path, name="merged"), [Applied(adapter, 0.5)])
    return path


# Forging --------------------------------------------------------------------------------------------------------------

FORGED = "a field of a document forged, and the manifest made to fit"


def leaves(document, path=()):
    """The path of every value that is neither a table nor a list; of long lists only those in the first and last."""
    entries = list(document.items() if isinstance(document, dict) else enumerate(document))
    for key, value in entries if len(entries) <= 10 or isinstance(document, dict) else (entries[0], entries[-1]):
        yield from leaves(value, (*path, key)) if isinstance(value, dict | list) and value else [(*path, key)]


def other(value):
    """Another value of the same type; not one that only rounding tells apart."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value < 5 else value - 1
    if isinstance(value, dict | list):  # an empty one
        return {"x": 1} if isinstance(value, dict) else ["x"]
    return {None: "x", "lora": "svd", "digits": "mnist", "errors": "missed", "val": "test"}.get(value, f"{value}x")


def forged(document, path):
    document = copy.deepcopy(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other(place[path[-1]])
    return document


def dotted(path):
    return ".".join(map(str, path))


@pytest.fixture(autouse=True)
def _images_once(monkeypatch):
    monkeypatch.setattr(workspace_room, "load", cache(workspace_room.load))
    monkeypatch.setattr(workspace_room, "choose", lambda name, *_: name)  # which would fetch what a forgery names


class Looking:
    """`verify` of one folder, whose weights are as they were, so that they are asked once."""

    def __init__(self, run, place):
        self.folder, self.work = run / place, open_workspace(Request(run=run))
        self.derived = {}
        if place.startswith("adapters"):
            saved = self.saved(self.work.run)
            self.adapted, _ = self.work.adapted([Applied(one) for one in (*saved.tuning.on_top_of, saved.name)])
            plain = Plain(self.work.base, self.work.images, self.work.logits_of_stack(()))
            self.proof, _ = prove(plain, self.work.fingerprint, self.adapted)
        if place.startswith("checkpoints"):
            self.model, _ = load_network(self.folder / "model.safetensors")

    def saved(self, run):
        return (run.adapter if self.folder.parent.name == "adapters" else run.checkpoint)(self.folder.name)

    def notices(self):
        """Whether what is stored now is noticed."""
        try:
            if self.folder.name == "base":
                return again.of_base(open_workspace(Request(run=self.work.run.path)))
            work = replace(self.work, run=Run(self.work.run.path))
            saved = self.saved(work.run)
            if self.folder.parent.name == "adapters":
                return again.of_adapter(work, saved, self.adapted, self.proof)
            return again_whole.of_checkpoint(work, saved, self.model, saved.logits())
        except LoraMnistError as error:  # which ends the command
            return [error.cause]

    def notices_in(self, file, text):
        """Whether another text of a file is noticed that nothing else is derived from."""
        try:
            stored = KINDS[file].model_validate_json(text)
        except ValidationError:
            return True
        return first_difference(file, stored, self.derived[file]) is not None


KINDS = {"evaluation.json": Evaluation, "analysis.json": Analysis}


@pytest.mark.parametrize(
    "place", ["base", "adapters/control", "adapters/extracted", "checkpoints/full", "checkpoints/merged"]
)
def test_every_forged_field_is_noticed_or_told(rich, place, monkeypatch, tally):
    looking, tried, missed = Looking(rich, place), 0, []

    def kept(file, stored, derived):
        looking.derived[file] = derived
        return first_difference(file, stored, derived)

    for room in (again, again_whole):
        monkeypatch.setattr(room, "first_difference", kept)
    assert looking.notices() == []
    for file in sorted(looking.folder.glob("*.json")):
        content = file.read_text()
        document = json.loads(content)
        for path in leaves(document) if file.name not in ("manifest.json", "provenance.json") else ():
            if is_told(file.name, dotted(path)):
                continue
            tried += 1
            text = json.dumps(forged(document, path))
            if file.name in KINDS:
                noticed = looking.notices_in(file.name, text)
            else:
                file.write_text(text)
                rehash(looking.folder)
                noticed = looking.notices()
            if not noticed:
                missed.append(f"{file.name}: {dotted(path)}")
        file.write_text(content)
    rehash(looking.folder)
    tally.count(FORGED, place, tried, tried - len(missed))
    assert missed == []


def test_a_dial_that_turns_otherwise_is_noticed(rich):
    """Images are asked again where a count does not come out as it is stored."""
    looking = Looking(rich, "adapters/control")
    file = looking.folder / "analysis.json"
    content = file.read_text()
    document = json.loads(content)
    point = document["strength_curve"]["splits"]["val"][2]
    point["errors"] += 1
    file.write_text(json.dumps(document))
    (clause,) = looking.notices()
    file.write_text(content)
    assert clause.startswith(f"analysis.json: `strength_curve.splits.val.2.errors` is {point['errors']}, ")


def test_every_entry_of_the_list_is_a_field(rich):
    """Also of provenance.json, all of which is told."""
    fields = {
        (file.name, dotted(path))
        for file in rich.rglob("*.json")
        if file.name != "manifest.json"
        for path in leaves(json.loads(file.read_text()))
    }
    for one in TOLD:
        assert any(file == one.file and is_told(file, field) for file, field in fields), one
