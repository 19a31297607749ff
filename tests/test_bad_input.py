"""Bad input of every kind: each is refused with a documented code, at once, in a sentence that fits a terminal."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mnist.errors import LONGEST, QUOTED, AdapterError, UsageError, sentence, shown
from lora_mnist.files import open_regular, read_regular
from lora_mnist.lora.peft import load_adapter
from lora_mnist.runs.artifact import load_network
from lora_mnist.runs.atomic import manifest_of
from lora_mnist.settings.config import load_config
from lora_mnist.training.model import MLP

from .conftest import edited, rehash

PATIENCE = 60  # seconds: a command that reads a pipe waits for ever


@pytest.fixture(autouse=True)
def _no_hang():
    """Fail where a command would wait without end."""

    def waited(*_):
        raise TimeoutError("it waits without end")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20 * PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Stored documents -----------------------------------------------------------------------------------------------------


LISTED = ("base/evaluation.json", "A/finetune.json", "A/analysis.json")  # what `adapters` reads


@pytest.mark.parametrize("content", ["[]", "{}", "", "[" * 100_000])
@pytest.mark.parametrize("name", ["base/run.json", "A/evaluation.json", *LISTED])
def test_a_document_of_another_type_is_named(fails, run_copy, adapter, name, content):
    path = run_copy / name.replace("A/", f"adapters/{adapter.name}/")
    path.write_text(content)
    rehash(path.parent)
    for command in ("verify", "report"):
        says = "another version" if (name, content) == ("base/run.json", "{}") else path.name
        fails(4 if "version" in says else 5, command, "--run", run_copy, says=says)
    if name in LISTED:
        fails(5, "adapters", "--run", run_copy, says=path.name)


@pytest.mark.parametrize("files", [None, [], {}, ["run.json"], {"run.json": None}, {"run.json": 3}, "x"])
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_a_manifest_without_files_vouches_for_none(fails, run_copy, adapter, where, files):
    folder = adapter if where == "adapter" else run_copy / "base"
    (folder / "manifest.json").write_bytes(manifest_of(files))  # with a hash that fits them
    fails((4, 5), "verify", "--run", run_copy, says="manifest.json" if not files or files == "x" else "")
    for command in ("adapters", "report"):
        fails((4, 5), command, "--run", run_copy)


@pytest.mark.parametrize("consistently", [False, True])
def test_another_share_of_val_is_noticed(fails, run_copy, consistently):
    """Also where the counts are changed with it: the logits are not those of so many images."""

    with edited(run_copy / "base" / "run.json") as record:
        record["settings"]["data"]["val_share"] = 0.2
        if consistently:
            record["dataset"] |= {"train": 3200, "val": 800}
    fails(5, "verify", "--run", run_copy, says="logits" if consistently else "run.json")
    fails(5, "finetune", "--name", "z", "--run", run_copy, says="logits" if consistently else "run.json")


# Weights --------------------------------------------------------------------------------------------------------------


def test_a_network_that_its_tensors_do_not_make_is_refused_before_memory_is_taken(run_copy):
    path = run_copy / "base" / "model.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["lora_mnist"])
    about["architecture"]["hidden"] = [10**6, 10**6]  # 4 TB
    save_file(load_file(path), path, {"lora_mnist": json.dumps(about)})
    with pytest.raises(Exception, match="holds no network of ours"):
        load_network(path)


def test_a_missing_tensor_is_refused_also_where_no_fingerprint_is_asked_for(run_copy, adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    (gone, *_) = sorted(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != gone}, path)
    torch.manual_seed(0)
    with pytest.raises(AdapterError, match="lacks base_model"):
        load_adapter(adapter, MLP((24, 16)), "x", allow_unverified=True)


# What is no file ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "device", "folder"])
def no_file(request, tmp_path):
    """A function that puts something else in the place of a file."""

    def put(path):
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return path

    return put


def test_only_regular_files_are_read(tmp_path, no_file):
    path = no_file(tmp_path / "x")
    for read in (read_regular, open_regular):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="more than 67,108,864 bytes"):
        read_regular(tmp_path / "x")


def test_a_config_that_is_no_file_is_refused(fails, tmp_path, no_file):
    fails(2, "run", "--config", no_file(tmp_path / "my.toml"), "--run", tmp_path / "r", says="my.toml")


@pytest.mark.parametrize(
    "name",
    [
        *("base/manifest.json", "base/run.json", "base/model.safetensors", "base/logits.safetensors"),
        *("A/manifest.json", "A/adapter_config.json", "A/adapter_model.safetensors", "A/finetune.json"),
    ],
)
def test_a_part_of_a_run_that_is_no_file_is_refused(cli, run_copy, adapter, no_file, name):
    path = no_file(run_copy / name.replace("A/", f"adapters/{adapter.name}/"))
    code, _, err = cli("evaluate", "--run", run_copy, "--adapter", adapter.name)
    assert (code in (4, 5), path.name in err or "no manifest" in err or "There is no base" in err) == (True, True), err
    assert cli("verify", "--run", run_copy)[0] in (4, 5) or name == "A/manifest.json"


def test_an_adapter_or_checkpoint_elsewhere_that_is_no_file_is_refused(fails, run_copy, adapter, tmp_path, no_file):
    path = no_file(tmp_path / "net.safetensors")
    fails(4, "evaluate", "--run", run_copy, "--checkpoint", path)
    elsewhere = shutil.copytree(adapter, tmp_path / "elsewhere")
    no_file(elsewhere / "adapter_model.safetensors")
    fails(4, "evaluate", "--run", run_copy, "--adapter", elsewhere, says="adapter_model.safetensors")


# What errors quote ----------------------------------------------------------------------------------------------------


def test_a_large_or_deep_config_is_refused(fails, tmp_path):
    (tmp_path / "big.toml").write_text(f'[finetune]\noptimizer = "{"x" * 2**21}"\n')
    (tmp_path / "deep.toml").write_text("x = " + "[" * 10_000)
    for name, says in (("big", "more than 1,048,576 bytes"), ("deep", "deep.toml")):
        fails(2, "run", "--config", tmp_path / f"{name}.toml", "--run", tmp_path / "r", says=says)


@pytest.mark.parametrize("filling", ["x", "x ", "\\u001b[31m", "\\n"])
def test_a_long_or_coloured_value_is_shortened_and_escaped(tmp_path, filling):
    (tmp_path / "my.toml").write_text(f'[finetune]\noptimizer = "{filling * 10_000}"\n')
    with pytest.raises(UsageError) as caught:
        load_config(str(tmp_path / "my.toml"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < QUOTED + len(str(tmp_path)) + 200
    assert "optimizer" in str(caught.value)


def test_a_sentence_is_one_line_of_limited_length_and_keeps_how_it_ends():
    assert sentence("a\nb\x1b[31m\u202e\udcff") == r"a\nb\x1b[31m\u202e\udcff"
    assert sentence("Grüße · ½ “x” …") == "Grüße · ½ “x” …"
    path = sentence(f"There is no {'x' * 999}/model.safetensors here.")
    assert path.endswith("/model.safetensors here.")
    assert len(path) < 250
    assert len(sentence("word " * 10**6)) == LONGEST
    assert len(shown("x" * 10**6)) == QUOTED
    assert shown([1, "a"]) == "[1, 'a']"


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nError: b", "x" * 200 + "/" + "y" * 200])
def test_a_path_is_shown_escaped_and_shortened(cli, fails, tmp_path, name):
    fails(4, "evaluate", "--run", tmp_path / name)
    _, out, _ = cli("evaluate", "--json", "--run", tmp_path / name)
    assert json.loads(out)["error"]["message"].isprintable()


@pytest.mark.parametrize("option", ["--digit", "--rank", "--name", "--no-such-option", "--init"])
def test_what_was_typed_is_shortened(fails, run_copy, option):
    fails(2, "finetune", "--run", run_copy, option, "\x1b[31m" + "x " * 10_000)
    fails(2, "finetune", "--run", run_copy, f"{option}{'x' * 10_000}")


@pytest.mark.parametrize("option", ["--digit", "--device", "--threads", "--seed"])
def test_a_number_of_too_many_digits_is_no_bug(fails, run_copy, option):
    value = ("cuda:" if option == "--device" else "") + "9" * 5000  # Python converts 4,300
    fails(2, "finetune", "--run", run_copy, option, value, says=option.removeprefix("--"))


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", ["0", "-1", "101", f"1{'0' * 22}", f"1{'0' * 5000}"], ids=lambda rounds: rounds[:9])
def test_rounds_have_bounds(fails, run_copy, rounds):
    fails(2, "run", "--rounds", rounds, "--run", run_copy, says="rounds")


@pytest.mark.parametrize(
    "command", ["run", "pretrain", "evaluate", "finetune", "verify", "report", "adapters", "params"]
)
def test_an_empty_folder_is_not_the_working_directory(fails, run_copy, monkeypatch, command):
    monkeypatch.chdir(run_copy)
    fails(2, command, "--run", "", says="--run")
    if command not in ("report", "adapters"):
        fails(2, command, "--data", "", says="--data")


def test_an_empty_name_is_none(fails, run_copy):
    for command in ("evaluate", "merge"):
        fails(4, command, "--run", run_copy, "--adapter", "", says="--adapter is empty")
    fails(4, "evaluate", "--run", run_copy, "--checkpoint", "", says="--checkpoint is empty")
    fails(2, "finetune", "--run", run_copy, "--name", "", says="name")
    for line in (("verify", "--adapter"), ("finetune", "--on-top-of")):
        fails((2, 4), line[0], "--run", run_copy, line[1], "", says="''")
    fails(4, "compare", run_copy, "--adapter", "", says="''")
    fails(2, "run", "--run", run_copy, "--config", "", says="''")


# Terminals and places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["[red]", "x[bold]", ":smile:"])
def test_brackets_in_a_name_mean_themselves(cli, succeeds, finished_run, tmp_path, name):
    run = shutil.copytree(finished_run, tmp_path / name)
    for adapter in (run / "adapters").iterdir():
        adapter.rename(adapter.with_name(name))
    out = succeeds("adapters", "--run", run, err="")
    assert name in out
    assert cli("compare", run)[0] == 0
    shutil.rmtree(run / "adapters")
    assert name in cli("adapters", "--run", run)[1]


@pytest.mark.parametrize(
    "command", ["run", "pretrain", "evaluate", "finetune", "verify", "report", "adapters", "compare"]
)
def test_a_working_directory_that_is_gone_is_an_error(cli, fails, tmp_path, monkeypatch, command):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    fails(6, command, says="working directory")
    assert cli("--help")[0] == 0
