"""Folders, sizes and arguments with which a run cannot be started."""

from pathlib import Path

from arctic_training.errors.short_repr import short_repr
from tests import tiny
from tests.bad_inputs.case import Case, sft

FILE = {"file": "x"}
LONG = "a" * 5_000
SHOWN = short_repr(LONG)


def folder(at: Path) -> None:
    at.mkdir()


CASES: dict[str, Case] = {
    "output_dir is a file": Case(
        "recipe.yaml:3:13: output_dir: {here}/file is a file; expected a folder",
        recipe=sft(more="output_dir: file\n"),
        files=FILE,
    ),
    "output_dir is below a file": Case(
        "recipe.yaml:3:13: output_dir: {here}/file is a file; expected a folder",
        recipe=sft(more="output_dir: file/runs\n"),
        files=FILE,
    ),
    "the default folder is a file": Case(
        "recipe.yaml: output_dir: {here}/runs is a file; expected a folder", files={"runs": "x"}
    ),
    "output_dir cannot be made": Case(
        "/proc/none: cannot be written: No such file or directory", recipe=sft(more="output_dir: /proc/none\n")
    ),
    "output_dir is in the model": Case(
        "recipe.yaml:3:13: output_dir: model/runs lies in the folder of the model; choose another",
        recipe=sft(more="output_dir: model/runs\n"),
        files={"model": tiny.save_model},
    ),
    "checkpoints into a file": Case(
        "recipe.yaml:3:43: checkpoint.output_dir: {here}/file is a file; expected a folder",
        recipe=sft(more="checkpoint: {type: deepspeed, output_dir: file}\n"),
        files=FILE,
    ),
    "checkpoints that cannot be made": Case(
        "/proc/none: cannot be written: No such file or directory",
        recipe=sft(more="checkpoint: {type: deepspeed, output_dir: /proc/none}\n"),
    ),
    "checkpoints into the model": Case(
        "recipe.yaml:3:45: checkpoint.output_dir: model lies in the folder of the model; choose another",
        recipe=sft(more="checkpoint: {type: huggingface, output_dir: ./model}\n"),
        files={"model": tiny.save_model},
    ),
    "logs into a file": Case(
        "recipe.yaml:3:22: logger.output_dir: {here}/file is a file; expected a folder",
        recipe=sft(more="logger: {output_dir: file}\n"),
        files=FILE,
    ),
    "metrics into a folder": Case(
        "recipe.yaml:3:25: train_log_metrics_path: folder is a folder; expected a file",
        recipe=sft(more="train_log_metrics_path: folder\n"),
        files={"folder": folder},
    ),
    "a kill switch that is on": Case(
        "recipe.yaml:3:19: kill_switch_path: file exists already and would stop the run; remove it",
        recipe=sft(more="kill_switch_path: file\n"),
        files=FILE,
    ),
    "a kill switch that was left": Case(
        "recipe.yaml: kill_switch_path: runs/recipe/kill_switch exists already and would stop the run; remove it",
        files={"runs/recipe/kill_switch": ""},
    ),
    "a NUL in output_dir": Case(
        "recipe.yaml:3:13: output_dir: 'a\\x00b': not a path of a file (embedded null byte)",
        recipe=sft(more='output_dir: "a\\0b"\n'),
    ),
    "a NUL in a model's name": Case(
        "recipe.yaml:1:23: model.name_or_path: 'a\\x00b': not a path of a file (embedded null byte)",
        recipe=sft(model='"a\\0b"'),
    ),
    "a NUL in a source's name": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: 'a\\x00b.jsonl': not a path of a file (embedded null byte)",
        recipe=sft('"a\\0b.jsonl"'),
    ),
    "a NUL in the code's name": Case(
        "recipe.yaml:3:7: code: 'a\\x00b': not a path of a file (embedded null byte)",
        recipe=sft(more='code: "a\\0b"\n'),
    ),
    "a NUL in a base's name": Case(
        "recipe.yaml:3:10: extends: 'a\\x00b': not a path of a file (embedded null byte)",
        recipe=sft(more='extends: "a\\0b"\n'),
    ),
    "an escape sequence in a name": Case(
        "recipe.yaml:3:7: code: \\x1b[2Jmine.py: no such file", recipe=sft(more='code: "\\e[2Jmine.py"\n')
    ),
    "a model's name without end": Case(
        f"recipe.yaml:1:23: model.name_or_path: {SHOWN}: not a path of a file (File name too long)",
        recipe=sft(model=LONG),
    ),
    "a source's name without end": Case(
        f"recipe.yaml:2:18: data.sources.0.name_or_path: {SHOWN[:-7]}.jsonl': not a path of a file (File...",
        recipe=sft(f"{LONG}.jsonl"),
    ),
    "an output_dir without end": Case(
        f"recipe.yaml:3:13: output_dir: {SHOWN}: not a path of a file (File name too long)",
        recipe=sft(more=f"output_dir: {LONG}\n"),
    ),
    "a code's name without end": Case(
        f"recipe.yaml:3:7: code: {SHOWN}: not a path of a file (File name too long)",
        recipe=sft(more=f"code: {LONG}\n"),
    ),
    "a base's name without end": Case(
        f"recipe.yaml:3:10: extends: {SHOWN}: not a path of a file (File name too long)",
        recipe=sft(more=f"extends: {LONG}\n"),
    ),
    "a home of nobody": Case(
        "recipe.yaml:1:23: model.name_or_path: '~nobody_at_all/model': not a path of a file (Could not "
        "determine home directory.)",
        recipe=sft(model="~nobody_at_all/model"),
    ),
    "a model outside the root": Case(
        [
            "recipe.yaml:1:23: model.name_or_path: ../: no config.json in it; expected a folder that save_pretrained "
            "wrote",
            "recipe.yaml:1:23: model.name_or_path: ../ leads out of .; ARCTIC_TRAINING_ROOT allows no other folder",
        ],
        recipe=sft(model="../"),
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "data outside the root": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: ../home/secret.jsonl leads out of .; "
        "ARCTIC_TRAINING_ROOT allows no other folder",
        recipe=sft("../home/secret.jsonl", model="some/model"),
        files={"../home/secret.jsonl": "{}\n"},
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "a link out of the root": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: link.jsonl leads out of .; "
        "ARCTIC_TRAINING_ROOT allows no other folder",
        recipe=sft("link.jsonl", model="some/model"),
        files={"link.jsonl": lambda at: at.symlink_to("/etc/passwd")},
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "a pattern out of the root": Case(
        "recipe.yaml:2:18: data.sources.0.name_or_path: link.jsonl leads out of .; "
        "ARCTIC_TRAINING_ROOT allows no other folder",
        recipe=sft('"l*.jsonl"', model="some/model"),
        files={"link.jsonl": lambda at: at.symlink_to("/etc/passwd")},
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "output outside the root": Case(
        "recipe.yaml:3:13: output_dir: ../../else leads out of .; ARCTIC_TRAINING_ROOT allows no other folder",
        recipe=sft(model="some/model", more="output_dir: ../../else\n"),
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "code outside the root": Case(
        "recipe.yaml:3:7: code: ../home/mine.py leads out of .; ARCTIC_TRAINING_ROOT allows no other folder",
        recipe=sft(more="code: ../home/mine.py\n"),
        files={"../home/mine.py": "import os\nos.mkdir('planted')\n"},
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "a base outside the root": Case(
        "recipe.yaml:3:10: extends: ../home/base.yaml leads out of .; ARCTIC_TRAINING_ROOT allows no other folder",
        recipe=sft(more="extends: ../home/base.yaml\n"),
        files={"../home/base.yaml": "seed: 3\n"},
        environment={"ARCTIC_TRAINING_ROOT": "."},
    ),
    "nobody to share with": Case(
        "recipe.yaml:3:25: sequence_parallel_size: 2 processes share a sequence, and the run has 1; start a multiple "
        "of 2, such as --num_gpus 2",
        recipe=sft(more="sequence_parallel_size: 2\n"),
    ),
    "processes that make no groups": Case(
        "recipe.yaml:3:25: sequence_parallel_size: 4 processes share a sequence, and the run has 2; start a multiple "
        "of 4, such as --num_gpus 4",
        recipe=sft(more="sequence_parallel_size: 4\n"),
        words=["--num_gpus", "2"],
    ),
    "heads that nobody can share": Case(
        "recipe.yaml:3:25: sequence_parallel_size: 3 processes cannot share the 4 heads of LlamaConfig; these can: 1, "
        "2, 4",
        recipe=sft(more="sequence_parallel_size: 3\n"),
        words=["--num_gpus", "3"],
    ),
    "attention that nobody can share": Case(
        "recipe.yaml:3:25: sequence_parallel_size: 2 processes share attention per document only; give "
        "model.attn_implementation: auto",
        recipe=sft(model="model, attn_implementation: eager", more="sequence_parallel_size: 2\n"),
        words=["--num_gpus", "2"],
    ),
    "no process for a sequence": Case(
        "recipe.yaml:3:25: sequence_parallel_size: 0 should be greater than or equal to 1",
        recipe=sft(more="sequence_parallel_size: 0\n"),
    ),
    "points in a sequence": Case(
        "recipe.yaml:2:25: sequence_parallel_size: 2, and GANTrainer does not state that its loss is right on a part "
        "of a sequence (`shares_sequences = True`); remove it",
        recipe="type: gan\nsequence_parallel_size: 2\ndata: {sources: [points.npy]}\n"
        "model: {type: mlp, sizes: [2, 4, 2]}\ndiscriminator: {type: mlp, sizes: [2, 4, 1]}\nlatent_size: 2\n",
    ),
    "another size for DeepSpeed": Case(
        "recipe.yaml:4:37: deepspeed.sequence_parallel_size: 4 contradicts the recipe's sequence_parallel_size: 2; "
        "remove it, or write 2",
        recipe=sft(more="sequence_parallel_size: 2\ndeepspeed: {sequence_parallel_size: 4}\n"),
    ),
    "nobody to divide a model with": Case(
        "recipe.yaml:3:15: mesh.model: 2 processes share a model, and the run has 1; start a multiple of 2, such as "
        "--num_gpus 2",
        recipe=sft(more="mesh: {model: 2}\n"),
    ),
    "a mesh of other processes": Case(
        "recipe.yaml:3:14: mesh.data: data 3 x model 1 are 3 processes, and the run has 2; start 3, such as --num_gpus "
        "3, or leave data out",
        recipe=sft(more="mesh: {data: 3}\n"),
        words=["--num_gpus", "2"],
    ),
    "heads that nobody can divide": Case(
        "recipe.yaml:3:15: mesh.model: 3 processes cannot divide the 4 heads (2 of keys and values) and the layers of "
        "LlamaConfig; these can: 1, 2",
        recipe=sft(more="mesh: {model: 3}\n"),
        words=["--num_gpus", "3"],
    ),
    "expert parallelism of nobody": Case(
        "recipe.yaml:3:23: expert_parallel_size: expert parallelism is not built yet; remove this key",
        recipe=sft(more="expert_parallel_size: 0\n"),
    ),
    "no GPUs": Case("--num_gpus: expected an integer above 0, got '0'", words=["--num_gpus", "0"]),
    "fewer GPUs than none": Case("--num_gpus: expected an integer above 0, got '-2'", words=["--num_gpus", "-2"]),
    "a word for GPUs": Case("--num_gpus: expected an integer above 0, got 'all'", words=["--num_gpus", "all"]),
    "GPUs without a number": Case("--num_gpus: expected one argument", words=["--num_gpus"]),
    "GPUs of a rank": Case(
        "--num_gpus: this process is one rank of a run already; its launcher sets their number",
        words=["--num_gpus", "2"],
        environment={"RANK": "0", "WORLD_SIZE": "2"},
    ),
    "a port beyond all": Case(
        "--master_port: expected a port of at most 65535, got '99999'",
        words=["--num_gpus", "2", "--master_port", "99999"],
    ),
    "a word for a port": Case(
        "--master_port: expected an integer above 0, got 'http'", words=["--master_port", "http"]
    ),
    "no such hostfile": Case(
        "--hostfile no.txt: No such file or directory", words=["--num_nodes", "2", "--hostfile", "no.txt"]
    ),
    "a bad hostfile": Case(
        "hosts:3: 'two: 3': expected `host slots=GPUs`",
        words=["--num_nodes", "2", "--hostfile=hosts"],
        files={"hosts": "# ours\none slots=2\ntwo: 3\n"},
    ),
    "two recipes": Case(
        "expected one recipe (recipe.yaml), got a second: other.yaml; overrides are written key.path=value",
        words=["other.yaml"],
    ),
    "another launcher": Case("--launcher: invalid choice: 'slurm' (choose from ...", words=["--launcher", "slurm"]),
    "a word for a rank": Case(
        "RANK is 'x' in the environment; expected an integer of at least 0, set by a launcher",
        environment={"RANK": "x", "WORLD_SIZE": "2"},
    ),
    "a rank beyond the last": Case(
        "RANK is 2 and WORLD_SIZE is 2 in the environment; ranks begin at 0",
        environment={"RANK": "2", "WORLD_SIZE": "2"},
    ),
    "a run of nobody": Case(
        "RANK is 0 and WORLD_SIZE is 0 in the environment; ranks begin at 0",
        environment={"RANK": "0", "WORLD_SIZE": "0"},
    ),
    "a SLURM step of a word": Case(
        "SLURM_STEP_NUM_TASKS is '2(x3)' in the environment; expected an integer of at least 0, set by a launcher",
        environment={"SLURM_STEP_NUM_TASKS": "2(x3)"},
    ),
    "a batch size that does not add up": Case(
        "recipe.yaml:4:31: deepspeed.train_batch_size: 8 contradicts micro_batch_size 2 x "
        "gradient_accumulation_steps 1 x 1 data-parallel processes = 2; remove it",
        recipe=sft(more="micro_batch_size: 2\ndeepspeed: {train_batch_size: 8}\n"),
        cached=True,
    ),
    "a batch size of other processes": Case(
        "recipe.yaml:4:31: deepspeed.train_batch_size: 8 contradicts micro_batch_size 2 x "
        "gradient_accumulation_steps 1 x 2 data-parallel processes = 4; remove it",
        recipe=sft(more="micro_batch_size: 2\ndeepspeed: {train_batch_size: 8}\n"),
        words=["--num_gpus", "2"],
    ),
    "a warm-up longer than the run": Case(
        "recipe.yaml:3:1: scheduler: a warm-up of 100 steps is longer than the run, which has 8",
        recipe=sft(more="scheduler: {warmup_steps: 100}\n"),
        cached=True,
    ),
    "a warm-up of more epochs": Case(
        "recipe.yaml:3:1: scheduler: a warm-up of 24 steps is longer than the run, which has 8",
        recipe=sft(more="scheduler: {warmup_epochs: 3}\n"),
        cached=True,
    ),
    "a schedule of steps by epoch": Case(
        "recipe.yaml:3:40: scheduler.interval: the cycle goes by step; remove it",
        recipe=sft(more="scheduler: {type: one_cycle, interval: epoch}\n"),
        cached=True,
    ),
    "an unknown scheduler": Case(
        "recipe.yaml:3:19: scheduler.type: 'cosin' is not accepted here; there are: huggingface, wsd, "
        "constant, exponential, one_cycle, step, multistep, cyclic",
        recipe=sft(more="scheduler: {type: cosin}\n"),
    ),
    "an unknown schedule": Case(
        "recipe.yaml:3:19: scheduler.name: no schedule is named 'cosin'; did you mean 'cosine'? there "
        "are: linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, "
        "inverse_sqrt, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay",
        recipe=sft(more="scheduler: {name: cosin}\n"),
    ),
    "an optimizer that cannot be parted": Case(
        "recipe.yaml:2:19: optimizer.type: adafactor works up to ZeRO stage 0 in bf16, and this run has 1; give "
        "deepspeed.zero_optimization.stage: 0",
        recipe="model: {name_or_path: model, dtype: bf16}\noptimizer: {type: adafactor}\n"
        "gradient_accumulation_steps: 2\ndata: {sources: [rows.jsonl]}\n",
    ),
    "a batch beyond all numbers": Case(
        "recipe.yaml:3:19: micro_batch_size: 1e+30: Unable to parse input string as an integer, exceeded maximum size",
        recipe=sft(more="micro_batch_size: 1e30\n"),
    ),
    "updates without end": Case(
        "recipe.yaml:3:14: train_iters: inf should be a finite number", recipe=sft(more="train_iters: 1e400\n")
    ),
    "a seed beyond all numbers": Case(
        "recipe.yaml:3:7: seed: 12345678901234567890 should be less than 9223372036854775808",
        recipe=sft(more="seed: 12345678901234567890\n"),
    ),
    "a deepspeed block that is a number": Case(
        "recipe.yaml:3:12: deepspeed: 3 should be a mapping", recipe=sft(more="deepspeed: 3\n")
    ),
    "clipping below 0": Case(
        "recipe.yaml:3:32: deepspeed.gradient_clipping: -1 should be a number of at least 0 (0: no clipping)",
        recipe=sft(more="deepspeed: {gradient_clipping: -1}\n"),
    ),
    "a bucket size that is a word": Case(
        "recipe.yaml:3:63: deepspeed.zero_optimization.reduce_bucket_size: 'many' should be a number of at least 0",
        recipe=sft(more="deepspeed: {zero_optimization: {stage: 2, reduce_bucket_size: many}}\n"),
    ),
}
