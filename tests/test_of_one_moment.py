"""A reader sees what there was or what there is, never some of both, and takes no replacement for damage."""

import json
import shutil

import pytest

from lora_mnist.errors import BusyError
from lora_mnist.pipeline import compare, doctor, pretrain, verify
from lora_mnist.pipeline import workspace as workspace_room
from lora_mnist.pipeline.finetune import finetune
from lora_mnist.report import again
from lora_mnist.report.page import write_report
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.listing import list_adapters
from lora_mnist.runs.moment import READINGS, of_one_moment
from lora_mnist.runs.overview import list_runs
from lora_mnist.runs.run import Run
from lora_mnist.settings.request import Request

from .conftest import workspace


def another_adapter(run, name):
    """In the place of the one that is there: of another rank and scaling, so that a mix of both is none at all."""
    options = {"finetune": {"name": name, "rank": 1, "alpha": 4.0}}
    finetune(workspace_room.open_workspace(Request(run=run, force=True, options=options)))


def another_base(run, name):
    """With an adapter of the same name."""
    pretrain(Request(run=run, force=True, options={"seed": 9}))
    finetune(workspace(run, name=name, digit=9))


@pytest.fixture
def once(monkeypatch):
    """Let something happen the first time that `name` of `where` was called, or before that."""

    def patch(where, name, happen, before=False):
        honest, left = getattr(where, name), [happen]

        def called(*arguments, **named):
            now = left.pop() if left else None
            if now and before:
                now()
            found = honest(*arguments, **named)
            if now and not before:
                now()
            return found

        monkeypatch.setattr(where, name, called)

    return patch


CHANGES = pytest.mark.parametrize("change", [another_adapter, another_base])


@CHANGES
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("command", ["evaluate", "predict --index 0"])
def test_a_network_is_of_one_adapter_on_its_own_base(cli, run_copy, adapter, once, change, before, command):
    once(workspace_room, "load_adapter", lambda: change(run_copy, adapter.name), before)
    line = (*command.split(), "--run", run_copy, "--adapter", adapter.name, "--json")
    code, found, _ = cli(*line)
    assert code == 0, found
    assert json.loads(found) == json.loads(cli(*line)[1])


@CHANGES
def test_verify_accuses_no_adapter_that_is_replaced_while_it_looks(run_copy, adapter, once, change):
    once(Run, "require_adapter", lambda: change(run_copy, adapter.name))
    found = verify(Request(run=run_copy))
    assert found.passed, found.failures
    assert found.digest == Run(run_copy).digest()


@CHANGES
def test_networks_are_compared_by_logits_of_their_own(run_copy, adapter, once, change):
    once(Artifact, "logits", lambda: change(run_copy, adapter.name))
    assert compare([run_copy]) == compare([run_copy])


def test_a_report_is_not_compared_with_what_came_after_it(run_copy, adapter, once):
    write_report(Run(run_copy))
    once(again, "report_of", lambda: another_adapter(run_copy, adapter.name), before=True)
    found = again.check_report(Run(run_copy))
    assert found.failures == ()
    assert "is older than the run" in found.notes[0]


def test_a_report_that_is_replaced_while_it_is_looked_at_is_not_accused(run_copy, once):
    write_report(Run(run_copy))
    once(again, "report_of", lambda: write_report(Run(run_copy), normalised=True))
    assert again.check_report(Run(run_copy)) == again.ReportFindings()


@pytest.mark.parametrize(
    "read",
    [
        lambda run: len(compare([run]).networks) - 1,
        lambda run: len(list_adapters(Run(run)).adapters),
        lambda run: list_runs(run).runs[0].adapters,
        lambda run: len(verify(Request(run=run)).adapters),
    ],
)
def test_what_is_added_meanwhile_is_for_the_next_reader(run_copy, once, read):
    once(Run, "adapters", lambda: finetune(workspace(run_copy, name="z")))
    assert read(run_copy) == 1
    assert read(run_copy) == 2


def test_doctor_finds_no_fault_in_what_is_replaced_meanwhile(run_copy, adapter, once):
    once(Run, "require_complete", lambda: another_base(run_copy, adapter.name))
    (check,) = [check for check in doctor(run_copy, run_copy / "data").checks if check.name == str(run_copy)]
    assert check.passed, check.finding


def test_a_fault_that_stays_is_told(run_copy, adapter, once):
    """Though there was a change as well."""

    def spoil():
        another_adapter(run_copy, adapter.name)
        (adapter / "analysis.json").write_text("{}")

    once(Run, "require_adapter", spoil, before=True)
    assert not verify(Request(run=run_copy)).passed


def test_what_never_holds_still_is_given_up(run_copy, adapter):
    read = []

    def busy(run):
        read.append(run.require_adapter(adapter.name))
        (adapter / "manifest.json").touch()

    with pytest.raises(BusyError, match=f"replaced parts of .* each of {READINGS} times"):
        of_one_moment(Run(run_copy), busy)
    assert len(read) == READINGS


def test_a_report_that_goes_while_its_files_are_listed_is_missed_by_nobody(run_copy, once):
    write_report(Run(run_copy))
    once(again, "report_of", lambda: shutil.rmtree(run_copy / "report"))
    assert again.check_report(Run(run_copy)) is None
