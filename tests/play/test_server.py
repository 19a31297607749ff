"""Over HTTP: what is answered, what is refused, and that nothing falls over."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lora_mnist.datasets.dataset import load
from lora_mnist.play.answers import LARGEST_BODY
from lora_mnist.play.pages import FOLDER

from .conftest import NINE

DRAWING = {"pixels": "7f" * 784, "label": 3}


def shares(run, pixels: str, adapter: str | None = None, strength: float = 1.0) -> torch.Tensor:
    """What the run's files say of a picture, without any of our code: W + strength · alpha / √rank · B A."""
    weights = load_file(run / "base" / "model.safetensors")
    if adapter:
        folder = run / "adapters" / adapter
        for key, A in load_file(folder / "adapter_model.safetensors").items():
            if ".lora_A." in key:
                layer = key.removeprefix("base_model.model.").partition(".")[0]
                B = load_file(folder / "adapter_model.safetensors")[key.replace("lora_A", "lora_B")]
                weights[f"{layer}.weight"] += strength * scaling_of(folder) * B @ A
    x = (torch.tensor(list(bytes.fromhex(pixels))).float() / 255 - 0.1307) / 0.3081
    for i in (1, 2, 3):
        x = F.linear(x, weights[f"linear{i}.weight"], weights[f"linear{i}.bias"])
        x = F.relu(x) if i < 3 else x
    return x.softmax(0)


def scaling_of(folder) -> float:
    config = json.loads((folder / "adapter_config.json").read_text())
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)


def close(sight: dict, wanted: torch.Tensor) -> bool:
    return sight["digit"] == int(wanted.argmax()) and torch.allclose(
        torch.tensor(sight["probabilities"]), wanted, atol=2e-5
    )


def test_the_page_and_its_files_are_served_and_nothing_else(client):
    status, headers, page = client.ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page == (FOLDER / "index.html").read_bytes()
    for file in FOLDER.iterdir():
        if file.name != "index.html":
            assert client.ask(f"/{file.name}")[2] == file.read_bytes()
    for path in ("/index.html", "/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/run.json", "/static/style.css"):
        status, _, answer = client.ask(path)
        assert (status, answer["error"]["status"]) == (404, 404)


def test_a_drawing_is_seen_as_the_files_say(client):
    adapter = next((client.run / "adapters").iterdir()).name
    answer = client.predict(strokes=NINE, adapters=[adapter], strength=1.3)
    assert close(answer["base"], shares(client.run, answer["pixels"]))
    assert close(answer["adapted"], shares(client.run, answer["pixels"], adapter, 1.3))
    assert answer["base"] != answer["adapted"]


def test_a_test_image_is_shown_as_it_is(client):
    test = load("digits", client.run, val_share=0.25, split_seed=0).test
    answer = client.predict(index=7)
    assert bytes.fromhex(answer["pixels"]) == test.images[7].numpy().tobytes()
    assert (answer["index"], answer["label"]) == (7, int(test.labels[7]))
    assert close(answer["base"], shares(client.run, answer["pixels"]))
    assert answer["adapted"] is None


def test_strength_nothing_is_the_base(client):
    adapter = next((client.run / "adapters").iterdir()).name
    answer = client.predict(strokes=NINE, adapters=[adapter], strength=0)
    assert answer["adapted"] == answer["base"]


def test_a_blank_sheet_is_no_error_but_a_problem(client):
    answer = client.predict(strokes=[])
    assert "blank" in answer["problem"]
    assert answer["base"] is None


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/predict", b"{", 400, "JSON"),
        ("/api/predict", {}, 400, "either strokes or an index"),
        ("/api/predict", {"index": 1, "strokes": NINE}, 400, "either strokes or an index"),
        ("/api/predict", {"index": 10**6}, 400, "There is no test image 1000000."),
        ("/api/predict", {"index": -1}, 400, "`index` (=-1)"),
        ("/api/predict", {"strokes": [[[0, 1001]]]}, 400, "1000"),
        ("/api/predict", {"strokes": [[[0, 1]]] * 101}, 400, "100"),
        ("/api/predict", {"strokes": [[[0, 1]] * 3000] * 2}, 400, "5000"),
        ("/api/predict", {"index": 1, "strength": 2}, 400, "`strength` (=2)"),
        ("/api/predict", {"index": 1, "adapters": ["../base"]}, 400, "letters, digits"),
        ("/api/predict", {"index": 1, "adapters": ["none"]}, 400, "no adapter 'none'"),
        ("/api/predict", {"index": 1, "secret": 1}, 400, "`secret`"),
        ("/api/search", {"which": "best"}, 400, "`which`"),
        ("/api/search", {"which": "base-wrong", "after": 10**21}, 400, "`after`"),
        ("/api/teaching/start", {"drawings": []}, 400, "`drawings`"),
        ("/api/teaching/start", {"drawings": [DRAWING] * 501}, 400, "500"),
        ("/api/teaching/start", {"drawings": [DRAWING | {"label": 10}]}, 400, "label"),
        ("/api/teaching/start", {"drawings": [DRAWING | {"pixels": "7f" * 783}]}, 400, "784"),
        ("/api/teaching/start", {"drawings": [DRAWING | {"pixels": "zz" * 784}]}, 400, "hex"),
        ("/api/teaching/keep", {"name": "../../etc"}, 400, "letters, digits"),
        ("/api/teaching/keep", {"name": "mine"}, 404, "There is nothing to keep."),
        ("/api/teaching/discard", {}, 404, "There is nothing to discard."),
        ("/api/teaching/cancel", {}, 404, "There is no training to cancel."),
        ("/api/nothing", {}, 404, "Not Found"),
        ("/api/run", {}, 405, "Not Allowed"),
    ],
)
def test_a_bad_request_is_told_in_json(client, path, body, status, words):
    found, _, answer = client.ask(path, body)
    assert found == answer["error"]["status"] == status
    assert words in answer["error"]["message"]


def test_a_body_is_capped_whether_or_not_it_says_how_long_it_is(client):
    part = b" " * (1 << 16)
    in_chunks = iter([part] * (LARGEST_BODY // len(part) + 1))
    for body in (b" " * (LARGEST_BODY + 1), in_chunks):
        status, _, answer = client.ask("/api/predict", body)
        assert (status, answer["error"]["status"]) == (413, 413)
        assert f"{LARGEST_BODY:,} bytes" in answer["error"]["message"]


def test_a_thousand_quick_requests_fifty_at_once(client):
    wanted = client.predict(strokes=NINE)

    def one(i: int) -> bool:
        if i % 10 == 9:
            return client.ask("/api/predict", {"index": -i})[0] == 400
        return client.predict(strokes=NINE) == wanted

    with ThreadPoolExecutor(50) as many:
        assert all(many.map(one, range(1000)))


@pytest.mark.parametrize("which", ["base-wrong", "adapters-break"])
def test_a_search_goes_round_all_images_with_that_fault(client, which):
    adapter = next((client.run / "adapters").iterdir()).name
    stored = load_file(client.run / "base" / "logits.safetensors")["test"].argmax(1)
    adapted = load_file(client.run / "adapters" / adapter / "logits.safetensors")["test"].argmax(1)
    labels = load("digits", client.run, val_share=0.25, split_seed=0).test.labels
    wrong = stored != labels if which == "base-wrong" else (stored == labels) & (adapted != labels)
    found, last = [], -1
    for _ in range(int(wrong.sum()) + 1):
        last = client.ask("/api/search", {"which": which, "after": last, "adapters": [adapter]})[2]["index"]
        found.append(last)
    expected = wrong.nonzero().flatten().tolist()
    assert found == [*expected, expected[0]]


def test_a_search_without_a_find_says_so(client):
    assert client.ask("/api/search", {"which": "adapters-break"})[2] == {"index": None}
