"""A user's script has full types: what mypy and pyright reveal about the public names."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SETUP = """
import fluxnb as fnb
flux = fnb.load("pocket", preset="auto")
trajectory = fnb.run(flux, "a fox", seed=3, steps=4, height=128, width=128, guidance=0.0, keep=fnb.Keep(), on_step=None)
step = trajectory.steps[0]
grid = fnb.sweep(flux, prompts=["a fox"], seeds=range(2), steps=[1, 4], store=None)
cell = next(iter(grid))
plan = fnb.plan("schnell", hardware=None)
with fnb.recording(flux.pipe) as recorder:
    picture = flux.pipe("a fox", num_inference_steps=4, generator=None).images[0]
"""
# Expression to type. mypy writes full module names and pyright short ones, so the last part of each name is compared.
EXPECTED = {
    "flux": "Flux",
    "flux.plan": "Plan",
    "fnb.Remote('schnell@fal-ai', concurrent=4)": "Remote",
    "fnb.load('schnell@fal-ai')": "Remote",
    "fnb.load('klein@bfl').draw(fnb.Recipe(prompt='a fox'))": "Drawing",
    "fnb.load('klein')": "Flux",
    "fnb.sweep(fnb.Remote('schnell@fal-ai'), prompts='a fox', seeds=range(4))": "Sweep",
    "flux.pipe": "Pipeline",
    "flux.pipe('a fox', num_inference_steps=4)": "FluxPipelineOutput",
    "trajectory": "Trajectory",
    "trajectory.image": "Image | None",
    "trajectory.recipe": "ResolvedRecipe | None",
    "trajectory.finished": "bool",
    "trajectory.sigmas": "tuple[float, ...]",
    "trajectory.steps": "tuple[Step, ...]",
    "step.sigma": "float",
    "step.dt": "float",
    "step.x": "Tensor",
    "step.v": "Tensor",
    "step.clean": "Tensor",
    "step.noise": "Tensor",
    "step.seconds": "float",
    "recorder": "Recorder",
    "recorder.trajectories": "tuple[Trajectory, ...]",
    "grid": "Sweep",
    "cell": "Cell",
    "cell.recipe": "ResolvedRecipe",
    "cell.image": "Image",
    "cell.path": "Path | None",
    "fnb.stream(flux, prompts=['a fox'])": "Stream",
    "fnb.stream(flux, prompts='a fox', seeds=[1], steps=4, store='pictures', guidance=[1, 2.5], height=64)": "Stream",
    "fnb.sweep(flux, prompts='a fox', sampler=['euler', 'renoise'], sigmas=[[1.0, 0.5], [1.0]])": "Sweep",
    "fnb.plan_sweep(flux, prompts=['a fox'], steps=[1, 4], width=64, measure=True)": "CostEstimate",
    "fnb.Axes(fnb.Recipe(prompt='a fox'), seed=range(3), sigmas=[(1.0, 0.5)])": "Axes",
    "fnb.Axes.of(prompts='a fox', seeds=range(3), sigmas=(1.0, 0.5))": "Axes",
    "fnb.Recipe(prompt='a fox').replace(seed=3, sigmas=[1.0, 0.5])": "Recipe",
    "grid.select(seed=3, steps=4)": "tuple[Cell, ...]",
    "flux.with_defaults(size=512)": "Flux",
    "fnb.quantize(flux, bits=4)": "Flux",
    "fnb.lab(flux).generate(seeds='0-3', steps=[1, 4])": "Lab",
    "next(fnb.stream(flux, prompts=['a fox']))": "Cell",
    "plan": "Plan",
    "plan.preset": "str",
    "plan.vram_gib": "float",
    "plan.ram_gib": "float",
    "plan.exact": "bool",
    "plan.refused": "tuple[tuple[str, str], ...]",
    "fnb.open_recipe('fox.png')": "Recipe",
    "fnb.import_recipe('fox.png')": "Imported",
    "fnb.import_recipe('fox.png').recipe": "Recipe",
    "fnb.comfy_workflow(fnb.Recipe(prompt='a'))": "dict[str, Any]",
    "fnb.save(trajectory, 'fox.safetensors')": "Path",
    "fnb.open_trajectory('fox.safetensors')": "Trajectory",
    "grid.to_html('grid.html', shows=['x'], size=256)": "Path",
    "trajectory.to_html('fox.html', decode=flux.decode)": "Path",
    "fnb.scrub(trajectory)": "Scrubber",
    "fnb.canvas('ring')": "Canvas",
    "fnb.explore(grid)": "Explorer",
    "fnb.lab(flux)": "Lab",
    "fnb.filmstrip(trajectory)": "Figure",
    "fnb.compare([trajectory])": "Figure",
    "fnb.contact_sheet(grid)": "Figure",
    "fnb.plots.attention(trajectory)": "Figure",
    "fnb.plots.latent_channels(trajectory)": "Figure",
    "fnb.plots.lock_in(trajectory)": "Figure",
    "fnb.plots.memory({'lean': [(0.0, 1.0)]})": "Figure",
    "fnb.plots.path(trajectory)": "Figure",
    "fnb.plots.sigma_curve(trajectory)": "Figure",
    "fnb.plots.velocity(trajectory)": "Figure",
    "fnb.metrics.straightness(trajectory)": "float",
    "fnb.flow.schedule(4)": "tuple[float, ...]",
}
WRONG = {
    "fnb.run(flux, 'a fox', num_inference_steps=4)": "num_inference_steps",
    "fnb.run('pocket', 'a fox')": "Flux",
    "fnb.filmstrip(grid)": "Trajectory",
    "trajectory.steps[0].sigmas": "sigmas",
    "fnb.path": "path",
    "fnb.sweep(flux, prompts='a fox', guidanc=2.5)": "guidanc",
    "fnb.stream(flux, prompts='a fox', seed=3)": "seed",
    "fnb.plan_sweep(flux, prompts='a fox', steps='four')": "steps",
    "fnb.Axes(fnb.Recipe(prompt='a fox'), seed=3)": "int",
    "fnb.Recipe(prompt='a fox').replace(step=3)": "step",
    "grid.select(seeds=3)": "seeds",
    "grid.to_html('grid.html', sizes=256)": "sizes",
    "flux.with_defaults(sizes=512)": "sizes",
    "fnb.lab(flux).generate(seed=3)": "seed",
    "flux.pipe('a fox', num_inference_steps='four')": "num_inference_steps",
}


MYPY_SETTINGS = """
[mypy]
strict = true
[mypy-transformers.*,accelerate.*]
follow_imports = skip
"""
REVEAL = [f"reveal_type({expression})" for expression in EXPECTED]
ASSIGN = [f"_ = {expression}" for expression in WRONG]
Report = tuple[int, str]


def mypy(folder: Path) -> list[Report]:
    (folder / "mypy.ini").write_text(MYPY_SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--no-pretty", "--no-error-summary", "user.py"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(ROOT)})
    assert run.returncode in (0, 1), run.stdout + run.stderr
    parts = [line.split(":", 2) for line in run.stdout.splitlines() if line.startswith("user.py:")]
    return [(int(number), message) for _, number, message in parts]


def pyright(folder: Path) -> list[Report]:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    settings = {"include": ["user.py"], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if run.returncode not in (0, 1) or not run.stdout.startswith("{"):
        pytest.skip(f"pyright could not download its program: {(run.stderr or run.stdout)[-200:]}")
    found = json.loads(run.stdout)["generalDiagnostics"]
    return [(each["range"]["start"]["line"] + 1, each["message"]) for each in found]


@pytest.fixture(scope="module", params=[mypy, pyright], ids=["mypy", "pyright"])
def reports(request, tmp_path_factory) -> dict[str, list[str]]:
    """What a type checker reports about each line of a user's script, in strict mode; one run for all tests."""
    folder = tmp_path_factory.mktemp("user")
    lines = [*SETUP.strip().splitlines(), *REVEAL, *ASSIGN]
    (folder / "user.py").write_text("\n".join(lines) + "\n")
    found: dict[str, list[str]] = {line: [] for line in lines}
    for number, message in request.param(folder):
        found[lines[number - 1]].append(message)
    return found


def short(message: str) -> str:
    """The type in a message, its names reduced to their last part: `PIL.Image.Image | None` to `Image | None`."""
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", message.split('"')[-2])


@pytest.mark.slow
def test_the_public_names_have_the_documented_types(reports):
    revealed = {line: [short(message) for message in reports[line]] for line in REVEAL}
    assert revealed == {f"reveal_type({expression})": [kind] for expression, kind in EXPECTED.items()}


@pytest.mark.slow
def test_a_correct_call_has_no_report(reports):
    assert [reports[line] for line in SETUP.strip().splitlines() if reports[line]] == []


@pytest.mark.slow
def test_a_wrong_call_is_reported(reports):
    for line, word in zip(ASSIGN, WRONG.values(), strict=True):
        assert any(word in message for message in reports[line]), (line, reports[line])
