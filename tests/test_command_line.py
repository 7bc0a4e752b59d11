"""The command line: help, version, exit statuses, and the grid of `fluxnb sweep`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import fluxnb as fnb
from fluxnb.__main__ import main
from fluxnb.grid import launcher
from fluxnb.grid.launcher import Launcher, Outcome
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
SMALL = ["--height", "32", "--width", "32"]


# ---------------------------------------------------------------------------------------------- help, version, statuses
def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage:") and all(f"\n    {name} " in text for name in ("demo", "plan", "sweep"))


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.strip() == f"fluxnb {fnb.__version__}"


@pytest.mark.parametrize("name", ["demo", "plan", "sweep"])
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "--worker" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_help_of_sweep_describes_several_gpus_and_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    text = capsys.readouterr().out
    for words in ("torchrun --nproc-per-node", "accelerate launch", "--machine_rank", "130 after an interrupt"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["plan", "pocket"], 0, ""),
        (["plan", "schnell", "--on", "8gb", "--preset", "resident"], 1, "GiB on the GPU"),
        (["plan", "/no/such/folder"], 1, "no such folder"),
        (["plan", "schnell", "--on", "rtx-4091"], 2, "rtx-4090"),
        (["plan", "pocket", "--processes", "0"], 2, "processes=0"),
        (["plan", "pocket", "--size", "many"], 2, "invalid int value"),
        (["paint"], 2, "invalid choice"),
        (["sweep", "a fox"], 2, "--store"),
        (["sweep", "a fox", "--store", "{}", "--seeds", "3-1"], 2, "runs upwards"),
        (["sweep", "a fox", "--store", "{}", "--steps", "0"], 2, "at least 1"),
        (["sweep", "", "--store", "{}"], 2, "at least one word"),
        (["sweep", "a fox", "--store", "{}", "--model", "pokcet", "--processes", "1"], 2, "pocket"),
        (["sweep", "a", "b", "--store", "{}", "--preset", "big", "--processes", "2"], 2, "preset"),
        (["sweep", "a fox", "--store", "{}", "--preset", "parallel"], 2, "one picture on each GPU"),
        (["sweep", "a fox", "--store", "{}", "--processes", "0"], 2, "processes=0"),
        (
            ["sweep", "a fox", "--store", "{}", "--processes", "2", "--model", "klein@bfl"],
            2,
            "several pictures of an endpoint",
        ),
        (["sweep", "a fox", "--store", "{}/file/pictures"], 1, "writable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_exit_status_tells_wrong_arguments_from_failed_tasks(arguments, status, message, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    try:
        found = main([argument.replace("{}", str(tmp_path)) for argument in arguments])
    except SystemExit as ended:  # argparse
        found = ended.code
    assert found == status and message in capsys.readouterr().err


def test_a_failure_inside_a_command_has_status_1_and_no_traceback(toy_folder, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise fnb.RunError("a picture", "it failed", "try again")

    monkeypatch.setattr(fnb, "sweep", fail)
    assert main(["sweep", "a fox", "--model", str(toy_folder), "--store", str(tmp_path), "--processes", "1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "fluxnb: a picture: it failed. Try again."


def test_an_interrupt_has_status_130(toy_folder, tmp_path, monkeypatch, capsys):
    arguments = ["sweep", "a fox", "--model", str(toy_folder), "--store", str(tmp_path), "--processes", "1", *SMALL]
    sweep = fnb.sweep
    # Ctrl-C during a sweep ends in an unfinished grid.
    monkeypatch.setattr(fnb, "sweep", lambda *given, **axes: sweep(*given, **axes, on_step=lambda step: fnb.STOP))
    assert main([*arguments, "--seeds", "0-3"]) == 130
    assert "interrupted" in capsys.readouterr().err

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fnb, "load", interrupt)
    assert main(arguments) == 130


@pytest.mark.moderate
def test_an_interrupted_command_ends_with_status_130():
    code = (
        "import os, signal, threading; import fluxnb as fnb; from fluxnb.__main__ import main; "
        "fnb.plan = lambda *_, **__: (os.kill(os.getpid(), signal.SIGINT), threading.Event().wait(9)); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); raise SystemExit(main(['plan']))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 130 and "Traceback" not in run.stderr


# --------------------------------------------------------------------------------------------------------- one process
@pytest.mark.moderate
def test_the_grid_of_the_command_is_that_of_fnb_sweep(toy_folder, tmp_path, capsys):
    arguments = ["a fox", "a cat", "--seeds", "0-1", "5", "--steps", "1", "2", *SMALL]
    assert main(["sweep", *arguments, "--model", str(toy_folder), "--store", str(tmp_path), "--processes", "1"]) == 0
    assert "12 cells in" in capsys.readouterr().out
    flux, axes = fnb.load(toy_folder), {"seeds": [0, 1, 5], "steps": [1, 2], "height": 32, "width": 32}
    grid = fnb.sweep(flux, prompts=["a fox", "a cat"], **axes, store=tmp_path)
    assert len(grid) == 12 and grid.evaluations == 0


def test_a_prompt_may_begin_with_a_dash(toy_folder, tmp_path):
    options = ["--model", str(toy_folder), "--store", str(tmp_path), "--processes", "1", "--steps", "1", *SMALL]
    assert main(["sweep", *options, "--", "-a fox"]) == 0


def test_guidance_and_negative_prompts_are_axes_of_models_that_take_them(toy_folder, tmp_path, capsys):
    options = ["--model", str(toy_folder), "--store", str(tmp_path), "--processes", "1"]
    assert main(["sweep", "a fox", "--guidance", "2.5", *options]) == 2
    assert "guidance" in capsys.readouterr().err


def test_no_more_processes_are_started_than_there_are_prompts_and_seeds(toy_folder, tmp_path, capsys):
    options = ["--model", str(toy_folder), "--store", str(tmp_path), "--processes", "8", *SMALL]
    assert main(["sweep", "a fox", "--steps", "1", "2", *options]) == 0
    out, err = capsys.readouterr()
    assert "2 cells in" in out and "by 8 processes" not in out and "processes, on" not in err


# ------------------------------------------------------------------------------------------------- a launcher's workers
# What a worker does after its imports: report a grid of 6 cells, and one cell for each number that follows.
WORKER = """
import json, os, signal, sys, time
rank, folder = int(os.environ["RANK"]), sys.argv[1]
started = len([name for name in os.listdir(folder) if name.startswith(f"{rank}.")])
open(os.path.join(folder, f"{rank}.{started}"), "w").close()
print(json.dumps({"total": 6}), flush=True)
def cell(number, made=True):
    print(json.dumps({"cell": number, "made": made, "evaluations": 2}), flush=True)
"""


@pytest.fixture
def launch(tmp_path):
    """A function that runs workers with the given code; returns the outcome and how often each rank was started."""

    def run(code: str, processes: int = 2, **callbacks) -> tuple[Outcome, dict[int, int]]:
        command = [sys.executable, "-c", WORKER + code, str(tmp_path)]
        callbacks = {"on_report": lambda outcome: None, "on_killed": lambda: None, **callbacks}
        outcome = Launcher(command, processes, **callbacks).run()
        ranks = [int(path.name.partition(".")[0]) for path in tmp_path.iterdir()]
        return outcome, {rank: ranks.count(rank) for rank in sorted(ranks)}

    return run


@pytest.mark.moderate
def test_the_outcome_counts_cells_and_evaluations_of_all_workers(launch):
    outcome, started = launch("for n in range(6): cell(n, made=n % 2 == rank)")
    assert outcome.finished and sorted(outcome.made) == [0, 1, 2, 3, 4, 5]
    assert (outcome.evaluations, outcome.status, outcome.working, started) == (12, 0, 0, {0: 1, 1: 1})


@pytest.mark.moderate
def test_a_killed_worker_is_started_again(launch):
    calls = []
    outcome, started = launch(
        "if rank == 1 and not started: cell(1); os.kill(os.getpid(), signal.SIGKILL)\n"
        "for n in range(6) if rank else range(1, 6): cell(n)",
        on_killed=lambda: calls.append("killed"),
    )
    assert outcome.finished and len(outcome.killed) == 1 and started == {0: 1, 1: 2} and calls == ["killed"]


@pytest.mark.moderate
def test_workers_that_are_killed_again_and_again_are_given_up(launch):
    with pytest.raises(fnb.RunError, match="--processes 1"):
        launch("os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.moderate
def test_the_remaining_workers_continue_alone(launch):
    outcome, started = launch(
        "if rank: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"while len(os.listdir(folder)) < {launcher.PATIENCE + 1}: time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "for n in range(6): cell(n)"
    )
    assert outcome.finished and started == {0: 1, 1: launcher.PATIENCE}


@pytest.mark.moderate
def test_the_status_and_message_of_a_worker_that_failed_are_those_of_the_launcher(launch):
    outcome, started = launch('if rank: print("noise"); sys.exit("fluxnb: the disk is full")')
    assert not outcome.finished and (outcome.status, outcome.message) == (1, "fluxnb: the disk is full")
    assert started == {0: 1, 1: 1}


@pytest.mark.moderate
def test_an_interrupt_stops_the_workers_and_lets_them_finish(launch):
    def interrupt(outcome):
        if len(outcome.found) == 2 and not outcome.interrupted:
            raise KeyboardInterrupt

    started = time.monotonic()
    outcome, _ = launch("cell(rank); sys.stdin.read(); cell(rank + 2); sys.exit(130)", on_report=interrupt)
    assert outcome.interrupted and outcome.found == {0, 1, 2, 3} and time.monotonic() - started < 20


@pytest.mark.moderate
def test_each_worker_has_its_place_in_its_environment(launch, tmp_path):
    launch(
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE')\n"
        "open(os.path.join(folder, f'{rank}.place'), 'w').write(' '.join(os.environ[name] for name in names))\n"
        "for n in range(6): cell(n)",
        processes=3,
    )
    assert [(tmp_path / f"{rank}.place").read_text() for rank in range(3)] == ["0 3 0 3", "1 3 1 3", "2 3 2 3"]


# --------------------------------------------------------------------------------------------------- the whole command
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def hashes(store: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("*/*.png")}


def workers_of(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children() if "--worker" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_command_with_two_processes_makes_the_grid_of_one(toy_folder, tmp_path, killed):
    arguments = ["sweep", "a fox", "a cat", "--seeds", "0-7", "--steps", "1", "2", "3", "4", *SMALL]
    arguments += ["--model", str(toy_folder), "--store", str(tmp_path / "two"), "--processes", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxnb", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    while len(hashes(tmp_path / "two")) < 3 and process.poll() is None:
        time.sleep(0.02)
    for pid in workers_of(process.pid)[:killed]:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate()
    timer.cancel()
    assert process.returncode == 0, err
    assert "64 cells in" in out and "by 2 processes" in out and not list(tmp_path.rglob("*.lock"))
    # A worker that is killed in the middle of a group, of 7 evaluations and 4 cells, has not reported all of it.
    made, evaluations = map(int, re.search(r"(\d+) sampled with (\d+) evaluations", out).groups())
    assert 64 - 4 * killed <= made <= 64 and 112 - 7 * killed <= evaluations <= 112 + 7 * killed
    assert "processes, on the CPU" in err and "fluxnb:" not in err
    axes = {"prompts": ["a fox", "a cat"], "seeds": range(8), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
    flux, threads = fnb.load(toy_folder), torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers
    try:
        assert [fnb.sweep(flux, **axes, store=tmp_path / store).evaluations for store in ("two", "one")] == [0, 112]
    finally:
        torch.set_num_threads(threads)
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")


@pytest.mark.long
def test_workers_end_when_their_launcher_is_killed(toy_folder, tmp_path):
    arguments = ["sweep", "a fox", "--seeds", "0-999", "--model", str(toy_folder), "--store", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxnb", *arguments, "--processes", "2", *SMALL],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    import psutil

    while len(hashes(tmp_path)) < 3 and process.poll() is None:
        time.sleep(0.02)
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(map(psutil.pid_exists, workers))
    assert not list(tmp_path.rglob("*.lock")) and 3 <= len(hashes(tmp_path)) < 1000


# ----------------------------------------------------------------------------------------------- launchers of libraries
SCRIPT = """
import hashlib, json, os, sys
import accelerate
import fluxnb as fnb
from fluxnb.grid import claims
machine = os.environ.get("GROUP_RANK", "0")
claims._machine = lambda: machine  # of each launcher another one
accelerate.PartialState(cpu=True)  # joins the process group
flux = fnb.load(sys.argv[1])
count = []
flux.pipe.transformer.register_forward_hook(lambda *_: count.append(1))
grid = fnb.sweep(flux, prompts=["a fox", "a cat"], seeds=range(8), steps=[1, 2, 3, 4], height=32, width=32,
                 store=sys.argv[2])
pictures = [hashlib.sha256(cell.image.tobytes()).hexdigest() for cell in grid]
report = {"machine": machine, "evaluations": len(count), "pictures": pictures}
with open(f"{sys.argv[3]}/{os.environ['RANK']}.json", "w") as stream:
    json.dump(report, stream)
"""


@pytest.mark.long
def test_two_machines_under_accelerate_share_a_grid(toy, toy_folder, tmp_path):
    port = free_port()
    script, reports = tmp_path / "script.py", tmp_path / "reports"
    script.write_text(SCRIPT)
    reports.mkdir()
    launchers = []
    for machine in range(2):
        options = f"--multi_gpu --num_processes 4 --num_machines 2 --machine_rank {machine} --main_process_ip 127.0.0.1"
        command = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
        command += ["--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += [str(script), str(toy_folder), str(tmp_path / "store"), str(reports)]
        launchers.append(subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True))
    ends = [launcher.communicate(timeout=300)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], ends
    found = [json.loads(path.read_text()) for path in sorted(reports.iterdir())]
    assert [report["machine"] for report in found] == ["0", "0", "1", "1"]
    assert sum(report["evaluations"] for report in found) == 112
    assert all(report["pictures"] == found[0]["pictures"] for report in found)
