"""`lora-mnist teach`: what it prints, what it refuses before it trains, and what is left when it is ended."""

import json
import resource
import signal
import subprocess
import sys

import pytest
from PIL import Image

from lora_mnist.runs.atomic import HOLDER, LOCK, TEMPORARY
from lora_mnist.runs.run import Run
from lora_mnist.training import train as recipe

from ..conftest import drawings_of, snapshot, write_drawings


@pytest.fixture
def hand(tmp_path):
    return write_drawings(tmp_path / "hand", drawings_of("digits"))


def command(*arguments, **options):
    line = [sys.executable, "-m", "lora_mnist", "teach", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_answer_comes_first_in_16_lines(cli, run_copy, hand, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(run_copy.parent)
    code, out, err = cli("teach", hand, "--run", "run")
    assert code == 0, err
    assert len(out.splitlines()) <= 16
    lesson = Run(run_copy).adapter("taught").finetune.lesson
    assert " ".join(out.split()).startswith(lesson.verdict.words)
    for part in (
        f"{lesson.unseen.before} → {lesson.unseen.after}",
        f"{lesson.before} → {lesson.after}",
        f"{lesson.val.before} → {lesson.val.after}",
        "digits",
        "proof     passed",
        "saved     run/adapters/taught",
        "lora-mnist report --run run --open",
    ):
        assert part in out
    assert "teaching: 20 steps" in err
    assert "taught was taught 30 drawings" in cli("adapters", "--run", run_copy)[1]


def test_a_dry_run_says_the_same_and_keeps_nothing(cli, run_copy, hand):
    before = snapshot(run_copy)
    code, dry, err = cli("teach", hand, "--run", run_copy, "--dry-run")
    assert code == 0, err
    assert snapshot(run_copy) == before
    assert "leave out --dry-run" in dry
    _, kept, _ = cli("teach", hand, "--run", run_copy)
    assert kept.partition("proof")[0] == dry.partition("not kept")[0]


def test_as_json_and_quietly(cli, run_copy, hand):
    code, out, err = cli("teach", hand, "--run", run_copy, "--json", "--name", "one", "--steps", 5, "--seed", 3)
    assert code == 0, err
    document, record = json.loads(out), Run(run_copy).adapter("one").finetune
    assert document["kept"] is True
    assert document["folder"] == str(run_copy / "adapters" / "one")
    assert document["lesson"] == record.lesson.model_dump(mode="json")
    assert document["verdict"]["words"] == record.lesson.verdict.words
    assert (record.settings.steps, record.seed) == (5, 3)
    folder = run_copy / "adapters" / "two"
    assert cli("teach", hand, "--run", run_copy, "--quiet", "--name", "two", "--steps", 5) == (0, f"{folder}\n", "")


def test_what_the_guard_refuses_is_said_with_the_way_out(cli, run_copy, hand):
    config = run_copy.parent / "harsh.toml"
    config.write_text("[teach]\nlearning_rate = 0.3\nshare = 1.0\n")
    before = snapshot(run_copy)
    code, out, err = cli("teach", hand, "--run", run_copy, "--config", config, "--guard", "errors", "--steps", 100)
    assert code == 0, err
    assert out.startswith("Not kept: the guard allows no scale")
    assert "--guard none" in out
    assert snapshot(run_copy) == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--name", "../up"), 2, "teach.name"),
        (("--steps", "0"), 2, "teach.steps"),
        (("--share", "0.001"), 2, "share"),
        (("--run", "nowhere"), 4, "no base"),
    ],
)
def test_what_cannot_end_well_is_refused_before_it_trains(cli, run_copy, hand, monkeypatch, arguments, code, says):
    monkeypatch.setattr(recipe, "train", None)  # calling it would be a bug with exit code 1
    before = snapshot(run_copy)
    found, _, err = cli("teach", hand, "--run", run_copy, *arguments)
    assert found == code
    assert says in err
    assert snapshot(run_copy) == before


def test_a_bad_picture_is_named_before_anything_is_trained(cli, run_copy, hand, monkeypatch):
    monkeypatch.setattr(recipe, "train", None)
    Image.new("L", (60, 60), 255).save(hand / "4" / "empty.png")
    code, _, err = cli("teach", hand, "--run", run_copy)
    assert code == 3
    assert "empty.png" in err
    assert "blank" in err


def test_a_name_that_is_taken_is_refused_before_it_trains(cli, run_copy, hand, adapter, monkeypatch):
    monkeypatch.setattr(recipe, "train", None)
    code, _, err = cli("teach", hand, "--run", run_copy, "--name", adapter.name)
    assert code == 4
    assert "finished already" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_ended_in_the_middle_it_leaves_the_run_as_before(run_copy, hand, number, code):
    before = snapshot(run_copy)
    # a background job inherits Ctrl-C ignored
    free = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with command(hand, "--run", run_copy, "--steps", 1_000_000, **free) as process:
        try:
            assert "teaching: 1,000,000 steps" in process.stderr.readline()  # from here on it trains
            process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    left = {
        name: content
        for name, content in snapshot(run_copy).items()
        if TEMPORARY not in name and name not in (LOCK, HOLDER)
    }
    assert left == before


def test_a_full_disk_leaves_the_run_as_before(run_copy, hand):
    before = snapshot(run_copy)
    small = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))}
    with command(hand, "--run", run_copy, "--steps", 5, **small) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "Cannot write" in err
    assert snapshot(run_copy) == before
