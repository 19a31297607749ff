"""Commands in the environments in which people run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mnist.cli.errors import report_error

from ..conftest import lora_mnist


def test_an_encoding_without_arrows_has_likenesses_of_them(finished_run, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    done = lora_mnist("adapters", "--run", finished_run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "->" in done.stdout
    assert "?" not in done.stdout


def test_ascii_has_likenesses_of_what_sweeps_print_too(succeeds):
    succeeds("--version")
    assert "12.5 ± 0.4 (−3 %), – × 2".encode("ascii", "plain") == b"12.5 +- 0.4 (-3 %), - x 2"


def test_plots_ask_for_no_backend_and_for_no_style_of_the_users(run_copy, tmp_path, monkeypatch):
    """As Jupyter sets one for every command; and a matplotlibrc for other plots, with LaTeX that is not there."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    pictures = []
    rc = b"text.usetex: True\nfont.size: 30\nimage.origin: lower\nsavefig.bbox: tight\naxes.prop_cycle: foo\n\xff"
    for backend, content in ((None, b""), ("module://matplotlib_inline.backend_inline", rc), ("Foo", rc)):
        if backend:
            monkeypatch.setenv("MPLBACKEND", backend)
        (tmp_path / "matplotlibrc").write_bytes(content)
        done = lora_mnist("report", "--run", run_copy)
        assert (done.returncode, done.stderr) == (0, "")
        pictures.append({file.name: file.read_bytes() for file in (run_copy / "report").glob("*.[ps][nv]g")})
    assert pictures[0] == pictures[1] == pictures[2]
    assert pictures[0]


def test_help_has_its_text_without_docstrings():
    plain, stripped = (lora_mnist("finetune", "--help", python=flags) for flags in ((), ("-OO",)))
    assert stripped.returncode == 0
    assert stripped.stdout == plain.stdout


def test_a_tilde_is_the_home_folder(cli, fails, finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LORA_MNIST_DATA", "~/data")
    monkeypatch.chdir(tmp_path)
    fails(3, "pretrain", "--dataset", "mnist", "--offline", "--run=~/x", says=str(tmp_path / "data"))
    assert f"There is no base in {tmp_path / 'x'}" in cli("evaluate", "--run=~/x")[2]
    assert cli("predict", "--run", finished_run, "--index=3", "--show=~/seen.png")[0] == 0
    assert (tmp_path / "seen.png").is_file()
    for command in (["predict", "~/none.png"], ["teach", "~/none"], ["evaluate", "--adapter=~/none"]):
        fails((3, 4), *command, "--run", finished_run, says=f"{tmp_path}/none")
    fails(2, "run", "--config=~/none.toml", "--run=new", says=f"{tmp_path}/none.toml")
    assert not {"~", "new", "x"} & {*os.listdir()}


def test_no_process_imports_what_lies_in_the_working_folder(finished_run, tmp_path):
    for name in ("http", "types", "socket", "queue", "torch", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user')")
    script = Path(sys.executable).with_name("lora-mnist")
    options = ("--digit", "3", "--rank", "1", "--seed", "0-1", "--engine", "local", "--set", "finetune.steps=20")
    command = [script, "sweep", "--run", finished_run, "--out", tmp_path / "sweep", *options]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "command"),
    [
        ("TQDM_MININTERVAL", "abc", "pretrain"),
        ("TORCH_LOGS", "foo", "pretrain"),
        ("SOURCE_DATE_EPOCH", "abc", "report"),
        ("SOURCE_DATE_EPOCH", "9" * 18, "report"),
        ("TERMINAL_WIDTH", "abc", "--help"),
    ],
)
def test_a_variable_that_a_library_cannot_read_is_named(run_copy, tmp_path, monkeypatch, variable, value, command):
    """As each library says it: by its value, or not at all. Nothing is left."""
    monkeypatch.setenv(variable, value)
    place = run_copy if command == "report" else tmp_path / "new"
    there = sorted(tmp_path.rglob("*"))
    done = lora_mnist(command, *([] if command == "--help" else ["--run", place]))
    assert done.returncode == 2, done.stderr
    assert f"`{variable}` (='{value}')" in done.stderr
    assert "bug" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == there


def test_an_error_that_no_variable_caused_is_a_bug(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_NCOLS", "abc")  # not read by what fails
    with pytest.raises(ValueError, match="abc") as caught:
        Path("x").with_name("abc/")
    assert report_error(caught.value, as_json=False) == 1
    assert "bug" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["~/x", "~nobody-of-that-name/x"])
def test_a_home_folder_that_is_not_known_is_said(fails, monkeypatch, path):
    """As of a container's user without a name."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    fails(2, "adapters", f"--run={path}", says=f"{path!r} is in no home folder")


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (3, ("run", "--dataset", "mnist", "--offline", "--data", "none", "--run", "new")),
        (3, ("sweep", "--dataset", "mnist", "--offline", "--data", "none", "--out", "new")),
        (2, ("pretrain", "--config", "smoke", "--dataset", "mnist-5k", "--learning-rate", "1e30", "--run", "new/deep")),
        (3, ("predict", "none.png", "--show", "new/seen.png", "--run", "run")),
        (4, ("export", "--adapter", "none", "--format", "torch", "--out", "new/x.pt2", "--run", "run")),
        (4, ("extract", "--run", "run")),
        (2, ("finetune", "--digit", "3", "--learning-rate", "1e30", "--run", "run")),
        (3, ("teach", "none", "--run", "run")),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)
def test_a_refused_command_leaves_nothing_behind(cli, run_copy, tmp_path, monkeypatch, code, command):
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    assert cli(*command)[0] == code
    assert sorted(tmp_path.rglob("*")) == there
