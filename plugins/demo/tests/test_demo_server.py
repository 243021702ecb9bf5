"""What the server refuses: other hosts, other pages, every route that reads a file or takes one, bodies without bound."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ldmkit_demo.command import command
from ldmkit_demo.guard import HOST, MOST_BODY
from ldmkit_demo.server import Served, _port

import ldmkit
from ldmkit import UsageError

# gradio counts its events by an option that pandas has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")


@pytest.fixture(scope="module")
def port(tiny: Path) -> Iterator[int]:
    from ldmkit_demo.page import Shown

    port = _port(None)
    page = Served([Shown(str(tiny), ldmkit.load(tiny))], port)
    yield port
    page.close()


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": "application/json", **named})
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


def test_importing_the_plugin_loads_neither_torch_nor_gradio():
    code = "import sys, ldmkit_demo, ldmkit_demo.command; assert not {'torch', 'gradio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_core_never_imports_gradio():
    root = Path(ldmkit.__file__).parent
    assert [path for path in root.rglob("*.py") if "gradio" in path.read_text("utf-8")] == []


def test_the_page_is_there_and_says_what_it_may_load(port):
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/")
    reply = connection.getresponse()
    page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
    connection.close()
    assert reply.status == 200
    assert "default-src 'self'" in policy
    assert "fonts.googleapis" not in page
    assert ask(port, "/theme.css")[0] == 200
    assert b"fonts.g" not in ask(port, "/theme.css")[1]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_host_is_refused(port, host):
    assert ask(port, "/", Host=host)[0] in (400, 421)  # without any, the server itself refuses


def test_another_page_is_refused(port):
    assert ask(port, "/config", Origin="http://evil.example")[0] == 403
    assert ask(port, "/config", Origin=f"http://127.0.0.1:{port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/file%3D/etc/passwd",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/stream/a/b/1/playlist-file",
        "/gradio_api/custom_component/1/client/component/../../../../../../etc/passwd",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/gradio_api/openapi.json",
        "/gradio_api/vibe-code",
        "/monitoring/summary",
        "/docs",
    ],
)
def test_no_route_reads_a_file_or_fetches_an_address(port, path):
    status, body = ask(port, path)
    assert status in (403, 404)
    assert b"root:" not in body


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/vibe-edit", "/gradio_api/run/predict", "/login"])
def test_no_route_takes_a_file_or_an_edit(port, path):
    assert ask(port, path, "POST", b"{}")[0] == 404


def test_a_path_in_the_place_of_a_value_is_not_read(port, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    config = json.loads(ask(port, "/config")[1])
    sample = next(one for one in config["dependencies"] if len(one["inputs"]) > 5)
    for path in (str(secret), "/etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = {"fn_index": sample["id"], "session_hash": "here", "data": [file] * len(sample["inputs"])}
        status, said = ask(port, "/gradio_api/queue/join", "POST", json.dumps(event).encode())
        if status == 200:
            said = ask(port, "/gradio_api/queue/data?session_hash=here")[1]
        assert b"the secret" not in said
        assert b"root:" not in said
        assert b"Traceback" not in said


def test_a_body_that_is_too_large_is_said_to_be(port):
    status, said = ask(port, "/gradio_api/queue/join", "POST", b" " * (MOST_BODY + 1))
    assert (status, said) == (413, b"a request has at most 24 MB")
    assert ask(port, "/config")[0] == 200


def test_a_port_that_is_taken_is_said_to_be(port):
    with pytest.raises(UsageError, match=f"port {port} is taken on 127.0.0.1\n  choose another"):
        _port(port)


@pytest.mark.parametrize("alone", ["--share", "--yes-share-publicly"])
def test_sharing_is_asked_for_twice(alone, monkeypatch):
    monkeypatch.setattr("ldmkit_demo.server.serve", lambda *runs, **more: pytest.fail("it was served"))
    done = CliRunner().invoke(command, ["tiny", alone])
    assert done.exit_code == 2
    assert f"{alone} alone does nothing" in done.output
    asked: dict[str, Any] = {}
    monkeypatch.setattr("ldmkit_demo.server.serve", lambda runs, **more: asked.update(more))
    assert CliRunner().invoke(command, ["tiny", "--share", "--yes-share-publicly"]).exit_code == 0
    assert asked["share"] is True
    assert CliRunner().invoke(command, ["tiny"]).exit_code == 0
    assert asked["share"] is False


def test_a_run_that_is_not_there_is_a_users_error(capsys):
    from ldmkit import cli

    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "nowhere-at-all"])
    assert stop.value.code == 2
    assert "there is no trained model in nowhere-at-all" in capsys.readouterr().err
