"""What makes a run again: its settings as config files, and the commands that take them."""

from collections.abc import Collection

import tomli_w

from lora_mnist.report.document import AdapterSection, Report
from lora_mnist.report.provenance import BaseMade, Made
from lora_mnist.runs.artifact import DRAWINGS
from lora_mnist.runs.schemas import ExtractionSettings
from lora_mnist.settings.config import TeachSettings
from lora_mnist.settings.strict import Document

AGAIN = "--run ../../again"  # from the folder of the report, a new run beside this one


def configs(report: Report) -> dict[str, bytes]:
    """A TOML file for the base, for every checkpoint and for every trained adapter, by its file name."""
    files = {"base.toml": tomli_w.dumps(_table(report.provenance.settings)).encode()}
    for checkpoint in report.checkpoints:
        files[f"{checkpoint.name}.full.toml"] = _config(checkpoint.provenance)  # an adapter may have the same name
    for section in report.adapters:
        if section.method in ("lora", "taught"):
            files[f"{section.name}.toml"] = _config(section.provenance)
    return files


def commands(report: Report) -> list[str]:
    """What makes all of it again, to be run in order in the folder that holds the config files."""
    lines = [f"lora-mnist pretrain {AGAIN} --config base.toml{_where(report.provenance)}"]
    for one in report.checkpoints:
        lines.append(f"lora-mnist finetune --full {AGAIN} --config {one.name}.full.toml{_where(one.provenance)}")
    checkpoints = [one.name for one in report.checkpoints]
    below_first = reversed(report.adapters)  # those below before those on top of them
    return lines + [_command(section, checkpoints) for section in below_first]


def _command(section: AdapterSection, checkpoints: Collection[str]) -> str:
    name, where, settings = section.name, _where(section.provenance), section.provenance.settings
    if isinstance(settings, TeachSettings):
        again = f"lora-mnist teach ../adapters/{name}/{DRAWINGS} {AGAIN} --config {name}.toml{where}"
        return f"# {again} # prepares the drawings once more, so this comes close and no closer"
    if not isinstance(settings, ExtractionSettings):
        below = "".join(f" --on-top-of {other}" for other in section.on_top_of)
        control = " --control" if section.control else ""
        return f"lora-mnist finetune {AGAIN} --config {name}.toml{below}{control}{where}"
    if settings.checkpoint not in checkpoints:
        return f"# {name} was extracted from {settings.checkpoint}, which was not trained in this run"
    options = f"--rank {settings.rank} --checkpoint {settings.checkpoint} --digit {section.digit}"
    return f"lora-mnist extract {AGAIN} {options} --name {name}{where}"


def _config(provenance: Made) -> bytes:
    section = "teach" if isinstance(provenance.settings, TeachSettings) else "finetune"
    return tomli_w.dumps({"seed": provenance.seed, section: _table(provenance.settings)}).encode()


def _table(settings: Document) -> dict[str, object]:
    """TOML has no null; a setting that is not there is the same."""
    return settings.model_dump(mode="json", exclude_none=True)


def _where(provenance: BaseMade | Made) -> str:
    return f" --device {provenance.device} --threads {provenance.threads}"
