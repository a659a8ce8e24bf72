"""An export computes what was trained, a merge that does not is refused, and one weight at a time is read."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_training.checkpoint.consolidated import ConsolidatedWeights
from arctic_training.checkpoint.saved_model import find_saved_model
from arctic_training.deployment.export import ExportOptions, export
from arctic_training.errors.types import CheckpointError, InputError
from tests.deployment.runs import IDS, PROMPT, TrainedRun, complete, train


def write(source: Path, target: Path, **options: Any) -> Any:
    return export(find_saved_model(str(source)), target, ExportOptions(**options))


def load(folder: Path) -> tuple[Any, Any]:
    """As any user of transformers does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", ["deepspeed", "huggingface"])
@pytest.mark.parametrize("lora", [False, True])
def test_an_export_generates_what_the_trained_model_does(
    full_run: TrainedRun, lora_run: TrainedRun, tmp_path: Path, kind: str, lora: bool
) -> None:
    run = lora_run if lora else full_run
    report = write(run.checkpoint(kind), tmp_path / "out", max_shard_size=20_000)
    model, tokenizer = load(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.float32
    assert torch.allclose(logits(model), run.logits, atol=1e-4)
    assert complete(model, tokenizer) == run.completion
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert (report is not None) == lora
    if report is not None:
        assert report.error < 1e-4 < report.effect
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    (tmp_path / "new").touch()
    for folder in (tmp_path / "out", run.checkpoint(kind)):
        modes = {one.stat().st_mode for one in folder.rglob("*") if one.is_file()}
        assert modes == {(tmp_path / "new").stat().st_mode}  # others may read what they may read of a new file


def test_a_merge_in_less_than_fp32_is_rounded_once(lora_run: TrainedRun, tmp_path: Path) -> None:
    """The weights are those of the sum in fp32, and not of a sum of rounded parts."""
    import peft
    from transformers import AutoModelForCausalLM

    write(lora_run.checkpoint("huggingface"), tmp_path / "out", dtype="bf16")
    base = AutoModelForCausalLM.from_pretrained(lora_run.folder / "model", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, lora_run.checkpoint("huggingface")).merge_and_unload()
    model, _ = load(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    expected = dict(merged.named_parameters())
    assert all(torch.equal(one, expected[name].bfloat16()) for name, one in model.named_parameters())


def test_the_template_is_there_for_servers(full_run: TrainedRun, tmp_path: Path) -> None:
    """vLLM reads the folder with AutoTokenizer and renders chats with the template in it."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    write(full_run.run_dir, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    own = AutoTokenizer.from_pretrained(full_run.folder / "model")
    options = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(PROMPT, **options) == own.apply_chat_template(PROMPT, **options)
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == ["LlamaForCausalLM"]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 3


def test_the_average_can_be_exported(full_run: TrainedRun, tmp_path: Path) -> None:
    write(full_run.checkpoint("deepspeed"), tmp_path / "out", averaged=True)
    saved = torch.load(full_run.checkpoint("deepspeed") / "run_0.pt", weights_only=True)
    averages = saved["callback.ema"]["weights"]
    assert all(torch.equal(one, averages[name]) for name, one in load(tmp_path / "out")[0].named_parameters())
    with pytest.raises(InputError, match="only checkpoints of type deepspeed"):
        write(full_run.checkpoint("huggingface"), tmp_path / "another", averaged=True)


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_is_read_one_weight_at_a_time(
    full_run: TrainedRun, lora_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    limit, alive, most = 20_000, list[Any](), 0
    plain = ConsolidatedWeights.__getitem__

    def read(weights: ConsolidatedWeights, name: str) -> torch.Tensor:
        nonlocal most
        tensor = plain(weights, name).clone()
        alive.append(weakref.ref(tensor))
        most = max(most, sum(one().nbytes for one in alive if one() is not None))
        return tensor

    monkeypatch.setattr(ConsolidatedWeights, "__getitem__", read)
    monkeypatch.setattr("arctic_training.deployment.export._verify", lambda *_: None)  # loads the model
    write((lora_run if lora else full_run).checkpoint("deepspeed"), tmp_path / "out", max_shard_size=limit)
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    largest = max(one.numel() for one in load(tmp_path / "out")[0].parameters()) * 4
    assert most <= limit + 2 * largest < size


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    run = train(tmp_path, lora=True, optimizer={"lr": 1e-30}, evaluators=[])
    with pytest.raises(CheckpointError, match="the adapter changes nothing"):
        write(run.checkpoint("huggingface"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("share", [0.0, 0.9, 1.1])
def test_a_wrong_merge_is_refused(
    lora_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A merge that forgets the adapter, or adds another part of it than all."""
    from peft.tuners.lora import Linear

    plain = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda layer, adapter: plain(layer, adapter) * share)
    with pytest.raises(CheckpointError, match="logits of its base" if not share else "is apart from the adapter"):
        write(lora_run.checkpoint("deepspeed"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_below_the_digits_of_the_dtype_is_not_lost_in_silence(lora_run: TrainedRun, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(lora_run.checkpoint("huggingface"), tmp_path / "small")
    (tmp_path / "small" / "manifest.json").unlink()
    path = tmp_path / "small" / "adapter_model.safetensors"
    save_file({name: one * (1e-4 if "lora_B" in name else 1) for name, one in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"is apart from the adapter.*export with --dtype fp32"):
        write(tmp_path / "small", tmp_path / "out", dtype="bf16")
    report = write(tmp_path / "small", tmp_path / "out", dtype="fp32")
    assert report.error < report.effect / 10


def test_methods_that_are_no_sum_are_refused(tmp_path: Path) -> None:
    model = {"name_or_path": str(tmp_path / "model"), "dtype": "fp32", "peft_config": {"peft_type": "IA3"}}
    run = train(tmp_path, lora=True, model=model, evaluators=[])
    for kind in ("huggingface", "deepspeed"):
        with pytest.raises(InputError, match="only plain LoRA can be merged, and this has IA3"):
            write(run.checkpoint(kind), tmp_path / "out")


def test_the_card_has_recipe_data_and_figures(lora_run: TrainedRun, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write(lora_run.run_dir, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert "arctic_training" in card.data.tags and "sft" in card.data.tags
    assert f"| loss/eval | {lora_run.metrics['loss/eval']:.6g} | 4 |" in card.text
    assert str(lora_run.folder / "chats.jsonl") in card.text and "peft_type: LORA" in card.text
    assert "merged into its weights in fp32" in card.text
    results = {one.metric_type: one for one in card.data.eval_results}
    assert results["loss"].metric_value == pytest.approx(lora_run.metrics["loss/eval"])
    assert results["exact_match"].dataset_name == "held_out.jsonl"
    assert results.keys() == {name.removesuffix("/eval") for name in lora_run.metrics}
    assert f"\n# {card.data.model_name}\n" in card.text and card.data.license is None
    used: dict[str, Any] = {}
    exec(card.text.partition("```python\n")[2].partition("```")[0], used)
    assert torch.equal(logits(used["model"].eval()), logits(load(tmp_path / "out")[0]))
    assert complete(used["model"], used["tokenizer"]) == lora_run.completion


def test_an_export_replaces_nothing(full_run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not empty"):
        write(full_run.run_dir, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").unlink()
    write(full_run.run_dir, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_the_hub_receives_the_folder(full_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    from arctic_training.config.checks import hub
    from arctic_training.deployment.hub import push_to_hub, require_token

    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        require_token("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError, match="no token; set HF_TOKEN"):
        require_token("me/model")
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        require_token("model")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(hub, "_answered", {constants.ENDPOINT})
    assert require_token("me/model") == "hf_secret"
    calls: list[Any] = []

    def create(api: Any, name: str, **options: Any) -> str:
        calls.append((api.token, name, options["private"]))
        return f"https://huggingface.co/{name}"

    def upload(api: Any, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if repo_id.startswith("them/"):
            raise huggingface_hub.errors.HfHubHTTPError("403 Forbidden", response=_response())
        calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    write(full_run.run_dir, tmp_path / "out")
    assert push_to_hub(tmp_path / "out", "me/model", "hf_secret", private=True) == "https://huggingface.co/me/model"
    assert calls[0] == ("hf_secret", "me/model", True)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(calls[1][1])
    with pytest.raises(InputError, match=r"them/model: .*403 Forbidden.*what was exported is in"):
        push_to_hub(tmp_path / "out", "them/model", "hf_secret", private=True)


def _response() -> Any:
    import httpx

    return httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co"))
