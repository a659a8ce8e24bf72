"""The file for llama.cpp: what its converter is given, what becomes of its result, and what is refused before."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from safetensors.numpy import load_file

from arctic_training.cli.main import main
from arctic_training.deployment import gguf
from arctic_training.errors.types import InputError
from tests.deployment.runs import TrainedRun

SCRIPT = "convert_hf_to_gguf.py"
CONVERTER = """
import argparse
from pathlib import Path

from gguf import GGUFWriter
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype", choices=["f16", "f32"])
arguments = parser.parse_args()
writer = GGUFWriter(arguments.outfile, "llama")
writer.add_name(arguments.model.name)
for file in sorted(arguments.model.glob("*.safetensors")):
    for name, tensor in load_file(file).items():
        writer.add_tensor(name, tensor.astype({"f16": "float16", "f32": "float32"}[arguments.outtype]))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
"""Takes the words of llama.cpp's converter that an export gives it, and keeps the names of the weights."""


def save_converter(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Saves a converter where `LLAMA_CPP` names it; no other is on the path of programs."""
    (folder / SCRIPT).write_text(text)
    monkeypatch.setenv("LLAMA_CPP", str(folder))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(gguf, "_LIBRARIES", ("gguf",))  # what the converter above imports
    return folder / SCRIPT


@pytest.mark.parametrize("outtype", ["f16", "f32"])
def test_the_file_has_the_weights_of_the_exported_folder(
    full_run: TrainedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outtype: str,
) -> None:
    from gguf import GGUFReader

    save_converter(tmp_path, CONVERTER, monkeypatch)
    out = tmp_path / "out"
    assert main(["export", str(full_run.run_dir), "-o", str(out), "--gguf", outtype, "--max-shard-size", "100KB"]) == 0
    file = tmp_path / f"out-{outtype}.gguf"
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    again = ["export", str(full_run.run_dir), "-o", str(tmp_path / "out"), "--gguf", outtype]
    (tmp_path / "out").rename(tmp_path / "first")
    assert main(again) == 2 and not out.exists() and file.stat().st_size
    assert f"{file} exists, and is not overwritten" in capsys.readouterr().err
    (tmp_path / "first").rename(out)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1 and not list(out.glob("*.gguf"))
    expected = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    reader = GGUFReader(file)
    name = reader.get_field("general.name")
    assert name is not None and name.contents() == "out"
    assert sorted(one.name for one in reader.tensors) == sorted(expected)
    for one in reader.tensors:
        assert one.tensor_type.name == outtype.upper()
        np.testing.assert_array_equal(one.data, expected[one.name].astype(one.data.dtype))


def test_what_is_missing_is_told_before_the_export(
    full_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal() -> str:
        assert main(["export", str(full_run.run_dir), "-o", str(tmp_path / "out"), "--gguf", "f16"]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    save_converter(tmp_path, CONVERTER, monkeypatch).unlink()
    assert f"--gguf needs {SCRIPT} of llama.cpp: git clone https://github.com/ggml-org/llama.cpp" in refusal()
    save_converter(tmp_path, CONVERTER, monkeypatch)
    for missing in (("no_one",), ("no_one", "no_two")):
        monkeypatch.setattr(gguf, "_LIBRARIES", ("pydantic", *missing))
        assert f"--gguf needs {' and '.join(missing)}: pip install 'arctic_training[gguf]'" in refusal()


def test_the_extra_brings_what_the_converter_imports() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [Requirement(one).name for one in project["optional-dependencies"]["gguf"]] == list(gguf._LIBRARIES)


def test_a_model_that_cannot_be_converted_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import sys; open(sys.argv[3], 'w').write('GGUF'); print('no such architecture', file=sys.stderr); sys.exit(3)"
    )
    converter = save_converter(tmp_path, text, monkeypatch)
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=f"model: {SCRIPT} could not convert it: no such architecture"):
        gguf.convert_to_gguf(tmp_path / "model", converter, "f16")
    converter.write_text("print('done')")  # and has written nothing
    with pytest.raises(InputError, match="could not convert it: done"):
        gguf.convert_to_gguf(tmp_path / "model", converter, "f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == [SCRIPT, "model"]
