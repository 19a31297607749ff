"""The same layers and models through this library, PEFT, loralib and W + scaling · B A by hand.

alpha ≠ rank, B ≠ 0, layers that are not square, fp32; models of transformers with random weights.
"""

import copy
import math
import warnings

import loralib
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora import (
    AdapterError,
    LoRAConfig,
    adapt,
    base_tensors,
    combine_cat,
    combine_svd,
    compute_fingerprint,
    inject,
    load_adapter,
    merge,
    merged_copy,
    save_adapter,
    unmerge,
    updates_of,
    whole_modules_of,
)

from ..conftest import relative
from ..models import add

import_torchvision()  # transformers imports it
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="transformers comes with peft; it is not here")
    peft = pytest.importorskip("peft", reason="peft is not here")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.randint(1, 90, (3, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# Models of transformers: Llama, a BERT classifier, T5 and ViT ---------------------------------------------------------


def llama(**options):
    config = transformers.LlamaConfig(vocab_size=97, num_key_value_heads=2, pad_token_id=0, **SMALL, **options)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS, "labels": IDS}


def bert():
    config = transformers.BertConfig(vocab_size=97, num_labels=3, hidden_dropout_prob=0.0, **SMALL)
    config.attention_probs_dropout_prob = 0.0
    labels = torch.tensor([0, 1, 2])
    return transformers.BertForSequenceClassification(config), {"input_ids": IDS, "labels": labels}


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=97, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS.flip(1)}


def vit():
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, hidden_dropout_prob=0.0, **SMALL)
    return transformers.ViTForImageClassification(config), {"pixel_values": IMAGES, "labels": torch.tensor([0, 1, 2])}


# the model, the names of its targets as PEFT takes them, and what is trained whole
CASES = {
    "llama": (llama, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], []),
    "bert": (bert, ["query", "value", "dense"], ["classifier"]),
    "t5": (t5, ["q", "v", "wi", "wo"], []),
    "vit": (vit, ["q_proj", "v_proj", "fc1", "fc2"], ["classifier"]),
}


def copy_to_peft(updates, theirs, name="default"):
    """Give PEFT's adapter our A and B."""
    for path, update in updates.items():
        layer = theirs.base_model.model.get_submodule(path)
        layer.lora_A[name].weight.data.copy_(update.lora_A.detach())
        layer.lora_B[name].weight.data.copy_(update.lora_B.detach())


def fill(theirs):
    """Make PEFT's adapter do something."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)


def both(base, targets, alpha, std, whole=()):
    """The same adapter by both libraries on copies of one base."""
    model = copy.deepcopy(base)
    updates = inject(model, "a", LoRAConfig(targets, rank=3, alpha=alpha), also_train=list(whole))
    for update in updates.values():
        nn.init.normal_(update.lora_B.data, std=std)
    config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=targets, modules_to_save=list(whole) or None)
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    copy_to_peft(updates, theirs)
    return model, theirs


@pytest.fixture(params=CASES)
def pair(request):
    """The same adapter by both libraries on the same base, B not 0; the base, and what goes in."""
    make, targets, whole = CASES[request.param]
    torch.manual_seed(0)
    base, batch = make()
    return *both(base, targets, 5, 0.1, whole), base, batch


def test_forward_gradients_and_five_steps_of_an_optimiser(pair):
    model, theirs, base, batch = pair
    frozen = compute_fingerprint(base.state_dict())
    trained = [[p for p in net.parameters() if p.requires_grad] for net in (model, theirs)]
    pairs, inside = [], theirs.base_model.model
    for path, update in updates_of(model, "a").items():
        layer = inside.get_submodule(path)
        pairs += [(update.lora_A, layer.lora_A.default.weight), (update.lora_B, layer.lora_B.default.weight)]
    for path, part in whole_modules_of(model, "a").items():
        copied = inside.get_submodule(path).modules_to_save.default
        pairs += zip(part.parameters(), copied.parameters(), strict=True)
    assert {len(pairs)} == {len(parameters) for parameters in trained}
    assert relative(model(**batch).logits, theirs(**batch).logits) < 1e-5
    assert relative(model(**batch).logits, base(**batch).logits) > 1e-3
    optimizers = [torch.optim.SGD(parameters, lr=0.05) for parameters in trained]
    for step in range(5):
        for net, optimizer in zip((model, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(**batch).loss.backward()
        if step == 0:
            for one, other in pairs:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert relative(model(**batch).logits, theirs(**batch).logits) < 1e-4
    assert compute_fingerprint(base_tensors(model)) == frozen


def test_beside_bf16_weights_it_learns_as_much_as_pefts():
    torch.manual_seed(0)
    base, batch = llama()
    learnt = []
    for net in both(base.bfloat16(), CASES["llama"][1], alpha=6, std=0):
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = net(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        learnt.append(losses[0] - losses[-1])
    assert learnt[0] > 0.01
    assert learnt[0] == pytest.approx(learnt[1], rel=0.1)


def test_our_folder_in_peft(pair, tmp_path):
    model, _, base, batch = pair
    for part in whole_modules_of(model, "a").values():
        nn.init.normal_(part.weight, std=0.1)
    save_adapter(tmp_path, model, "a")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert relative(loaded(**batch).logits, model.eval()(**batch).logits) < 1e-5


def here_and_back(folder, base, theirs, batch):
    """The same logits here, from a folder of PEFT's, and in PEFT, from one of ours; and that model of ours."""
    theirs.save_pretrained(folder / "theirs")
    model = copy.deepcopy(base).eval()
    load_adapter(folder / "theirs", model, "b", allow_unverified=True)
    expected = theirs.eval()(**batch).logits
    assert relative(model(**batch).logits, expected) < 1e-5
    save_adapter(folder / "ours", model, "b")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder / "ours").eval()
    assert relative(loaded(**batch).logits, expected) < 1e-5
    return model


def test_pefts_folder_here_and_back(pair, tmp_path):
    _, theirs, base, batch = pair
    fill(theirs)
    here_and_back(tmp_path, base, theirs, batch)
    stored = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    torch.testing.assert_close(*stored, rtol=0, atol=0)


@pytest.mark.parametrize("make", [llama, t5])
def test_generation_is_pefts_with_and_without_merging(make):
    torch.manual_seed(0)
    base, _ = make()
    model, theirs = (net.eval() for net in both(base, CASES[make.__name__][1], alpha=50, std=0.5))

    def generate(net):
        return net.generate(input_ids=IDS, max_new_tokens=8, do_sample=False).tolist()

    expected = generate(theirs)
    assert generate(model) == expected != generate(base.eval())
    merge(model.eval())
    assert generate(model) == expected
    unmerge(model)
    assert generate(model) == expected
    assert generate(merged_copy(model)) == expected


def test_all_linear_is_pefts():
    for make, _, whole in CASES.values():
        base, _ = make()
        task = "SEQ_CLS" if whole else None
        theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules="all-linear", task_type=task))
        found = {name.split(".lora_A")[0] for name, _ in theirs.named_parameters() if "lora_A" in name}
        ours = inject(base, "a", LoRAConfig(rank=2), also_train=whole)
        assert {f"base_model.model.{path}" for path in ours} == found


OPTIONS = [
    {"target_modules": ["q_proj", "lm_head"]},  # PEFT stores lm_head's own weight beside
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 5}},
    {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {r".*layers\.1\..*": 9}},
    {"target_modules": ["q_proj"], "modules_to_save": ["head"]},  # the end of lm_head: PEFT wants no dot before it
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": "all-linear", "modules_to_save": ["norm"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_peft_stored_with_its_options_is_read_and_written_back(tmp_path, options):
    torch.manual_seed(0)
    base, batch = llama()
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=5, **options)).eval()
    fill(theirs)
    here_and_back(tmp_path, base, theirs, batch)


def test_an_output_layer_stored_beside_must_be_the_bases(tmp_path):
    torch.manual_seed(0)
    base, _ = llama()
    peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules=["lm_head"])).save_pretrained(tmp_path)
    assert any("base_layer" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    nn.init.normal_(base.lm_head.weight)
    with pytest.raises(AdapterError, match=r"has lm_head\.weight"):
        load_adapter(tmp_path, base, "a", allow_unverified=True)
    load_adapter(tmp_path, base, "a", base="any")


def test_a_classifier_of_a_task_is_trained_whole_as_pefts_is(tmp_path):
    torch.manual_seed(0)
    base, batch = bert()
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])  # adds modules_to_save by itself
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    fill(theirs)
    assert list(whole_modules_of(here_and_back(tmp_path, base, theirs, batch), "b")) == ["classifier"]


def test_a_tied_output_layer_is_adapted_and_the_whole_saved(tmp_path):
    torch.manual_seed(0)
    model, batch = llama(tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=r"lm_head shares its weight with model\.embed_tokens"):
        inject(model, "a", LoRAConfig(("lm_head",), rank=2))
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)  # B is 0 still


@pytest.mark.parametrize("named", ["Conv1D", "MixtralExperts"])
def test_what_of_a_model_cannot_be_adapted_is_named(named):
    if named == "Conv1D":
        config = transformers.GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=2)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.MixtralConfig(vocab_size=97, num_key_value_heads=2, num_local_experts=2, **SMALL)
        model = transformers.MixtralForCausalLM(config)
    with pytest.warns(UserWarning, match=named):
        inject(model, "a", LoRAConfig((".*",), rank=2))


# Single layers, merging and combining ---------------------------------------------------------------------------------


RANK, ALPHA = 3, 5.0
SHAPES = [(6, 4), (4, 6), (784, 100), (100, 10), (1, 7)]


@pytest.fixture(params=SHAPES, ids=str)
def layer(request):
    """Weights, factors, inputs (B, in) or (B, T, in), and the gradient that comes back from above."""
    torch.manual_seed(0)
    fan_in, fan_out = request.param
    linear = nn.Linear(fan_in, fan_out)
    a, b = torch.randn(RANK, fan_in), torch.randn(fan_out, RANK)
    inputs = [torch.randn(5, fan_in), torch.randn(2, 3, fan_in)]
    return linear, a, b, [(x, torch.randn(*x.shape[:-1], fan_out)) for x in inputs]


def outcome(function, a, b, x, upstream):
    """Output, and gradients of A, B and x."""
    x = x.clone().requires_grad_(True)
    a.grad = b.grad = None
    y = function(x)
    (y * upstream).sum().backward()
    return [y.detach(), a.grad, b.grad, x.grad]


def by_hand(linear, a, b, x, upstream, rslora, alpha=ALPHA):
    scaling = alpha / (math.sqrt(RANK) if rslora else RANK)
    a, b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
    weight, bias = linear.weight.detach(), linear.bias.detach()
    return outcome(lambda x: F.linear(x, weight + scaling * (b @ a), bias), a, b, x, upstream)


def ours(linear, a, b, x, upstream, rslora):
    layer = adapt(copy.deepcopy(linear))
    update = layer.add("a", LoRAConfig(rank=RANK, alpha=ALPHA, rslora=rslora))
    update.lora_A.data.copy_(a)
    update.lora_B.data.copy_(b)
    found = outcome(layer, update.lora_A, update.lora_B, x, upstream)
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    return found


def theirs_loralib(linear, a, b, x, upstream, rslora):
    assert not rslora  # it has none
    layer = loralib.Linear(linear.in_features, linear.out_features, r=RANK, lora_alpha=ALPHA)
    layer.weight.data.copy_(linear.weight)
    layer.bias.data.copy_(linear.bias)
    layer.lora_A.data.copy_(a)
    layer.lora_B.data.copy_(b)
    return outcome(layer, layer.lora_A, layer.lora_B, x, upstream)


def theirs_peft(linear, a, b, x, upstream, rslora):
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_rslora=rslora)
    model = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config)
    layer = model.base_model.model[0]
    a_theirs, b_theirs = layer.lora_A.default.weight, layer.lora_B.default.weight
    a_theirs.data.copy_(a)
    b_theirs.data.copy_(b)
    return outcome(model, a_theirs, b_theirs, x, upstream)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert relative(one, other) < 1e-5


@pytest.mark.parametrize(
    ("reference", "rslora"),
    [(by_hand, False), (by_hand, True), (theirs_loralib, False), (theirs_peft, False), (theirs_peft, True)],
)
def test_outputs_and_gradients_are_those_of(reference, rslora, layer):
    *weights, inputs = layer
    for x, upstream in inputs:
        assert_same(ours(*weights, x, upstream, rslora), reference(*weights, x, upstream, rslora))


def test_the_comparison_would_notice_an_alpha_left_out(layer):
    *weights, inputs = layer
    with pytest.raises(AssertionError):
        assert_same(ours(*weights, *inputs[0], False), by_hand(*weights, *inputs[0], False, alpha=RANK))


@pytest.mark.parametrize("library", ["ours", "loralib", "peft"])
def test_who_gives_the_bytes_of_the_base_back(library):
    """Large updates, one cycle; `test_merging` has a thousand of ours."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    before = linear.weight.detach().clone()
    if library == "ours":
        model = nn.Sequential(linear)
        add(model, "a", LoRAConfig(rank=RANK, alpha=ALPHA), std=10)
        merge(model)
        unmerge(model)
        after = model[0].weight
    elif library == "loralib":
        layer = loralib.Linear(64, 48, r=RANK, lora_alpha=ALPHA)
        layer.weight.data.copy_(linear.weight)
        nn.init.normal_(layer.lora_B, std=10)
        layer.eval()  # merges
        layer.train()  # unmerges
        after = layer.weight
    else:
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
        model = peft.get_peft_model(nn.Sequential(linear), config)
        nn.init.normal_(model.base_model.model[0].lora_B.default.weight, std=10)
        model.merge_adapter()
        model.unmerge_adapter()
        after = model.base_model.model[0].base_layer.weight
    assert torch.equal(before, after) == (library == "ours")


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_combinations_are_pefts(kind):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6))
    model, theirs = copy.deepcopy(base), copy.deepcopy(base)
    for name, rank, alpha in (("a", RANK, ALPHA), ("b", 2, 7.0)):
        updates = add(model, name, LoRAConfig(("0", "2"), rank=rank, alpha=alpha), ord(name), std=1)
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0", "2"])
        if name == "a":
            theirs = peft.get_peft_model(theirs, config, adapter_name=name)
        else:
            theirs.add_adapter(name, config)
        copy_to_peft(updates, theirs, name)
    weights = {"a": 0.7, "b": 1.5}
    if kind == "cat":
        combine_cat(model, "c", weights)
    else:
        combine_svd(model, "c", weights, 4)
    theirs.base_model.add_weighted_adapter(list(weights), list(weights.values()), "c", kind, svd_rank=4)
    for path, update in updates_of(model, "c").items():
        expected = theirs.base_model.model.get_submodule(path).get_delta_weight("c")
        assert relative(update.weight(), expected) < 1e-5
