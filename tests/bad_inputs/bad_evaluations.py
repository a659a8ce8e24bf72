"""Evaluations, samples and completions that the model, the tokenizer or the data cannot give."""

import json

from tests.bad_inputs.bad_architectures import CLASSIFIER, LABELED, trainer
from tests.bad_inputs.bad_parts import VAE, save_rows
from tests.bad_inputs.case import Case, lines, sft

EVAL = ", eval_sources: [rows.jsonl]"


def evaluated(evaluator: str, *, data: str = "") -> str:
    """A recipe whose evaluator stands on its fourth line."""
    return sft(data=EVAL + data, more=f"eval_interval: 1\nevaluators: [{evaluator}]\n")


TASK = "task: own_task\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}\ntest_split: test\n"
TASK += "output_type: multiple_choice\ndoc_to_text: a\ndoc_to_target: b\ndoc_to_choice: c\n"
LM_EVAL = "{type: lm_eval, tasks: [own_task], include_path: tasks}"
ROUGE = "{type: torchmetrics, metric: text.ROUGEScore, kwargs: {rouge_keys: rouge1}}"
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
)
UNDESCRIBED = (
    "from arctic_training.model.factory import NetworkFactory\nfrom tests import tiny\n\n\n"
    "class Undescribed(NetworkFactory):\n    name = 'own_undescribed_policy'\n\n"
    "    def create_model(self, config):\n        return tiny.encoder_decoder('t5')\n"
)

CASES: dict[str, Case] = {
    "completions of a classifier": Case(
        "recipe.yaml:5:1: evaluators: 'generate' needs a model that generates; LlamaForSequenceClassification does not",
        recipe="type: classifier\n"
        + sft(model=CLASSIFIER, data=EVAL, more="eval_interval: 1\nevaluators: [generate]\n"),
        files={"rows.jsonl": LABELED},
    ),
    "completions of texts": Case(
        "recipe.yaml:5:1: evaluators: 'generate': eval, sample 1: it has input_ids; a prompt and its answer need "
        "input_ids and labels",
        recipe="type: causal\n" + evaluated("generate"),
        files={"rows.jsonl": lines({"text": "one two three"})},
        cached=True,
    ),
    "a scorer of several numbers": Case(
        "recipe.yaml:4:1: evaluators: 'generate': the scorer rouge_score fails on the reference of eval, sample 1: "
        "scorers: torchmetrics: text.ROUGEScore: it has several numbers; give one as value: rouge1_fmeasure, "
        "rouge1_precision, rouge1_recall",
        recipe=evaluated(f"{{type: generate, scorers: [{ROUGE}]}}"),
        cached=True,
    ),
    "tasks without a tokenizer": Case(
        "recipe.yaml:5:1: evaluators: 'lm_eval' needs a tokenizer, and this run has none",
        recipe=VAE.replace("[a.npy]", "[a.npy], eval_sources: [a.npy]")
        + f"eval_interval: 1\nevaluators: [{LM_EVAL}]\n",
        files={"a.npy": save_rows, "tasks/own_task.yaml": TASK},
    ),
    "a task without its data": Case(
        "recipe.yaml:4:1: evaluators: lm_eval: tasks: the data of own_task cannot be loaded: Unable to find "
        "'{here}/none.jsonl'",
        recipe=evaluated(LM_EVAL),
        files={"tasks/own_task.yaml": TASK},
        cached=True,
    ),
    "a prompt that the template refuses": Case(
        "recipe.yaml:4:1: callbacks.sample_generation.prompts: the chat template refuses a prompt: no system",
        recipe=sft(
            more=f"tokenizer: {{chat_template: {json.dumps(NO_SYSTEM)}}}\n"
            "callbacks: [{type: sample_generation, prompts: [[{role: system, content: a}]]}]\n"
        ),
    ),
    "a policy that is an encoder-decoder": Case(
        "recipe.yaml:4:1: model: T5ForConditionalGeneration is an encoder-decoder, unlike model.task: causal_lm, by "
        "which the data were prepared",
        recipe="type: own_policy\nrewards: exact_match\nmax_new_tokens: 4\nmodel: {}\nbeta: 0\n"
        "tokenizer: {name_or_path: model}\ndata: {sources: [rows.jsonl]}\n",
        files=trainer("own_policy", "GRPOTrainer", "model_factory_type = (Undescribed,)", imports=UNDESCRIBED),
        cached=True,
    ),
    "a tracker without a login": Case(
        "recipe.yaml:3:1: trackers: swanlab: nobody is logged in; run `swanlab login`, set SWANLAB_API_KEY, or let "
        "mode be offline",
        recipe=sft(more="trackers: [swanlab]\n"),
    ),
}
