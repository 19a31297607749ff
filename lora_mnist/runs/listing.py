"""What a run's model and adapters come to: read from its JSON alone, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_mnist.files import standing
from lora_mnist.runs.rundir import Run
from lora_mnist.runs.sizes import mlp_layers, parse_ranks, parse_shape, size_table


def list_adapters(folder: Path) -> dict[str, Any]:
    """Every adapter of the run in `folder`, oldest first, then every full fine-tuning, with what it did on `test`.

    Raises:
        RunError: there is no base, or a file is missing or damaged.
    """
    run = Run(folder)
    run.require_base()
    rows = []
    for name in run.adapter_names():
        run.require_adapter(name)
        rows.append(_row(run, run.adapter(name), "adapter_model.safetensors"))
    for place in run.trained_whole():
        run.require_checkpoint(place.name)
        rows.append(_row(run, place, "model.safetensors"))
    base = run.evaluation()
    return {"run": str(folder), "dataset": base["dataset"]["name"], "base_seal": base["base_seal"], "adapters": rows}


def count_parameters(folder: Path, ranks: str, shapes: Sequence[str] | None = None) -> dict[str, Any]:
    """`size_table` of the network of the run in `folder`, or of layers without biases that have the given `shapes`.

    Raises:
        RunError: there is no base, and no shape was given.
        UsageError: the ranks are not `1,2,4`, or a shape is not `4096x4096`.
    """
    counts = parse_ranks(ranks)
    if shapes:
        return size_table({f"{i}": parse_shape(shape) for i, shape in enumerate(shapes)}, False, counts)
    run = Run(folder)
    run.require_base()
    return size_table(mlp_layers(run.record()["settings"]["model"]["hidden"]), True, counts)


def _row(run: Run, place: Path, weights: str) -> dict[str, Any]:
    document = run.document(place, "finetune.json")
    test = run.document(place, "analysis.json")["splits"]["test"]
    parameters, proof = document["parameters"], document["proof"]
    return {
        "name": place.name,
        "method": document["method"],
        "digit": document["digit"],
        "rank": document["settings"].get("rank"),
        "parameters": parameters.get("added", parameters.get("trained")),
        "on_top_of": document.get("on_top_of", []),
        "before": test["before"],
        "after": test["after"],
        "proof": None if proof is None else proof["passed"],
        "bytes": (standing(place) / weights).stat().st_size,
    }
