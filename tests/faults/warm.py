"""Everything that a command imports, so that a process forked from here starts at once.

What touches no file of a run and takes long is done once: the digits are drawn here, and plots stay white.
"""

import functools
import io
import os

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads of torch's cannot be forked

import sklearn.datasets  # noqa: E402, F401 - imported to be there, as all below
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from lora_mnist.cli.main import main  # noqa: E402, F401
from lora_mnist.datasets import dataset, mnist  # noqa: E402, F401
from lora_mnist.pipeline import doctor  # noqa: E402, F401
from lora_mnist.report import page, plots  # noqa: E402, F401
from lora_mnist.runs import lock, overview  # noqa: E402, F401

torch.set_num_threads(1)
dataset.draw_digits = functools.cache(dataset.draw_digits)
dataset.draw_digits()


def _white(kind: str) -> bytes:
    file = io.BytesIO()
    WHITE.savefig(file, format=kind)
    return file.getvalue()


WHITE = Figure((1, 1))
WHITE.subplots()
FILES = {kind: _white(kind) for kind in ("png", "svg")}
WHITE.savefig = lambda file, format, **options: file.write(FILES[format])
for name, function in list(vars(plots).items()):
    if getattr(function, "__annotations__", {}).get("return") is Figure:
        setattr(plots, name, lambda *arguments, **named: WHITE)
