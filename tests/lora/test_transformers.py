"""This library and PEFT on models of transformers with random weights: Llama, a BERT classifier, T5 and ViT."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora import (
    AdapterError,
    LoRAConfig,
    base_tensors,
    compute_fingerprint,
    copies_of,
    inject,
    load_adapter,
    merge,
    merged_copy,
    save_adapter,
    unmerge,
    updates_of,
)

from ..conftest import relative

import_torchvision()  # transformers imports it
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="transformers comes with peft; it is not here")
    peft = pytest.importorskip("peft", reason="peft is not here")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.randint(1, 90, (3, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


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


@pytest.fixture(params=CASES)
def pair(request):
    """The same adapter by both libraries on the same base, B not 0; the base, and what goes in."""
    make, targets, whole = CASES[request.param]
    torch.manual_seed(0)
    base, batch = make()
    model = copy.deepcopy(base)
    updates = inject(model, "a", LoRAConfig(targets, rank=3, alpha=5.0), also_train=whole)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, modules_to_save=whole or None)
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    for path, update in updates.items():
        nn.init.normal_(update.lora_B.data, std=0.1)
        layer = theirs.base_model.model.get_submodule(path)
        layer.lora_A.default.weight.data.copy_(update.lora_A.detach())
        layer.lora_B.default.weight.data.copy_(update.lora_B.detach())
    return model, theirs, base, batch


def pairs_of_parameters(model, theirs):
    """Ours and PEFT's, all that train."""
    for path, update in updates_of(model, "a").items():
        layer = theirs.base_model.model.get_submodule(path)
        yield update.lora_A, layer.lora_A.default.weight
        yield update.lora_B, layer.lora_B.default.weight
    for path, part in copies_of(model, "a").items():
        wrapper = theirs.base_model.model.get_submodule(path)
        yield from zip(part.parameters(), wrapper.modules_to_save.default.parameters(), strict=True)


def test_the_same_parameters_train(pair):
    model, theirs, _, _ = pair
    ours = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert ours == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert ours == sum(one.numel() for one, _ in pairs_of_parameters(model, theirs))


def test_forward_gradients_and_five_steps_of_an_optimiser(pair):
    model, theirs, base, batch = pair
    frozen = compute_fingerprint(base.state_dict())
    assert relative(model(**batch).logits, theirs(**batch).logits) < 1e-5
    assert relative(model(**batch).logits, base(**batch).logits) > 1e-3
    optimizers = [torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05) for net in (model, theirs)]
    for step in range(5):
        for net, optimizer in zip((model, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(**batch).loss.backward()
        if step == 0:
            for one, other in pairs_of_parameters(model, theirs):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in pairs_of_parameters(model, theirs):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert relative(model(**batch).logits, theirs(**batch).logits) < 1e-4
    assert compute_fingerprint(base_tensors(model)) == frozen


def test_beside_bf16_weights_it_learns_as_much_as_pefts():
    torch.manual_seed(0)
    base, batch = llama()
    base, targets = base.bfloat16(), CASES["llama"][1]
    model, theirs = copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets)
    theirs = peft.get_peft_model(copy.deepcopy(base), theirs)
    for path, update in inject(model, "a", LoRAConfig(targets, rank=3, alpha=6.0)).items():
        theirs.base_model.model.get_submodule(path).lora_A.default.weight.data.copy_(update.lora_A.detach())
    learnt = []
    for net in (model, theirs):
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
    for part in copies_of(model, "a").values():
        nn.init.normal_(part.weight, std=0.1)
    save_adapter(tmp_path, model, "a")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert relative(loaded(**batch).logits, model.eval()(**batch).logits) < 1e-5


def test_pefts_folder_here_and_back(pair, tmp_path):
    _, theirs, base, batch = pair
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    model = copy.deepcopy(base).eval()
    load_adapter(tmp_path / "theirs", model, "b", allow_unverified=True)
    expected = theirs.eval()(**batch).logits
    assert relative(model(**batch).logits, expected) < 1e-5
    save_adapter(tmp_path / "ours", model, "b")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert relative(again(**batch).logits, expected) < 1e-5
    stored = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    torch.testing.assert_close(*stored, rtol=0, atol=0)


@pytest.mark.parametrize("make", [llama, t5])
def test_generation_is_pefts_with_and_without_merging(make):
    torch.manual_seed(0)
    base, _ = make()
    model = copy.deepcopy(base).eval()
    targets = CASES[make.__name__][1]
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=50, target_modules=targets)
    ).eval()
    for path, update in inject(model, "a", LoRAConfig(targets, rank=3, alpha=50.0)).items():
        nn.init.normal_(update.lora_B.data, std=0.5)
        layer = theirs.base_model.model.get_submodule(path)
        layer.lora_A.default.weight.data.copy_(update.lora_A.detach())
        layer.lora_B.default.weight.data.copy_(update.lora_B.detach())

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
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": "all-linear", "modules_to_save": ["norm"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_peft_stored_with_its_options_is_read_and_written_back(tmp_path, options):
    torch.manual_seed(0)
    base, batch = llama()
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=3, lora_alpha=5, **options)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    model = copy.deepcopy(base).eval()
    load_adapter(tmp_path / "theirs", model, "a", allow_unverified=True)
    expected = theirs(**batch).logits
    assert relative(model(**batch).logits, expected) < 1e-5
    save_adapter(tmp_path / "ours", model, "a")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    assert relative(again(**batch).logits, expected) < 1e-5


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
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    nn.init.normal_(theirs.base_model.model.classifier.modules_to_save.default.weight)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    load_adapter(tmp_path, base.eval(), "a", allow_unverified=True)
    assert list(copies_of(base, "a")) == ["classifier"]
    assert relative(base(**batch).logits, theirs(**batch).logits) < 1e-5


def test_a_tied_output_layer_is_adapted_and_the_whole_saved(tmp_path):
    torch.manual_seed(0)
    model, batch = llama(tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=r"lm_head shares its weight with model\.embed_tokens"):
        inject(model, "a", LoRAConfig(("lm_head",), rank=2))
    model.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)  # B is 0 still


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
