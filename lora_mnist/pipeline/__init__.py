"""The stages, a file each. Each takes an opened run, does one thing, writes the run, and returns one typed document.

    from lora_mnist.pipeline import Request, finetune, open_workspace, pretrain

    work, base = pretrain(Request(run=Path("runs/mine")))
    repaired = finetune(work)

Here are the stages of the main job. The others load what it does not need, so they are imported from their own files,
`compare`, `convert` (merge and extract), `doctor`, `export`, `import_base`, `predict` and `teach`:

    from lora_mnist.pipeline.predict import pictures_in, predict
"""

from lora_mnist.pipeline.evaluate import evaluate
from lora_mnist.pipeline.finetune import FinetuneResult, finetune, finetune_full
from lora_mnist.pipeline.pretrain import PretrainResult, pretrain
from lora_mnist.pipeline.run_all import RunResult, run
from lora_mnist.pipeline.verify import VerifyResult, verify
from lora_mnist.pipeline.workspace import Workspace, open_workspace
from lora_mnist.settings.request import Applied, Request

__all__ = ["Applied", "FinetuneResult", "PretrainResult", "Request", "RunResult", "VerifyResult", "Workspace"]
__all__ += ["evaluate", "finetune", "finetune_full", "open_workspace", "pretrain", "run", "verify"]
