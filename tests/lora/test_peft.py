"""Our adapter folders in the real PEFT, PEFT's in ours, and every way a folder can be wrong."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lora_mnist.lora
from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.errors import AdapterError, DamagedError, DiskError, LoRAError
from lora_mnist.lora import (
    LoRAConfig,
    adapter_names,
    base_tensors,
    combine_cat,
    linear_layers,
    set_strength,
    updates_of,
)
from lora_mnist.lora.fingerprint import compute_fingerprint, fingerprint_model
from lora_mnist.lora.peft import load_adapter, load_config, load_fingerprint, remove, save_adapter
from lora_mnist.training.model import MLP

from ..conftest import relative
from ..models import Transformer, add

CONFIG = LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0)
IMAGES = torch.randn(6, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def peft():
    import_torchvision()  # PEFT imports transformers, which imports torchvision
    import peft

    return peft


@pytest.fixture
def saved(tmp_path):
    """A base, the same with an adapter whose B is not 0, and the adapter's folder."""
    torch.manual_seed(0)
    base = MLP((12, 11))
    return base, *_save(tmp_path, base, CONFIG)


def _save(folder, base, config):
    model = copy.deepcopy(base).eval()
    add(model, "a", config, std=1)
    save_adapter(folder, model, "a")
    return model, folder


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0),
        LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0, rslora=True),
        LoRAConfig(rank=3, alpha=5.0, rank_pattern={"linear2": 7}, alpha_pattern={"linear3": 2.0}),
        LoRAConfig(rank=3, alpha=5.0, rank_pattern={"linear2": 1, "linear1": 2}, rslora=True),
    ],
)
def test_peft_gives_the_same_logits(peft, tmp_path, config):
    torch.manual_seed(0)
    base = MLP((12, 11))
    model, folder = _save(tmp_path, base, config)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    assert relative(model(IMAGES), theirs(IMAGES)) < 1e-5
    assert relative(model(IMAGES), base(IMAGES)) > 1e-2


@pytest.mark.filterwarnings("error::UserWarning")  # PEFT warns of missing keys
@pytest.mark.parametrize("targets", [("q_proj", "layers.1.v_proj"), ("q",)])
def test_peft_adapts_exactly_our_layers(peft, tmp_path, targets):
    torch.manual_seed(0)
    base = Transformer()
    base.add_module("q", nn.Linear(24, 24))  # its name is also how others end
    base.add_module("inner", nn.ModuleDict({"q": nn.Linear(24, 24)}))
    config = LoRAConfig(targets, rank=3, alpha=5.0, rank_pattern={targets[0]: 2})
    model, folder = _save(tmp_path, base, config)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    found = {name.split(".lora_A")[0] for name, _ in theirs.named_parameters() if "lora_A" in name}
    assert found == {f"base_model.model.{path}" for path in updates_of(model, "a")}
    x = torch.randn(2, 5, 24)
    assert relative(model(x), theirs(x)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["linear1", "linear3"]},
        {"target_modules": ["linear1", "linear3"], "use_rslora": True},
        {"target_modules": r"linear[13]", "lora_dropout": 0.1},
        {"target_modules": "all-linear", "task_type": "FEATURE_EXTRACTION"},
        {"target_modules": ["linear1", "linear2"], "rank_pattern": {"linear1": 2}, "alpha_pattern": {"linear[2]": 7}},
        {"target_modules": ["linear2"], "rank_pattern": {"^linear2": 4}, "use_rslora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_peft_saved_gives_pefts_logits(peft, tmp_path, options, dtype):
    torch.manual_seed(0)
    base = MLP((12, 11))
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=5, **options)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter.data)
            parameter.data = parameter.data.to(dtype).float()
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(weights).items()}, weights)
    model = copy.deepcopy(base).eval()
    assert load_fingerprint(tmp_path) is None
    load_adapter(tmp_path, model, "theirs", allow_unverified=True)
    assert relative(model(IMAGES), theirs.base_model(IMAGES)) < 1e-5
    assert relative(model(IMAGES), base(IMAGES)) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_what_peft_saved_of_a_transformer(peft, tmp_path):
    torch.manual_seed(0)
    base, x = Transformer().eval(), torch.randn(2, 5, 24)
    options = {"rank_pattern": {"layers.0.q_proj": 2, "q_proj": 5}, "alpha_pattern": {r"layers\.1\..*": 9}}
    config = peft.LoraConfig(r=3, lora_alpha=4, target_modules=["q_proj", "v_proj"], **options)
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter.data)
    theirs.save_pretrained(tmp_path)
    load_adapter(tmp_path, base, "theirs", allow_unverified=True)
    assert relative(base(x), theirs(x)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("use_dora", {"use_dora": True}),
        ("bias", {"bias": "lora_only"}),
        ("lora_bias", {"lora_bias": True}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("init_lora_weights", {"init_lora_weights": "olora"}),
    ],
)
def test_what_peft_saved_with_an_option_of_its_own_is_refused_by_name(peft, tmp_path, name, options):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["linear1", "linear2"], **options)
    peft.get_peft_model(MLP((12, 11)), config).save_pretrained(tmp_path)
    model = MLP((12, 11))
    with pytest.raises(AdapterError, match=rf"option '{name}'"):
        load_adapter(tmp_path, model, "theirs", allow_unverified=True)
    assert adapter_names(model) == []


def test_an_adapter_without_a_seal_is_refused_unless_that_is_allowed(saved):
    base, model, folder = saved
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path)
    fresh = copy.deepcopy(base).eval()
    with pytest.raises(AdapterError, match="allow_unverified=True"):
        load_adapter(folder, fresh, "a")
    load_adapter(folder, fresh, "a", allow_unverified=True)
    assert torch.equal(fresh(IMAGES), model(IMAGES))


@pytest.mark.parametrize("allowed", [False, True])
def test_the_wrong_base_is_refused_and_the_first_tensor_named(saved, allowed):
    base, _, folder = saved
    with torch.no_grad():
        base.linear2.bias[0] += 1
        base.linear3.weight[0] += 1
    with pytest.raises(AdapterError, match=r"another base: tensor linear2\.bias differs"):
        load_adapter(folder, base, "a", allow_unverified=allowed)
    assert adapter_names(base) == []


def test_an_adapter_comes_back_as_it_was(saved):
    base, model, folder = saved
    assert load_config(folder, linear_layers(base)) == CONFIG
    assert load_fingerprint(folder) == fingerprint_model(base)
    again = copy.deepcopy(base).eval()
    state = torch.get_rng_state()
    load_adapter(folder, again, "other-name")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_how_it_was_trained_comes_back_too(tmp_path):
    config = replace(CONFIG, init="gaussian", dropout=0.25, rslora=True)
    _save(tmp_path, MLP((12, 11)), config)
    assert load_config(tmp_path, linear_layers(MLP((12, 11)))) == config


def test_a_strength_is_not_part_of_what_is_saved(saved, tmp_path):
    base, model, _ = saved
    expected = model(IMAGES)
    set_strength(model, "a", 0.1)
    save_adapter(tmp_path / "again", model, "a", compute_fingerprint(base.state_dict()))
    load_adapter(tmp_path / "again", base.eval(), "a")
    assert torch.equal(base(IMAGES), expected)


def test_a_combination_is_saved_and_loaded_like_any_other(tmp_path):
    torch.manual_seed(0)
    base = MLP((12, 11)).eval()
    model = copy.deepcopy(base)
    add(model, "a", CONFIG)
    add(model, "b", LoRAConfig(("linear1", "linear2"), rank=2, alpha=3.0), 5)
    combine_cat(model, "c", {"a": 0.5, "b": 2.0})
    save_adapter(tmp_path, model, "c")
    assert {path: len(u.lora_A) for path, u in load_adapter(tmp_path, base, "c").items()} == {
        "linear1": 5,
        "linear2": 2,
        "linear3": 3,
    }
    assert torch.equal(base(IMAGES), model(IMAGES))


def test_a_second_adapter_loads_beside_the_first(saved, tmp_path):
    _, model, folder = saved
    load_adapter(folder, model, "b")
    assert adapter_names(model) == ["a", "b"]
    with pytest.raises(LoRAError, match="already"):
        load_adapter(folder, model, "b")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("peft_type", "LOHA"),
        ("new", 1),
        ("use_rslora", "false"),
    ],
)
def test_an_option_that_is_not_implemented_is_refused_by_name(saved, option, value):
    path = saved[2] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(AdapterError, match=option):
        load_config(saved[2], linear_layers(saved[0]))


@pytest.mark.parametrize("option", ["r", "lora_alpha", "target_modules"])
def test_what_peft_would_guess_silently_must_be_there(saved, option):
    path = saved[2] / "adapter_config.json"
    document = json.loads(path.read_text())
    del document[option]
    path.write_text(json.dumps(document))
    with pytest.raises(AdapterError, match=option):
        load_config(saved[2], linear_layers(saved[0]))


@pytest.mark.parametrize(
    ("option", "value"),
    [("modules_to_save", 3), ("exclude_modules", [1]), ("layers_to_transform", "all"), ("layers_pattern", {"a": 1})],
)
def test_an_option_of_another_kind_is_refused_by_name(saved, option, value):
    base, _, folder = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(AdapterError, match=option):
        load_adapter(folder, base, "a")
    assert adapter_names(base) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"r": "x", "lora_alpha": 1, "target_modules": ["linear1"]}'])
def test_a_config_that_is_none_is_refused(saved, content):
    (saved[2] / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load_config(saved[2], linear_layers(saved[0]))


@pytest.mark.parametrize(("content", "kind"), [(None, AdapterError), ("{", DamagedError), ("[]", AdapterError)])
def test_what_is_wrong_with_a_config_is_an_error_of_the_library(saved, content, kind):
    base, _, folder = saved
    path = folder / "adapter_config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(LoRAError, match=r"adapter_config\.json") as caught:
        load_adapter(folder, base, "a")
    assert type(caught.value) is kind
    assert "estore" in caught.value.way_out


def test_a_disk_that_refuses_is_told_without_the_command_line(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="another folder") as caught:
        save_adapter(tmp_path / "file" / "a", saved[1], "a")
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["dropped", "extra", "base weight", "shape", "dtype", "nan", "truncated", "empty"])
def test_tensors_are_strict(saved, wrong):
    base, _, folder = saved
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.linear1.lora_A.weight"
    if wrong == "dropped":
        del tensors[key]
    elif wrong == "extra":
        tensors[key.replace("linear1", "linear2")] = tensors[key].clone()
    elif wrong == "base weight":
        tensors["linear1.weight"] = base.linear1.weight.detach()
    elif wrong == "shape":
        tensors[key] = tensors[key].T.contiguous()
    elif wrong == "dtype":
        tensors[key] = tensors[key].int()
    elif wrong == "nan":
        tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    if wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif wrong == "empty":
        path.write_bytes(b"")
    before, flags = compute_fingerprint(base_tensors(base)), [p.requires_grad for p in base.parameters()]
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        load_adapter(folder, base, "a", allow_unverified=True)
    assert adapter_names(base) == []  # and the model is as it was
    assert compute_fingerprint(base_tensors(base)) == before
    assert [p.requires_grad for p in base.parameters()] == flags


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000])
def test_a_seal_that_is_none_does_not_pass_for_no_seal(saved, text):
    base, _, folder = saved
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, {"base_fingerprint": text})
    with pytest.raises(AdapterError, match="fingerprint is damaged"):
        load_adapter(folder, base, "a", allow_unverified=True)


@pytest.mark.parametrize("change", [{"r": 10**14}, {"r": 2**63}, {"lora_alpha": 10**400}, {"target_modules": ["no"]}])
def test_a_config_out_of_all_bounds_is_refused(saved, change):
    base, _, folder = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load_adapter(folder, base, "a")
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_a_dtype_that_torch_does_not_know_is_refused(saved):
    base, _, folder = saved
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4" ', 1))
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        load_adapter(folder, base, "a", allow_unverified=True)
    assert adapter_names(base) == []


def test_a_layer_that_occurs_twice_is_not_taken_from_peft(tmp_path):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    add(model, "a", LoRAConfig(rank=1))
    save_adapter(tmp_path, model, "a")
    path = tmp_path / "adapter_model.safetensors"
    remove(model, "a")
    load_adapter(tmp_path, model, "a")  # ours, which says so by its fingerprint
    remove(model, "a")
    save_file(load_file(path), path)
    with pytest.raises(AdapterError, match="occurs twice"):
        load_adapter(tmp_path, model, "a", allow_unverified=True)


@pytest.mark.filterwarnings("ignore")
def test_peft_adapts_our_layers_beside_a_container_of_that_name(peft, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential()
    base.add_module("proj", nn.Linear(4, 4))
    base.add_module("enc", nn.Sequential())
    base.enc.add_module("proj", nn.Sequential(nn.ReLU()))
    model = copy.deepcopy(base)
    add(model, "a", LoRAConfig(("proj",), rank=2, alpha=3.0))
    save_adapter(tmp_path, model, "a")
    x = torch.randn(3, 4)
    assert relative(peft.PeftModel.from_pretrained(base, tmp_path)(x), model(x)) < 1e-5


def test_an_adapter_that_is_not_finite_is_not_saved(saved, tmp_path):
    _, model, _ = saved
    with torch.no_grad():
        updates_of(model, "a")["linear1"].lora_B[0] = torch.nan
    with pytest.raises(LoRAError, match="NaN"):
        save_adapter(tmp_path / "new", model, "a")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_an_adapter_is_served_on_its_base_in_another_dtype(saved, dtype):
    base, model, folder = saved
    served = copy.deepcopy(base).eval().to(dtype)
    load_adapter(folder, served, "a")
    torch.testing.assert_close(served(IMAGES.to(dtype)).float(), model(IMAGES), rtol=0.05, atol=0.3)
    with torch.no_grad():
        base.linear2.weight[0, 0] += 1
    with pytest.raises(AdapterError, match=r"linear2\.weight differs"):
        load_adapter(folder, base.to(dtype), "a")


def test_any_base_is_taken_if_that_is_asked_for_with_a_warning(saved):
    base, _, folder = saved
    nn.init.zeros_(base.linear2.bias)
    with pytest.warns(UserWarning, match="trained on this base is not checked"):
        load_adapter(folder, base, "a", base="any")
    assert adapter_names(base) == ["a"]


def test_moved_running_statistics_are_a_warning_and_other_weights_an_error(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = copy.deepcopy(base)
    add(model, "a", LoRAConfig(rank=2))
    model.train()(torch.randn(5, 4))
    save_adapter(tmp_path, model, "a")
    with pytest.warns(UserWarning, match=r"these weights, but other buffers: 1\.num_batches_tracked differs"):
        load_adapter(tmp_path, base, "a")
    nn.init.zeros_(base[1].weight)
    with pytest.raises(AdapterError, match=r"1\.weight differs"):
        load_adapter(tmp_path, base, "b")


def test_an_adapter_in_fp64_is_stored_and_comes_back_in_fp64(tmp_path):
    torch.manual_seed(0)
    base = MLP((12, 11)).eval()
    model, folder = _save(tmp_path, base, LoRAConfig(("linear1",), rank=3, alpha=5.0, dtype=torch.float64))
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float64}
    assert load_adapter(folder, base, "a")["linear1"].lora_A.dtype == torch.float64
    assert torch.equal(base(IMAGES), model(IMAGES))


def test_errors_name_no_option_of_a_command_line():
    for file in Path(lora_mnist.lora.__file__).parent.glob("*.py"):
        assert not re.search(r'["` ]--[a-z]', file.read_text()), file
