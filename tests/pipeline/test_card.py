"""The model card beside an adapter: what it says holds, and its lines load the adapter."""

import json
import re

import torch

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.pipeline import finetune
from lora_mnist.runs.run import Run

from ..conftest import workspace


def test_its_lines_load_the_adapter_with_peft_and_with_us(run_copy, adapter, monkeypatch):
    import_torchvision()  # which PEFT imports
    work = workspace(run_copy, digit=3, rank=1)
    above = finetune(work, [adapter.name]).record.name
    for name in (adapter.name, above):
        saved = Run(run_copy).require_adapter(name)
        monkeypatch.chdir(saved.folder)
        for block in re.findall(r"```python\n(.*?)```", (saved.folder / "README.md").read_text(), re.DOTALL):
            names: dict = {}
            exec(block, names)
            with torch.no_grad():
                found = names["model"](names["model"].normalise(work.dataset.test.images))
            torch.testing.assert_close(found, saved.logits()["test"], rtol=1e-4, atol=1e-4)


def test_it_says_what_the_documents_say(finished_run):
    saved = Run(finished_run).adapters()[0]
    card, counts = (saved.folder / "README.md").read_text(), saved.analysis.splits["test"]
    base = json.loads((saved.folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    head = card.split("---\n")[1]
    assert f"base_model: {base}\nlibrary_name: peft\n" in head
    assert f"| all errors | {counts.before.errors} | {counts.after.errors} |" in card
    assert saved.evaluation.base_fingerprint in card
    assert "README.md" in saved.hashes
