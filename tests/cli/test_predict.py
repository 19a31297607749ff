"""`predict`, `export` and `play`, as they are typed."""

import json
import socket

import numpy as np
import pytest
from PIL import Image

from lora_mnist.pipeline import export as export_file
from lora_mnist.runs.run import Run


@pytest.fixture
def seven(tmp_path):
    """A drawn 7, dark on light."""
    canvas = np.full((200, 300), 240, np.uint8)
    canvas[40:60, 100:180] = canvas[40:160, 160:180] = 10
    Image.fromarray(canvas).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_words_and_json_say_what_every_network_sees(succeeds, finished_run, seven):
    (adapter,) = Run(finished_run).adapter_names()
    asked = ("predict", seven, "--run", finished_run)
    assert f"\n {adapter} " in succeeds(*asked)
    asked += ("--adapter", adapter, "--strength", "0.5")
    (prediction,) = json.loads(succeeds(*asked, "--json"))["predictions"]
    assert [guess["adapter"] for guess in prediction["guesses"]] == [None, {"name": adapter, "strength": 0.5}]
    lines = succeeds(*asked, err="").splitlines()
    assert lines[0] == str(seven)
    assert max(map(len, lines[1:])) <= 80
    rows = [line.split() for line in lines]
    assert ["sees", *map(str, range(10))] in rows
    for name, guess in zip(("base", f"{adapter} at 0.5"), prediction["guesses"], strict=True):
        shares = [str(round(100 * share) or "·") for share in guess["probabilities"]]
        assert [*name.split(), str(guess["digit"]), *shares] in rows


@pytest.mark.parametrize("others", [("blank.png", "none.png"), ("seven.png", "blank.png", "seven.png", "none.png")])
def test_of_several_pictures_each_has_its_answer_or_its_reason(cli, finished_run, seven, monkeypatch, others):
    monkeypatch.chdir(seven.parent)
    Image.new("L", (50, 50)).save("blank.png")
    read = others.count("seven.png")
    code, out, err = cli("predict", *others, "--run", finished_run)
    assert (code, err) == (3, "")
    out = " ".join(out.split())
    assert out.count("seven.png") == read
    assert "blank.png: The picture is blank" in out
    assert "none.png cannot be read" in out
    code, out, _ = cli("predict", *others, "--run", finished_run, "--json")
    document = json.loads(out)
    assert code == 3
    assert [one["file"] for one in document["predictions"]] == read * ["seven.png"]
    assert list(document["refused"]) == ["blank.png", "none.png"]
    assert "nothing in it stands out" in document["refused"]["blank.png"]
    code, out, _ = cli("predict", *others, "--run", finished_run, "--quiet")
    assert (code, out) == (3, "")


def test_several_pictures_have_a_line_each_and_many_adapters_fit_80_columns(succeeds, finished_run):
    folder = next((finished_run / "adapters").iterdir())
    names = [word for i in range(4) for word in ("--adapter", f"{folder}{'/.' * i}")]  # one, by four names
    out = succeeds("predict", "--index", "3", "--index", "8", "--run", finished_run, *names)
    pictures = [line.split(",")[0].strip() for line in out.splitlines() if "test image" in line]
    assert pictures == ["test image 3", "test image 8"]
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_show_writes_what_the_network_sees_and_quiet_names_it(cli, finished_run, seven, tmp_path):
    seen = tmp_path / "seen.png"
    asked = ("predict", seven, "--run", finished_run, "--show", seen, "--quiet")
    assert cli(*asked)[:2] == (0, f"{seen}\n")
    with Image.open(seen) as picture:
        assert picture.size == (28, 28)
        assert picture.getpixel((0, 0)) == 0  # light on dark
    assert cli(*asked)[0] == 2  # it is there
    assert cli(*asked, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "no picture"),
        (("a.png", "--index", "3"), 2, "Both"),
        (("missing.png",), 3, "missing.png"),
        (("--index", "3", "--adapter", "nine"), 4, "nine"),
        (("--index", "3", "--strength", "nan"), 2, "strength"),
    ],
)
def test_a_request_that_cannot_be_met_names_its_reason(fails, finished_run, arguments, code, says):
    fails(code, "predict", "--run", finished_run, *arguments, says=says)


# export and play ------------------------------------------------------------------------------------------------------


def test_export_prints_where_it_lies_and_nothing_of_the_exporters(cli, succeeds, run_copy):
    pytest.importorskip("onnxruntime")
    out = succeeds("export", "--run", run_copy, err="")
    place = run_copy / "exports" / "base.onnx"
    assert place.is_file()
    assert f"{place}: ONNX, opset 18" in out.replace("\n          ", " ")
    document = json.loads(cli("export", "--run", run_copy, "--format", "torch", "--json")[1])
    assert document["file"] == str(place.with_suffix(".pt2"))
    assert document["largest_difference"] <= 1e-4 * document["largest_logit"]
    assert cli("export", "--run", run_copy)[0] == 2  # it is there


def test_an_export_without_its_extra_says_so_before_the_run_is_read(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(export_file, "find_spec", lambda name: None)
    err = fails(2, "export", "--run", tmp_path / "none", says="ONNX needs onnx and onnxruntime and onnxscript")
    assert "pip install -e '.[onnx]'" in err


def test_play_refuses_a_run_without_a_base_and_a_port_that_is_taken(fails, finished_run, tmp_path):
    fails(4, "play", "--run", tmp_path / "none", "--port", 0, says="There is no base")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(2, "play", "--run", finished_run, "--port", port, says=f"`port` (={port}) cannot be used")
    fails(2, "play", "--run", finished_run, "--port", 70000)
