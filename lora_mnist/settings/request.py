"""What a command was asked to do, and whether that agrees with what the run holds already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_mnist.errors import UsageError, shown
from lora_mnist.settings.config import Settings, load_config, resolve
from lora_mnist.settings.layers import ConfigTables, overlay

NAMELESS = {"name": None}  # a name belongs to one adapter, and is not inherited


@dataclass(frozen=True)
class Applied:
    """An adapter and how strongly it is applied; `reference` is its name in the run, or the path of a folder."""

    reference: str
    strength: float = 1.0


@dataclass(frozen=True)
class Request:
    """The options that all stages share.

    Attributes:
        run: the run directory.
        data: where data sets lie; None: where those of the run lay, or `data/`.
        offline: nothing may be downloaded.
        config: a config's name or path.
        options: settings given on the command line, nested like a config file.
        force: replace what is finished.
        quiet: no progress is shown.
        stage: what is put before the progress of a training, such as "2/4 ".
    """

    run: Path = Path("runs/default")
    data: Path | None = None
    offline: bool = False
    config: str | None = None
    options: ConfigTables = field(default_factory=dict)
    device: str = "auto"
    threads: int | None = None
    force: bool = False
    quiet: bool = True
    stage: str = ""

    def settings(self, stored: Settings | None, dataset: str) -> Settings:
        """Defaults, then the run's `stored` settings, then a config, then the command line, all for `dataset`.

        Raises UsageError for an unknown setting, or a value out of its range.
        """
        return resolve([*self.config_layers(stored, dataset), {"data": {"dataset": dataset}}], dataset)

    def wanted_dataset(self, stored: Settings | None) -> str:
        """`auto`, `mnist` or `mnist-5k`. Every other setting is checked on the way, before anything is downloaded.

        Raises UsageError as `settings` does.
        """
        return resolve(self.config_layers(stored, "mnist"), "mnist").data.dataset

    def refuse_contradictions(self, stored: ConfigTables, sections: Sequence[str], dataset: str, what: Path) -> None:
        """Raises UsageError if a setting asked for within `sections` is not the one that `what` was made with."""
        asked, known = overlay(self._asked(), dataset), _flat(stored)
        for key, wanted in _flat({name: asked[name] for name in sections if name in asked}).items():
            if wanted not in (known.get(key), "auto", "weakest"):  # these two agree with whatever was found
                cause = f"`{key}` (={shown(wanted)}) contradicts {what}, which was made with {shown(known.get(key))}."
                raise UsageError(cause, "Leave it out, choose another --run, or make it again with --force.")

    def config_layers(self, stored: Settings | None, dataset: str) -> list[ConfigTables]:
        """What `settings` lays over each other, the lowest first; from the third on, what is asked for here."""
        tables = stored.model_dump(mode="json") if stored else {}
        inherited = overlay([tables, {"finetune": NAMELESS, "teach": NAMELESS}], dataset)
        return [load_config("default"), inherited, *self._asked()]

    def _asked(self) -> list[ConfigTables]:
        return [*([] if self.config is None else [load_config(self.config)]), self.options]


def _flat(tables: ConfigTables, prefix: str = "") -> dict[str, Any]:
    """Values by their dotted key, tuples as the lists that JSON makes of them."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
