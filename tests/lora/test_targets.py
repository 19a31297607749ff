"""What is adapted where nobody says, and what is said of what is left out."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, adapter_names, inject
from lora_mnist.training.model import MLP


class Conv1D(nn.Module):
    """A linear layer the other way round, as GPT-2's are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))


class Experts(nn.Module):
    """Several matrices as one parameter."""

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(2, 4, 6))


class Quantised(nn.Linear):
    def forward(self, x):
        return x


class Model(nn.Module):
    """Looks like one of transformers: what it ends in is asked for, or goes by a name."""

    def __init__(self, head, ends_in=None, **parts):
        super().__init__()
        self.body = nn.Linear(4, 4)
        for name, part in {**parts, head: nn.Linear(4, 2)}.items():
            self.add_module(name, part)
        self.ends_in = ends_in

    def get_output_embeddings(self):
        return self.ends_in and getattr(self, self.ends_in)


def quietly(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(inject(model, "a", LoRAConfig(**{"rank": 1, **options})))


def test_without_targets_all_layers_of_a_plain_model_are_adapted():
    assert quietly(MLP((5, 4))) == ["linear1", "linear2", "linear3"]


def test_without_targets_the_output_layer_of_a_language_model_is_left_out():
    assert quietly(Model("lm_head", "lm_head")) == ["body"]
    assert quietly(Model("lm_head", "lm_head"), targets=("all-linear", "lm_head")) == ["body", "lm_head"]
    assert quietly(Model("lm_head", "lm_head"), targets=(".*",)) == ["body", "lm_head"]


@pytest.mark.parametrize("head", ["classifier", "score"])
def test_a_classifier_is_left_out_and_that_is_said_unless_it_is_trained_whole(head):
    with pytest.warns(UserWarning, match=rf"output layer {head} stays as it is\..*also_train=\('{head}',\)"):
        assert list(inject(Model(head), "a", LoRAConfig(rank=1))) == ["body"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(inject(Model(head), "a", LoRAConfig(rank=1), also_train=(head,))) == ["body"]


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (Conv1D(), r"part\.weight \(Conv1D\)"),
        (Experts(), r"part\.up_proj \(Experts\)"),
        (nn.MultiheadAttention(4, 2), r"part\.in_proj_weight \(MultiheadAttention\)"),
        (nn.ModuleList([Conv1D(), Conv1D(), Experts()]), r"part\.0\.weight and 1 more \(Conv1D\), part\.2\.up_proj"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_matrices_that_cannot_be_adapted_are_named(part, named):
    with pytest.warns(UserWarning, match=f"left out: {named}"):
        inject(Model("lm_head", "lm_head", part=copy.deepcopy(part)), "a", LoRAConfig(rank=1))
    with pytest.warns(UserWarning, match=f"left out: {named}"):
        inject(Model("lm_head", "lm_head", part=copy.deepcopy(part)), "a", LoRAConfig((".*",), rank=1))
    quietly(Model("lm_head", "lm_head", part=copy.deepcopy(part)), targets=("body",))  # nobody meant them


def test_nobody_takes_embeddings_and_convolutions_for_linear_layers():
    quietly(Model("lm_head", "lm_head", part=nn.Embedding(4, 4), other=nn.Conv2d(2, 2, 2)))


def test_a_target_that_finds_only_what_cannot_be_adapted_is_refused_by_its_name():
    with pytest.raises(LoRAError, match=r"Target 'c_attn' finds no nn.Linear, but c_attn\.weight \(Conv1D\)"):
        inject(Model("lm_head", "lm_head", c_attn=Conv1D()), "a", LoRAConfig(("c_attn",), rank=1))


def test_a_target_that_finds_such_ones_as_well_names_them():
    with pytest.warns(UserWarning, match=r"left out: c_attn\.weight \(Conv1D\)\."):
        inject(Model("lm_head", "lm_head", c_attn=Conv1D()), "a", LoRAConfig(("body|c_attn",), rank=1))


def test_where_nothing_is_left_to_adapt_that_is_an_error():
    model = Model("lm_head", "lm_head", c_attn=Conv1D())
    del model.body
    with pytest.raises(LoRAError, match=r"no linear layer but the output's; left out are c_attn\.weight \(Conv1D\)"):
        inject(model, "a", LoRAConfig(rank=1))
    assert adapter_names(model) == []
    del model.c_attn
    with pytest.raises(LoRAError, match=r"no linear layer but the output's\. "):
        inject(model, "a", LoRAConfig(rank=1))


def test_a_weight_that_a_target_shares_is_named():
    model = Model("lm_head", "lm_head", embed=nn.Embedding(2, 4))
    model.embed.weight = model.lm_head.weight
    quietly(model)
    with pytest.warns(UserWarning, match="lm_head shares its weight with embed, which stays as it is"):
        inject(model, "b", LoRAConfig(("lm_head",), rank=1))


def test_targets_may_come_in_any_sequence():
    assert LoRAConfig(["body"]) == LoRAConfig(("body",))
    assert quietly(Model("lm_head", "lm_head"), targets=["body"]) == ["body"]
