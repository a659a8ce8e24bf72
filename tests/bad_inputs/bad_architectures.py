"""Models of transformers whose architecture, head or vocabulary does not do what the recipe asks of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import tiny
from tests.bad_inputs.case import Case, lines, sft

PAIRS = lines({"source": "one", "target": "two"})
LABELED = lines({"text": "a", "label": "a"}, {"text": "b", "label": "b"})
CLASSIFIER = "model, labels: [a, b], new_weights: [score]"


def saved(kind: str, **fields: Any) -> Callable[[Path], object]:
    """A model with one small layer, of a ``model_type`` of transformers."""

    def make(at: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        tiny.save_tokenizer(at)
        shape = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        shape |= {"pad_token_id": 0, "eos_token_id": 3}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **fields})).save_pretrained(at)

    return make


def trainer(name: str, base: str, *body: str, imports: str = "") -> dict[str, str]:
    """A train.py with a subclass of a trainer, with other parts."""
    code = "".join(f"    {line}\n" for line in body)
    return {
        "train.py": f"from arctic_training import {base}\n{imports}\n\nclass Mine({base}):\n    name = '{name}'\n{code}"
    }


CASES: dict[str, Case] = {
    "the decoder alone": Case(
        "recipe.yaml:1:23: model.name_or_path: model: BartConfig is of an encoder-decoder, and its decoder alone would "
        "be trained; give model.task: seq2seq_lm, or causal_lm where that is meant",
        files={"model": lambda at: tiny.save_encoder_decoder(at, "bart")},
    ),
    "a head that the files do not have": Case(
        "recipe.yaml:2:23: model.name_or_path: model: the weights do not fit the config: score.weight is missing; for "
        "a score with random weights give model.new_weights: [score]",
        recipe="type: reward\n" + sft(),
        files={"rows.jsonl": lines({"chosen": "a", "rejected": "b"})},
    ),
    "attention that is more than causal": Case(
        "recipe.yaml:1:51: model.attn_implementation: documents does not fit Gemma2Config, whose attention is more "
        "than causal; give auto, or one that transformers has for it",
        recipe=sft(model="model, attn_implementation: documents"),
        files={"model": saved("gemma2", intermediate_size=32, num_key_value_heads=2, head_dim=8)},
    ),
    "packed rows of which one vector is computed": Case(
        "recipe.yaml:3:45: data.pack_samples: LlamaConfig: a sequence classifier computes one vector for a row; give "
        "pack_samples: false, or let the data factory's `packs` say that its rows are no packed ones",
        recipe="type: own_vectors\n" + sft(model=CLASSIFIER, data=", pack_samples: true"),
        files=trainer(
            "own_vectors",
            "SFTTrainer",
            "roles = (Role('model', tasks=('sequence_classification',)),)",
            imports="from arctic_training.trainer.role import Role\n",
        ),
    ),
    "packed rows through which a state is carried": Case(
        "recipe.yaml:2:45: data.pack_samples: layers of MambaConfig carry a state from token to token, so that samples "
        "in one row would see each other; give pack_samples: false",
        recipe=sft(data=", pack_samples: true"),
        files={"model": saved("mamba")},
    ),
    "experts in place of an MLP": Case(
        "recipe.yaml:3:20: tiled_mlp_compute: MixtralDecoderLayer sends its tokens to experts (MixtralExperts), which "
        "are no MLP for all tokens; remove it",
        recipe=sft(more="tiled_mlp_compute: true\n"),
        files={"model": saved("mixtral", intermediate_size=32, num_local_experts=2, num_key_value_heads=2)},
    ),
    "an MLP of two tensors": Case(
        "recipe.yaml:3:20: tiled_mlp_compute: BloomBlock has no module that computes its MLP alone, of one tensor; "
        "remove it",
        recipe=sft(more="tiled_mlp_compute: true\n"),
        files={"model": saved("bloom", n_layer=1, n_head=4)},
    ),
    "MLPs that are divided": Case(
        "recipe.yaml:4:20: tiled_mlp_compute: true, and mesh.model divides the MLPs; remove one of them",
        recipe=sft(more="mesh: {model: 2}\ntiled_mlp_compute: true\n"),
        words=["--num_gpus", "2"],
    ),
    "MLPs that are divided, by a transform": Case(
        "recipe.yaml:3:15: mesh.model: 2, and MLPs are divided or tiled; remove tiled_mlp from model.transforms",
        recipe=sft(model="model, transforms: [tiled_mlp]", more="mesh: {model: 2}\n"),
        words=["--num_gpus", "2"],
    ),
    "a vector of padding": Case(
        "recipe.yaml:2:23: model.name_or_path: model: the pad token of the model is 0, and that of the tokenizer None: "
        "padding would be taken for the end of a text; give tokenizer.pad_token",
        recipe="type: own_padless\n" + sft(model=CLASSIFIER),
        files={
            "rows.jsonl": LABELED,
            **trainer(
                "own_padless",
                "ClassifierTrainer",
                "tokenizer_factory_type = (Padless,)",
                imports="from arctic_training import HFTokenizerFactory\n\n\nclass Padless(HFTokenizerFactory):\n"
                "    name = 'own_padless'\n\n    def create_tokenizer(self):\n"
                "        tokenizer = super().create_tokenizer()\n        tokenizer.pad_token = None\n"
                "        return tokenizer\n",
            ),
        },
    ),
    "a vocabulary of another size": Case(
        "recipe.yaml:2:25: teacher.name_or_path: its vocabulary has 328 tokens, and that of model has 320: "
        "probabilities of different tokens cannot be compared; give a model of the same tokenizer",
        recipe="type: distill\nteacher: {name_or_path: other, dtype: fp32}\n" + sft(),
        files={"other": lambda at: tiny.save_model(at, vocab_size=328)},
    ),
    "no name of a tokenizer": Case(
        "recipe.yaml: tokenizer.name_or_path: give a name; the model section has none",
        recipe="skip_validation: true\nmodel: {type: mlp, sizes: [2, 2]}\ndata: {sources: [rows.jsonl]}\n",
    ),
    "a config that says nothing of the encoder": Case(
        "recipe.yaml:3:1: model: T5ForConditionalGeneration is an encoder-decoder, unlike the config that "
        "create_config of 'own_undescribed' returns, by which the data were prepared",
        recipe="type: own_undescribed\ntokenizer: {name_or_path: model}\nmodel: {}\ndata: {sources: [rows.jsonl]}\n",
        files={
            "model": tiny.save_encoder_decoder,
            "rows.jsonl": PAIRS,
            **trainer(
                "own_undescribed",
                "Seq2SeqTrainer",
                "model_factory_type = (Undescribed,)",
                imports="from arctic_training.model.factory import NetworkFactory\n"
                "from tests import tiny\n\n\nclass Undescribed(NetworkFactory):\n    name = 'own_undescribed'\n\n"
                "    def create_model(self, config):\n        return tiny.encoder_decoder('t5')\n",
            ),
        },
        cached=True,
    ),
}
