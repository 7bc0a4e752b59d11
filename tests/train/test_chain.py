"""The script that continues the training of pocket, with the smallest preset and two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fluxnb.train.config import TINY
from fluxnb.train.networks.build import build_autoencoder
from fluxnb.train.networks.denoiser import build_denoiser, save_denoiser
from fluxnb.train.networks.judge import build_judge
from fluxnb.train.networks.weights import save_weights
from fluxnb.train.stages.ship import ship_pair

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "pocket" / "train.sh"
STAGES = ["text", "teacher", "judge", "student", "evaluate", "samples", "samples-student"]


def train(run, weights, **others):
    variables = {"PRESET": "tiny", "PAIR": str(weights / "pair"), "LOGS": str(weights), "PAIRS": "24", "TOKENS": "256"}
    variables |= {"STUDENT_TOKENS": "256", "SCENES": "32", "JUDGE_SCENES": "16", "PYTHON": sys.executable}
    variables["EVALUATE"] = "--count 4 --seeds 1 --prompts 2 --noises 2 --shares 2"
    environment = os.environ | variables | others | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(SCRIPT), str(run), "2"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A run of the smallest preset without any training, shipped as `weights`/pair."""
    weights = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    build_autoencoder(TINY.sizes).save_pretrained(weights / "vae")
    model = build_denoiser(TINY.sizes)
    save_denoiser(model, weights)
    save_weights(model.transformer, weights / "student.safetensors")
    save_weights(build_judge(TINY), weights / "judge.safetensors")
    ship_pair(weights, weights / "pair", TINY)
    (weights / "teacher.jsonl").write_text('{"iterations": 7, "seconds": 1.0}\n')
    (weights / "notes.json").write_text('{"method": "LADD"}')
    return weights


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    """The folder of a run of the script, and that of its weights."""
    run = tmp_path_factory.mktemp("run")
    result = train(run, weights)
    logs = [(run / f"{name}.log").read_text() for name in STAGES if (run / f"{name}.log").exists()]
    assert result.returncode == 0, result.stderr + "".join(logs[-1:])
    return run, weights


@pytest.mark.long
def test_every_stage_runs_in_its_order(trained):
    run, _ = trained
    done = sorted(run.glob("*.done"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem for path in done] == STAGES


@pytest.mark.long
def test_the_results_are_those_of_one_training_after_the_other(trained):
    run, _ = trained
    starts = {name: json.loads((run / f"{name}.jsonl").read_text().splitlines()[0]) for name in ("text", "judge")}
    assert starts["text"]["start"] == "before.safetensors" and starts["judge"]["start"] == "judge-before.safetensors"
    teacher = [json.loads(line) for line in (run / "teacher.jsonl").read_text().splitlines()]
    assert teacher[0] == {"iterations": 7, "seconds": 1.0}, "the log of the training that goes on"
    assert teacher[1]["start"] == "start.safetensors" and teacher[-1]["devices"] == 2
    measured = json.loads((run / "evaluation.json").read_text())
    assert {"teacher-28", "student-4", "student-1"} <= measured["shares"].keys()
    assert (run / "samples.png").exists() and (run / "samples-student.png").exists()


@pytest.mark.long
def test_a_stage_that_is_complete_is_not_repeated(trained):
    run, weights = trained
    (run / "samples.done").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in run.glob("*.log")}
    assert train(run, weights).returncode == 0
    changed = {path.name for path in run.glob("*.log") if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"samples.log"}


@pytest.mark.moderate
def test_weights_stay_as_they_are_where_the_duration_of_their_training_is_zero(weights, tmp_path):
    for name in set(STAGES) - {"text", "teacher", "judge"}:
        (tmp_path / f"{name}.done").touch()  # only these three stages remain
    assert train(tmp_path, weights, TEXT="0", TEACHER="0", JUDGE="0").returncode == 0
    assert (tmp_path / "teacher.safetensors").read_bytes() == (weights / "teacher.safetensors").read_bytes()
    assert (tmp_path / "judge.safetensors").read_bytes() == (weights / "judge.safetensors").read_bytes()
    assert all((tmp_path / f"{name}.done").exists() for name in STAGES)
    assert json.loads((tmp_path / "notes.json").read_text()) == {"method": "LADD"}
