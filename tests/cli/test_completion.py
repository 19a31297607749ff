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
    """As a path from where the shell is, which has runs/default and folder/mine too."""
    for path in ("runs/default", "folder/mine"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).symlink_to(run_copy)
    (tmp_path / "runs" / "no-run").mkdir()
    monkeypatch.chdir(tmp_path)
    return run_copy.relative_to(tmp_path)


BOTH = ["runs/default", "run"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ev", ["evaluate"]),
        ("finetune --le", ["--learning-rate"]),
        ("finetune --guard e", ["every-digit", "errors"]),
        ("finetune --digit ", ["weakest"]),
        ("evaluate --device ", ["auto", "cpu", "cuda"]),
        ("run --config ", config_names()),
        ("evaluate --run ", BOTH),
        ("evaluate --run ru", BOTH),
        ("evaluate --run runs/", ["runs/default"]),
        ("evaluate --run TMP/r", ["TMP/run"]),
        ("evaluate --run folder/", ["folder/mine"]),
        ("evaluate --run folder/mine/", []),
        ("evaluate --run nowhere/", []),
        ("evaluate --adapter ", ["ADAPTER"]),  # of runs/default
        ("evaluate --run run --adapter ", ["ADAPTER"]),
        ("evaluate --run=run --adapter d", ["ADAPTER"]),
        ("evaluate --run nowhere --adapter ", []),
        ("finetune --run run --on-top-of ", ["ADAPTER"]),
        ("compare ", BOTH),
        ("compare runs/default r", BOTH),
        ("compare run --adapter ", ["ADAPTER"]),
        ("compare --adapter ", ["ADAPTER"]),
    ],
)
def test_what_fits_is_offered(offered, run, adapter, tmp_path, line, words):
    line, *words = (one.replace("TMP", str(tmp_path)).replace("ADAPTER", adapter.name) for one in (line, *words))
    assert offered(line) == words


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


def test_checkpoints(offered, run, adapter, cli):
    assert offered(f"evaluate --run {run} --checkpoint ") == []
    assert cli("merge", "--adapter", adapter.name, "--name", "whole", "--run", run)[0] == 0
    assert offered(f"evaluate --run {run} --checkpoint ") == ["whole"]


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
