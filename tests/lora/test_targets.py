"""What an adapter's settings may be, which layers its targets find, and which layers it leaves out and names."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.errors import LoRAError
from lora_mnist.lora import LoRAConfig, adapter_names, inject
from lora_mnist.training.model import MLP

from ..models import Transformer, config


@pytest.mark.parametrize(
    "bad",
    [
        *[{"rank": 0}, {"rank": True}, {"rank": 2.0}, {"rank": 10**14}, {"alpha": math.nan}, {"alpha": 0}],
        *[{"alpha": 10**400}, {"dropout": 1.0}, {"init": "zeros"}, {"targets": ()}, {"rank_pattern": None}],
        *[{"rank_pattern": {"linear1": 0}}, {"alpha_pattern": {"linear1": math.inf}}, {"targets": [1]}],
        *[{"rslora": "no"}, {"targets": b"linear1"}, {"rank_pattern": {1: 2}}, {"dtype": torch.int8}],
    ],
    ids=str,
)
def test_a_config_checks_itself(bad):
    with pytest.raises(LoRAError, match=next(iter(bad)).removesuffix("_pattern")):
        config(**bad)


def test_an_error_names_what_was_given_and_what_there_is():
    with pytest.raises(LoRAError, match=r"`rank` \(=0\) must be"):
        LoRAConfig(rank=0)
    with pytest.raises(LoRAError, match=r"no `r`.* rank, alpha"):
        LoRAConfig(r=4)
    with pytest.raises(LoRAError, match=r"Target 'c' matches no \w+( \w+)*\. The \w+( \w+)* are a, b\."):
        LoRAConfig(("a", "b"), rank_pattern={"c": 2}).of_layers(["a", "b"])


def test_targets_in_any_sequence_and_numbers_of_numpy():
    assert LoRAConfig(["body"]) == LoRAConfig(("body",))
    assert LoRAConfig(rank=np.int64(4), alpha=np.float64(2)).scaling == 0.5


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("layers.0.q_proj", ["layers.0.q_proj"]),
        (("0.q_proj",), ["layers.0.q_proj"]),
        (("^layers.0.q_proj$",), ["layers.0.q_proj"]),
        (("q_proj",), ["layers.0.q_proj", "layers.1.q_proj"]),
        (("layers.1.up", "head", "layers.0.up"), ["layers.0.up", "layers.1.up", "head"]),
        ((r"layers\.1\.[qv]_proj",), ["layers.1.q_proj", "layers.1.v_proj"]),
        (("head", r".*\.1\.(up|down)"), ["layers.1.up", "layers.1.down", "head"]),
    ],
    ids=str,
)
def test_targets_by_the_end_of_a_name_or_an_expression(targets, layers):
    assert list(inject(Transformer(), "a", LoRAConfig(targets, rank=2))) == layers


def test_rank_and_alpha_by_pattern():
    patterns = {"rank_pattern": {"layers.0.q_proj": 5, "q_proj": 3}, "alpha_pattern": {"v_proj": 7.0}}
    updates = inject(Transformer(), "a", LoRAConfig(("q_proj", "v_proj"), rank=2, alpha=4.0, **patterns))
    found = {path: (len(update.lora_A), update.scaling) for path, update in updates.items()}
    assert found == {
        "layers.0.q_proj": (5, 4 / 5),  # the first pattern that finds a layer counts
        "layers.0.v_proj": (2, 7 / 2),
        "layers.1.q_proj": (3, 4 / 3),
        "layers.1.v_proj": (2, 7 / 2),
    }


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize(
    ("targets", "ranks"),
    [
        (["up"], {"up": 4}),
        (["q_proj", "proj"], {"proj": 4}),  # the one ends as the other does, without a dot before it
        (["layers.1.up", "head"], {"1.up": 4}),
        (["1.q_proj", "0.v_proj"], {"q_proj|v_proj": 4}),
        (r".*\.(up|down)", {"up": 4, "layers.0.*": 5}),
        (r"(?!layers).*", {"^pro.*": 4}),
        (["q_proj", "v_proj"], {r"layers\.1\..*": 5, "q_proj": 4}),
        ("all-linear", {"[kq]_proj": 4, "1.*": 5}),
    ],
    ids=str,
)
def test_names_expressions_and_patterns_of_rank_find_what_pefts_find(targets, ranks):
    import_torchvision()
    import peft

    base = Transformer()
    base.proj = nn.Linear(4, 4)
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules=targets, r=2, rank_pattern=ranks))
    expected = {path: theirs.base_model.model.get_submodule(path).r["default"] for path in theirs.targeted_module_names}
    updates = inject(base, "a", LoRAConfig(targets, rank=2, rank_pattern=ranks))
    assert {path: len(update.lora_A) for path, update in updates.items()} == expected


@pytest.mark.parametrize("target", ["linear2", "linear", "LINEAR1", "", "linear1.weight", "("])
@pytest.mark.parametrize("where", ["targets", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_finds_no_target_is_refused_and_nothing_is_changed(where, target):
    model = nn.Sequential(OrderedDict(linear1=nn.Linear(5, 4), linear3=nn.Linear(4, 4)))
    patterns = {"targets": ("linear1", target)} if where == "targets" else {where: {target: 2}}
    with pytest.raises(LoRAError, match="Target"):
        inject(model, "a", LoRAConfig(**{"targets": ("linear1", "linear3"), **patterns}))
    assert type(model.linear1) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())


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


def quietly(model, targets="all-linear", also_train=()):
    """The layers that are adapted; a warning is an error in the tests."""
    return list(inject(model, "a", LoRAConfig(targets, rank=1), also_train=also_train))


def test_without_targets_all_layers_are_adapted_but_the_output_layer_of_a_language_model():
    assert quietly(MLP((5, 4))) == ["linear1", "linear2", "linear3"]
    assert quietly(Model("lm_head", "lm_head")) == ["body"]
    assert quietly(nn.DataParallel(Model("lm_head", "lm_head"))) == ["body"]
    assert quietly(Model("lm_head", "lm_head"), ("all-linear", "lm_head")) == ["body", "lm_head"]
    assert quietly(Model("lm_head", "lm_head"), ".*") == ["body", "lm_head"]


@pytest.mark.parametrize("head", ["classifier", "score"])
def test_a_classifier_is_left_out_and_that_is_said_unless_it_is_trained_whole(head):
    with pytest.warns(UserWarning, match=rf"output layer {head} stays as it is\..*also_train=\('{head}',\)"):
        assert list(inject(Model(head), "a", LoRAConfig(rank=1))) == ["body"]
    assert quietly(Model(head), also_train=(head,)) == ["body"]


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
    for targets in ("all-linear", ".*", "body|part.*"):
        with pytest.warns(UserWarning, match=f"left out: {named}"):
            quietly(Model("lm_head", "lm_head", part=copy.deepcopy(part)), targets)
    quietly(Model("lm_head", "lm_head", part=copy.deepcopy(part)), "body")  # nobody meant them


def test_nobody_takes_embeddings_and_convolutions_for_linear_layers():
    quietly(Model("lm_head", "lm_head", part=nn.Embedding(4, 4), other=nn.Conv2d(2, 2, 2)))


def test_a_target_that_finds_only_what_cannot_be_adapted_is_refused_by_its_name():
    with pytest.raises(LoRAError, match=r"Target 'c_attn' finds no nn.Linear, but c_attn\.weight \(Conv1D\)"):
        inject(Model("lm_head", "lm_head", c_attn=Conv1D()), "a", LoRAConfig(("c_attn",), rank=1))


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
