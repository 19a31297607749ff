"""What the shell offers after TAB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mnist.settings.layers import config_names

from ..conftest import lora_mnist


@pytest.fixture
def offered(cli, monkeypatch):
    """What bash is offered for the last word of a line."""

    def ask(line: str, place: int | None = None) -> list[str]:
        separator = "\n" if "\n" in line else " "
        with monkeypatch.context() as patch:
            patch.setenv("COMP_WORDS", f"lora-mnist{separator}{line}")
            patch.setenv("COMP_CWORD", str(place or len(line.split(" "))))
            patch.setenv("_LORA_MNIST_COMPLETE", "complete_bash")
            patch.setattr("lora_mnist.cli.main.silence_stdout", lambda: None)  # it is the test's own
            code, out, err = cli()
        assert (code, err) == (0, "")
        return out.split()

    return ask


@pytest.fixture
def run(run_copy, tmp_path, monkeypatch) -> Path:
    """As a path from where the shell is, which has runs/default too."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(run_copy)
    (tmp_path / "runs" / "no-run").mkdir()
    monkeypatch.chdir(tmp_path)
    return run_copy.relative_to(tmp_path)


def test_runs(offered, run, tmp_path):
    assert offered("evaluate --run ") == ["runs/default", "run"]
    assert offered("evaluate --run runs/") == ["runs/default"]
    assert offered("evaluate --run ru") == ["runs/default", "run"]
    assert offered(f"evaluate --run {tmp_path}/r") == [f"{tmp_path}/run"]
    assert offered("evaluate --run nowhere/") == []
    Path("folder").mkdir()
    run.rename("folder/mine")
    assert offered("evaluate --run folder/") == ["folder/mine"]
    assert offered("evaluate --run folder/mine/") == []


def test_adapters_are_those_of_the_run_on_the_line(offered, run, adapter):
    assert offered(f"evaluate --run {run} --adapter ") == [adapter.name]
    assert offered(f"evaluate --run={run} --adapter d") == [adapter.name]
    assert offered("evaluate --adapter ") == [adapter.name]  # of runs/default
    assert offered(f"finetune --run {run} --on-top-of ") == [adapter.name]
    assert offered("evaluate --run nowhere --adapter ") == []


def test_a_folder_that_cannot_be_read_offers_nothing(offered, run, adapter):
    adapter.parent.rename("elsewhere")
    (run / "adapters").write_text("")
    assert offered("evaluate --adapter ") == []


@pytest.mark.parametrize("separator", [" ", "\n"])
def test_an_option_and_its_value_joined_by_an_equals_sign(offered, run, adapter, separator):
    """Bash makes three words of `--run=ru`, or two where nothing stands after the sign."""

    def ask(line: str) -> list[str]:
        return offered(line.replace(" ", separator), place=len(line.split(" ")))

    assert ask("evaluate --run = ru") == ["runs/default", "run"]
    assert ask("evaluate --run =") == ["runs/default", "run"]
    assert ask(f"evaluate --run = {run} --adapter =") == [adapter.name]
    assert ask("finetune --guard = e") == ["every-digit", "errors"]


def test_compare_takes_runs_and_their_adapters(offered, run, adapter):
    assert offered("compare ") == ["runs/default", "run"]
    assert offered("compare runs/default r") == ["runs/default", "run"]
    assert offered(f"compare {run} --adapter ") == [adapter.name]
    assert offered("compare --adapter ") == [adapter.name]


def test_checkpoints(offered, run, adapter, cli):
    assert offered(f"evaluate --run {run} --checkpoint ") == []
    assert cli("merge", "--adapter", adapter.name, "--name", "whole", "--run", run)[0] == 0
    assert offered(f"evaluate --run {run} --checkpoint ") == ["whole"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run --config ", config_names()),
        ("finetune --guard e", ["every-digit", "errors"]),
        ("finetune --digit ", ["weakest"]),
        ("evaluate --device ", ["auto", "cpu", "cuda"]),
        ("ev", ["evaluate"]),
        ("finetune --le", ["--learning-rate"]),
    ],
)
def test_words_that_an_option_takes(offered, line, words):
    assert offered(line) == words


@pytest.mark.parametrize(("run", "code"), [("", 0), ("x", 1)])
def test_fish_learns_from_the_exit_code_whether_there_is_something_to_offer(finished_run, run, code):
    asked = {
        "_LORA_MNIST_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "is-args",
        "_TYPER_COMPLETE_ARGS": f"lora-mnist evaluate --run {finished_run}{run} --adapter ",
    }
    done = lora_mnist(env=os.environ | asked)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_bash_gets_its_script(tmp_path, option):
    line = f"{sys.executable} -m lora_mnist {option} && true"  # bash stays, to be recognised as the shell
    env = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / ".bash_completions" / "lora-mnist.sh"
    text = done.stdout if option == "--show-completion" else script.read_text()
    assert "complete -o default -F _lora_mnist_completion lora-mnist" in text
