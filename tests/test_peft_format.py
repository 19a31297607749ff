"""Our adapter folders in the real PEFT, and every way a folder can be wrong."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.errors import RunError
from lora_mnist.integrity import seal
from lora_mnist.lora import LoRAConfig, inject
from lora_mnist.model import MLP
from lora_mnist.peft_format import load_config, load_seal, load_weights, save_adapter

CONFIG = LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0)


@pytest.fixture
def saved(tmp_path):
    """A base, the same with an adapter whose B is not 0, and the adapter's folder."""
    torch.manual_seed(0)
    base = MLP((12, 11))
    return _save(tmp_path, base, CONFIG)


def _save(folder, base, config):
    model = copy.deepcopy(base).eval()
    updates = inject(model, "a", config, torch.Generator().manual_seed(0))
    for update in updates.values():
        nn.init.normal_(update.lora_B.data)
    save_adapter(folder, config, updates, seal(base.state_dict()))
    return base, model, folder


@pytest.mark.filterwarnings("ignore")  # PEFT's own
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_gives_the_same_logits(tmp_path, rslora):
    from lora_mnist.fetch import import_torchvision

    import_torchvision()  # PEFT imports transformers, which imports torchvision
    from peft import PeftModel

    torch.manual_seed(0)
    config = LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0, rslora=rslora)
    base, model, folder = _save(tmp_path, MLP((12, 11)), config)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    images = torch.randn(6, 28, 28)
    with torch.no_grad():
        ours, expected = model(images), theirs(images)
    assert float((ours - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert not torch.allclose(ours, base(images))


def test_an_adapter_comes_back_as_it_was(saved):
    base, model, folder = saved
    assert load_config(folder) == CONFIG
    assert load_seal(folder) == seal(base.state_dict())
    again = copy.deepcopy(base).eval()
    load_weights(folder, inject(again, "a", load_config(folder)))
    images = torch.randn(6, 28, 28)
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("option", "value"),
    [("use_dora", True), ("bias", "all"), ("fan_in_fan_out", True), ("rank_pattern", {"linear1": 2}), ("new", 1)],
)
def test_an_option_that_is_not_implemented_is_refused_by_name(saved, option, value):
    path = saved[2] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(RunError, match=option):
        load_config(saved[2])


@pytest.mark.parametrize("option", ["r", "lora_alpha", "target_modules"])
def test_what_peft_would_guess_silently_must_be_there(saved, option):
    path = saved[2] / "adapter_config.json"
    document = json.loads(path.read_text())
    del document[option]
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match=option):
        load_config(saved[2])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"r": "x", "lora_alpha": 1, "target_modules": ["linear1"]}'])
def test_a_config_that_is_none_is_refused(saved, content):
    (saved[2] / "adapter_config.json").write_text(content)
    with pytest.raises(RunError, match=r"adapter_config\.json"):
        load_config(saved[2])


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
        tensors[key] = tensors[key].double()
    elif wrong == "nan":
        tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    if wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif wrong == "empty":
        path.write_bytes(b"")
    before = copy.deepcopy(base)
    updates = inject(before, "a", CONFIG)
    with pytest.raises(RunError, match=r"adapter_model\.safetensors"):
        load_weights(folder, updates)
