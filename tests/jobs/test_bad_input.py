"""Bad input to the whole flow: exit status 2, one line that says what, where and how to mend it, nothing written."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs import assemble, evaluate, pipeline
from jobs.cli import stage_main
from perpcs.config.schema import SyntheticConfig, TinyConfig
from perpcs.errors import MismatchError
from perpcs.model.base import save_base
from perpcs.model.tiny import new_llama, train_tokenizer
from perpcs.population.lamp import write_lamp
from perpcs.population.oppu import write_oppu
from perpcs.population.synthetic import synthetic_population
from perpcs.population.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
TASK = get_task("LaMP-2M")


@pytest.fixture(scope="session")
def people():
    small = SyntheticConfig(archetypes=2, base_users=4, candidates=4, targets=2, history=6, queries=2)
    return synthetic_population(small, seed=0)


@pytest.fixture
def lamp(people, tmp_path):
    """A folder of good LaMP files."""
    folder = tmp_path / "lamp"
    write_lamp((*people.base, *people.candidates), folder, split="train", task=TASK)
    write_lamp(people.targets, folder, split="dev", task=TASK)
    return folder


@pytest.fixture
def oppu(people, tmp_path):
    """A folder of good OPPU files."""
    folder = tmp_path / "oppu"
    for name in ("base", "candidates", "targets"):
        write_oppu(people.split(name), folder / f"{name}.json")
    return folder


@pytest.fixture
def hf(tmp_path):
    """A folder with a small model in Hugging Face format."""
    return save_model(tmp_path / "hf", seed=0)


def save_model(folder, *, seed):
    tokenizer = train_tokenizer(["one two three"], vocab=300)
    model = new_llama(
        TinyConfig(hidden=16, layers=1, heads=2, kv_heads=1), tokenizer, max_length=32, seed=seed
    )
    save_base(model, tokenizer, folder)
    return folder


@pytest.fixture
def refused(mini_yaml, capfd, tmp_path):
    """refused("key=value", …): the one line with which the pipeline refuses, having written nothing."""

    def refused(*overrides, config=mini_yaml, stage=pipeline.main, folder=tmp_path / "run"):
        capfd.readouterr()
        argv = [str(config), f"experiment={folder}", *overrides]
        assert stage_main(stage, description="", argv=argv) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1, err
        assert folder != tmp_path / "run" or not folder.exists(), "nothing may be written"
        return err

    return refused


def edit(path, change):
    """Change a JSON file, gzip or plain, in place."""
    pack, unpack = (
        (gzip.compress, gzip.decompress) if path.suffix == ".gz" else (lambda data: data, lambda data: data)
    )
    value = json.loads(unpack(path.read_bytes()))
    change(value)
    path.write_bytes(pack(json.dumps(value).encode()))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lamp_from(folder):
    return ("population.source=lamp", f"population.path={folder}")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["lora.rnak=4"], "command line: lora.rnak: no such key; did you mean lora.rank?"),
        (
            ["population.task=LaMP-5", "evaluate.decoding=constrained"],
            "evaluate.decoding: constrained needs a task whose outputs are labels, LaMP-5 has none; use greedy",
        ),
        (["lora.rank=four"], "command line: lora.rank: 'four' is not a whole number"),
        (
            ["population.task=LaMP-9"],
            "population.task: 'LaMP-9' must be LaMP-2M or LaMP-5 for the synthetic population",
        ),
        (
            ["evaluate.methods=adapted,gradent"],
            "evaluate.methods: 'gradent' is no method; did you mean gradient?",
        ),
    ],
)
def test_settings(refused, overrides, told):
    assert told in refused(*overrides)


def test_a_missing_config_file(refused, mini_yaml):
    assert "no such file; did you mean" in refused(config=mini_yaml.with_name("minni.yaml"))


@pytest.mark.parametrize("stage", [assemble.STAGE, evaluate.STAGE], ids=["assemble", "evaluate"])
@pytest.mark.slow
def test_an_unknown_method_given_to_one_stage_alone(refused, copy, contents, stage):
    before = contents(copy)
    assert "'gradent' is no method" in refused("evaluate.methods=gradent", stage=stage, folder=copy)
    assert contents(copy) == before


def test_an_unknown_task(refused, lamp, local_ray):
    line = refused(*lamp_from(lamp), "population.task=LaMP-22")
    assert "population.task 'LaMP-22': no such LaMP task; did you mean LaMP-2" in line


def test_targets_that_match_nothing(refused, local_ray):
    assert "lora.targets: 'q_prj' matches no linear layer of the base model; it has " in refused(
        "lora.targets=q_prj,v_proj"
    )


def test_a_rank_above_a_layer(refused, local_ray):
    assert "lora.rank: 17 is above the size of model.layers.0.self_attn.k_proj" in refused("lora.rank=17")


def test_more_adapted_layers_than_there_are(refused, local_ray):
    assert "lora.layers: 3 is more than the base model has; it has 2" in refused("lora.layers=3")


def test_an_encoder_that_is_no_folder(refused, local_ray, tmp_path):
    line = refused(f"select.encoder={tmp_path / 'encoder'}")
    assert f"select.encoder: '{tmp_path / 'encoder'}' is no model folder" in line and "; use base or" in line


def test_a_model_folder_that_is_not_there(refused, local_ray, tmp_path):
    line = refused(f"base.model={tmp_path / 'llama'}")
    assert f"base.model: '{tmp_path / 'llama'}' is no model folder" in line and "; check the path" in line


def test_nan_in_a_model_file(refused, local_ray, hf):
    from safetensors.torch import load_file, save_file

    weights = load_file(hf / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, hf / "model.safetensors", metadata={"format": "pt"})
    line = refused(f"base.model={hf}")
    assert f"{hf / 'model.safetensors'}: weight model.norm.weight has values that are not finite; " in line


def test_a_truncated_model_file(refused, local_ray, hf):
    halve(hf / "model.safetensors")
    assert f"{hf / 'model.safetensors'}: damaged or truncated" in refused(f"base.model={hf}")


def test_a_model_config_that_is_not_json(refused, local_ray, hf):
    halve(hf / "config.json")
    line = refused(f"base.model={hf}")
    assert "base.model: " in line and "could not be loaded: " in line


def test_a_missing_data_folder(refused, local_ray, tmp_path):
    line = refused(*lamp_from(tmp_path / "nowhere"))
    assert (
        "dev_questions.json: no such file, nor " in line
        and "the folder does not exist; check population.path" in line
    )


def test_a_truncated_gzip_file(refused, local_ray, lamp):
    halve(lamp / "train_questions.json.gz")
    assert "train_questions.json.gz: damaged or truncated gzip" in refused(*lamp_from(lamp))


def test_a_truncated_json_file(refused, local_ray, lamp):
    halve(lamp / "dev_outputs.json")
    assert "dev_outputs.json: truncated or malformed JSON at line " in refused(*lamp_from(lamp))


def _no_tag(questions):
    del questions[1]["profile"][2]["tag"]


def _twice(questions):
    questions[1]["id"] = questions[0]["id"]


def _no_gold(outputs):
    del outputs["golds"][0]


def _empty_gold(outputs):
    outputs["golds"][0]["output"] = " "


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("train_questions.json.gz", _no_tag, r"profile item [\w/-]+: tag: is missing; "),
        ("train_questions.json.gz", _twice, r"question [\w/-]+: id: stands twice in the file; "),
        ("train_outputs.json", _no_gold, r"question [\w/-]+: id: has no gold in the outputs file; add "),
        ("dev_outputs.json", _empty_gold, r"gold [\w/-]+: output: is empty; "),
        ("dev_questions.json.gz", list.clear, r"gold [\w/-]+: id: no such question in "),
    ],
    ids=["field", "twice", "no-gold", "empty-gold", "no-questions"],
)
def test_malformed_records(refused, local_ray, lamp, file, change, told):
    edit(lamp / file, change)
    line = refused(*lamp_from(lamp))
    assert re.search(told, line) and str(lamp) in line, line


def test_an_empty_split(refused, local_ray, oppu):
    edit(oppu / "candidates.json", list.clear)
    line = refused("population.source=oppu", f"population.path={oppu}")
    assert "candidates: is empty; lower population.split.min_history or add users" in line


def test_a_user_in_two_splits(refused, local_ray, oppu):
    someone = json.loads((oppu / "base.json").read_text())[0]
    edit(oppu / "targets.json", lambda users: users.append(someone | {"query": users[0]["query"]}))
    line = refused("population.source=oppu", f"population.path={oppu}")
    assert f"user {someone['user_id']}: is in base and in targets; keep the user in one split" in line


def test_after_the_fix_the_same_folder_can_be_used(refused, local_ray, lamp, mini, tmp_path):
    from jobs import ingest

    edit(lamp / "train_questions.json.gz", _no_tag)
    overrides = lamp_from(lamp)
    refused(*overrides)
    edit(lamp / "train_questions.json.gz", lambda q: q[1]["profile"][2].update(tag="comedy"))
    assert ingest.STAGE(mini(tmp_path / "run", *overrides, "seed=1"))["targets"] == 2


@pytest.mark.slow
def test_another_base_under_an_existing_pool(refused, local_ray, copy, contents):
    shutil.rmtree(copy / "base")
    save_model(copy / "base", seed=1)
    before = contents(copy)
    line = refused("assembly.top_k=2", folder=copy)
    assert f"{copy / 'pool'}: its pieces were made with base " in line and "; put the old base back" in line
    assert contents(copy) == before


@pytest.mark.slow
def test_changed_weights_under_an_old_fingerprint(local_ray, copy, mini):
    from safetensors.torch import load_file, save_file

    file = copy / "base" / "model.safetensors"
    good, weights = file.read_bytes(), load_file(file)
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        MismatchError, match=rf"^{copy / 'base'}: the base model's fingerprint is .*; restore the files"
    ):
        pipeline.main(mini(copy, "assembly.top_k=2"))
    file.write_bytes(good)
    pipeline.main(mini(copy, "assembly.top_k=2"))


@pytest.mark.slow
def test_a_program_says_one_line_whatever_its_libraries_say(mini_yaml, tmp_path, hf):
    """The other tests share one process; here standard error is that of a real one, with Ray starting and ending."""
    halve(hf / "config.json")
    command = [
        sys.executable,
        "-m",
        "jobs.pipeline",
        mini_yaml,
        f"experiment={tmp_path / 'run'}",
        f"base.model={hf}",
    ]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=240, env=dict(os.environ)
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert not (tmp_path / "run").exists()
