"""Modules that an adapter trains whole, beside its low-rank updates: PEFT's modules_to_save."""

import copy

import pytest
import torch
from torch import nn

from lora_mnist.errors import AdapterError, LoRAError
from lora_mnist.lora import (
    LoRAConfig,
    adapter_names,
    base_tensors,
    combine_cat,
    compute_fingerprint,
    disabled,
    inject,
    linear_layers,
    load_adapter,
    merge,
    merged_copy,
    parameter_table,
    remove,
    save_adapter,
    switch,
    train_only,
    unmerge,
    updates_of,
    whole_modules_of,
)

from ..models import by_hand, generator

CONFIG = LoRAConfig(("body",), rank=2, alpha=3.0)
X = torch.randn(5, 6, generator=generator())


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.classifier = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        assert self.classifier.out_features == self.classifier.weight.shape[0] == 3  # as models of transformers look
        return self.classifier(self.norm(self.body(x)))


def trained(name="a", also_train=("classifier",)):
    """A model after three steps, and the base it came from."""
    base = Classifier().eval()
    model = copy.deepcopy(base)
    inject(model, name, CONFIG, generator(), also_train=also_train)
    step(model)
    return model, base


def step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).pow(2).sum().backward()
        optimizer.step()


def test_it_trains_and_the_base_keeps_its_own():
    model, base = trained()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *("body.updates.a.lora_A", "body.updates.a.lora_B"),
        *("classifier.updates.a.weight", "classifier.updates.a.bias"),
    }
    assert not torch.equal(whole_modules_of(model, "a")["classifier"].weight, base.classifier.weight)
    assert compute_fingerprint(base_tensors(model)) == compute_fingerprint(base.state_dict())
    with disabled(model):
        assert torch.equal(model(X), base(X))
    assert not torch.allclose(model(X), base(X), rtol=0.1)


def test_it_is_one_of_two_linear_layers_that_is_not_adapted():
    model, _ = trained()
    assert list(linear_layers(model)) == ["body"]
    assert list(updates_of(model, "a")) == ["body"]
    assert list(inject(model, "b", LoRAConfig(rank=1))) == ["body"]


def test_the_result_is_that_of_a_plain_network_trained_so():
    model, base = trained()
    expected = by_hand(base, updates_of(model, "a"), 3 / 2)
    expected.classifier = copy.deepcopy(whole_modules_of(model, "a")["classifier"])
    torch.testing.assert_close(model(X), expected(X))
    plain = merged_copy(model)
    assert type(plain.classifier) is nn.Linear
    assert plain.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(plain(X), expected(X))
    merge(model)
    assert torch.equal(model(X), plain(X))
    with disabled(model):
        assert torch.equal(model(X), base(X))
    unmerge(model)


def test_it_is_on_with_its_adapter_and_goes_with_it():
    model, base = trained()
    on = model(X)
    inject(model, "b", CONFIG)
    train_only(model, "a")
    assert model.classifier.updates["a"].weight.requires_grad
    switch(model, {"b": 1.0})
    assert model.classifier.module() is model.classifier.base
    switch(model, {"a": 1.0})
    assert torch.equal(model(X), on)
    remove(model, "b")
    remove(model, "a")
    assert type(model.classifier) is nn.Linear
    assert torch.equal(model(X), base(X))


def test_two_adapters_cannot_both_have_it_on():
    model, _ = trained()
    with pytest.raises(LoRAError, match="body has adapters"):
        inject(model, "b", LoRAConfig(("classifier",), rank=2), also_train=("body",))
    with pytest.raises(LoRAError, match=r"classifier is trained whole by 'a', which is on\. Switch"):
        inject(model, "b", CONFIG, also_train=("classifier",))
    assert adapter_names(model) == ["a"]
    switch(model, {})
    inject(model, "b", CONFIG, also_train="classifier")
    with pytest.raises(LoRAError, match="by a and b: it can be but one"):
        switch(model, {"a": 1.0, "b": 1.0})
    with pytest.raises(LoRAError, match="trains classifier whole"):
        combine_cat(model, "c", {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize(
    ("also_train", "message"), [(("nowhere",), "matches no module"), (("body",), "no linear layer"), ((".*",), "none")]
)
def test_what_cannot_be_trained_whole_is_refused_and_nothing_changed(also_train, message):
    model = Classifier()
    with pytest.raises(LoRAError, match=message):
        inject(model, "a", CONFIG, also_train=also_train)
    assert type(model.classifier) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "part",
    [
        *[nn.ModuleList([nn.Linear(8, 8)]), nn.ModuleDict({"a": nn.Linear(8, 8)})],
        *[nn.ParameterList([torch.ones(8)]), nn.ParameterDict({"a": torch.ones(8)})],
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_is_no_more_than_a_container_is_refused_and_a_sequence_is_gone_through(part):
    model = Classifier()
    model.part = part
    with pytest.raises(LoRAError, match=rf"part, a {type(part).__name__}, is not called"):
        inject(model, "a", CONFIG, also_train="part")
    assert model.part is part
    model.part = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    inject(model, "a", CONFIG, also_train="part")
    copied = list(whole_modules_of(model, "a")["part"])
    assert [*model.part] == [model.part[i] for i in range(len(model.part))] == copied


def test_its_numbers_count_as_the_adapters():
    table = parameter_table(trained()[0], "a")
    assert table.added == 2 * (6 + 8) + 8 * 3 + 3
    assert table.base == sum(p.numel() for p in Classifier().parameters())


@pytest.mark.parametrize("also_train", [("classifier",), ("classifier", "norm")])
def test_it_is_saved_and_loaded_onto_a_base_with_another_one(tmp_path, also_train):
    """As a classifier that is drawn anew each time."""
    model, base = trained(also_train=also_train)
    save_adapter(tmp_path, model, "a")
    nn.init.normal_(base.classifier.weight)
    load_adapter(tmp_path, base, "second")
    assert torch.equal(base(X), model(X))
    nn.init.normal_(base.norm.bias)
    switch(base, {})
    if also_train == ("classifier",):
        with pytest.raises(AdapterError, match=r"norm\.bias differs"):
            load_adapter(tmp_path, base, "third")


def test_a_name_that_means_more_to_peft_is_refused_when_it_is_saved(tmp_path):
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 4), "overhead": nn.Linear(4, 4)})
    inject(model, "a", CONFIG, also_train=("head",))
    with pytest.raises(LoRAError, match="PEFT would take overhead"):
        save_adapter(tmp_path, model, "a")


def test_a_state_dict_has_the_copy_beside_the_base():
    model, base = trained()
    state = model.state_dict()
    assert set(state) >= {name for name, _ in model.named_parameters()}
    assert torch.equal(state["classifier.base.weight"], base.classifier.weight)
    assert base_tensors(model).keys() == base.state_dict().keys()
    assert torch.equal(state["classifier.updates.a.weight"], whole_modules_of(model, "a")["classifier"].weight)
    other, _ = trained()
    nn.init.zeros_(other.classifier.updates["a"].weight)
    for plain_or_not in (base.state_dict(), state):
        other.load_state_dict(plain_or_not)
    assert torch.equal(other(X), model(X))
