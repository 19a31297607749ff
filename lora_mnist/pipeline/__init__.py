"""The stages, a file each, in the order in which they run. Each takes an opened run, does one thing, writes the run,
and returns one typed document.

    from lora_mnist.pipeline import Request, finetune, open_workspace, pretrain

    work, base = pretrain(Request(run=Path("runs/mine")))
    repaired = finetune(work)
"""

from lora_mnist.datasets.drawings import Drawings, read_drawings
from lora_mnist.pipeline.compare import SideBySide, compare
from lora_mnist.pipeline.convert import Merging, extract, merge
from lora_mnist.pipeline.doctor import Check, Diagnosis, doctor
from lora_mnist.pipeline.evaluate import evaluate
from lora_mnist.pipeline.export import Export, export
from lora_mnist.pipeline.finetune import FinetuneResult, finetune, finetune_full
from lora_mnist.pipeline.predict import (
    Picture,
    Prediction,
    Predictions,
    pictures_in,
    pictures_of,
    predict,
    require_one_picture,
    write_picture,
)
from lora_mnist.pipeline.pretrain import PretrainResult, pretrain
from lora_mnist.pipeline.run import RunResult, repair, run
from lora_mnist.pipeline.teach import TaughtAdapter, TeachResult, teach, teach_and_keep
from lora_mnist.pipeline.verify import VerifyResult, verify, verify_workspace
from lora_mnist.pipeline.workspace import Workspace, open_workspace
from lora_mnist.settings.request import Applied, Request

__all__ = [
    "Applied",
    "Check",
    "Diagnosis",
    "Drawings",
    "Export",
    "FinetuneResult",
    "Merging",
    "Picture",
    "Prediction",
    "Predictions",
    "PretrainResult",
    "Request",
    "RunResult",
    "SideBySide",
    "TaughtAdapter",
    "TeachResult",
    "VerifyResult",
    "Workspace",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "finetune_full",
    "merge",
    "open_workspace",
    "pictures_in",
    "pictures_of",
    "predict",
    "pretrain",
    "read_drawings",
    "repair",
    "require_one_picture",
    "run",
    "teach",
    "teach_and_keep",
    "verify",
    "verify_workspace",
    "write_picture",
]
