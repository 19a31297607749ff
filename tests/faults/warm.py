"""Everything that a command imports, so that a process forked from here starts at once.

What touches no file of a run and takes long is done once: the digits are drawn here, the commands and the page's
templates compiled. Plots are written as a white picture. Nothing is synced, which no process can see.
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
import safetensors.numpy  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes
import torch.utils._device
import typer
from matplotlib.figure import Figure

import lora_mnist
from lora_mnist.cli.app import app
from lora_mnist.datasets import dataset
from lora_mnist.report import page, plots

for module in pkgutil.walk_packages(lora_mnist.__path__, "lora_mnist."):
    importlib.import_module(module.name)
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(app)
torch.set_num_threads(1)
dataset.draw_digits = functools.cache(dataset.draw_digits)
dataset.draw_digits()
for template in page.environment().list_templates(extensions=["j2"]):
    page.environment().get_template(template)
os.fsync = lambda handle: None


WHITE = Figure((1, 1))
WHITE.subplots()
for name, kind in (("png", "png"), ("svg", "svg"), ("svg_with_text", "svg")):
    file = io.BytesIO()
    WHITE.savefig(file, format=kind)
    setattr(plots.Plot, name, file.getvalue())
gc.collect()
gc.freeze()  # what is here is shared, and stays so
gc.disable()
