"""Models by name: one that the hub has is loaded from it, and one that nothing has is refused at once."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from arctic_training.config.checks import hub
from arctic_training.config.checks.files import is_hub_name, unreadable
from arctic_training.deployment.hub import require_token
from arctic_training.deployment.load import load_pretrained
from arctic_training.errors.types import DataError, InputError, ModelError
from arctic_training.model.pretrained import Pretrained
from arctic_training.registry import lookup
from arctic_training.tokenizer.huggingface_factory import load_tokenizer
from tests import tiny


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, ``me/model``: the files of `folder`."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        file = self.folder / self.path.rpartition("/")[2]
        exists = self.path.startswith("/me/model/resolve/main/") and file.is_file()
        content = file.read_bytes() if exists else b""
        self.send_response(200 if exists else 404)
        if not exists:
            self.send_header("X-Error-Code", "EntryNotFound" if "/me/model/" in self.path else "RepoNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{file.name}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub that answers, which this process asks."""
    handler = type("OwnHub", (Hub,), {"folder": tiny.save_model(tmp_path / "model")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield use_hub(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    server.shutdown()
    server.server_close()


@pytest.fixture
def unplugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a hub that this process asks, and where nobody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return use_hub(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)


def use_hub(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from transformers.utils import hub as transformers_hub

    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # it keeps the address of its first use
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(hub, "_answered", set())
    monkeypatch.setattr(hub, "_PAUSE", 0.01)
    return address


def test_a_model_of_the_hub_is_loaded(online: str, tmp_path: Path) -> None:
    model, tokenizer = load_pretrained("me/model", device="cpu")
    here, _ = load_pretrained(tmp_path / "model", device="cpu")
    assert tokenizer is not None and hub._answered == {online}
    assert all((one == other).all() for one, other in zip(model.parameters(), here.parameters(), strict=True))


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that this process has tried to connect to, one for each attempt."""
    tried: list[str] = []

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        tried.append(f"http://{address[0]}:{address[1]}")
        super(socket.socket, self).connect(address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


def test_a_name_that_nothing_has_is_refused_after_two_attempts(
    unplugged: str, attempts: list[str], tmp_path: Path
) -> None:
    message = r"nowhere: no folder here, and http://127\.0\.0\.1:\d+ does not answer \("
    with pytest.raises(InputError, match=message):
        load_pretrained("nowhere")
    with pytest.raises(ModelError, match=f"^model.name_or_path: {message}"):
        Pretrained("nowhere", trust_remote_code=False).config({})
    with pytest.raises(ModelError, match=f"^tokenizer.name_or_path: {message}"):
        load_tokenizer("nowhere", "tokenizer.name_or_path")
    source: Any = lookup("data_source", "huggingface")
    config = source.config_type(type="huggingface", name_or_path="some/where")
    with pytest.raises(DataError, match=f"^data set some/where cannot be loaded: {message[9:]}"):
        source(None, config)("train")
    assert attempts == [unplugged] * 2 * 4  # names
    (tmp_path / "hub" / "models--me--kept" / "snapshots").mkdir(parents=True)
    assert not hub.unavailable("me/kept") and not hub.unavailable(str(tmp_path)) and len(attempts) == 8


@pytest.mark.parametrize("name", ["./nowhere", "no/such/folder", "no.gguf", "~/nowhere"])
def test_a_path_that_leads_nowhere_is_not_asked_for(unplugged: str, attempts: list[str], name: str) -> None:
    message = f"{name}: no such file or folder$"
    with pytest.raises(InputError, match=f"^{message}"):
        load_pretrained(name)
    with pytest.raises(ModelError, match=f"^model.name_or_path: {message}"):
        Pretrained(name, trust_remote_code=False).config({})
    with pytest.raises(ModelError, match=f"^tokenizer.name_or_path: {message}"):
        load_tokenizer(name, "tokenizer.name_or_path")
    reward = lookup("reward", "model")
    with pytest.raises(ModelError, match=f"^model: {message}"):
        reward(reward.config_type(type="model", name_or_path=name)).load()
    assert attempts == []


def test_an_upload_is_refused_before_anything_is_exported(unplugged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(InputError, match=r"--push-to-hub: http://127\.0\.0\.1:\d+ does not answer"):
        require_token("me/model")


def test_a_hub_that_must_not_be_asked_is_not(unplugged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.unreachable_hub()


@pytest.mark.parametrize("name", ["owner/model-1.5_b", "model", "Qwen/Qwen3-0.6B"])
def test_names_of_the_hub(name: str) -> None:
    assert is_hub_name(name) and not unreadable(name)


@pytest.mark.parametrize(
    "name", ["./model", "/model", "~/model", "runs/mine/checkpoints", "my model", "model.gguf", ""]
)
def test_other_names_are_of_files(name: str) -> None:
    assert not is_hub_name(name)
