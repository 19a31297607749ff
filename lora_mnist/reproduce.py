"""What makes a run again: its settings as config files, and the commands that take them."""

from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w

AGAIN = "--run ../../again"  # from the folder of the report, a new run beside this one


def configs(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """A TOML file for the base, for every network trained whole and for every trained adapter, by its file name.

    Args:
        summary: of a run, from `summarise_run`.
    """
    tables = {"base": summary["made"]["settings"]}
    for one in _trained(summary):
        tables[one["name"]] = {"seed": one["made"]["seed"], "finetune": one["made"]["settings"]}
    return {f"{name}.toml": tomli_w.dumps(_without_none(table)).encode() for name, table in tables.items()}


def commands(summary: Mapping[str, Any]) -> list[str]:
    """A line for each of them, to be run in order in the folder that holds the config files."""
    lines = [f"lora-mnist pretrain {AGAIN} --config base.toml{_where(summary['made'])}"]
    for one in _trained(summary):
        below = "".join(f" --on-top-of {name}" for name in one.get("on_top_of", []))
        twin = " --twin" if one.get("twin") else ""
        full = "" if "method" in one else " --full"
        lines.append(f"lora-mnist finetune{full} {AGAIN} --config {one['name']}.toml{below}{twin}{_where(one['made'])}")
    for one in reversed(summary["adapters"]):
        if one["method"] == "svd":
            made = one["made"]["settings"]
            options = f"--rank {made['rank']} --checkpoint {made['checkpoint']} --digit {one['digit']}"
            lines.append(f"lora-mnist extract {AGAIN} {options} --name {one['name']}{_where(one['made'])}")
    return lines


def _trained(summary: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Networks trained whole, then trained adapters from the oldest on: those below before those on top of them."""
    yield from summary["networks"]
    yield from (one for one in reversed(summary["adapters"]) if one["method"] == "lora")


def _where(made: Mapping[str, Any]) -> str:
    return f" --device {made['device']} --threads {made['threads']}"


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null; a setting that is not there is the same."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
