"""Our adapter folders in the real PEFT, PEFT's in ours, what its configs mean, and every way a folder can be wrong."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.errors import AdapterError, DamagedError, DiskError, LoRAError
from lora_mnist.lora import (
    LoRAConfig,
    adapter_names,
    base_tensors,
    combine_cat,
    inject,
    remove,
    set_strength,
    updates_of,
)
from lora_mnist.lora.fingerprint import compute_fingerprint, fingerprint_model
from lora_mnist.lora.peft import ADAPTER_WEIGHTS, CONFIG, load_adapter, load_fingerprint, save_adapter
from lora_mnist.training.model import MLP

from ..conftest import relative
from ..models import Transformer, add

ADAPTER = LoRAConfig(("linear1", "linear3"), rank=3, alpha=5.0)
KEY = "base_model.model.linear1.lora_A.weight"
IMAGES = torch.randn(6, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def peft():
    import_torchvision()  # PEFT imports transformers, which imports torchvision
    import peft

    return peft


@pytest.fixture
def base():
    torch.manual_seed(0)
    return MLP((12, 11)).eval()


@pytest.fixture
def saved(base, tmp_path):
    """A base, the same with an adapter whose B is not 0, and the adapter's folder."""
    return base, *_save(tmp_path / "a", base, ADAPTER)


def _save(folder, base, config):
    model = copy.deepcopy(base)
    add(model, "a", config, std=1)
    save_adapter(folder, model, "a")
    return model, folder


@pytest.mark.filterwarnings("error::UserWarning")  # PEFT warns of missing keys
@pytest.mark.parametrize("targets", [("q_proj", "layers.1.v_proj"), ("q",), ("up_proj",)])
def test_peft_adapts_exactly_our_layers(peft, tmp_path, targets):
    torch.manual_seed(0)
    base = Transformer()
    base.add_module("q", nn.Linear(24, 24))  # its name is also how others end
    base.add_module("inner", nn.ModuleDict({"q": nn.Linear(24, 24), "up_proj": nn.Sequential(nn.ReLU())}))
    base.add_module("up_proj", nn.Linear(24, 24))  # its name is also a container's
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
        {"target_modules": "all-linear", "rank_pattern": {"linear2": 7}, "alpha_pattern": {"linear3": 2}},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_peft_saved_gives_pefts_logits_here_and_there_again(peft, base, tmp_path, options, dtype):
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=5, **options)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter.data)
            parameter.data = parameter.data.to(dtype).float()
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / ADAPTER_WEIGHTS
    save_file({key: tensor.to(dtype) for key, tensor in load_file(weights).items()}, weights)
    model = copy.deepcopy(base)
    assert load_fingerprint(tmp_path) is None
    load_adapter(tmp_path, model, "theirs", allow_unverified=True)
    assert relative(model(IMAGES), theirs.base_model(IMAGES)) < 1e-5
    assert relative(model(IMAGES), base(IMAGES)) > 1e-2
    save_adapter(tmp_path / "ours", model, "theirs")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    assert relative(again.base_model(IMAGES), model(IMAGES)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("use_dora", True), ("bias", "lora_only"), ("lora_bias", True)],
        *[("init_lora_weights", "pissa"), ("init_lora_weights", "olora")],
    ],
)
def test_what_peft_saved_with_an_option_of_its_own_is_refused_by_name(peft, base, tmp_path, name, value):
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["linear1", "linear2"], **{name: value})
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=rf"option '{name}'"):
        load_adapter(tmp_path, base, "theirs", allow_unverified=True)
    assert adapter_names(base) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "forgotten"),
    [
        ({"modules_to_save": ["linear2"]}, {"modules_to_save": None}),
        ({"bias": "lora_only"}, {"bias": "none"}),
        ({"bias": "all"}, {"bias": "none"}),
        ({"use_dora": True}, {"use_dora": False}),
    ],
    ids=str,
)
def test_tensors_that_peft_trained_beside_a_and_b_are_not_thrown_away(peft, base, tmp_path, options, forgotten):
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["linear1"], **options)
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter.data.view(1, -1))
    theirs.save_pretrained(tmp_path)
    change(tmp_path, **{"modules_to_save": None, **forgotten})
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors (has|should not have)"):
        load_adapter(tmp_path, base, "theirs", base="any")


def test_what_pefts_config_says_of_the_base_is_kept(saved):
    _, model, folder = saved
    about = {"base_model_name_or_path": "org/name", "revision": "main", "task_type": "CAUSAL_LM"}
    change(folder, **about)
    load_adapter(folder, model, "b")
    save_adapter(folder / "again", model, "b")
    assert about.items() <= json.loads((folder / "again" / CONFIG).read_text()).items()
    model.name_or_path = "org/other"  # as models of transformers have it
    save_adapter(folder / "new", model, "a")
    assert json.loads((folder / "new" / CONFIG).read_text())["base_model_name_or_path"] == "org/other"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model: inject(model, "b", {"rank": 2}),
        lambda model: combine_cat(model, "b", ["a"]),
        lambda model: combine_cat(model, "b", {"a": "1"}),
        lambda model: load_adapter("nowhere", model, "b", base="all"),
    ],
)
def test_an_argument_of_another_type_is_an_error_in_words(saved, wrong):
    with pytest.raises(LoRAError, match=r"LoRAConfig|weight|'same' or 'any'"):
        wrong(saved[1])
    assert adapter_names(saved[1]) == ["a"]


@pytest.mark.parametrize("targets", ["all-linear", ["all-linear"]], ids=str)
def test_targets_that_somebody_wrote_by_hand_are_those_of_the_weights_file(saved, targets):
    base, model, folder = saved
    change(folder, target_modules=targets)
    load_adapter(folder, base, "a")
    assert torch.equal(base(IMAGES), model(IMAGES))


def test_an_adapter_without_a_fingerprint_is_refused_unless_that_is_allowed(saved):
    base, model, folder = saved
    path = folder / ADAPTER_WEIGHTS
    save_file(load_file(path), path)
    with pytest.raises(AdapterError, match="allow_unverified=True"):
        load_adapter(folder, base, "a")
    load_adapter(folder, base, "a", allow_unverified=True)
    assert torch.equal(base(IMAGES), model(IMAGES))


@pytest.mark.parametrize("allowed", [False, True])
def test_the_wrong_base_is_refused_and_the_first_tensor_named_unless_any_will_do(saved, allowed):
    base, _, folder = saved
    with torch.no_grad():
        base.linear2.bias[0] += 1
        base.linear3.weight[0] += 1
    with pytest.raises(AdapterError, match=r"another base: tensor linear2\.bias differs"):
        load_adapter(folder, base, "a", allow_unverified=allowed)
    assert adapter_names(base) == []
    with pytest.warns(UserWarning, match="trained on this base is not checked"):
        load_adapter(folder, base, "a", base="any")
    assert adapter_names(base) == ["a"]


def test_an_adapter_comes_back_as_it_was(saved):
    base, model, folder = saved
    assert load_fingerprint(folder) == fingerprint_model(base)
    loaded = copy.deepcopy(base)
    state = torch.get_rng_state()
    updates = load_adapter(folder, loaded, "other-name")
    assert {path: update.config for path, update in updates.items()} == ADAPTER.of_layers(["linear1", "linear3"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    config = replace(ADAPTER, init="gaussian", dropout=0.25, rslora=True)
    _save(folder, base, config)
    assert load_adapter(folder, base, "a")["linear3"].config == replace(config, targets=("linear3",))


def test_a_strength_is_not_part_of_what_is_saved(saved, tmp_path):
    base, model, _ = saved
    expected = model(IMAGES)
    set_strength(model, "a", 0.1)
    save_adapter(tmp_path / "weaker", model, "a", compute_fingerprint(base.state_dict()))
    load_adapter(tmp_path / "weaker", base, "a")
    assert torch.equal(base(IMAGES), expected)


def test_a_second_adapter_loads_beside_the_first(saved, tmp_path):
    _, model, folder = saved
    load_adapter(folder, model, "b")
    assert adapter_names(model) == ["a", "b"]
    with pytest.raises(LoRAError, match="already"):
        load_adapter(folder, model, "b")


def change(folder, **options):
    """Rewrite the config; an option that is None is left out."""
    path = folder / CONFIG
    document = {**json.loads(path.read_text()), **options}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


UNKNOWN = [
    *[("use_dora", True), ("bias", "all"), ("fan_in_fan_out", True), ("peft_type", "LOHA"), ("new", 1)],
    *[("use_rslora", "false"), ("modules_to_save", 3), ("rank_pattern", [1]), ("target_modules", [1])],
    *[("r", None), ("lora_alpha", None), ("target_modules", None)],
]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        *[(option, value, f"'{option}'") for option, value in UNKNOWN],
        *[("r", value, "is not of rank") for value in ("x", 10**14, 2**63)],
        *[("lora_alpha", 10**400, "`alpha`"), ("alpha_pattern", {"(": 1}, "unterminated")],
        *[("target_modules", value, "linear2") for value in (["linear1", "linear2"], "linear.")],  # it has 1 and 3
        *[("target_modules", ["linear1"], "linear3"), ("target_modules", "(", "unterminated")],
    ],
)
def test_what_a_config_has_that_is_unknown_wrong_or_left_out_is_named(saved, option, value, named):
    base, _, folder = saved
    change(folder, **{option: value})
    with pytest.raises(AdapterError, match=rf"adapter_config\.json.*{named}"):
        load_adapter(folder, base, "a")
    assert adapter_names(base) == []
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_a_disk_that_refuses_is_reported_without_the_command_line(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="another folder") as caught:
        save_adapter(tmp_path / "file" / "a", saved[1], "a")
    assert "--" not in str(caught.value)


def tensors(spoil):
    """Rewrite the weights file, without its metadata."""

    def rewrite(folder):
        spoil(found := load_file(folder / ADAPTER_WEIGHTS))
        save_file(found, folder / ADAPTER_WEIGHTS)

    return rewrite


def content(name, spoil):
    return lambda folder: (folder / name).write_bytes(spoil((folder / name).read_bytes()))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
SPOILT = {  # what is done to a folder, and what is said of it
    "a tensor dropped": (tensors(lambda found: found.pop(KEY)), ADAPTER_WEIGHTS),
    "another tensor": (
        tensors(lambda found: found.update({KEY.replace("1", "2"): found[KEY].clone()})),
        ADAPTER_WEIGHTS,
    ),
    "a base weight": (tensors(lambda found: found.update({"linear1.weight": torch.ones(12, 784)})), ADAPTER_WEIGHTS),
    "another shape": (tensors(lambda found: found.update({KEY: found[KEY].T.contiguous()})), ADAPTER_WEIGHTS),
    "another dtype": (tensors(lambda found: found.update({KEY: found[KEY].int()})), ADAPTER_WEIGHTS),
    "NaN": (tensors(lambda found: found[KEY].fill_(torch.nan)), ADAPTER_WEIGHTS),
    "another format": (
        lambda folder: save_file({"linear1.lora_A": torch.ones(2)}, folder / ADAPTER_WEIGHTS),
        "Convert it",
    ),
    "truncated": (content(ADAPTER_WEIGHTS, lambda found: found[:-8]), ADAPTER_WEIGHTS),
    "empty": (content(ADAPTER_WEIGHTS, lambda _: b""), f"{ADAPTER_WEIGHTS} cannot be read"),
    "an unknown dtype": (content(ADAPTER_WEIGHTS, lambda found: found.replace(b'"F32"', b'"F4" ', 1)), ADAPTER_WEIGHTS),
    "a pointer": (content(ADAPTER_WEIGHTS, lambda _: POINTER), "pointer of Git LFS.*git lfs pull"),
    "pickled": (lambda folder: (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin"), "bin is pickled"),
    "moved": (lambda folder: folder.rename(folder.with_name("moved")), "There is no folder"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), f"{CONFIG}.*estore"),
    "an empty config": (content(CONFIG, lambda _: b""), f"{CONFIG} is not JSON.*estore"),
    "half a config": (content(CONFIG, lambda _: b"{"), f"{CONFIG} is not JSON.*estore"),
    "a list for a config": (content(CONFIG, lambda _: b"[]"), f"{CONFIG}.*estore"),
    "a pointer to a config": (content(CONFIG, lambda _: POINTER), f"{CONFIG} is a pointer of Git LFS"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_folder_is_called_what_it_is_and_the_model_stays_as_it_was(saved, how):
    base, _, folder = saved
    spoil, says = SPOILT[how]
    spoil(folder)
    before, flags = compute_fingerprint(base_tensors(base)), [p.requires_grad for p in base.parameters()]
    with pytest.raises(AdapterError, match=says) as caught:
        load_adapter(folder, base, "a", allow_unverified=True)
    assert isinstance(caught.value, DamagedError) == ("not JSON" in says)
    assert adapter_names(base) == []
    assert compute_fingerprint(base_tensors(base)) == before
    assert [p.requires_grad for p in base.parameters()] == flags


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000])
def test_a_damaged_fingerprint_does_not_pass_for_a_missing_one(saved, text):
    base, _, folder = saved
    path = folder / ADAPTER_WEIGHTS
    save_file(load_file(path), path, {"base_fingerprint": text})
    with pytest.raises(AdapterError, match="fingerprint is damaged"):
        load_adapter(folder, base, "a", allow_unverified=True)


def test_a_layer_that_occurs_twice_is_not_taken_from_peft(tmp_path):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Sequential(shared))
    add(model, "a", LoRAConfig(rank=1))
    save_adapter(tmp_path, model, "a")
    path = tmp_path / ADAPTER_WEIGHTS
    remove(model, "a")
    load_adapter(tmp_path, model, "a")  # ours, which says so by its fingerprint
    remove(model, "a")
    save_file(load_file(path), path)
    with pytest.raises(AdapterError, match="occurs twice"):
        load_adapter(tmp_path, model, "a", allow_unverified=True)


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
    served = copy.deepcopy(base).to(dtype)
    load_adapter(folder, served, "a")
    torch.testing.assert_close(served(IMAGES.to(dtype)).float(), model(IMAGES), rtol=0.05, atol=0.3)
    with torch.no_grad():
        base.linear2.weight[0, 0] += 1
    with pytest.raises(AdapterError, match=r"linear2\.weight differs"):
        load_adapter(folder, base.to(dtype), "a")


def test_a_rounded_adapter_is_stored_in_fp32(saved, tmp_path):
    _, model, _ = saved
    model.to(torch.bfloat16)
    save_adapter(tmp_path / "rounded", model, "a")
    stored, A = load_file(tmp_path / "rounded" / ADAPTER_WEIGHTS)[KEY], updates_of(model, "a")["linear1"].lora_A
    assert (A.dtype, stored.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(stored, A.float())


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


def test_an_adapter_in_fp64_is_stored_and_comes_back_in_fp64(base, tmp_path):
    model, folder = _save(tmp_path, base, LoRAConfig(("linear1",), rank=3, alpha=5.0, dtype=torch.float64))
    assert {tensor.dtype for tensor in load_file(folder / ADAPTER_WEIGHTS).values()} == {torch.float64}
    assert load_adapter(folder, base, "a")["linear1"].lora_A.dtype == torch.float64
    assert torch.equal(base(IMAGES), model(IMAGES))


@pytest.mark.parametrize("targets", [["linear1", "linear3"], "linear1|linear3"], ids=str)
def test_a_file_that_lost_a_layer_does_not_load_as_a_part(saved, targets):
    base, _, folder = saved
    change(folder, target_modules=targets)
    path = folder / ADAPTER_WEIGHTS
    save_file({key: tensor for key, tensor in load_file(path).items() if "linear3" not in key}, path)
    with pytest.raises(AdapterError, match="linear3"):
        load_adapter(folder, base, "a", allow_unverified=True)
    assert adapter_names(base) == []
