"""Every field of every document is forged, and the manifest made to fit: `verify` notices, or the field is told."""

import copy
import json
import shutil

import pytest

from lora_mnist.errors import LoraMnistError
from lora_mnist.evaluation.proof import prove
from lora_mnist.pipeline import Applied, Request, again, extract, finetune, finetune_full, merge, open_workspace
from lora_mnist.runs.checkpoint import load_network
from lora_mnist.runs.rundir import Run
from lora_mnist.runs.told import is_told

from ..conftest import rehash, workspace


@pytest.fixture(scope="module")
def rich(finished_run, tmp_path_factory):
    """A run with a document of every kind: with a twin, on top of another, of all weights, extracted, merged."""
    path = shutil.copytree(finished_run, tmp_path_factory.mktemp("rich") / "run")
    (adapter,) = Run(path).adapter_names()
    finetune(workspace(path, digit=3, name="twin"), twin=True)
    finetune(workspace(path, digit=1, name="upper"), on_top_of=[adapter])
    finetune_full(workspace(path, digit=3, name="full"))
    extract(workspace(path, name="extracted"), 2)
    merge(workspace(path, name="merged"), [Applied(adapter, 0.5)])
    return path


# Forging --------------------------------------------------------------------------------------------------------------


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


@pytest.fixture
def notices(rich):
    """Whether `verify` notices what `put` stores as a folder's document, the weights being as they were."""
    work = open_workspace(Request(run=rich))
    plain = work.logits_of_stack(())
    adapted, proofs = {}, {}
    for saved in work.run.adapters():
        adapted[saved.name], _ = work.adapted([Applied(one) for one in (*saved.tuning.on_top_of, saved.name)])
        proofs[saved.name], _ = prove(work.base, work.sealed, adapted[saved.name], work.images, plain)

    def look(folder):
        saved, name = None, folder.name
        fresh = open_workspace(Request(run=rich))
        if name == "base":
            return again.of_base(fresh)
        if folder.parent.name == "adapters":
            return again.of_adapter(fresh, fresh.run.adapter(name), adapted[name], proofs[name])
        saved = fresh.run.checkpoint(name)
        model, _ = load_network(folder / "model.safetensors")
        return again.of_checkpoint(fresh, saved, model, saved.logits())

    def noticed(folder):
        rehash(folder)
        try:
            return bool(look(folder))
        except LoraMnistError:
            return True

    return noticed


FOLDERS = ["base", "adapters/twin", "adapters/upper", "adapters/extracted", "checkpoints/full", "checkpoints/merged"]


@pytest.mark.parametrize("place", FOLDERS)
def test_every_forged_field_is_noticed_or_told(rich, notices, place):
    folder, missed, looked = rich / place, [], 0
    assert not notices(folder)
    for file in sorted(folder.glob("*.json")):
        if file.name == "manifest.json":
            continue
        content = file.read_text()
        document = json.loads(content)
        for path in leaves(document):
            file.write_text(json.dumps(forged(document, path)))
            looked += 1
            if not is_told(file.name, dotted(path)) and not notices(folder):
                missed.append(f"{file.name}: {dotted(path)}")
        file.write_text(content)
    rehash(folder)
    print(looked)
    assert missed == []
