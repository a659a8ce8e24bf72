"""The commands generate, chat, export and evaluate, as they are typed."""

import io
import json
from pathlib import Path

import pytest
import yaml

from arctic_training.cli.main import main
from arctic_training.errors.types import InputError
from arctic_training.generation.chat import Chat
from arctic_training.generation.config import GenerationKeys
from tests.deployment.runs import PROMPT, TrainedRun, recipe

QUESTION = PROMPT[0]["content"]


def text_of(run: TrainedRun) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.folder / "model")
    return str(tokenizer.decode(run.completion, skip_special_tokens=True))


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_generate(full_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, limit = str(full_run.run_dir), ["--max-new-tokens", "12"]
    assert main(["generate", run, "-p", QUESTION, *limit]) == 0
    assert capsys.readouterr().out == text_of(full_run) + "\n"
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": PROMPT}) + "\n\n" + json.dumps({"prompt": "say yes again"}) + "\n")
    drawn = ["--temperature", "1.5", "--min-p", "0.01", "--seed", "7", *limit]
    assert main(["generate", run, "-p", QUESTION, "--file", str(file), *drawn]) == 0
    several = rows(capsys.readouterr().out)
    assert [next(iter(row)) for row in several] == ["prompt", "messages", "prompt"]
    assert several[0]["completion"] == several[1]["completion"] != text_of(full_run)
    assert main(["generate", run, "-p", "say yes again", "-o", str(tmp_path / "out.jsonl"), *drawn]) == 0
    assert rows((tmp_path / "out.jsonl").read_text()) == [several[2]] and capsys.readouterr().out == ""
    assert main(["generate", run, "-p", QUESTION, "--raw", "--json", *limit]) == 0
    (plain,) = rows(capsys.readouterr().out)
    assert plain["completion"] != text_of(full_run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "RUN"], "no prompt; give one with -p TEXT"),
        (["generate", "RUN", "-p", "a", "--top-p", "2"], "--top-p: Input should be less than or equal to 1"),
        (["generate", "RUN", "-p", "a", "--num-beams", "2", "--temperature", "1"], "set temperature: 0"),
        (["generate", "RUN", "--file", "missing.jsonl"], "missing.jsonl: cannot be read"),
        (["generate", "RUN", "--file", "RUN/recipe.yaml"], "recipe.yaml:1: not JSON"),
        (["generate", "./nothing", "-p", "a"], "./nothing: no such file or folder"),
        (["export", "RUN", "-o", "out", "--max-shard-size", "much"], "expected a size such as 5GB"),
        (["export", "RUN", "-o", "RUN"], "exists and is not empty"),
        (["export", "RUN", "-o", "out", "--push-to-hub", "me"], "expected OWNER/NAME"),
    ],
)  # fmt: skip
def test_refusals(
    full_run: TrainedRun, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("RUN", str(full_run.run_dir)) for word in words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_chat(full_run: TrainedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [QUESTION, "/reset", QUESTION, "again", "/system be brief", QUESTION, "/nothing", "", "/quit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(full_run.run_dir), "--temperature", "0", "--max-new-tokens", "12"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert answers[0] == answers[1] == text_of(full_run)
    assert answers[-1] == "no command is named /nothing; /help lists them"


def test_chat_commands(
    full_run: TrainedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An answer is drawn again, removed, and saved as a row; an option holds from then on, a wrong one does nothing."""
    monkeypatch.chdir(tmp_path)
    lines = ["/retry", "/undo", "/save x.jsonl", QUESTION, "/retry", "/set temperature 3", "/retry", "/retry", "again",
             "/undo", "/set top-p 2", "/set heat 1", "/set", "/save chats.txt", "/save chats.jsonl", "/system be brief",
             QUESTION, "/save chats.jsonl", "/save missing/chats.jsonl", "/help"]  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(full_run.run_dir), "--temperature", "0", "--max-new-tokens", "12"]) == 0
    shown, errors = capsys.readouterr()
    question = {"role": "user", "content": QUESTION}
    first, second = rows((tmp_path / "chats.jsonl").read_text())
    drawn = first["messages"][1]["content"]  # type: ignore[index]
    assert first == {"messages": [question, {"role": "assistant", "content": drawn}]}
    assert second["messages"][:2] == [{"role": "system", "content": "be brief"}, question]  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl"]
    greedy = text_of(full_run)
    assert shown.startswith(f"\n{greedy}\n{greedy}\ntemperature 3.0\n") and greedy != drawn
    assert f"\n{drawn}\n" in shown and "\nremoved: again\n" in shown
    assert "\nmax_new_tokens 12\ntemperature 3.0\ntop_k 0\ntop_p 1.0\n" in shown
    assert "\nchats.jsonl: 2 messages added as one row\n" in shown and "\n/quit " in shown
    assert errors.count("nothing was asked yet") == 3
    assert "top-p: Input should be less than or equal to 1" in errors
    assert "no option is named heat; there are: max_new_tokens, temperature, top_k" in errors
    assert "chats.txt: expected a name that ends with .jsonl" in errors
    assert "missing/chats.jsonl: cannot be written: [Errno 2]" in errors


def test_turns_are_drawn_again_removed_and_saved(full_run: TrainedRun, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from arctic_training.data.formats.chat import reader

    folder = full_run.checkpoint("huggingface")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    chat = Chat(model, tokenizer, GenerationKeys(max_new_tokens=8, temperature=3), system="be brief")
    first = [chat.answer("one", str), chat.retry(str), chat.retry(str)]
    assert len(set(first)) == 3
    second = [chat.answer("two", str), chat.retry(str)]
    assert [one["content"] for one in chat.messages] == ["be brief", "one", first[2], "two", second[1]]
    assert chat.undo() == "two" and len(chat.messages) == 3
    assert [chat.answer("two", str), chat.retry(str)] == second  # as if it had not been asked before
    chat.undo()
    assert chat.retry(str) not in first
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": []}')  # a line that does not end
    chat.save(file)
    row = json.loads(file.read_text().splitlines()[1])
    assert row == {"messages": chat.messages} and file.read_text().count("\n") == 2
    assert [one["content"] for one in reader(list(row))(row).messages] == [one["content"] for one in chat.messages]
    chat.undo()
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    for refused in (chat.undo, lambda: chat.retry(str), lambda: chat.save(file)):
        with pytest.raises(InputError, match="nothing was asked yet"):
            refused()


def test_a_conversation_is_the_prompt_of_its_next_turn(full_run: TrainedRun) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = full_run.checkpoint("huggingface")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    chat = Chat(model, tokenizer, GenerationKeys(max_new_tokens=6), system="be brief")
    first = chat.answer("one", lambda _: None)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    assert chat.messages == [*messages, {"role": "assistant", "content": first}]
    second = chat.answer("two", lambda _: None)
    messages = [*chat.messages[:-1]]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert second == tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    written: list[str] = []

    def interrupt(part: str) -> None:
        written.append(part)
        raise KeyboardInterrupt

    assert chat.answer("three", interrupt) == "".join(written) == chat.messages[-1]["content"]
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    with pytest.raises(InputError, match="the model's context 512; begin anew with /reset"):
        chat.answer("one two " * 400, lambda _: None)
    assert len(chat.messages) == 1
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        Chat(model, tokenizer, GenerationKeys())


def test_export_and_evaluate(lora_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(lora_run.run_dir), "-o", str(tmp_path / "out"), "--max-shard-size", "30KB"]) == 0
    shown = capsys.readouterr().out
    assert "MB of weights, from" in shown and "merged: logits differ by" in shown
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(lora_run.folder, lora=True)))
    test = f"data.eval_sources=[{lora_run.folder}/test.jsonl, {lora_run.folder}/held_out.jsonl]"
    assert main(["evaluate", str(tmp_path / "out"), str(path), test]) == 0
    head, *lines, where = capsys.readouterr().out.splitlines()
    assert head.split() == ["test", "held_out"] and where.endswith("evaluations/recipe/out/evaluation.json")
    table = {line.split()[0]: line.split()[1:] for line in lines}
    assert table["loss"][1] == f"{lora_run.metrics['loss/eval']:.4f}" and table["exact_match"]
