"""Everything that a command imports, so that a process forked from here starts at once.

What touches no file of a run and takes long is done once: the digits are drawn here, and the page's templates
compiled. Plots stay white. Nothing is synced, which no process can see.
"""

import functools
import gc
import io
import os

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads of torch's cannot be forked

import sklearn.datasets  # noqa: F401 - imported to be there, as all below
import torch
from matplotlib.figure import Figure

from lora_mnist.cli.main import main  # noqa: F401
from lora_mnist.datasets import dataset, mnist  # noqa: F401
from lora_mnist.pipeline import doctor  # noqa: F401
from lora_mnist.report import page, plots
from lora_mnist.runs import lock, overview  # noqa: F401

torch.set_num_threads(1)
dataset.draw_digits = functools.cache(dataset.draw_digits)
dataset.draw_digits()
page._environment = functools.cache(page._environment)
page._environment().get_template("report.html.j2")
os.fsync = lambda handle: None


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
gc.collect()
gc.freeze()  # what is here is shared, and stays so
gc.disable()
