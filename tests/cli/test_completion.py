"""What the shell offers after TAB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mnist.cli.completion import adapters, words_of
from lora_mnist.settings.layers import config_names


@pytest.fixture
def offered(cli, monkeypatch):
    """What bash is offered for the last word of a line."""

    def ask(line: str, place: int | None = None) -> list[str]:
        separator = "\n" if "\n" in line else " "
        monkeypatch.setenv("COMP_WORDS", f"lora-mnist{separator}{line}")
        monkeypatch.setenv("COMP_CWORD", str(place or len(line.split(" "))))
        monkeypatch.setenv("_LORA_MNIST_COMPLETE", "complete_bash")
        with monkeypatch.context() as patch:
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
    run.rename("elsewhere")
    assert offered("evaluate --run elsewhere/") == []
    Path("folder").mkdir()
    Path("elsewhere").rename("folder/mine")
    assert offered("evaluate --run folder/") == ["folder/mine"]
    Path("folder/mine").rename(run)
    assert offered(f"evaluate --run {tmp_path}/r") == [f"{tmp_path}/run"]
    assert offered("evaluate --run nowhere/") == []


def test_adapters_are_those_of_the_run_on_the_line(offered, run, adapter):
    assert offered(f"evaluate --run {run} --adapter ") == [adapter.name]
    assert offered(f"evaluate --run={run} --adapter d") == [adapter.name]
    assert offered("evaluate --adapter ") == [adapter.name]  # of runs/default
    assert offered(f"finetune --run {run} --on-top-of ") == [adapter.name]
    assert offered("evaluate --run nowhere --adapter ") == []


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


def test_checkpoints(offered, run, cli):
    (adapter,) = adapters_in(run)
    assert offered(f"evaluate --run {run} --checkpoint ") == []
    os.environ.pop("_LORA_MNIST_COMPLETE")
    assert cli("merge", "--adapter", adapter, "--name", "whole", "--run", run)[0] == 0
    assert offered(f"evaluate --run {run} --checkpoint ") == ["whole"]


def adapters_in(run: Path) -> list[str]:
    class Line:
        params = {"run": run}  # noqa: RUF012

    return adapters(Line())


def test_a_folder_that_cannot_be_read_offers_nothing(offered, run, monkeypatch):
    def refuse(folder):
        raise PermissionError

    monkeypatch.setattr("lora_mnist.cli.completion.finished_folders", refuse)
    assert offered("evaluate --adapter ") == []


def test_words(offered):
    assert offered("run --config ") == config_names()
    assert offered("finetune --guard e") == ["every-digit", "errors"]
    assert offered("finetune --digit ") == ["weakest"]
    assert offered("ev") == ["evaluate"]
    assert offered("finetune --le") == ["--learning-rate"]
    assert words_of("auto|cpu|cuda|cuda:N")() == ["auto", "cpu", "cuda"]


@pytest.mark.parametrize(("run", "code"), [("", 0), ("x", 1)])
def test_fish_is_told_by_the_exit_code_whether_there_is_something_to_offer(finished_run, run, code):
    asked = {
        "_LORA_MNIST_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "is-args",
        "_TYPER_COMPLETE_ARGS": f"lora-mnist evaluate --run {finished_run}{run} --adapter ",
    }
    command = [sys.executable, "-m", "lora_mnist"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_the_shell_is_taught(tmp_path):
    program = (
        "import sys\nfrom lora_mnist.cli.main import main\n"
        "from typer import _completion_shared as shells\nshells._get_shell_name = lambda: 'bash'\n"
        "import typer.completion\ntyper.completion._get_shell_name = lambda: 'bash'\n"
        "sys.exit(main([sys.argv[1]]))"
    )
    for option in ("--show-completion", "--install-completion"):
        command = [sys.executable, "-c", program, option]
        env = os.environ | {"HOME": str(tmp_path)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), option
        assert "bash" in done.stdout
    script = (tmp_path / ".bash_completions" / "lora-mnist.sh").read_text()
    assert "complete -o default -F _lora_mnist_completion lora-mnist" in script
