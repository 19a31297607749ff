"""Whose requests are answered."""

import pytest

from lora_mnist.play.safety import fault

OWN = {"host": "127.0.0.1:8017"}
JSON = OWN | {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", OWN),
        ("GET", {"host": "localhost:8017"}),
        ("GET", OWN | {"origin": "http://127.0.0.1:8017", "sec-fetch-site": "same-origin"}),
        ("GET", {"host": "localhost:9000", "origin": "http://localhost:9000"}),  # through a tunnel
        ("POST", JSON),
        ("POST", JSON | {"content-type": "application/json; charset=utf-8"}),
    ],
)
def test_the_own_page_is_answered(method, headers):
    assert fault(method, "/api/run", headers) is None


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
        ("POST", OWN),  # a form needs no leave of ours to be sent, JSON does
        ("POST", OWN | {"content-type": "text/plain"}),
        ("POST", OWN | {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
def test_others_are_not(method, headers):
    assert fault(method, "/api/run", headers) is not None


def test_a_link_on_another_page_may_lead_here():
    assert fault("GET", "/", OWN | {"sec-fetch-site": "cross-site"}) is None
    assert fault("POST", "/", JSON | {"sec-fetch-site": "cross-site"}) is not None


def test_it_holds_over_http_and_every_answer_has_the_headers(client):
    refused = client.ask("/api/run", headers={"Host": "evil.example"})
    assert refused[0] == refused[2]["error"]["status"] == 403
    crossed = client.ask("/api/teaching/start", {"drawings": []}, {"Origin": "http://evil.example"})
    assert crossed[0] == 403
    for _, headers, _ in (client.ask("/"), client.ask("/style.css"), client.ask("/nothing"), refused):
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Access-Control-Allow-Origin"] is None
