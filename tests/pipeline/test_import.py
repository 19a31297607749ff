"""Networks of others as bases: what comes in, what is refused, and that it goes back as it came."""

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lora_mnist.datasets.embedded import read_mnist_5k
from lora_mnist.errors import RunError, UsageError
from lora_mnist.pipeline import Applied, Request, finetune, open_workspace, verify
from lora_mnist.pipeline.convert import merge
from lora_mnist.pipeline.export import export
from lora_mnist.pipeline.import_base import ImportResult, import_base
from lora_mnist.report.page import write_report
from lora_mnist.runs.listing import count_parameters
from lora_mnist.runs.run import Run

from ..conftest import smoke, snapshot

IMAGES, LABELS = (torch.from_numpy(part) for part in read_mnist_5k())
PREPARE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # uint8 pixels -> those that a network was trained on
    "usual": lambda images: (images / 255 - 0.1307) / 0.3081,
    "0 to 1": lambda images: images / 255,
    "0 to 255": torch.Tensor.float,
    "-1 to 1": lambda images: images / 127.5 - 1,
    "dark on light": lambda images: 1 - images / 255,
}


class Foreign(NamedTuple):
    """How somebody else's network is made, named and saved, and with what options it comes in."""

    file: str
    names: list[str]  # of the layers, in their order
    hidden: tuple[int, ...]
    pixels: str = "usual"
    options: Mapping[str, object] = MappingProxyType({})
    bias: bool = True
    dtype: torch.dtype = torch.float32
    key: str | None = None


FOREIGN = {
    "named as ours": Foreign("model.pth", ["linear1", "linear2", "linear3"], (100, 200)),
    "fc": Foreign("fc.pt", ["fc1", "fc2"], (64,), "0 to 1", {"pixels": "0-1"}),
    "sequential": Foreign("net.pt", ["1", "3", "5", "7", "9"], (70, 30, 50, 20)),
    "one layer": Foreign("linear.pt", [""], (), "0 to 1", {"pixels": "0-1"}),
    "compiled": Foreign("compiled.bin", ["_orig_mod.body.0", "_orig_mod.body.2"], (33,), key="model"),
    "parallel": Foreign("ddp.ckpt", ["module.a", "module.b", "module.head"], (64, 17), key="state_dict"),
    "no bias": Foreign("free.pt", ["in", "mid", "out"], (40, 40), "-1 to 1", {"mean": 0.5, "std": 0.5}, bias=False),
    "bytes": Foreign("raw.pt", ["input", "output"], (50,), "0 to 255", {"pixels": "0-255"}, key="model_state_dict"),
    "half": Foreign("half.safetensors", ["net.0", "net.2"], (60,), dtype=torch.float16),
    "sorted": Foreign("z.safetensors", [f"layers.{i}" for i in (0, 3, 6, 9, 12)], (30, 30, 30, 30)),
}


def tensors_by(names: list[str], layers: list[nn.Linear], dtype: torch.dtype = torch.float32) -> OrderedDict:
    tensors = OrderedDict()
    for name, layer in zip(names, layers, strict=True):
        for kind, tensor in layer.named_parameters():
            tensors[f"{name}.{kind}".removeprefix(".")] = tensor.detach().to(dtype).clone()
    return tensors


def forward(tensors: dict[str, torch.Tensor], names: list[str], x: torch.Tensor) -> torch.Tensor:
    """Plain PyTorch, by names: (N, 784) -> (N, 10)."""
    for name in names:
        stem = f"{name}." if name else ""
        x = F.linear(x, *(tensors[stem + kind].float() for kind in ("weight", "bias") if stem + kind in tensors))
        x = x if name == names[-1] else F.relu(x)
    return x


def train(hidden: tuple[int, ...], pixels: str, bias: bool = True, act=nn.ReLU) -> list[nn.Linear]:
    """Three passes over every third image of the data set."""
    torch.manual_seed(1)
    layers = [nn.Linear(a, b, bias) for a, b in pairwise((784, *hidden, 10))]
    network = nn.Sequential(*(part for layer in layers for part in (layer, act())))[:-1]
    x, y = PREPARE[pixels](IMAGES[::3].flatten(1)), LABELS[::3].long()
    rate = 1e-3 if pixels == "0 to 255" else 3e-3
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for batch in torch.cat([torch.randperm(len(x)) for _ in range(3)]).split(50):
        optimizer.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return layers


def save(path: Path, tensors: dict[str, torch.Tensor], key: str | None = None) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"epoch": 3, key: tensors} if key else tensors, path)
    return path


def bring_in(run: Path, file: Path, **options: object) -> ImportResult:
    return import_base(smoke(run), file, **options)[1]


@pytest.fixture(scope="module")
def usual() -> OrderedDict:
    """A trained state dict: 784 → 40 → 20 → 10."""
    return tensors_by(["a", "b", "c"], train((40, 20), "usual"))


@pytest.fixture(scope="module")
def imported(tmp_path_factory, usual) -> Path:
    """A run with an imported base and one adapter; never changed."""
    folder = tmp_path_factory.mktemp("imported")
    bring_in(folder / "run", save(folder / "mine.pt", usual))
    finetune(open_workspace(Request(run=folder / "run")))
    return folder / "run"


@pytest.mark.parametrize("one", FOREIGN.values(), ids=FOREIGN)
def test_a_network_comes_in_is_repaired_and_goes_back_as_it_came(tmp_path, one):
    tensors = tensors_by(one.names, train(one.hidden, one.pixels, one.bias), one.dtype)
    file = save(tmp_path / one.file, tensors, one.key)
    found = bring_in(tmp_path / "run", file, **one.options)
    assert found.better is None

    # what plain PyTorch counts on the same images, by its own names
    work = open_workspace(Request(run=tmp_path / "run"))
    for split, part in work.dataset.held_out.items():
        right = forward(tensors, one.names, PREPARE[one.pixels](part.images.flatten(1))).argmax(1) == part.labels
        assert (found.splits[split].count, found.splits[split].errors) == (len(right), int((~right).sum()))
    assert found.splits["test"].accuracy > 0.8

    # the base has the file's own bytes
    own = work.base.state_dict()
    assert [one.name for one in found.source.tensors] == list(tensors) or file.suffix == ".safetensors"
    for tensor in found.source.tensors:
        assert torch.equal(own[tensor.tensor], tensors[tensor.name].float())

    # repaired, proved, and given back: the logits of what is read by plain PyTorch are ours
    tuned = finetune(open_workspace(Request(run=tmp_path / "run", options={"finetune": {"name": "mine"}})))
    assert tuned.record.proof.passed
    assert verify(Request(run=tmp_path / "run")).passed
    base, repaired = export(work, format="original"), export(work, [Applied("mine")], "original")
    for exported, adapters in ((base, []), (repaired, [Applied("mine")])):
        assert Path(exported.file).suffix == file.suffix
        back = load_file(exported.file) if file.suffix == ".safetensors" else torch.load(exported.file)
        back = back[one.key] if one.key else back
        assert {name: (each.dtype, each.shape) for name, each in back.items()} == {
            name: (each.dtype, each.shape) for name, each in tensors.items()
        }
        assert list(back) == list(tensors) or file.suffix == ".safetensors"
        ours = work.adapted(adapters)[0].eval()
        x = work.base.normalise(work.dataset.test.images).flatten(1)
        rounding = 2e-3 if adapters and one.dtype == torch.float16 else 1e-5
        logits = ours(x).detach()
        assert float((forward(back, one.names, x) - logits).abs().max()) <= rounding * float(logits.abs().max())
    back = load_file(base.file) if file.suffix == ".safetensors" else torch.load(base.file)
    assert all(torch.equal(each, tensors[name]) for name, each in (back[one.key] if one.key else back).items())


def test_layers_with_and_without_a_bias_go_together(tmp_path, usual):
    del (tensors := OrderedDict(usual))["b.bias"]
    bring_in(tmp_path / "run", save(tmp_path / "file.pt", tensors))
    work = open_workspace(Request(run=tmp_path / "run"))
    assert work.settings.model.bias == (True, False, True)
    assert list(torch.load(export(work, format="original").file)) == list(tensors)
    assert count_parameters(Run(tmp_path / "run"), "1").full == sum(one.numel() for one in tensors.values())
    assert write_report(Run(tmp_path / "run")).is_file()


def test_val_and_test_are_halves_of_test_and_train_is_whole(imported):
    work = open_workspace(Request(run=imported))
    plain = open_workspace(Request(run=imported)).run.record
    assert (plain.dataset.train, plain.dataset.val, plain.dataset.test) == (4000, 500, 500)
    assert work.dataset.val.labels.bincount().tolist() == [50] * 10
    halves = torch.cat([work.dataset.val.images, work.dataset.test.images]).flatten(1)
    assert len(torch.cat([halves, work.dataset.train.images.flatten(1)]).unique(dim=0)) == 5000


def test_what_was_imported_is_on_record_and_no_training_is_claimed(imported, succeeds):
    record = json.loads((imported / "run.json").read_text())
    source = record["source"]
    assert (source["file"], source["format"]) == ("mine.pt", "torch")
    assert source["tensors"][0] == {"name": "a.weight", "tensor": "linear1.weight", "dtype": "float32"}
    page = write_report(Run(imported)).read_text()
    assert "was imported from mine.pt" in page
    assert "lora-mnist import mine.pt" in page
    assert "pretrain" not in page.partition("<dl")[0]
    assert "imported from mine.pt" in succeeds("adapters", "--run", imported)
    assert "imported from mine.pt" in " ".join(succeeds("runs", imported).split())
    assert "was imported from mine.pt" in " ".join(succeeds("doctor", imported, "--threads", 1).split())
    assert verify(Request(run=imported)).passed


def test_merge_writes_a_file_like_the_one_that_came(imported, tmp_path, usual):
    work = open_workspace(Request(run=imported, force=True))
    (name,) = work.run.adapter_names()
    merged = merge(work, [Applied(name)])
    back, ours = torch.load(merged.original), load_file(merged.file)
    assert list(back) == list(usual)
    assert torch.equal(back["c.weight"], ours["linear3.weight"])
    assert not torch.equal(back["c.weight"], usual["c.weight"])
    assert verify(Request(run=imported)).passed


def test_run_goes_on_with_an_imported_base_and_nothing_trains_over_it(imported, fails, succeeds):
    before = snapshot(imported / "base")
    assert "1/4 import" in succeeds("run", "--run", imported, "--name", "second", "--threads", 1)
    fails(4, "pretrain", "--run", imported, says="finished already")
    for command in ("pretrain", "run"):
        fails(4, command, "--run", imported, "--force", says="was imported from mine.pt")
    assert snapshot(imported / "base") == before


def test_import_replaces_a_finished_base_only_by_force(run_copy, tmp_path, usual, caplog):
    file = save(tmp_path / "mine.pt", usual)
    before = snapshot(run_copy)
    with pytest.raises(RunError, match="finished already"):
        bring_in(run_copy, file)
    assert snapshot(run_copy) == before
    import_base(replace(smoke(run_copy), force=True), file)
    assert "Removed what was made from the old base" in caplog.text
    assert Run(run_copy).record.source.file == "mine.pt"


def test_the_command_says_what_came_in_and_what_fits_better(tmp_path, succeeds):
    file = save(tmp_path / "bytes.pt", tensors_by(["x", "y"], train((50,), "0 to 1")))
    asked = ("--dataset", "mnist-5k", "--run", tmp_path / "run", "--mean", 0.25, "--std", 0.5)
    said = " ".join(succeeds("import", file, *asked).split())
    assert "784 → 50 → 10, ReLU assumed" in said
    assert "halves of the test images" in said
    assert "of val are right with --pixels 0-1, and with --mean 0.25 --std 0.5 as asked" in said
    assert "import it again with that and --force" in said
    said = " ".join(succeeds("import", file, *asked[:4], "--pixels", "0-1", "--force").split())
    assert "with --pixels 0-1, as asked. Accuracy hardly tells it from --pixels 0-255 (" in said
    assert "import it again" not in said


def test_networks_whose_test_images_differ_are_not_compared(imported, finished_run, succeeds):
    assert "No test between networks" in succeeds("compare", imported, finished_run)


def test_a_sweep_starts_from_an_imported_base(imported, tmp_path, succeeds):
    out = tmp_path / "sweep"
    asked = ("--digit", 9, "--rank", "1,2", "--seed", 1, "--set", "finetune.steps=3", "--threads", 1)
    succeeds("sweep", "--run", imported, "--out", out, *asked, "--keep", "best")
    (base,) = {row["base"] for row in json.loads((out / "results.json").read_text())["rows"]}
    assert base == Run(imported).record.base_fingerprint


# What is refused ------------------------------------------------------------------------------------------------------


class Unsafe:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def four_layers(*names: str) -> dict[str, torch.Tensor]:
    shapes = {"in": (20, 784), "x": (20, 20), "y": (20, 20), "out": (10, 20)}
    return {f"{name}.weight": torch.randn(shapes[name]) for name in names}


CONTENTS = {  # what torch.save is given, and what the error says
    "convolution": (lambda u: u | {"a.weight": torch.zeros(8, 1, 3, 3)}, "`a.weight` (8 × 1 × 3 × 3) is a convo"),
    "batch norm": (lambda u: u | {"bn.running_mean": torch.zeros(40)}, "`bn.running_mean` (40) is neither"),
    "layer norm": (lambda u: u | {"norm.weight": torch.ones(40)}, "`norm.weight` (40) is neither"),
    "transposed": (lambda u: {"dense/kernel": torch.zeros(784, 10), "dense/bias": torch.zeros(10)}, "is transposed"),
    "wrong input": (
        lambda u: u | {"a.weight": torch.zeros(40, 1024)},
        "`a.weight` (40 × 1024) takes 1,024 numbers",
    ),
    "wrong output": (lambda u: u | {"c.weight": torch.zeros(26, 20), "c.bias": torch.zeros(26)}, "gives 26 numbers"),
    "a gap": (lambda u: u | {"b.weight": torch.zeros(20, 41)}, "`b.weight` (20 × 41) takes 41 numbers, but `a.w"),
    "three dimensions": (lambda u: u | {"a.weight": torch.zeros(1, 40, 784)}, "(1 × 40 × 784) is no matrix"),
    "nan": (
        lambda u: u | {"b.weight": u["b.weight"].index_fill(0, torch.tensor(3), torch.nan)},
        "`b.weight` (20 × 40) holds NaN, infinity",
    ),
    "too large for float32": (
        lambda u: u | {"b.weight": u["b.weight"].double() * 1e300},
        "`b.weight` (20 × 40) holds NaN, infinity",
    ),
    "another bias": (lambda u: u | {"b.bias": torch.zeros(21)}, "`b.bias` (21) is not the bias of `b.weight`"),
    "a bias alone": (lambda u: u | {"d.bias": torch.zeros(20)}, "`d.bias` is a bias without a weight"),
    "whole numbers": (lambda u: u | {"b.weight": torch.zeros(20, 40, dtype=torch.int8)}, "is int8, not float16"),
    "language model": (
        lambda u: {"wte.weight": torch.zeros(50, 16), "h.0.attn.c_attn.weight": torch.zeros(16, 48)},
        "`wte.weight` (50 × 16) takes 16 numbers",
    ),
    "adapter": (lambda u: {"a.lora_A.weight": torch.zeros(1, 784)}, "is part of a LoRA adapter"),
    "optimizer": (lambda u: {"state": {}, "param_groups": [{"lr": 0.1}]}, "no state dict, but only 'state', 'param"),
    "a list": (lambda u: [1, 2], "holds no state dict, but a list"),
    "beside numbers": (lambda u: u | {"epoch": 3}, "'epoch' is of type int: no tensor"),
    "two orders": (
        lambda u: four_layers("x", "in", "out", "y"),
        "its layers fit as in.weight → x.weight → y.weight → out.weight and as in.w",
    ),
    "stretched": (lambda u: u | {"a.weight": torch.zeros(1).expand(10**6, 784)}, "more than 268,435,456 numbers"),
    "sparse": (lambda u: {"a.weight": torch.zeros(10, 784).to_sparse()}, "`a.weight` is no plain tensor"),
    "meta": (lambda u: {"a.weight": torch.zeros(10, 784, device="meta")}, "`a.weight` is no plain tensor"),
    "untrained": (lambda u: {name: torch.randn_like(one) for name, one in u.items()}, "however it is given pixels"),
}


@pytest.fixture
def refused(tmp_path, fails):
    """Import a file that is not taken, and makes nothing: what is said."""

    def call(file: Path, says: str) -> str:
        said = fails(4, "import", file, "--run", tmp_path / "run", "--dataset", "mnist-5k", says=says)
        assert not (tmp_path / "run").exists()
        return said

    return call


@pytest.mark.parametrize(("content", "says"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_such_network_is_one_error(tmp_path, usual, refused, content, says):
    torch.manual_seed(0)
    torch.save(content(usual), tmp_path / "file.pt")
    refused(tmp_path / "file.pt", says)


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content) and folder / name


FILES = {
    "not there": (lambda folder: folder / "file.pt", "No such file"),
    "a folder": (lambda folder: folder, "is a folder"),
    "empty": (lambda folder: (folder / "file.pt").touch() or folder / "file.pt", "is empty"),
    "text": (write("file.pt", b"weights"), "is no file of torch.save"),
    "damaged": (write("file.pt", b"PK\x03\x04" + bytes(200)), "is no file of torch.save, or a damaged one"),
    "cut short": (write("file.safetensors", b"\xff" * 40), "is no file of safetensors"),
    "another format": (write("model.onnx", b"\x08"), "does not end in .pt"),
}


@pytest.mark.parametrize(("make", "says"), FILES.values(), ids=FILES)
def test_what_cannot_be_read_is_one_error(tmp_path, refused, make, says):
    refused(make(tmp_path), says)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path, refused):
    torch.jit.save(torch.jit.trace(nn.Linear(784, 10), torch.zeros(1, 784)), tmp_path / "file.pt")
    refused(tmp_path / "file.pt", "is a TorchScript archive")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, refused, monkeypatch):
    torch.save({"a.weight": torch.zeros(10, 784)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "file.pt", "w", 8) as packed:
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    monkeypatch.setattr("lora_mnist.pipeline.state_dict.LARGEST", 20_000)
    for name, says in {"plain.pt": "has more than 20,000 bytes", "file.pt": "bytes when it is unpacked"}.items():
        refused(tmp_path / name, says)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_is_refused_with_what_to_save(tmp_path, refused, legacy):
    torch.save(nn.Linear(784, 10), tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    said = refused(tmp_path / "file.pt", "holds torch.nn.modules.linear.Linear")
    assert "torch.save(model.state_dict(), FILE)" in said


@pytest.mark.parametrize("how", [torch.save, lambda thing, file: file.write_bytes(pickle.dumps(thing))])
def test_a_hostile_file_runs_nothing(tmp_path, usual, refused, how):
    mark = tmp_path / "it ran"
    for hostile in (Unsafe(mark), {"state_dict": usual, "note": Unsafe(mark)}):
        how(hostile, tmp_path / "file.pt")
        refused(tmp_path / "file.pt", "file.pt ")
        assert not mark.exists()
    pickle.loads(pickle.dumps(Unsafe(mark)))  # which is what it would have done
    assert mark.exists()


@pytest.mark.parametrize(("name", "act"), {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}.items())
def test_another_activation_is_found_by_what_it_reads(tmp_path, name, act):
    file = save(tmp_path / "file.pt", tensors_by(["a", "b", "c"], train((60, 60), "usual", act=act)))
    with pytest.raises(RunError, match=f"not trained with ReLU: with {name} between"):
        bring_in(tmp_path / "run", file)


def test_pixels_that_fit_not_at_all_are_refused_with_those_that_do(tmp_path):
    file = save(tmp_path / "file.pt", tensors_by(["a", "b"], train((60,), "dark on light")))
    with pytest.raises(RunError, match=r"right with --mean 0.1307 --std 0.3081, .*--std -.*Give it --mean"):
        bring_in(tmp_path / "run", file)


@pytest.mark.parametrize(
    "options",
    [{"mean": 0.5}, {"std": 0.5}, {"pixels": "0-2"}, {"mean": 0.0, "std": 0.0}, {"mean": float("nan"), "std": 1}],
)
def test_wrong_options_are_refused(tmp_path, usual, options):
    with pytest.raises(UsageError):
        bring_in(tmp_path / "run", save(tmp_path / "file.pt", usual), **options)
    assert not (tmp_path / "run").exists()


def test_a_trained_base_has_no_original(run_copy, fails):
    fails(2, "export", "--run", run_copy, "--format", "original", says="was trained here")
