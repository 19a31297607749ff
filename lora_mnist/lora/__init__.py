"""Low-rank adaptation (LoRA, arXiv 2106.09685) of the linear layers of any `nn.Module`.

W' = W + strength · scaling · B A, with A (rank, in) and B (out, rank). W itself is never written.
"""

from lora_mnist.errors import AdapterError, DamagedError, DiskError, LoRAError
from lora_mnist.lora.adapters import adapter_names, base_tensors, copies_of, train_only, updates_of
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.injection import inject, remove
from lora_mnist.lora.layers import LoRALinear
from lora_mnist.lora.lowrank import Approximation, combine_cat, combine_svd, extract, factorise, left_out
from lora_mnist.lora.merging import is_merged, merge, merged_copy, unmerge
from lora_mnist.lora.peft import load_adapter, load_seal, save_adapter
from lora_mnist.lora.seal import Seal, changed_bytes, differences, first_difference, seal, seal_model
from lora_mnist.lora.switching import disabled, set_strength, strengths, switch
from lora_mnist.lora.table import LayerParameters, ParameterTable, parameter_table
from lora_mnist.lora.targets import linear_layers
from lora_mnist.lora.update import LoRAUpdate

__all__ = [
    "AdapterError",
    "Approximation",
    "DamagedError",
    "DiskError",
    "LayerParameters",
    "LoRAConfig",
    "LoRAError",
    "LoRALinear",
    "LoRAUpdate",
    "ParameterTable",
    "Seal",
    "adapter_names",
    "base_tensors",
    "changed_bytes",
    "combine_cat",
    "combine_svd",
    "copies_of",
    "differences",
    "disabled",
    "extract",
    "factorise",
    "first_difference",
    "inject",
    "is_merged",
    "left_out",
    "linear_layers",
    "load_adapter",
    "load_seal",
    "merge",
    "merged_copy",
    "parameter_table",
    "remove",
    "save_adapter",
    "seal",
    "seal_model",
    "set_strength",
    "strengths",
    "switch",
    "train_only",
    "unmerge",
    "updates_of",
]
