"""What makes a run again: its settings as config files, and the commands that take them."""

from collections.abc import Mapping
from typing import Any

import tomli_w

AGAIN = "--run ../../again"  # from the folder of the report, a new run beside this one


def configs(summary: Mapping[str, Any]) -> dict[str, bytes]:
    """A TOML file for the base, for every network trained whole and for every trained adapter, by its file name.

    Args:
        summary: of a run, from `summarise_run`.
    """
    tables = {"base": summary["made"]["settings"]}
    for network in summary["networks"]:
        tables[f"{network['name']}.full"] = _settings(network)  # an adapter may have the same name
    for section in summary["adapters"]:
        if section["method"] == "lora":
            tables[section["name"]] = _settings(section)
    return {f"{name}.toml": tomli_w.dumps(_without_none(table)).encode() for name, table in tables.items()}


def commands(summary: Mapping[str, Any]) -> list[str]:
    """What makes all of it again, to be run in order in the folder that holds the config files."""
    lines = [f"lora-mnist pretrain {AGAIN} --config base.toml{_where(summary['made'])}"]
    for one in summary["networks"]:
        lines.append(f"lora-mnist finetune --full {AGAIN} --config {one['name']}.full.toml{_where(one['made'])}")
    networks = {one["name"] for one in summary["networks"]}
    for one in reversed(summary["adapters"]):  # those below before those on top of them
        name, where = one["name"], _where(one["made"])
        if one["method"] == "lora":
            below = "".join(f" --on-top-of {other}" for other in one["on_top_of"])
            twin = " --twin" if one["twin"] else ""
            lines.append(f"lora-mnist finetune {AGAIN} --config {name}.toml{below}{twin}{where}")
        elif (made := one["made"]["settings"])["checkpoint"] in networks:
            options = f"--rank {made['rank']} --checkpoint {made['checkpoint']} --digit {one['digit']}"
            lines.append(f"lora-mnist extract {AGAIN} {options} --name {name}{where}")
        else:
            lines.append(f"# {name} was extracted from {made['checkpoint']}, which was not trained in this run")
    return lines


def _settings(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": one["made"]["seed"], "finetune": one["made"]["settings"]}


def _where(made: Mapping[str, Any]) -> str:
    return f" --device {made['device']} --threads {made['threads']}"


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null; a setting that is not there is the same."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
