"""A run → every number that its report shows, as one document. Reads what the stages stored, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_mnist import SCHEMA
from lora_mnist.datasets.doubtful import DOUBTFUL
from lora_mnist.errors import RunError
from lora_mnist.evaluation.significance import mcnemar, wilson
from lora_mnist.evaluation.verdict import is_repair, verdict
from lora_mnist.files import MANIFEST, read_json, standing
from lora_mnist.runs.listing import list_adapters
from lora_mnist.runs.rundir import WEIGHTS, Run

COUNTS = ("missed", "claimed", "errors")
FLOWS = 8  # pairs of digits that are put into words
MADE = ("seconds", "device", "threads", "versions")


def summarise_run(run: Run) -> dict[str, Any]:
    """The document of report.json.

    Returns:
        `dataset`, `base`, `adapters` (a section each, the newest first), `networks` (trained whole), `side_by_side` (a
        line for each: adapters from the oldest on, then networks) and `made` (settings, versions, hash, times of the
        base). Counts are of `test` unless a key says otherwise, shares are 0 to 1, and intervals (`low`, `high`) are
        Wilson's, 95 %.

    Raises:
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    run.require_base()
    base, record = run.evaluation(), run.record()
    lines = list_adapters(run.path)["adapters"]
    for place in (*map(run.adapter, run.adapter_names()), *run.trained_whole()):
        if run.evaluation(place)["base_seal"] != base["base_seal"]:
            raise RunError(f"{place.name!r} was trained on another base.", f"Remove {place}, or train it again.")
    test = base["splits"]["test"]
    return {
        "schema_version": SCHEMA,
        "dataset": record["dataset"],
        "base": {
            "seal": base["base_seal"],
            "accuracy": _share(test["count"] - sum(test["wrong"]), test["count"]),
            "errors": _share(sum(test["wrong"]), test["count"]),
            "digits": [
                {"digit": d, **_share(wrong, sum(test["confusion"][d]))} for d, wrong in enumerate(test["wrong"])
            ],
            "confusion": test["confusion"],
        },
        "adapters": [_section(run, name) for name in reversed(run.adapter_names())],
        "networks": [_network(run, place) for place in run.trained_whole()],
        "side_by_side": [{**line, "change": line["after"]["errors"] - line["before"]["errors"]} for line in lines],
        "made": {
            "settings": {key: value for key, value in record["settings"].items() if key != "finetune"},
            "sha256": _hash(run.base / WEIGHTS),
            **{key: record[key] for key in MADE},
        },
    }


def _section(run: Run, name: str) -> dict[str, Any]:
    place = run.adapter(name)
    document, analysis = run.document(place, "finetune.json"), run.document(place, "analysis.json")
    below, digit = document["on_top_of"], document["digit"]
    if missing := [one for one in below if one not in run.adapter_names()]:
        raise RunError(
            f"{name} was trained on top of {', '.join(missing)}, which is not in the run.",
            f"Restore that, or remove {place}.",
        )
    before = run.evaluation(run.adapter(below[-1]) if below else None)["splits"]["test"]
    after = run.evaluation(place)["splits"]["test"]
    counts, threshold, dial = analysis["splits"]["test"], analysis["threshold"], analysis["dial"]
    others = list(_yardsticks(run, analysis, digit, below))
    mnist = run.record()["dataset"]["name"] == "mnist"
    return {
        "name": name,
        "digit": digit,
        "weakest_on_val": document["weakest_on_val"],
        "on_top_of": below,
        "method": document["method"],
        "rank": document["settings"]["rank"],
        "verdict": verdict(counts, digit, threshold["splits"]["test"]),
        "is_repair": is_repair(counts, threshold["splits"]["test"]),
        "headline": _headline(counts, before, digit),
        "accuracy": {
            when: _share(part["count"] - sum(part["wrong"]), part["count"])
            for when, part in (("before", before), ("after", after))
        },
        "parameters": document["parameters"],
        "proof": document["proof"],
        "threshold": {"shift": threshold["shift"], "chosen_on": threshold["chosen_on"], **threshold["splits"]["test"]},
        "yardsticks": others,
        "twin": analysis.get("twin"),
        "digits": _digits(before, after, counts),
        "confusion": {"before": before["confusion"], "after": after["confusion"]},
        "flows": _flows(before["confusion"], after["confusion"]),
        "trade": {"threshold": threshold["curve"], "strength": dial["splits"]["test"]},
        "dial": _dial(dial, run.evaluation(place)["splits"], digit),
        "layers": [{"layer": path, **effect} for path, effect in analysis["layers"].items()],
        "examples": [{**one, "agreed": DOUBTFUL.get(one["index"]) if mnist else None} for one in analysis["examples"]],
        "guard": document.get("guard"),
        "made": {
            "settings": document["settings"],
            "seed": document["seed"],
            "sha256": _hash(place / "adapter_model.safetensors"),
            **{key: document[key] for key in MADE},
        },
    }


def _share(count: int, of: int) -> dict[str, Any]:
    low, high = wilson(count, of)
    return {"count": count, "of": of, "share": count / of, "low": low, "high": high}


def _headline(counts: Mapping[str, Any], before: Mapping[str, Any], digit: int) -> dict[str, Any]:
    """Missed, claimed and errors before and after, each as a share with its interval; how many images of them were
    fixed and how many broken; and McNemar's p of that."""
    of_digit = sum(before["confusion"][digit])
    images = {"missed": of_digit, "claimed": before["count"] - of_digit, "errors": before["count"]}
    return {
        key: {
            "before": _share(counts["before"][key], images[key]),
            "after": _share(counts["after"][key], images[key]),
            "change": counts["after"][key] - counts["before"][key],
            **counts["pairs"][key],
            "p": mcnemar(**counts["pairs"][key]),
        }
        for key in COUNTS
    }


def _yardsticks(run: Run, analysis: Mapping[str, Any], digit: int, below: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The twin, and every network trained whole on the same digit."""
    if twin := analysis.get("twin"):
        counts = {key: twin["splits"]["test"][key] for key in COUNTS}
        yield {"method": "twin", "name": "twin", "kept": twin["strength"] is not None, **counts}
    for place in run.trained_whole() if not below else []:
        if run.document(place, "finetune.json")["digit"] == digit:
            counts = run.document(place, "analysis.json")["splits"]["test"]["after"]
            yield {"method": "full", "name": place.name, "kept": True, **counts}


def _digits(before: Mapping[str, Any], after: Mapping[str, Any], counts: Mapping[str, Any]) -> list[dict[str, int]]:
    """Wrong images of every digit before and after, and how many were fixed and broken."""
    return [
        {
            "digit": d,
            "images": sum(before["confusion"][d]),
            "before": before["wrong"][d],
            "fixed": counts["fixed"][d],
            "broken": counts["broken"][d],
            "after": after["wrong"][d],
            "net": after["wrong"][d] - before["wrong"][d],
        }
        for d in range(10)
    ]


def _flows(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """The pairs of digits between which most more or fewer images are confused, those that changed most first."""
    flows = [
        {"true": row, "predicted": column, "change": after[row][column] - before[row][column]}
        for row in range(10)
        for column in range(10)
        if row != column and before[row][column] != after[row][column]
    ]
    return sorted(flows, key=lambda flow: -abs(flow["change"]))[:FLOWS]


def _dial(dial: Mapping[str, Any], splits: Mapping[str, Any], digit: int) -> dict[str, Any]:
    """Accuracy and recalls at every strength, and what the recommended strength does on `test`."""
    split = dial["measured_on"]
    count, of_digit = splits[split]["count"], sum(splits[split]["confusion"][digit])
    points = [
        {
            **point,
            "accuracy": 1 - point["errors"] / count,
            "recall": 1 - point["missed"] / max(1, of_digit),  # a tiny val may have none of them
            "recall_of_others": 1 - (point["errors"] - point["missed"]) / max(1, count - of_digit),
        }
        for point in dial["splits"][split]
    ]
    at = next(point for point in dial["splits"]["test"] if point["strength"] == dial["recommended"])
    return {"measured_on": split, "recommended": dial["recommended"], "points": points, "test": at}


def _network(run: Run, place: Path) -> dict[str, Any]:
    document = run.document(place, "finetune.json")
    settings = dict(document["settings"])
    settings["full_learning_rate"] = settings.pop("learning_rate")  # as a config has it
    made = {"settings": settings, "seed": document["seed"], "sha256": _hash(place / WEIGHTS)}
    return {"name": place.name, "digit": document["digit"], "made": made | {key: document[key] for key in MADE}}


def _hash(file: Path) -> str:
    return read_json(standing(file.parent) / MANIFEST)["files"][file.name]
