"""Low-rank adaptation (LoRA, arXiv 2106.09685) of the linear layers of any `nn.Module`.

W' = W + strength · scaling · B A, with A (rank, in) and B (out, rank). W itself is never written.
"""

from lora_mnist.errors import AdapterError, DamagedError, DiskError, LoRAError
from lora_mnist.lora.config import LoRAConfig
from lora_mnist.lora.fingerprint import (
    Fingerprint,
    changed_bytes,
    compute_fingerprint,
    differences,
    fingerprint_model,
    first_difference,
)
from lora_mnist.lora.layer import LoRALinear, LoRAUpdate, adapt
from lora_mnist.lora.lowrank import Approximation, combine_cat, combine_svd, extract, factorise, left_out
from lora_mnist.lora.merge import is_merged, merge, merged_copy, unmerge
from lora_mnist.lora.model import (
    LayerParameters,
    ParameterTable,
    adapter_names,
    base_tensors,
    copies_of,
    disabled,
    inject,
    parameter_table,
    remove,
    scale_alpha,
    set_strength,
    strengths,
    switch,
    train_only,
    updates_of,
)
from lora_mnist.lora.peft import load_adapter, load_fingerprint, save_adapter
from lora_mnist.lora.targets import linear_layers

__all__ = [
    "AdapterError",
    "Approximation",
    "DamagedError",
    "DiskError",
    "Fingerprint",
    "LayerParameters",
    "LoRAConfig",
    "LoRAError",
    "LoRALinear",
    "LoRAUpdate",
    "ParameterTable",
    "adapt",
    "adapter_names",
    "base_tensors",
    "changed_bytes",
    "combine_cat",
    "combine_svd",
    "compute_fingerprint",
    "copies_of",
    "differences",
    "disabled",
    "extract",
    "factorise",
    "fingerprint_model",
    "first_difference",
    "inject",
    "is_merged",
    "left_out",
    "linear_layers",
    "load_adapter",
    "load_fingerprint",
    "merge",
    "merged_copy",
    "parameter_table",
    "remove",
    "save_adapter",
    "scale_alpha",
    "set_strength",
    "strengths",
    "switch",
    "train_only",
    "unmerge",
    "updates_of",
]
