"""The page of runs: what is on it, that nothing of a run is code in it, and that a browser draws it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from arctic_training.errors.types import InputError
from arctic_training.report.differences import differences, flatten
from arctic_training.report.page import thin_out, write_report
from arctic_training.report.run_folder import read_curves, run_names
from arctic_training.tracker.records import read_records
from arctic_training.tracker.samples import ImageSamples
from tests.command import execute
from tests.objectives import grpo_runs
from tests.processes import HANG

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>&amp;\u2028"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def save_run(folder: Path, *, lr: float = 1e-4, steps: int = 20, words: str = "a") -> Path:
    """A run folder as a run leaves it."""
    import torch

    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"type": "sft", "optimizer": {"lr": lr}, "note": words}))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "versions": {"torch": f"2.{steps}"}}))
    lines = [{"step": 0, "time": 1000.0, "loss/eval": 3.0, "exact_match/eval": 0.0}]
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "time": 1000.0 + step,
                "loss": 3 / step,
                "lr": lr,
                "peak_memory": 1e9 + step,
                "epoch": step / 10,
            }
        )
    lines.append({"step": steps, "time": 1000.0 + steps, "loss/eval": 3 / steps, "exact_match/eval": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    generations = folder / "generations" / "eval"
    generations.mkdir(parents=True)
    for step, score in ((0, 0.0), (steps, 1.0)):
        rows = [
            {
                "sample": n + 1,
                "problem": f"q{n} {words}",
                "generated": f"g{n if step else 0}",
                "reference": "r",
                "exact_match": score * (n % 2),
            }
            for n in range(4)
        ]
        cut_off = '{"sample": 5, "prob' if step else ""  # by a kill
        (generations / ("step_{}.jsonl" if step else "update_{}.jsonl").format(step)).write_text(  # the former name
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + cut_off
        )
    ImageSamples(torch.arange(8 * 64, dtype=torch.int64).reshape(8, 8, 8, 1).byte()).write(
        folder / "samples" / "digits", steps
    )
    return folder


class Page(HTMLParser):
    """The tags of a page, with their attributes, and the texts of its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text, self.in_script = "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts[-1] += data
        self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def test_the_page_has_what_the_runs_have_written(tmp_path: Path) -> None:
    runs = [save_run(tmp_path / "a" / "runs" / "recipe"), save_run(tmp_path / "b" / "runs" / "recipe", lr=3e-4)]
    done = execute(tmp_path, "report", *map(str, runs), "-o", "page.html")
    assert (done.returncode, done.stdout) == (0, "written: page.html\n"), done.stderr
    page = Page(tmp_path / "page.html")
    assert page.data["runs"] == ["a/runs/recipe", "b/runs/recipe"]
    charts = {chart["title"]: chart["series"] for chart in page.data["charts"]}
    assert list(charts) == ["loss", "exact_match", "lr", "peak_memory"]
    assert [(one["run"], one["metric"]) for one in charts["loss"]] == [
        (0, "loss"),
        (0, "loss/eval"),
        (1, "loss"),
        (1, "loss/eval"),
    ]
    assert charts["loss"][0]["values"] == [3 / step for step in range(1, 21)]
    assert charts["loss"][1]["steps"] == [0, 20] and charts["lr"][1]["values"] == [3e-4] * 20
    (left, right) = page.data["samples"]
    assert [step["step"] for step in left["steps"]] == [0, 20] and left["set"] == "generations/eval"
    assert right["steps"][1]["rows"][1]["generated"] == "g1"
    assert [(step["count"], step["unread"]) for step in right["steps"]] == [(4, 0), (4, 1)]
    assert "optimizer.lr" in page.text and "0.0003" in page.text
    assert page.text.count("optimizer.lr") == 1 and "versions.torch" not in page.text  # what is alike is no difference
    (picture,) = [attributes["src"] for tag, attributes in page.tags if tag == "img"][:1]
    assert picture is not None and base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")


def test_the_completions_of_a_run_of_grpo_are_on_the_page_with_their_rewards(tmp_path: Path) -> None:
    trainer = grpo_runs.make_trainer(tmp_path, callbacks=[{"type": "sample_rollouts", "every": 1}], train_iters=2)
    completions: list[list[float]] = []
    trainer.callbacks.append(
        (
            "post-generate_rollouts",
            lambda _, rollouts: completions.append([x for one in rollouts for x in one["rewards"].tolist()]),
        )
    )
    trainer.train()
    trainer.close()
    write_report([trainer.run_dir], tmp_path / "page.html")
    (samples,) = Page(tmp_path / "page.html").data["samples"]
    assert samples["set"] == "samples/sample_rollouts" and [one["step"] for one in samples["steps"]] == [1, 2]
    for step, rewards in zip(samples["steps"], completions, strict=True):
        assert [row["reward"] for row in step["rows"]] == rewards and len(rewards) > 1
        file = trainer.run_dir / samples["set"] / f"step_{step['step']}.jsonl"
        assert step["rows"] == [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert {"prompt", "completion", "advantage", "reward/even_for_tests"} <= step["rows"][0].keys()


def test_nothing_of_a_run_is_code_and_nothing_is_requested(tmp_path: Path) -> None:
    run = save_run(tmp_path / "<img src=x>", words=HOSTILE)
    write_report([run], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [tag for tag, _ in page.tags].count("script") == len(page.scripts) == 2
    assert page.data["samples"][0]["steps"][0]["rows"][0]["problem"] == f"q0 {HOSTILE}"
    assert (run / "recipe.yaml").read_text().strip() in page.text
    (policy,) = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    own = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy is not None and policy.startswith("default-src 'none'") and f"script-src 'sha256-{own}'" in policy
    for tag, attributes in page.tags:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    precious = tmp_path / "recipe.yaml"
    precious.write_text("type: sft\n")
    run = save_run(tmp_path / "run")
    for folder, why in (("empty", "there is no recipe.yaml in it"), ("nowhere", "no such folder")):
        with pytest.raises(InputError, match=why):
            write_report([run, tmp_path / folder], tmp_path / "page.html")
    with pytest.raises(InputError, match="exists and is no report"):
        write_report([run], precious)
    with pytest.raises(InputError, match="cannot be written"):
        write_report([run], tmp_path / "no" / "page.html")
    assert precious.read_text() == "type: sft\n" and not (tmp_path / "page.html").exists()
    write_report([run], tmp_path / "page.html")
    write_report([run], tmp_path / "page.html")  # its own page is written again


def test_curves_of_a_run_that_went_back_was_killed_or_diverged(tmp_path: Path) -> None:
    lines = [{"step": step, "time": step, "loss": step} for step in range(1, 6)]
    lines += [
        {"step": 3, "time": 9, "loss": 30},
        {"step": 3, "time": 9, "loss/eval": 1},
        {"step": 4, "time": 10, "loss": float("nan")},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    records, unread = read_records(metrics)
    curves = read_curves(records)
    assert curves["loss"] == [(1, 1, 1), (2, 2, 2), (3, 9, 30), (4, 10, None)]
    assert curves["loss/eval"] == [(3, 9, 1)] and unread == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(lambda some: some * 100))
def test_a_long_curve_keeps_its_ends_and_extremes(values: list[float]) -> None:
    points = [(n, float(n), value) for n, value in enumerate(values)]
    kept = thin_out(points)
    assert len(kept) <= 1_500 and kept == sorted(kept) and set(kept) <= set(points)
    assert {min(values), max(values)} <= {value for _, _, value in kept}


def test_names_and_differences() -> None:
    assert run_names([Path("/x/runs/recipe")]) == ["recipe"]
    assert run_names([Path("/x/a/runs/r"), Path("/x/b/runs/r")]) == ["a/runs/r", "b/runs/r"]
    assert flatten({"a": {"b": [1, 2], "c": [{"d": None}]}, "e": {}}) == {"a.b": "[1, 2]", "a.c.0.d": "", "e": "{}"}
    assert differences({"x": {"a": "1", "b": "2"}, "y": {"a": "1", "c": "3"}}) == [("b", ["2", "-"]), ("c", ["-", "3"])]


def opened(path: Path, folder: Path, script: str = "") -> tuple[str, list[str]]:
    """The page as the browser has it after its scripts and ``script``, and the addresses that it has requested.

    The browser's own requests, such as for the time, have no origin.
    """
    assert BROWSER is not None
    if script:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", path.read_text(), count=1, flags=re.DOTALL)
        path = folder / "scripted.html"
        path.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    log = folder / "network.json"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        "--disable-component-update",
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += [f"--log-net-log={log}", "--window-size=1280,2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    started = [str(one["url"]) for one in events if one.get("initiator", "not an origin") != "not an origin"]
    return done.stdout, [url for url in started if not url.startswith("file:")]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_draws_the_curves_and_requests_nothing(tmp_path: Path) -> None:
    runs = [save_run(tmp_path / "first", words=HOSTILE), save_run(tmp_path / "second", lr=3e-4, words=HOSTILE)]
    write_report(runs, tmp_path / "page.html")
    drawn, requested = opened(tmp_path / "page.html", tmp_path)
    curves = re.findall(r'<path class="curve" d="(M[^"]+)"', drawn)
    assert len(curves) == 10 and all(curve.count(",") >= 2 for curve in curves)  # five metrics of each run
    assert drawn.count('<div class="sample">') == 4
    assert html.escape(HOSTILE[:40], quote=False) in drawn and "<title>first, second</title>" in drawn
    assert not requested
    choose = "const f = document.getElementById('filter'); f.value = 'rose'; f.dispatchEvent(new Event('input'));"
    chosen, requested = opened(tmp_path / "page.html", tmp_path, f"{choose} fetch('http://127.0.0.1:9/seen')")
    assert requested == ["http://127.0.0.1:9/seen"]  # a request would be noticed
    assert chosen.count('<div class="sample">') == 2  # those of which the score went from 0 to 1


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize(
    ("order", "expected"), [("highest", ["0.75", "0.5", "0.25"]), ("lowest", ["0.25", "0.5", "0.75"])]
)
def test_a_browser_sorts_completions_by_their_reward(tmp_path: Path, order: str, expected: list[str]) -> None:
    folder = save_run(tmp_path / "run")
    shutil.rmtree(folder / "generations")
    (folder / "samples" / "sample_rollouts").mkdir(parents=True)
    rows = [
        {"prompt": "p", "completion": "c", "reward": n / 4, "advantage": -n, "reward/one": 9 - n} for n in (2, 3, 1)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples" / "sample_rollouts" / "step_5.jsonl").write_text(lines)
    write_report([folder], tmp_path / "page.html")
    choose = f"const o = document.getElementById('order'); o.value = '{order}'; o.dispatchEvent(new Event('input'));"
    drawn, _ = opened(tmp_path / "page.html", tmp_path, choose)
    sides = [re.findall(r">reward ([\d.]+)<", card) for card in drawn.split('<div class="sample">')[1:]]
    assert sides == [[one, one] for one in expected]  # the only step is on both sides


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_compares_completions_of_the_same_prompt_only(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    shutil.rmtree(folder / "generations")
    (folder / "samples" / "sample_rollouts").mkdir(parents=True)
    for step, rollouts in ((5, [("p", 0.25), ("p", 0.5), ("q", 0.5)]), (10, [("r", 0.75), ("p", 1), ("p", 0)])):
        lines = "".join(json.dumps({"prompt": p, "completion": "c", "reward": reward}) + "\n" for p, reward in rollouts)
        (folder / "samples" / "sample_rollouts" / f"step_{step}.jsonl").write_text(lines)
    write_report([folder], tmp_path / "page.html")
    drawn, _ = opened(tmp_path / "page.html", tmp_path)
    cards = [
        re.findall(r'class="score([^"]*)">reward ([\d.]+)<', one) for one in drawn.split('<div class="sample">')[1:]
    ]
    assert cards == [[("", "0.25"), (" rose", "1")], [("", "0.5"), (" fell", "0")], [("", "0.5")], [("", "0.75")]]
