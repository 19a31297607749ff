"""What was finished and is gone as a whole is missed, by every command alike, and not replaced unasked."""

import json
import shutil

import pytest

from lora_mnist.errors import AlteredError, RunError
from lora_mnist.pipeline import Applied, Request, finetune, merge, open_workspace, pretrain
from lora_mnist.runs import rundir
from lora_mnist.runs.contents import read_contents, write_contents
from lora_mnist.runs.run import Run

from ..conftest import smoke, workspace


@pytest.fixture
def place(adapter):
    return f"adapters/{adapter.name}"


def test_adapters_and_checkpoints_are_listed(run_copy, adapter, place):
    merged = merge(open_workspace(Request(run=run_copy)), [Applied(adapter.name)]).name
    assert read_contents(run_copy) == (place, f"checkpoints/{merged}")
    assert Run(run_copy).missing() == ()


@pytest.mark.parametrize("gone", ["folder", "manifest"])
def test_every_command_names_what_is_missing(cli, run_copy, adapter, place, gone):
    shutil.rmtree(adapter) if gone == "folder" else (adapter / "manifest.json").unlink()
    for command in ("verify", "adapters", "report", "finetune"):
        code, _, err = cli(command, "--run", run_copy)
        assert (code, place in err) == (4, True), command
    assert place in cli("runs", run_copy)[1]


def test_it_is_made_again_only_by_force(run_copy, adapter):
    shutil.rmtree(adapter)
    with pytest.raises(RunError, match=adapter.name):
        finetune(workspace(run_copy))
    finetune(open_workspace(Request(run=run_copy, force=True)))
    assert Run(run_copy).missing() == ()


def test_without_the_list_what_is_there_counts_and_is_listed_again(run_copy, adapter, place):
    (run_copy / "contents.json").unlink()
    assert Run(run_copy).adapter_names() == [adapter.name]
    assert Run(run_copy).missing() == ()
    Run(run_copy).tidy()
    assert read_contents(run_copy) == (place,)


def test_a_command_that_is_killed_before_it_lists_leaves_what_counts(run_copy, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr(rundir, "write_contents", die)
    with pytest.raises(Killed):
        finetune(workspace(run_copy, digit=3, name="three"))
    monkeypatch.undo()
    assert "three" in Run(run_copy).adapter_names()
    assert "adapters/three" not in read_contents(run_copy)
    Run(run_copy).tidy()
    assert "adapters/three" in read_contents(run_copy)


def test_a_new_base_starts_a_new_list(run_copy):
    pretrain(Request(**{**smoke(run_copy, seed=5).__dict__, "force": True}))
    assert read_contents(run_copy) == ()


def test_what_is_removed_after_the_list_was_read_is_not_missed(run_copy, adapter, place, monkeypatch):
    """A writer takes a place from the list before it removes the folder."""
    shutil.rmtree(adapter)
    lists = iter([(place,), ()])
    monkeypatch.setattr(rundir, "read_contents", lambda run: next(lists))
    assert Run(run_copy).missing() == ()


@pytest.mark.parametrize("content", ["", "[]", '{"finished": ["../x"]}', '{"finished": [1]}', '{"more": 1}'])
def test_a_list_that_is_none_is_an_error(run_copy, content):
    (run_copy / "contents.json").write_text(content)
    with pytest.raises(AlteredError, match=r"contents\.json"):
        Run(run_copy).missing()


def test_the_list_is_in_order(tmp_path):
    write_contents(tmp_path, ["checkpoints/a", "adapters/b", "adapters/a"])
    listed = json.loads((tmp_path / "contents.json").read_text())
    assert listed == {"finished": ["adapters/a", "adapters/b", "checkpoints/a"]}
