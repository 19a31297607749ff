"""Everything that a command imports, so that a process forked from here starts at once.

What touches no file of a run and takes long is done once: the digits are drawn here, the commands and the page's
templates compiled. Plots are written as a white picture, and those that take longest are not even drawn. Nothing is
synced, which no process can see.
"""

import encodings.utf_8_sig  # noqa: F401 - imported to be there, as all below
import functools
import gc
import importlib
import io
import os
import pkgutil

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads of torch's cannot be forked

import filelock  # noqa: F401
import matplotlib
import safetensors.numpy  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes
import torch.utils._device
import typer
from matplotlib.figure import Figure

import lora_mnist
from lora_mnist.cli.main import app
from lora_mnist.datasets import dataset
from lora_mnist.report import page, plots

for module in pkgutil.walk_packages(lora_mnist.__path__, "lora_mnist."):
    importlib.import_module(module.name)
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(app)
torch.set_num_threads(1)
dataset.read_mnist_5k = functools.cache(dataset.read_mnist_5k)
dataset.read_mnist_5k()
for template in page.environment().list_templates(extensions=["j2"]):
    page.environment().get_template(template)
os.fsync = lambda handle: None

white = {kind: io.BytesIO() for kind in ("png", "svg")}
for kind, file in white.items():
    Figure((1, 1)).savefig(file, format=kind)
Figure.savefig = lambda self, file, format, **options: file.write(white[format].getvalue())
plots.confusion = lambda *numbers, **options: Figure((1, 1))
matplotlib.rcdefaults()  # imports what it needs when it is called
gc.collect()
gc.freeze()  # what is here is shared, and stays so
gc.disable()
