"""Whole commands: what they print, what they return, and what they leave alone when they fail."""

import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mnist import __version__
from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.runs.artifact import load_network
from lora_mnist.runs.atomic import HOLDER, LOCK, TEMPORARY
from lora_mnist.runs.run import Run
from lora_mnist.training import train as recipe

from .conftest import drawings_of, flip_bit, lora_mnist, printed_by, snapshot, write_drawings

ROW = r"\d( \(target\))?( +\d+){4} +[+-]?\d+ +[\d.e-]+"  # of wrong images per digit, with their p


def test_run_does_everything_and_then_says_that_it_is_finished(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    page = Path("r") / "report" / "index.html"
    code, out, err = cli("run", "--config", "smoke", "--dataset", "mnist-5k", "--run", "r")
    assert code == 0, err
    assert len(out.splitlines()) <= 24
    for part in (
        "mnist-5k",
        "Weakest on val: ",
        "4/4 report",
        f"  {page}\n",
        "missed: ",
        "others",
        "proof     passed",
    ):
        assert part in out
    assert page.is_file()
    assert "2/4 fine-tuning" in err
    code, out, err = cli("run", "--run", "r")
    assert (code, len(out.splitlines()), err) == (0, 3, "")
    assert f"Report: {page}" in out
    assert cli("run", "--run", "r", "--quiet") == (0, f"{page}\n", "")


def test_finetune_takes_17_lines_and_shows_all_of_before_when_asked_to(succeeds, run_copy, monkeypatch):
    monkeypatch.chdir(run_copy.parent)
    monkeypatch.setenv("COLUMNS", "80")
    out = succeeds("finetune", "--run", "run", "--digit", "3", "--name", "short")
    assert len(out.splitlines()) <= 17
    assert "lora-mnist run --config rare --run runs/rare" in out  # of a balanced base that it did not repair
    long = succeeds("finetune", "--run", "run", "--digit", "3", "--name", "long", "--verbose")
    assert long.startswith(out[: out.index("trained")])
    document = json.loads((run_copy / "adapters" / "long" / "analysis.json").read_text())
    for heading in ("Parameters", "Digit 3 before and after", "beside what else", "Wrong test images per digit"):
        assert heading in long
    test = document["splits"]["test"]
    rows = [re.findall(r"\d+", line) for line in long.splitlines() if re.fullmatch(ROW, line.strip())]
    assert [(int(row[2]), int(row[3])) for row in rows] == list(zip(test["fixed"], test["broken"], strict=True))


def test_quiet_prints_the_path_of_what_was_made_and_nothing_else(cli, tmp_path):
    run, quiet = tmp_path / "r", ("--quiet", "--run", tmp_path / "r")
    assert cli("pretrain", "--config", "smoke", "--dataset", "mnist-5k", *quiet) == (0, f"{run / 'base'}\n", "")
    code, out, err = cli("finetune", *quiet, "--digit", "9")
    assert (code, out, err) == (0, f"{run / 'adapters' / 'digit9-r2'}\n", "")
    file = run / "checkpoints" / "digit9-full" / "model.safetensors"
    assert cli("finetune", "--full", *quiet, "--digit", "9") == (0, f"{file}\n", "")
    assert cli("extract", "--rank", "1", *quiet) == (0, f"{run / 'adapters' / 'digit9-full-r1'}\n", "")
    file = run / "checkpoints" / "digit9-r2-merged" / "model.safetensors"
    assert cli("merge", "--adapter", "digit9-r2", *quiet) == (0, f"{file}\n", "")
    for command in ("evaluate", "verify", "adapters", "params"):
        assert cli(command, *quiet) == (0, "", "")


def test_the_report_is_opened_when_asked_to(cli, run_copy, monkeypatch):
    opened, page = [], run_copy / "report" / "index.html"
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert cli("report", "--run", run_copy)[0] == 0
    assert opened == []
    assert cli("run", "--run", run_copy, "--open")[::2] == (0, "")
    assert opened == [page.as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url))  # which is falsy: nothing was opened
    code, out, err = cli("report", "--run", run_copy, "--open", "--normalise")
    assert (code, out, "no browser" in err) == (0, f"{page}\n", True)
    assert opened == 2 * [page.as_uri()]


def test_json_is_one_object_and_the_stored_one(succeeds, finished_run, adapter):
    out = succeeds("evaluate", "--run", finished_run, "--json")
    assert json.loads(out) == json.loads((finished_run / "base" / "evaluation.json").read_text())
    assert json.loads(succeeds("verify", "--run", finished_run, "--json"))["passed"] is True
    assert "index.html" in json.loads(succeeds("report", "--run", adapter.parent.parent, "--json"))["files"]


def test_every_flag_of_a_setting_reaches_it(cli, succeeds, tmp_path):
    run = ("--run", tmp_path / "r", "--json")
    training = "--learning-rate 0.02 --optimizer adamw --schedule constant --weight-decay 0.1 --batch-size 11"
    asked = {"learning_rate": 0.02, "optimizer": "adamw", "schedule": "constant", "weight_decay": 0.1, "batch_size": 11}
    flags = f"{training} --epochs 2 --hidden 20,14 --rare 7:0.5 --val-share 0.2 --seed 3"
    flags += " --dataset mnist-5k --config smoke --threads 1"
    succeeds("pretrain", *flags.split(), "--device", "cpu", "--quiet", *run, err="")
    settings = json.loads((tmp_path / "r" / "run.json").read_text())["settings"]
    assert json.loads((tmp_path / "r" / "base" / "provenance.json").read_text())["threads"] == 1
    assert (settings["seed"], settings["model"]["hidden"], settings["data"]["val_share"]) == (3, [20, 14], 0.2)
    assert settings["pretrain"] == {**asked, "epochs": 2, "rare_digit": 7, "rare_share": 0.5}
    flags = f"{training} --digit 4 --rank 3 --alpha 5 --rslora --targets linear1 --targets linear[2] --dropout 0.1"
    flags += " --init gaussian --shift 2 --rotate 3 --zoom 0.25 --guard none --hard-examples 0.3 --logit-adjustment 0.4"
    flags += " --label-smoothing 0.05 --rank-pattern linear2=2 --alpha-pattern linear2=7 --steps 7 --focus 0.5"
    out = succeeds("finetune", *flags.split(), "--name", "mine", *run)
    document = json.loads(out)
    assert document["settings"] == {
        **asked,
        **{"digit": 4, "rank": 3, "alpha": 5.0, "rank_pattern": {"linear2": 2}, "alpha_pattern": {"linear2": 7.0}},
        **{"rslora": True, "init": "gaussian", "dropout": 0.1, "targets": ["linear1", "linear[2]"], "steps": 7},
        **{"focus": 0.5, "hard_examples": 0.3, "logit_adjustment": 0.4, "label_smoothing": 0.05, "name": "mine"},
        **{"shift": 2.0, "rotate": 3.0, "zoom": 0.25, "guard": "none", "full_learning_rate": 0.001},
    }
    assert [row["scaling"] for row in document["parameters"]["layers"]] == pytest.approx([5 / 3**0.5, 7 / 2**0.5, None])


def test_a_strength_for_each_adapter(cli, succeeds, run_copy, adapter):
    run = ("--run", run_copy, "--json")
    assert cli("finetune", "--digit", "3", "--name", "second", *run)[0] == 0
    names = ("--adapter", adapter.name, "--adapter", "second")
    for given, used in ((("0.5", "-1"), [0.5, -1.0]), (("0.5",), [0.5, 0.5])):
        strengths = [part for strength in given for part in ("--strength", strength)]
        out = succeeds("evaluate", *names, *strengths, *run)
        assert [one["strength"] for one in json.loads(out)["adapters"]] == used
    at_zero = json.loads(cli("evaluate", "--adapter", adapter.name, "--strength", "0", *run)[1])
    assert at_zero["splits"] == json.loads(cli("evaluate", *run)[1])["splits"]


def test_rounds_with_every_table_control_and_on_top_of(succeeds, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = ("--run", tmp_path / "r")
    options = ("--config", "smoke", "--dataset", "mnist-5k", "--rounds", "2", *run)
    out = succeeds("run", *options, "--verbose")
    for heading in ("Confusion on test", "Parameters", "Wrong test images per digit", "Digit after digit, on test"):
        assert heading in out
    assert out.count("Parameters") == 2
    rounds = json.loads(succeeds("run", *options, "--json"))["rounds"]  # of the same run, where all is finished
    assert [one["on_top_of"] for one in rounds] == [[], [rounds[0]["name"]]]
    out = succeeds("finetune", "--digit", "3", "--control", "--on-top-of", rounds[0]["name"], *run, "--json")
    document = json.loads(out)
    assert document["on_top_of"] == [rounds[0]["name"]]
    assert document["control"]["splits"]["test"]["errors"] >= 0


def test_from_full_fine_tuning_to_an_adapter_to_a_network(succeeds, run_copy):
    run = ("--run", run_copy)
    out = succeeds("finetune", "--full", "--digit", "3", *run)
    assert "all weights were trained" in out
    out = succeeds("extract", "--rank", "2", "--verbose", *run)
    assert "energy kept" in out
    assert "linear1.bias" in out
    out = succeeds("merge", "--adapter", "digit3-full-r2", "--strength", "0.5", "--verbose", *run)
    merged = Run(run_copy).checkpoint("digit3-full-r2-merged")
    before, after = (100 * one.evaluation.splits["test"].accuracy for one in (Run(run_copy).base, merged))
    said = " ".join(out.split())
    for part in (
        f"{before:.2f} → {after:.2f} % on test",
        "merged the base + digit3-full-r2 at strength 0.5",
        "no logit differs from base and adapters apart by more than",
        f"saved {merged.folder / 'model.safetensors'}",
    ):
        assert part in said
    out = succeeds("evaluate", "--checkpoint", "digit3-full-r2-merged", *run)
    assert "checkpoint digit3-full-r2-merged" in " ".join(out.split())
    out = succeeds("adapters", *run)
    assert "digit3-full-r2" in out
    assert "…" not in out
    out = succeeds("verify", *run)
    assert "digit3-full-r2-merged" in out
    succeeds("report", *run)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_pefts_needs_to_be_allowed(cli, finished_run, tmp_path):
    import_torchvision()
    from peft import LoraConfig, get_peft_model

    base, _ = load_network(finished_run / "base" / "model.safetensors")
    get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["linear1"])).save_pretrained(tmp_path / "p.1")
    arguments = ("--adapter", tmp_path / "p.1", "--run", finished_run, "--json")
    code, out, _ = cli("evaluate", *arguments)
    assert (code, "--allow-unverified" in out) == (4, True)
    code, out, err = cli("evaluate", *arguments, "--allow-unverified")
    assert code == 0, err
    assert "carries no fingerprint" in err
    assert json.loads(out)["adapters"] == [{"name": "p-1", "strength": 1.0, "verified": False}]


def test_params_of_any_layer(cli, succeeds, tmp_path):
    run = ("--run", tmp_path / "none")
    out = succeeds("params", "--shape", "4096x4096", "--rank", "4,8,16,32,64", *run)
    assert [line.split()[2] for line in out.splitlines() if "%" in line] == [
        *("0.195", "0.391", "0.781", "1.56", "3.12")
    ]
    assert "30,000" in cli("params", "--shape", "1000x5000", "--rank", "5", *run)[1]


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("finetune --digit 10", 2, "digit"),
        ("finetune --digit 3 --rank 5000", 2, "rank"),
        ("finetune --learning-rate inf", 2, "learning_rate"),
        ("finetune --digit 3 --learning-rate 1e30", 2, "loss became"),
        ("finetune --digit 3 --targets linear9", 2, "linear9"),
        ("finetune --digit 3 --targets (", 2, "regular expression"),
        ("finetune --digit 3 --focus 0.001", 2, "focus"),
        ("finetune --digit 3 --name ../up", 2, "name"),
        ("finetune --config nowhere.toml", 2, "nowhere.toml"),
        ("finetune --config classic", 2, "contradicts"),
        ("finetune --rank x", 2, "--rank"),
        ("finetune --no-such-option", 2, "--no-such-option"),
        ("finetune", 4, "--force"),
        ("pretrain", 4, "--force"),
        ("pretrain --force --hidden 5,x", 2, "hidden"),
        ("pretrain --force --batch-size 99999 --dataset mnist-5k", 2, "batch_size"),
        ("pretrain --force --dataset cifar", 2, "dataset"),
        ("evaluate --device gpu", 2, "device"),
        ("evaluate --threads 0", 2, "threads"),
        ("pretrain --force --hidden 10,1000000,1000000", 2, "memory"),
        ("evaluate --adapter nine", 4, "nine"),
        ("evaluate --strength 0.5", 2, "--adapter"),
        ("evaluate --adapter ADAPTER --strength 1 --strength 2", 2, "2 strengths"),
        ("evaluate --adapter ADAPTER --checkpoint x", 2, "--checkpoint"),
        ("evaluate --adapter ./nowhere", 4, "nowhere"),
        ("finetune --digit 3 --name training", 2, "training"),
        ("finetune --digit 3 --targets linear1 --rank-pattern linear3=2", 2, "no target layer"),
        ("evaluate --checkpoint ./nine.safetensors", 4, "nine.safetensors"),
        ("finetune --full --rank 3", 2, "--rank"),
        ("finetune --full --digit 3 --learning-rate 1e30", 2, "loss became"),
        ("finetune --digit 3 --rank-pattern linear3=x", 2, "linear3=2"),
        ("finetune --digit 3 --rank-pattern linear3=0", 2, "rank_pattern"),
        ("finetune --digit 3 --alpha-pattern nowhere=2", 2, "nowhere"),
        ("merge", 2, "--adapter"),
        ("merge --adapter nine", 4, "nine"),
        ("merge --adapter ADAPTER --strength 1e39", 2, "strength"),
        ("extract", 4, "finetune --full"),
        ("extract --checkpoint nine", 4, "nine"),
        ("extract --rank 0 --checkpoint BASE", 2, "rank"),
        ("extract --checkpoint BASE --digit 3 --name a/b", 2, "name"),
        ("params --rank 0", 2, "rank"),
        ("params --rank 1,x", 2, "rank"),
        ("params --shape 10", 2, "shape"),
        ("evaluate --strength 1e38 --adapter ADAPTER", 2, "strength"),
        ("finetune --config= --digit 3", 2, "config"),
        ("frobnicate", 2, "frobnicate"),
        ("compare RUN --adapter nine", 4, "nine"),
        ("compare RUN nowhere", 4, "lora-mnist pretrain"),
    ],
)
def test_bad_input_is_one_clear_error_and_harms_nothing(cli, run_copy, adapter, arguments, code, words):
    before = snapshot(run_copy)
    places = {"ADAPTER": adapter.name, "BASE": str(run_copy / "base"), "RUN": str(run_copy)}
    parts = [places.get(part, part) for part in arguments.split()]
    where = [] if parts[0] in ("frobnicate", "compare") else ["--run", run_copy]
    got, out, err = cli(*parts, *where)
    assert got == code, err
    assert out == ""
    assert words in err
    assert err.startswith("Error: ") or "\nError: " in err
    assert "Traceback" not in err
    got, out, _ = cli(*parts, *where, "--json")
    assert got == code
    assert words in json.loads(out)["error"]["message"]
    assert json.loads(out)["error"]["code"] == code
    assert snapshot(run_copy) == before


@pytest.mark.parametrize(
    "command", ["evaluate", "finetune", "verify", "report", "extract", "merge --adapter a", "adapters", "params"]
)
def test_before_pretrain_every_command_says_so(fails, tmp_path, command):
    fails(4, *command.split(), "--run", tmp_path / "none", says="lora-mnist pretrain")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "missing"])
@pytest.mark.parametrize("part", ["base/model.safetensors", "ADAPTER/adapter_model.safetensors"])
def test_damaged_checkpoints_are_refused_by_name(fails, run_copy, adapter, part, damage):
    path = run_copy / part.replace("ADAPTER", f"adapters/{adapter.name}")
    if damage == "bit":
        flip_bit(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "truncated" else b"")
    before = snapshot(run_copy)
    code = 4 if damage == "missing" else 5
    for command in ("evaluate", "verify"):
        fails(code, command, "--run", run_copy, "--adapter", adapter.name, says=path.name)
    fails(code, "report", "--run", run_copy)
    assert snapshot(run_copy) == before


def test_a_run_that_cannot_be_written_is_refused_before_training(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "train", None)  # calling it would be a bug with exit code 1
    (tmp_path / "file").write_text("")
    options = ("--config", "smoke", "--dataset", "mnist-5k", "--run", tmp_path / "file" / "run")
    fails(6, "pretrain", *options, says="Cannot write")


def test_a_full_disk_is_an_error_and_loses_nothing(run_copy):
    before = snapshot(run_copy)

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = lora_mnist("finetune", "--digit", "2", "--run", run_copy, preexec_fn=small_files_only)
    assert done.returncode == 6, done.stderr
    assert "Cannot write" in done.stderr
    assert snapshot(run_copy) == before


def test_results_that_cannot_be_printed_are_an_error(finished_run):
    with open("/dev/full", "w") as full:
        done = lora_mnist("evaluate", "--run", finished_run, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        ("finetune --name x", signal.SIGINT, 130),
        ("finetune --name x", signal.SIGKILL, -9),
        ("teach DRAWINGS", signal.SIGTERM, 143),
        ("teach DRAWINGS", signal.SIGKILL, -9),
    ],
)
def test_a_signal_keeps_the_previous_state(run_copy, tmp_path, arguments, number, code):
    before = snapshot(run_copy)
    drawings = write_drawings(tmp_path / "drawings", drawings_of("mnist-5k"))
    command = arguments.replace("DRAWINGS", str(drawings)).split()
    with subprocess.Popen(
        [sys.executable, "-m", "lora_mnist", *command, "--steps", "100000", "--run", run_copy],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job inherits it ignored
    ) as process:
        try:
            assert ": 100,000 steps" in process.stderr.readline()  # from here on it trains
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert number == signal.SIGKILL or "what was finished before is kept" in err
    assert "Traceback" not in err
    left = {
        name: content
        for name, content in snapshot(run_copy).items()
        if TEMPORARY not in name and name not in (LOCK, HOLDER)
    }
    assert left == before  # where it was not given the time to clean up, the next writing command does


@pytest.mark.parametrize("stream", [1, 2])
def test_a_stream_that_the_caller_closed_is_no_error(finished_run, stream):
    command = f"{sys.executable} -m lora_mnist report --json --run {finished_run}x {stream}>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["--help", "finetune --help", "evaluate --run FINISHED", "run --run NEW"])
def test_a_pipe_that_is_closed_early_is_no_error_and_cuts_no_work_short(finished_run, tmp_path, command):
    command = command.replace("FINISHED", str(finished_run)).replace("NEW", f"{tmp_path / 'r'} --config smoke")
    command += " --dataset mnist-5k" if command.startswith("run") else ""
    line = f"{sys.executable} -m lora_mnist {command} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "" or command.startswith("run")  # which logs its progress
    assert (tmp_path / "r" / "report" / "index.html").is_file() == command.startswith("run")


def test_an_error_of_the_system_is_json_too(cli, tmp_path):
    code, out, _ = cli("evaluate", "--json", "--run", tmp_path / ("a" * 300))
    assert code == 6
    assert json.loads(out)["error"]["code"] == 6


def test_a_bug_is_called_a_bug(cli, finished_run, monkeypatch):
    monkeypatch.setattr(sys.modules["lora_mnist.pipeline.evaluate"], "evaluate", lambda *_: 1 / 0)
    code, _, err = cli("evaluate", "--run", finished_run)
    assert code == 1
    assert "bug in lora-mnist" in err
    assert "Traceback" not in err
    assert "Traceback" in cli("evaluate", "--run", finished_run, "--debug")[2]


def test_piped_output_has_no_escapes_and_no_bars(finished_run, run_copy):
    done = lora_mnist("finetune", "--digit", "2", "--run", run_copy)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr


# Help -----------------------------------------------------------------------------------------------------------------


HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "numpy")


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("--help", (*HEAVY, "pydantic")),
        ("finetune --help", HEAVY),
        ("adapters --run RUN", HEAVY),
        ("params --run RUN", HEAVY),
        ("evaluate --run RUN", ("torchvision", "matplotlib")),
    ],
)
def test_a_command_imports_none_of_the_heavy_libraries_that_it_does_not_need(finished_run, command, without):
    program = (
        "import sys\nfrom lora_mnist.cli.main import main\n"
        f"code = main({command.replace('RUN', str(finished_run)).split()!r})\n"
        f"sys.exit(code or ' '.join({set(without)!r} & set(sys.modules)) or 0)"
    )
    printed_by(program)


def test_version(cli):
    assert cli("--version") == (0, f"{__version__}\n", "")
