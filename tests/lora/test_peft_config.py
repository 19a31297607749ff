"""Which modules a config of PEFT's means, against PEFT's own functions."""

import re

import pytest

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora.peft_config import exactly, first, is_saved_whole, is_target, targets_for

LAYERS = [
    *(f"model.layers.{i}.self_attn.{name}" for i in (0, 1, 10) for name in ("q_proj", "v_proj")),
    *(f"model.layers.1.experts.{i}.down" for i in (0, 2)),
    *("h.0.q_proj", "q_proj", "classifier.dense", "classifier", "lm_head", "model.layersq.1.q_proj"),
]
CONFIGS = [
    {"target_modules": ["q_proj", "down"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["0.self_attn.q_proj", "lm_head"]},
    {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.1.*"},
    {"target_modules": ["q_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj", "down"], "layers_to_transform": [0, 1]},
    {"target_modules": ["q_proj", "down"], "layers_to_transform": []},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["blocks", "h"]},
    {"target_modules": ["q_proj", "dense", "classifier"], "modules_to_save": ["classifier"]},
    {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["1", "head"]},
]


@pytest.mark.parametrize("document", CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_a_config_means_the_layers_that_it_means_to_peft(document):
    import_torchvision()  # PEFT imports transformers, which imports torchvision
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    config = LoraConfig(**document)
    found = {layer: check_target_module_exists(config, layer) for layer in LAYERS}
    theirs = {layer for layer, hit in found.items() if hit and not isinstance(hit, _ExcludedModule)}
    assert {layer for layer in LAYERS if is_target(document, layer)} == theirs
    assert theirs  # or the comparison would say nothing


def test_ends_of_names_need_no_dot_where_modules_are_trained_whole():
    document = {"modules_to_save": ["head"]}
    assert [layer for layer in LAYERS if is_saved_whole(document, layer)] == ["lm_head"]
    assert not is_saved_whole({"modules_to_save": None}, "lm_head")


def test_a_pattern_of_ranks_is_the_first_that_fits_the_end_of_a_name():
    assert first({"v_proj": 1, "q_proj": 2, ".*": 3}, "h.0.q_proj") == 2
    assert first({"proj": 1}, "h.0.q_proj") is None
    assert first({exactly("q_proj"): 1}, "h.0.q_proj") is None
    assert first({exactly("h.0.q_proj"): 1}, "h.0.q_proj") == 1


def test_targets_are_names_where_names_do():
    assert targets_for(["lm_head", "q_proj"], ["lm_head"]) == ["lm_head", "q_proj"]
    expression = targets_for(["q_proj"], LAYERS)
    assert [layer for layer in LAYERS if re.fullmatch(expression, layer)] == ["q_proj"]
