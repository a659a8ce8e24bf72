"""The scorer judge, beside a server that speaks the protocol of OpenAI."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from arctic_training.config.sections.component import parse_component
from arctic_training.evaluation.judge import JudgeScorer
from arctic_training.generation.scoring import retry
from arctic_training.reward.reward import Completion, ScoreReward


class Server:
    """Replies in turn with ``replies``: a text, or the number of an HTTP error; keeps the requests."""

    def __init__(self) -> None:
        self.replies: list[str | int] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append((self.path, dict(self.headers), body))
                reply = server.replies.pop(0)
                message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": reply}}]}
                answer = json.dumps(message if isinstance(reply, str) else {"error": "busy"}).encode()
                self.send_response(200 if isinstance(reply, str) else reply)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def judge(server: Server, **keys: Any) -> JudgeScorer:
    config: Any = parse_component("scorer", {"type": "judge", "url": server.url, "model": "m", **keys})
    return JudgeScorer(config)


def test_the_judge_is_sent_question_answer_and_reference(server: Server) -> None:
    server.replies = ["I would say 7.5"]
    assert judge(server, api_key="key-of-a-test").score("1+1?", "two {x}", "2") == 0.75
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer key-of-a-test"
    assert (body["model"], body["temperature"]) == ("m", 0)
    (message,) = body["messages"]
    assert message["role"] == "user" and all(text in message["content"] for text in ("1+1?", "two {x}", "\n2\n"))


@pytest.mark.parametrize(
    ("reply", "keys", "expected"),
    [
        ("10", {}, 1.0),
        ("Out of 10 it is a 4.", {}, 0.4),
        ("no idea", {}, None),
        ("11", {}, None),
        ("-1", {}, None),
        ("[[3]] of 10 points, I think", {"pattern": r"\[\[(\d)\]\]", "best": 5}, 0.6),
        ("3 of 5", {"pattern": r"\[\[(\d)\]\]", "best": 5}, None),
    ],
)
def test_the_score_is_read_from_the_reply(
    server: Server, reply: str, keys: dict[str, Any], expected: float | None
) -> None:
    server.replies = [reply]
    assert judge(server, **keys)("answer", "reference") == expected


def test_a_server_that_fails_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.replies = [503, 429, "5"]
    scorer = judge(server)
    assert retry(lambda: scorer("a", "b"), 2, "the judge") == 0.5
    server.replies = [503, 503]
    with pytest.raises(OSError, match="503"):
        retry(lambda: scorer("a", "b"), 1, "the judge")


def test_a_judge_rewards_by_the_prompt_too(server: Server) -> None:
    server.replies = ["2", "none"]
    section = {"type": "judge", "url": server.url, "model": "m", "best": 4, "prompt": "{problem}|{generated}"}
    config: Any = parse_component("reward", {"type": "score", "scorer": section})
    completions = [Completion("p", text, "r", 1, True) for text in ("a", "b")]
    assert ScoreReward(config)(completions) == [0.5, None]
    assert [body["messages"][0]["content"] for _, _, body in server.requests] == ["p|a", "p|b"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"url": "localhost:8000"}, "begins with http"),
        ({"prompt": "{answer}"}, r"there is no \{answer\}"),
        ({"prompt": "good?"}, r"\{generated\}, which is to be judged, is missing"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"best": 0}, "greater than 0"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_component("scorer", {"type": "judge", "url": "http://x/v1", "model": "m", **keys})
