"""What a run says of itself that no other file of it can prove: `verify` takes it as it stands.

All other fields of all documents follow from weights, logits, labels, or from each other, and `verify` derives them
again. The table in SECURITY.md is this list.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from lora_mnist.runs.artifact import ANALYSIS, MERGE, PROVENANCE, RECORD, TUNING


@dataclass(frozen=True)
class Told:
    """Fields of one kind of document: its file, a pattern for their dotted paths, and why they cannot be derived."""

    file: str
    fields: str
    why: str


_TRAINING = "how a training went is not in its weights"
TOLD = (
    Told(PROVENANCE, "*", "time and machine leave no trace"),
    Told(RECORD, "settings.seed", _TRAINING),
    Told(RECORD, "settings.pretrain.*", f"{_TRAINING}; only that epochs and batch size fit the rows of history.csv"),
    Told(RECORD, "settings.finetune.*", "they are only what later commands start from"),
    Told(RECORD, "replaced_fingerprint", "the base before is gone"),
    Told(TUNING, "seed", _TRAINING),
    Told(TUNING, "weakest_on_val", "true only of the weakest digit; but a weakest digit may have been asked for too"),
    *(
        Told(TUNING, f"settings.{field}", _TRAINING)
        for field in (
            *("batch_size", "learning_rate", "full_learning_rate", "optimizer", "schedule", "weight_decay"),
            *(
                "focus",
                "hard_examples",
                "logit_adjustment",
                "label_smoothing",
                "shift",
                "rotate",
                "zoom",
                "share",
                "folds",
            ),
        )
    ),
    Told(TUNING, "price.judged.*", "the adapters that were trained without the drawings that they judged are not kept"),
    Told(
        TUNING,
        "extraction.fingerprint",
        "with another one, all of `extraction` is told: that checkpoint is not in the run",
    ),
    Told(ANALYSIS, "control.*", "the control is not kept"),
    Told(MERGE, "weights.*", "with others, all of merge.json is told: those adapters are not in the run"),
)


def is_told(file: str, path: str) -> bool:
    """Whether the field at dotted `path` of a document called `file` is in the list."""
    return any(one.file == file and fnmatchcase(path, one.fields) for one in TOLD)
