"""Models that other tools have wrapped, hooked, quantised, sharded, stored or left without numbers."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.errors import LoRAError
from lora_mnist.lora import (
    LoRAConfig,
    base_tensors,
    combine_cat,
    compute_fingerprint,
    extract,
    fingerprint_model,
    inject,
    load_adapter,
    merge,
    merged_copy,
    remove,
    save_adapter,
    updates_of,
)

from ..conftest import printed_by
from ..models import add

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
CONFIG = LoRAConfig(("body.0", "body.2"), rank=2, alpha=3.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 9), nn.ReLU(inplace=True), nn.Linear(9, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def processes():
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


HANDLES = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "both": lambda model: compiled(nn.parallel.DistributedDataParallel(model)),
    "checkpoints": checkpoint_wrapper,
}


@pytest.mark.filterwarnings("ignore:.*non-leaf Tensor")  # of DDP, compiled
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("handle", HANDLES)
def test_what_stands_around_a_model_or_a_part_of_it_is_no_part_of_the_names(tmp_path, processes, handle, part):
    def wrapped(model):
        if not part:
            return HANDLES[handle](model)
        model.body = HANDLES[handle](model.body)
        return model

    model = Net()
    add(model, "a", CONFIG, std=1)
    expected = model(X)
    handled = wrapped(model)
    assert base_tensors(handled).keys() == Net().state_dict().keys()
    save_adapter(tmp_path, handled, "a")
    for other in (Net(), wrapped(Net())):
        assert list(load_adapter(tmp_path, other, "b")) == ["body.0", "body.2"]
        torch.testing.assert_close(other(X), expected)


def test_accelerates_hooks_come_and_go_before_and_after_an_adapter():
    import_torchvision()
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    base = Net()
    plain, before, after = copy.deepcopy(base), copy.deepcopy(base), copy.deepcopy(base)
    add_hook_to_module(before.body[0], AlignDevicesHook("cpu"))
    for model in (plain, before, after):
        add(model, "a", CONFIG, std=1)
    add_hook_to_module(after.body[0], AlignDevicesHook("cpu"))
    for model in (before, after):
        assert torch.equal(model(X), plain(X))
    with pytest.raises(LoRAError, match=r"body\.0 got another `forward`"):
        remove(after, "a")
    for model in (before, after):
        remove_hook_from_module(model.body[0])
        assert torch.equal(model(X), plain(X))
        remove(model, "a")
        assert torch.equal(model(X), base(X))


class Quantised(nn.Linear):
    """The weight is stored in a dtype without gradients; the product is taken with what it stands for."""

    def __init__(self, dtype):
        super().__init__(8, 8)
        self.weight = nn.Parameter((100 * self.weight).to(dtype), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) / 100, self.bias)


def subclass(dtype):
    """A plain layer whose weight is a tensor of a class of its own, as torchao makes them."""
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(TwoTensor(torch.randn(8, 8), torch.randn(8, 8)), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "dtype"),
    [*[(Quantised, dtype) for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn)], (subclass, torch.float32)],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_a_quantised_layer_trains_and_is_saved_and_cannot_be_merged(tmp_path, make, dtype):
    base = nn.Sequential(make(dtype))
    model, linear = copy.deepcopy(base), copy.deepcopy(base)
    update = add(model, "a", LoRAConfig(rank=2, alpha=3.0), std=1)["0"]
    assert {type(p) for p in update.parameters()} == {nn.Parameter}
    assert update.lora_A.dtype == torch.float32
    model(X).sum().backward()
    assert update.lora_A.grad.any()
    expected = linear(X) + 3 / 2 * X @ update.lora_A.T @ update.lora_B.T
    torch.testing.assert_close(model(X), expected, check_stride=False)
    for action in (merge, merged_copy, lambda model: extract(model, "b", base, 1)):
        with pytest.raises(LoRAError, match=r"0\b.* cannot be"):
            action(model)
    save_adapter(tmp_path, model, "a")
    load_adapter(tmp_path, base, "a")
    torch.testing.assert_close(base(X), model(X))
    changed = base[0].weight.a if make is subclass else base[0].weight
    changed[0, 0] = 0
    assert compute_fingerprint(base_tensors(base)) != compute_fingerprint(base_tensors(model))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
def test_an_adapted_model_is_copied_and_pickled(kind, copied):
    model = nn.Sequential(kind(8, 8))
    add(model, "a", LoRAConfig(rank=2), std=1)
    other = copied(model)
    assert torch.equal(other(X), model(X))
    remove(other, "a")
    assert type(other[0]) is kind


def test_functions_of_its_parameters_go_by_the_names_of_its_state_dict():
    model = Net()
    inject(model, "a", CONFIG, also_train="head")
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    for parameters in (model.state_dict(), dict(model.named_parameters())):
        assert torch.equal(torch.func.functional_call(model, parameters, (X,)), model(X))
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    loss = torch.func.grad(lambda parameters, x: torch.func.functional_call(model, parameters, (x,)).sum())
    each = torch.func.vmap(loss, in_dims=(None, 0))(trained, X)
    model(X[1]).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(each[name][1], parameter.grad)
    model.load_state_dict({name: tensor.clone() for name, tensor in Net().state_dict().items()}, assign=True)
    assert torch.equal(model(X), Net()(X))  # B is 0, and the copy of the head is the head


def test_a_model_without_numbers_is_refused_and_a_default_device_does_not_leak_in(tmp_path):
    model = Net()
    with torch.device("meta"):
        add(model, "a", CONFIG)
        save_adapter(tmp_path, model, "a")
        combine_cat(model, "b", {"a": 1.0})
        load_adapter(tmp_path, model, "c")
        merge(model.eval())
        empty = Net()
    assert {tensor.device.type for tensor in model.state_dict().values()} == {model.head.weight.device.type} == {"cpu"}
    for action in (
        lambda: inject(empty, "a", CONFIG),
        lambda: fingerprint_model(empty),
        lambda: load_adapter(tmp_path, empty, "a"),
        lambda: save_adapter(tmp_path, model.to("meta"), "a", fingerprint_model(Net())),
        lambda: merged_copy(model.to("meta")),
    ):
        with pytest.raises(LoRAError, match="meta device"):
            action()
    full = empty.to_empty(device="cpu")
    full.load_state_dict(Net().state_dict())
    load_adapter(tmp_path, full, "a")


def test_a_model_sharded_by_fsdp2_trains_and_is_saved_whole_and_what_cannot_be_is_refused(tmp_path, processes):
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.init_device_mesh("cpu", (1,))
    model = Net()
    add(model, "a", CONFIG, std=1)
    whole = copy.deepcopy(model)
    for part in (model.body[0], model.body, model):
        fully_shard(part, mesh=mesh)
    for one in (model, whole):
        one(X).sum().backward()
        for update in updates_of(one, "a").values():
            with torch.no_grad():
                update.lora_B -= 0.1 * update.lora_B.grad
    save_adapter(tmp_path, model, "a")
    loaded = Net()
    load_adapter(tmp_path, loaded, "a")
    torch.testing.assert_close(loaded(X), whole(X))
    assert fingerprint_model(model) == fingerprint_model(Net())
    for action in (
        merge,
        merged_copy,
        lambda model: inject(model, "b", CONFIG),
        lambda model: extract(model, "b", Net(), 1),
    ):
        with pytest.raises(LoRAError, match=r"sharded over processes \(FSDPModule\)"):
            action(model)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much memory was used at most")
def test_a_merged_copy_takes_less_than_another_copy_beside_it():
    ratio = printed_by("""
import re, torch
from pathlib import Path
from lora_mnist.lora import LoRAConfig, inject, merged_copy
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(100)))
inject(model, "a", LoRAConfig(rank=4))
before = peak()
merged_copy(model)
print((peak() - before) / sum(p.numel() * 4 for p in model.parameters()))
""")
    assert float(ratio) < 1.6
