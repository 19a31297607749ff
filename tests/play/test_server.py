"""Over HTTP: what is answered, what is refused, and that nothing falls over; and how the server starts and stops."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from lora_mnist.browser.one_file import STATIC
from lora_mnist.errors import RunError, UsageError
from lora_mnist.pipeline import Request, open_workspace, pretrain
from lora_mnist.play.server import MAX_BODY_BYTES, Server, page_now, refusal_reason, run_now
from lora_mnist.play.teaching import MAX_DRAWINGS, SIDE

from ..conftest import flip_bit, smoke, snapshot
from .conftest import Client

OWN = {"host": "127.0.0.1:8017"}
JSON = OWN | {"content-type": "application/json"}
DRAWING = {"pixels": "7f" * 784, "label": 3}
LESSON = {"drawings": [DRAWING | {"label": digit} for digit in range(10)]}


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/api/run", OWN),
        ("GET", "/api/run", {"host": "localhost:8017"}),
        ("GET", "/api/run", OWN | {"origin": "http://127.0.0.1:8017", "sec-fetch-site": "same-origin"}),
        ("GET", "/api/run", {"host": "localhost:9000", "origin": "http://localhost:9000"}),  # through a tunnel
        ("GET", "/", OWN | {"sec-fetch-site": "cross-site"}),  # a link on another page
        ("POST", "/api/run", JSON),
        ("POST", "/api/run", JSON | {"content-type": "application/json; charset=utf-8"}),
    ],
)
def test_requests_of_the_own_page_are_allowed(method, path, headers):
    assert refusal_reason(method, path, headers) is None


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("GET", {"host": "evil.example"}),  # a foreign name that resolves to this machine
        ("GET", {"host": "127.0.0.1.evil.example:8017"}),
        ("GET", {"host": "localhost:8017@evil.example"}),
        ("GET", {"host": "192.168.0.7:8017"}),
        ("GET", OWN | {"origin": "http://evil.example"}),
        ("GET", OWN | {"origin": "null"}),
        ("GET", OWN | {"origin": "http://localhost:3000"}),  # another server on this machine
        ("GET", OWN | {"origin": "https://127.0.0.1:8017"}),
        ("GET", OWN | {"sec-fetch-site": "cross-site"}),
        ("GET", OWN | {"sec-fetch-site": "same-site"}),
        ("POST", JSON | {"sec-fetch-site": "cross-site"}),
        ("POST", OWN),  # a form can be sent without permission, JSON cannot
        ("POST", OWN | {"content-type": "text/plain"}),
        ("POST", OWN | {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
def test_requests_of_others_are_refused(method, headers):
    for path in ("/api/run", "/") if method == "POST" else ("/api/run",):
        assert refusal_reason(method, path, headers) is not None


def test_it_holds_over_http_and_every_response_has_the_headers(client):
    refused = client.ask("/api/run", headers={"Host": "evil.example"})
    assert refused[0] == refused[2]["error"]["status"] == 403
    assert client.ask("/api/teaching/start", {"drawings": []}, {"Origin": "http://evil.example"})[0] == 403
    for _, headers, _ in (client.ask("/"), client.ask("/api/run"), client.ask("/nothing"), refused):
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] is None


def test_the_page_is_served_and_nothing_else(client):
    status, headers, page = client.ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"connect-src 'self'" in page
    for path in ("/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/run.json", "/style.css", "/static/style.css"):
        status, _, answer = client.ask(path)
        assert (status, answer["error"]["status"]) == (404, 404)


def test_the_scripts_write_no_markup_and_name_no_address():
    page = (STATIC / "page.html.j2").read_text()
    assert not re.search(r"<script[^>]*src=|\son\w+=|\sstyle=|https?://", page)
    for file in STATIC.glob("*.js"):
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", text), file


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/teaching/start", b"{", 400, "JSON"),
        ("/api/teaching/start", {"drawings": [DRAWING], "secret": 1}, 400, "`secret`"),
        ("/api/teaching/start", {"drawings": [DRAWING], "tab": "<b>"}, 400, "letters, digits"),
        ("/api/teaching/start", {"drawings": []}, 400, "`drawings`"),
        ("/api/teaching/start", {"drawings": [DRAWING] * 501}, 400, "500"),
        ("/api/teaching/start", {"drawings": [DRAWING | {"label": 10}]}, 400, "label"),
        ("/api/teaching/start", {"drawings": [DRAWING | {"pixels": "7f" * 783}]}, 400, "784"),
        ("/api/teaching/start", {"drawings": [DRAWING | {"pixels": "zz" * 784}]}, 400, "hex"),
        ("/api/teaching/keep", {"name": "../../etc"}, 400, "letters, digits"),
        ("/api/teaching/keep", {"name": "mine"}, 400, "There is nothing to keep."),
        ("/api/teaching/discard", {}, 400, "There is nothing to discard."),
        ("/api/nothing", {}, 404, "Not Found"),
        ("/api/run", {}, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_refused_in_json(client, path, body, status, words):
    found, _, answer = client.ask(path, body)
    assert found == answer["error"]["status"] == status
    assert words in answer["error"]["message"]


def test_a_body_is_capped(client):
    status, _, answer = client.ask("/api/teaching/start", b" " * (MAX_BODY_BYTES + 1))
    assert (status, answer["error"]["status"]) == (413, 413)
    assert f"{MAX_BODY_BYTES:,} bytes" in answer["error"]["message"]


def test_other_methods_are_refused_with_the_headers_too(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"OPTIONS /api/teaching/start HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = connection.makefile().read()
    assert "frame-ancestors 'none'" in answer
    assert "Access-Control" not in answer
    assert '{"error": {"status": 501, ' in answer


@pytest.mark.parametrize(("name", "value", "file"), [("MAX_DRAWINGS", MAX_DRAWINGS, "tray"), ("SIDE", SIDE, "pixels")])
def test_page_and_server_agree_on_limits(name, value, file):
    assert f"const {name} = {value};" in (STATIC / f"{file}.js").read_text()


def test_many_quick_requests_fifty_at_once(client):
    wanted = client.ask("/api/run")[2]

    def one(i: int) -> bool:
        if i % 10 == 9:
            return client.ask("/api/teaching/start", {"drawings": []})[0] == 400
        return client.ask("/api/run")[2] == wanted

    with ThreadPoolExecutor(50) as many:
        assert all(many.map(one, range(300)))


def test_a_new_adapter_is_there_when_the_page_asks_again(run_copy, adapter):
    work = open_workspace(Request(run=run_copy))
    (packed,) = run_now(work)["adapters"]
    assert (packed["name"], packed["summary"]) == (adapter.name, "digit 8, rank 2")
    other = shutil.copytree(adapter, adapter.with_name("taught"))
    now = run_now(work)
    assert {one["name"] for one in now["adapters"]} == {adapter.name, "taught"}
    assert now["taught"] == "taught-2"
    shutil.rmtree(other)
    assert len(run_now(work)["adapters"]) == 1


def test_a_damaged_adapter_is_named_and_the_others_stay(run_copy, adapter):
    flip_bit(shutil.copytree(adapter, adapter.with_name("bad")) / "adapter_model.safetensors")
    work = open_workspace(Request(run=run_copy))
    found = {one["name"]: one for one in run_now(work)["adapters"]}
    assert "problem" not in found[adapter.name]
    assert "is not the saved file" in found["bad"]["problem"]
    assert b"is not the saved file" in page_now(work)[0]


def test_another_base_is_noticed(run_copy):
    work = open_workspace(Request(run=run_copy))
    pretrain(replace(smoke(run_copy, seed=5), force=True))
    with pytest.raises(RunError, match="was replaced by another command"):
        run_now(work)


@contextmanager
def playing(run, max_file_bytes: int | None = None):
    """(process, client) of `lora-mnist play`, whose processes can write no larger files."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job inherits it ignored
        if max_file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    command = [sys.executable, "-m", "lora_mnist", "play", "--run", str(run), "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=prepare
    )
    with process:
        printed = json.loads("".join(process.stdout.readline() for _ in range(4)))
        assert printed["run"] == str(run)
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", printed["address"])[1])
        try:
            yield process, Client(port, run)
        finally:
            process.kill()


def children_of(group: int) -> list[str]:
    """The commands that still run in a process group."""
    command = ["ps", "-ww", "-o", "args=", "-g", str(group)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in listed.splitlines() if "spawn_main" in line]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("phase", ["idle", "training"])
def test_it_stops_in_a_second_also_while_a_training_runs(run_copy, phase, number, code):
    before = snapshot(run_copy)
    with playing(run_copy) as (process, client):
        if phase == "training":
            assert client.ask("/api/teaching/start", LESSON)[0] == 200
            client.state_in("training", "taught", "failed")
            assert children_of(process.pid)
        started = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait() == code
        assert time.monotonic() - started < 1.5  # a second, and what a busy machine adds
        printed = process.stderr.read()
        assert len(printed.splitlines()) == 1, printed
        assert not children_of(process.pid)
    assert snapshot(run_copy) == before


def test_a_full_disk_costs_nothing_but_the_lesson(run_copy):
    before = snapshot(run_copy)
    with playing(run_copy, max_file_bytes=8192) as (_, client):
        assert client.ask("/api/teaching/start", LESSON)[0] == 200
        assert client.state_in("taught", "failed")["phase"] == "taught"
        assert client.ask("/api/teaching/keep", {"name": "mine"})[0] == 200
        state = client.state_in("taught", "kept", "failed")
        assert state["phase"] == "taught"  # so that it can be tried again
        assert state["problem"].startswith("It was not kept. Cannot write ")
        assert "what was in this one is kept" in state["problem"]
        assert snapshot(run_copy) == before
        assert client.ask("/")[0] == 200
        assert client.ask("/api/teaching/discard", {})[0] == 200


def test_it_listens_to_this_machine_only(finished_run):
    with Server(Request(run=finished_run), 0) as server:
        assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(UsageError, match=r"`port` \(=70000\) cannot be used"):
        Server(Request(run=finished_run), 70000)
