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
from lora_mnist.lora.lowrank import Approximation, changes_left_out, combine_cat, combine_svd, extract, factorise
from lora_mnist.lora.merge import is_merged, merge, merged_copy, unmerge
from lora_mnist.lora.model import (
    LayerParameters,
    ParameterTable,
    adapter_names,
    base_tensors,
    disabled,
    inject,
    linear_layers,
    parameter_table,
    remove,
    scale_alpha,
    set_strength,
    strengths,
    switch,
    train_only,
    updates_of,
    whole_modules_of,
)
from lora_mnist.lora.peft import load_adapter, load_fingerprint, save_adapter

__all__ = ["LoRAConfig", "LoRALinear", "LoRAUpdate", "adapt", "inject", "remove"]
__all__ += ["adapter_names", "base_tensors", "linear_layers", "updates_of", "whole_modules_of"]
__all__ += ["LayerParameters", "ParameterTable", "parameter_table"]
__all__ += ["disabled", "scale_alpha", "set_strength", "strengths", "switch", "train_only"]
__all__ += ["is_merged", "merge", "merged_copy", "unmerge"]
__all__ += ["Approximation", "changes_left_out", "combine_cat", "combine_svd", "extract", "factorise"]
__all__ += ["load_adapter", "load_fingerprint", "save_adapter"]
__all__ += ["Fingerprint", "changed_bytes", "compute_fingerprint", "differences", "fingerprint_model"]
__all__ += ["first_difference"]
__all__ += ["AdapterError", "DamagedError", "DiskError", "LoRAError"]
