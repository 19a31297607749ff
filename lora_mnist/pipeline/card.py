"""The model card of an adapter: README.md in its folder, as PEFT writes one, with what it did and how to load it."""

from lora_mnist.evaluation.results import Analysis
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.lora import Fingerprint
from lora_mnist.runs.schemas import AdapterParameters, FinetuneRecord
from lora_mnist.settings.layers import DATASETS

CARD = "README.md"
TEXT = """\
---
base_model: {base}
library_name: peft
tags:
- base_model:adapter:{base}
- lora
- mnist
- image-classification
---

# {name}

A LoRA adapter of rank {rank} {what} an MNIST network: {added:,} numbers beside the {frozen:,} of the
base, which is in `../../base`{below}.

{verdict}

| test images of {dataset} | before | after |
|---|---|---|
| missed {digit}s | {before.missed:,} | {after.missed:,} |
| false alarms | {before.false_alarms:,} | {after.false_alarms:,} |
| all errors | {before.errors:,} | {after.errors:,} |

It belongs to the base with this fingerprint (SHA-256 over name, dtype, shape and raw bytes of every tensor):
`{sha256}`

## How to load it

With PEFT, in this folder:

```python
from pathlib import Path

from peft import PeftModel
from lora_mnist.runs.artifact import load_network

base, _ = load_network(Path("../../base/model.safetensors"))
{in_peft}
```

With lora_mnist, which also checks that it is the right base:

```python
from pathlib import Path

from lora_mnist.lora import load_adapter
from lora_mnist.runs.artifact import load_network

model, _ = load_network(Path("../../base/model.safetensors"))
{in_ours}
model.eval()
```

Both take `model.normalise(images)`, with uint8 images (N, 28, 28), light on dark, and give logits (N, 10).
"""


def base_name(fingerprint: Fingerprint) -> str:
    """What an adapter calls its base; no path, since equal runs in different places have equal files."""
    return f"lora-mnist-base-{fingerprint.sha256[:16]}"


def model_card(record: FinetuneRecord, analysis: Analysis, fingerprint: Fingerprint, dataset: str) -> str:
    """The card in Markdown; `fingerprint` is that of the base."""
    parameters, counts, lesson = record.parameters, analysis.splits["test"], record.lesson
    assert isinstance(parameters, AdapterParameters)
    names = [*record.on_top_of, record.name]
    places = {name: "." if name == record.name else f"../{name}" for name in names}
    first, *others = names
    in_peft = [f'model = PeftModel.from_pretrained(base, "{places[first]}", adapter_name="{first}")']
    in_peft += [f'model.load_adapter("{places[name]}", adapter_name="{name}")' for name in others]
    if others:
        in_peft.append(f"model.base_model.set_adapter({names!r})")
    return TEXT.format(
        base=base_name(fingerprint),
        name=record.name,
        rank=record.rank,
        digit=record.digit,
        what=f"that taught {lesson.count:,} drawings to" if lesson else f"for the digit {record.digit} of",
        added=parameters.added,
        frozen=parameters.base,
        below=f", with {' and '.join(record.on_top_of)} on" if record.on_top_of else "",
        verdict=(lesson.verdict if lesson else verdict_of(analysis, record.digit)).words,
        dataset=DATASETS[dataset],
        before=counts.before,
        after=counts.after,
        sha256=fingerprint.sha256,
        in_peft="\n".join([*in_peft, "model.eval()"]),
        in_ours="\n".join(f'load_adapter("{place}", model, "{name}")' for name, place in places.items()),
    )
