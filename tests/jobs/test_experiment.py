"""When a stage is finished, run again, or refused: the record of an older program included."""

import json

import pytest

from jobs.experiment import Stage
from perpcs.errors import ConfigError
from storage.files import read_json, write_json
from storage.layout import Paths


@pytest.fixture
def stages():
    """Two stages that note their runs: a costly one and one after it."""
    runs = []

    def make(name, **more):
        def run(cfg, paths):
            runs.append(name)
            return {}

        return Stage(name, name, run, **more)

    first = make("adapt", settings=("seed", "base", "lora"), costly=True)
    second = make("train_sharers", needs=("adapt",), settings=("pool",), costly=True, grows=True)
    return first, second, runs


def forget(folder, stage, *keys):
    """Make a marker as a program would have written it that did not know these settings."""
    path = folder / "stages" / f"{stage}.json"
    marker = json.loads(path.read_text())
    for key in keys:
        del marker["inputs"][key]
    path.write_text(json.dumps(marker))


def test_a_setting_that_is_new_counts_with_its_default(stages, mini, tmp_path):
    first, second, runs = stages
    first(mini(tmp_path))
    forget(tmp_path, "adapt", "base.tiny.prompt_loss", "lora.layers")
    second(mini(tmp_path))
    forget(tmp_path, "train_sharers", "pool.train.stop_loss")
    for stage in (first, second):
        stage.refuse(mini(tmp_path))
        stage(mini(tmp_path))
    assert runs == ["adapt", "train_sharers"]


def test_a_new_setting_with_another_value_is_refused_and_the_default_is_shown(stages, mini, tmp_path):
    first, _, _ = stages
    first(mini(tmp_path))
    forget(tmp_path, "adapt", "lora.layers")
    with pytest.raises(ConfigError, match=r"lora.layers was 0, is 1; use another folder"):
        first(mini(tmp_path, "lora.layers=1"))


def test_a_stage_that_is_made_again_keeps_its_record_so_that_later_stages_stand(stages, mini, tmp_path):
    first, second, runs = stages
    first(mini(tmp_path))
    forget(tmp_path, "adapt", "lora.layers")
    second(mini(tmp_path))
    marker = Paths.of(str(tmp_path)).marker("adapt")
    kept = read_json(marker)
    write_json(marker, kept | {"finished": False})
    first(mini(tmp_path))
    assert read_json(marker)["inputs"] == kept["inputs"]
    second(mini(tmp_path))
    assert runs == ["adapt", "train_sharers", "adapt"]


def test_a_setting_that_the_program_no_longer_has_is_a_difference(stages, mini, tmp_path):
    first, _, _ = stages
    first(mini(tmp_path))
    path = tmp_path / "stages" / "adapt.json"
    marker = json.loads(path.read_text())
    marker["inputs"]["lora.gone"] = 3
    path.write_text(json.dumps(marker))
    with pytest.raises(ConfigError, match=r"lora.gone was 3, is None"):
        first(mini(tmp_path))


def test_an_older_programs_output_is_taken_over_where_new_settings_have_their_defaults(
    stages, mini, tmp_path
):
    first, second, runs = stages
    donor, other = mini(tmp_path / "donor"), mini(tmp_path / "other")
    first(donor)
    forget(tmp_path / "donor", "adapt", "lora.layers")
    second(donor)
    forget(tmp_path / "donor", "train_sharers", "pool.train.stop_loss")
    paths = Paths.of(donor.experiment)
    assert first.alike(other, paths) and first.take_over(other, paths) and second.take_over(other, paths)
    assert first.finished(other) and second.finished(other) and runs == ["adapt", "train_sharers"]
    changed = mini(tmp_path / "changed", "lora.layers=1")
    assert not first.alike(changed, paths) and not first.take_over(changed, paths)
