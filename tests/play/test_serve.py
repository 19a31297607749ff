"""As its own process: it stops in a second whatever it does, and a full disk costs nothing but the lesson."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from lora_mnist.errors import UsageError
from lora_mnist.play.serve import listening

from ..conftest import snapshot
from .conftest import Client

LESSON = {"drawings": [{"pixels": "7f" * 784, "label": digit} for digit in range(10)]}


@contextmanager
def playing(run, *options: str, largest: int | None = None):
    """(process, client) of `lora-mnist play`, whose processes can write no file of more than `largest` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job inherits it ignored
        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    command = [sys.executable, "-m", "lora_mnist", "play", "--run", str(run), "--port", "0", "--json", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=prepare
    )
    with process:
        printed = json.loads("".join(process.stdout.readline() for _ in range(4)))
        assert printed["run"] == str(run)
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", printed["address"])[1])
        try:
            yield process, Client(port, run, None)
        finally:
            process.kill()


def children_of(group: int) -> list[str]:
    """The commands that still run in a process group."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-g", str(group)], capture_output=True, text=True, check=False
    ).stdout
    return [line for line in listed.splitlines() if "spawn_main" in line]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("phase", ["idle", "training"])
def test_it_stops_in_a_second_also_while_a_training_runs(run_copy, phase, number, code):
    before = snapshot(run_copy)
    with playing(run_copy) as (process, client):
        if phase == "training":
            assert client.ask("/api/teaching/start", LESSON)[0] == 200
            client.states({"training", "taught", "failed"})
            assert children_of(process.pid)
        started = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait() == code
        assert time.monotonic() - started < 1.5  # a second, and what a busy machine adds
        said = process.stderr.read()
        assert len(said.splitlines()) == 1, said
        assert not children_of(process.pid)
    assert snapshot(run_copy) == before


def test_a_full_disk_costs_nothing_but_the_lesson(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = snapshot(run)
    with playing(run, largest=8192) as (_, client):
        assert client.ask("/api/teaching/start", LESSON)[0] == 200
        assert client.states({"taught", "failed"})[-1]["phase"] == "taught"
        assert client.ask("/api/teaching/keep", {"name": "mine"})[0] == 200
        state = client.states({"taught", "kept", "failed"})[-1]
        assert state["phase"] == "taught"  # so that it can be tried again
        assert state["problem"].startswith("It was not kept. Cannot write ")
        assert "what was in this one is kept" in state["problem"]
        assert snapshot(run) == before
        assert client.predict(index=1)["label"] is not None
        assert client.ask("/api/teaching/discard", {})[0] == 200


def test_only_this_machine_is_listened_to():
    with listening(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_an_answer_does_not_wait_for_more_to_send():
    with listening(0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # by which asyncio knows where to set TCP_NODELAY


def test_a_port_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"`port` \(=70000\) cannot be used"):
        listening(70000)
