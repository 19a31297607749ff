import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext

import pytest
from filelock import FileLock

from lora_mnist.cli.main import main
from lora_mnist.errors import BusyError, DiskError, RunError
from lora_mnist.files import NEW
from lora_mnist.pipeline import open_workspace, pretrain, verify
from lora_mnist.pipeline.finetune import finetune
from lora_mnist.report.page import write_report
from lora_mnist.runs import lock
from lora_mnist.runs.folders import new_folder
from lora_mnist.runs.listing import list_adapters
from lora_mnist.runs.lock import LOCK, Holder, holder_of, holding
from lora_mnist.runs.run import Run
from lora_mnist.settings.request import Request

from ..conftest import smoke, snapshot, workspace

HOLD = """
import sys
from pathlib import Path
from lora_mnist.runs.lock import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder):
    """A process that holds the lock of `folder` for as long as the block lasts."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has none."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(lock, "_told", set())


def test_a_second_writer_is_refused_with_who_holds_the_run_and_a_kill_frees_it(cli, run_copy):
    before = snapshot(run_copy)
    for_writing = (("pretrain", "--force"), ("run",), ("finetune", "--name", "z"), ("report",), ("merge",), ("export",))
    with held_by_another(run_copy) as process:
        holder = holder_of(run_copy)
        assert (holder.pid, holder.command.split()[0]) == (process.pid, "-c")
        for command in for_writing:
            adapter = ("--adapter", Run(run_copy).adapter_names()[0]) if command == ("merge",) else ()
            code, out, err = cli(*command, *adapter, "--run", run_copy)
            assert (code, out) == (4, "")
            assert f"is being written by process {process.pid} (`-c {run_copy}`), since {holder.since}." in err
        process.kill()
        process.wait()
    assert holder_of(run_copy) is None
    assert cli("finetune", "--name", "z", "--run", run_copy)[0] == 0
    assert not (run_copy / LOCK).exists()
    after = snapshot(run_copy)
    assert json.loads(after["contents.json"])["finished"][-1] == "adapters/z"
    assert before.items() - {("contents.json", before["contents.json"])} <= after.items()


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(cli, run_copy):
    diary = run_copy.parent / "diary"
    diary.write_text("mine")
    (run_copy / LOCK).symlink_to(diary)
    code, _, err = cli("report", "--run", run_copy)
    assert code == 6
    assert "is a link to another file. Remove it." in " ".join(err.split())
    assert diary.read_text() == "mine"


def test_readers_do_not_wait(cli, run_copy):
    with held_by_another(run_copy):
        for command in ("evaluate", "verify", "adapters", "params", "compare"):
            place = () if command == "compare" else ("--run",)
            assert cli(command, *place, run_copy)[0] == 0


def at_once(count, *arguments):
    """That many processes of one command, each with a seed of its own: their codes, and what they printed."""
    commands = [[sys.executable, "-m", "lora_mnist", *map(str, arguments), "--seed", str(i)] for i in range(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for command in commands]
    said = [process.communicate(timeout=600) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


@pytest.mark.parametrize("count", [2, 3])
def test_of_several_that_pretrain_at_once_one_wins_and_the_others_say_so(tmp_path, count):
    options = ("--config", "smoke", "--dataset", "digits", "--threads", "1", "--json", "--quiet")
    ended = at_once(count, "pretrain", "--run", tmp_path / "r", *options)
    won = [json.loads(out) for code, out, _ in ended if code == 0]
    assert [one["base_fingerprint"] for one in won] == [Run(tmp_path / "r").record.base_fingerprint]
    for code, out, err in ended:
        assert (code, err) == (0, "") or code == 4
        assert code == 0 or "is being written by process" in out or "is finished already" in out
    assert sorted(os.listdir(tmp_path / "r")) == ["adapters", "base", "contents.json", "run.json"]


def test_of_two_that_make_the_same_adapter_one_wins_and_the_other_says_so(run_copy):
    ended = at_once(2, "finetune", "--run", run_copy, "--name", "z", "--threads", "1", "--json", "--quiet")
    won = [json.loads(out) for code, out, _ in ended if code == 0]
    assert [one["seed"] for one in won] == [Run(run_copy).require_adapter("z").tuning.seed]
    (lost,) = [out for code, out, _ in ended if code == 4]
    assert "is being written by process" in lost or "is finished already" in lost


def test_of_two_whole_runs_at_once_one_wins_and_the_other_says_so(tmp_path):
    options = ("--config", "smoke", "--dataset", "digits", "--threads", "1", "--json", "--quiet")
    ended = at_once(2, "run", "--run", tmp_path / "r", *options)
    assert sorted(code for code, _, _ in ended) in ([0, 4], [0, 2])  # 2: it came later, and its seed is another
    assert verify(Request(run=tmp_path / "r")).passed
    assert (tmp_path / "r" / "report" / "index.html").is_file()


def test_a_base_that_was_finished_meanwhile_is_not_replaced(tmp_path):
    request, late = smoke(tmp_path / "r"), Run(tmp_path / "r")
    assert not late.base.is_finished
    pretrain(request)
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match="finished already"):
        pretrain(request, run=late)
    assert snapshot(tmp_path) == before


def test_an_adapter_of_a_base_that_is_gone_is_not_trained(run_copy):
    opened = workspace(run_copy, name="z")
    pretrain(Request(run=run_copy, force=True, options={"seed": 9}))
    before = snapshot(run_copy)
    with pytest.raises(RunError, match="was replaced by another command"):
        finetune(opened)
    assert snapshot(run_copy) == before


def test_a_reader_between_two_bases_sees_one_of_them(run_copy, monkeypatch):
    """The base is replaced after its JSON was read, before its weights are."""
    honest, left = Run.require_base, [1]

    def require_base(run):
        base = honest(run)
        if left:
            left.pop()
            pretrain(Request(run=run_copy, force=True, options={"seed": 9}))
        return base

    monkeypatch.setattr(Run, "require_base", require_base)
    work = open_workspace(Request(run=run_copy))
    assert work.settings.seed == 9
    assert work.fingerprint.sha256 == Run(run_copy).record.base_fingerprint == work.run.record.base_fingerprint


@pytest.mark.parametrize("read", ["verify", "list_adapters"])
def test_a_reader_of_adapters_that_go_meanwhile_sees_the_new_base(run_copy, monkeypatch, read):
    honest, left = Run.require_adapter, [1]

    def require_adapter(run, name):
        if left:
            left.pop()
            pretrain(Request(run=run_copy, force=True, options={"seed": 9}))
        return honest(run, name)

    monkeypatch.setattr(Run, "require_adapter", require_adapter)
    if read == "verify":
        found = verify(Request(run=run_copy))
        assert (found.passed, found.base.fingerprint) == (True, Run(run_copy).record.base_fingerprint)
    else:
        found = list_adapters(Run(run_copy))
        assert found.base_fingerprint == Run(run_copy).record.base_fingerprint
    assert found.adapters == ()


def test_a_folder_that_is_replaced_while_it_is_checked_is_no_damage(run_copy, adapter, monkeypatch):
    from lora_mnist.runs import saved

    honest, left = saved.check_folder, [1]

    def check_folder(folder, contents):
        if left:
            left.pop()
            finetune(open_workspace(Request(run=run_copy, force=True, options={"finetune": {"name": adapter.name}})))
        honest(folder, contents)

    monkeypatch.setattr(saved, "check_folder", check_folder)
    assert len(list_adapters(Run(run_copy)).adapters) == 1


def test_a_writer_clears_what_killed_ones_left_and_none_of_it_comes_back(run_copy, adapter):
    names = (f"adapters/.gone{NEW}1", f".base{NEW}2", f"adapters/.{adapter.name}.old")
    for folder in (run_copy / name for name in names):
        with new_folder(folder):
            pass
    (run_copy / f".run.json{NEW}3").write_text("{")
    before = snapshot(run_copy)
    assert Run(run_copy).adapter_names() == [adapter.name]
    write_report(Run(run_copy))
    now = snapshot(run_copy)
    gone = {*(f"{name}/manifest.json" for name in names), f".run.json{NEW}3"}
    assert before.keys() - now.keys() == gone


def test_without_locks_it_says_so_once_and_goes_on(cli, run_copy, without_locks):
    code, _, err = cli("run", "--run", run_copy)
    assert code == 0, err
    assert err.count("has no locks") == 1
    assert f"the file system of {run_copy} has no locks" in err


def test_where_the_lock_cannot_be_tried_a_holder_is_told_while_it_lives(tmp_path, without_locks):
    """As in the folder of somebody else."""
    name = Holder(pid=os.getpid(), host=socket.gethostname(), command="lora-mnist run", since="now")
    for pid, told in ((os.getpid(), True), (2**22 + 1, False)):  # beyond the largest pid
        (tmp_path / LOCK).write_text(name.model_copy(update={"pid": pid}).model_dump_json())
        assert (holder_of(tmp_path) is not None) == told


def test_without_locks_what_was_finished_meanwhile_is_found_before_it_is_replaced(run_copy, without_locks):
    first, second = Run(run_copy), Run(run_copy)

    def both():
        with first.new(first.adapter("z")) as draft, second.new(second.adapter("z")) as other:  # left in this order
            (draft.folder / "who").write_text("first")
            (other.folder / "who").write_text("second")

    with pytest.raises(RunError, match="in the meantime"):
        both()
    assert (run_copy / "adapters" / "z" / "who").read_text() == "second"
    assert Run(run_copy).adapter("z").is_finished


def test_a_thread_is_another_writer_and_nesting_is_not(tmp_path):
    refused = []

    def other():
        try:
            with holding(tmp_path / "r"):
                pass
        except BusyError as error:
            refused.append(error)

    with holding(tmp_path / "r") as first, holding(tmp_path / "r") as second:
        assert (first, second) == (True, False)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / "r" / LOCK).is_file()
    assert str(os.getpid()) in str(refused[0])
    assert not (tmp_path / "r").exists()  # nothing has come into it


def test_a_folder_that_cannot_be_made_is_the_disks_refusal(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="Cannot write"), holding(tmp_path / "file" / "r"):
        pass


@pytest.mark.parametrize(("goes", "tried"), [(0, 1), (4, 5), (5, 5)])
def test_a_folder_that_goes_when_it_is_empty_is_made_again_four_times(tmp_path, monkeypatch, goes, tried):
    honest, tries = FileLock.acquire, []

    def acquire(self, *arguments, **named):
        tries.append((tmp_path / "r").is_dir())
        if len(tries) <= goes:
            (tmp_path / "r").rmdir()
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return honest(self, *arguments, **named)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with (
        pytest.raises(DiskError, match="No such file") if goes == 5 else nullcontext(),
        holding(tmp_path / "r") as taken,
    ):
        assert taken
    assert tries == [True] * tried


def test_what_else_the_disk_refuses_is_told_at_once(tmp_path, monkeypatch):
    tries = []

    def acquire(self, *arguments, **named):
        tries.append(self)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(DiskError, match=r"Cannot write .*: Permission denied\."), holding(tmp_path):
        pass
    assert len(tries) == 1


def test_a_holder_that_was_killed_before_it_gave_its_name_is_not_blamed(tmp_path):
    with held_by_another(tmp_path) as process:
        dead = json.loads((tmp_path / LOCK).read_text()) | {"pid": 2**22 + 1}
        (tmp_path / LOCK).write_text(json.dumps(dead))
        process.send_signal(signal.SIGCONT)
        with pytest.raises(BusyError, match="written by"), holding(tmp_path):
            pass
    (tmp_path / LOCK).write_text("{")
    with holding(tmp_path):
        assert holder_of(tmp_path).pid == os.getpid()


def test_main_returns_after_a_refusal_with_nothing_held(tmp_path):
    with held_by_another(tmp_path / "r"):
        assert main(["pretrain", "--config", "smoke", "--dataset", "digits", "--run", str(tmp_path / "r")]) == 4
    assert not (tmp_path / "r" / "base").exists()
