"""What a user installs: the wheel holds all of the package and nothing else, and makes a picture by itself."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 100 * 10**6  # bytes; what a package index takes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.moderate
def test_the_wheel_holds_every_file_of_the_package(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    skipped = {"__pycache__"}
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fluxnb").rglob("*")
        if path.is_file() and not skipped & set(path.parts) and path.suffix not in (".pyc", ".part")
    }
    assert here - inside == set()
    needed_files = ("py.typed", "widgets/static/scrubber.js", "widgets/static/scrubber.css")
    for needed in (*needed_files, "train/data/atlas/3d.webp"):
        assert f"fluxnb/{needed}" in inside


def test_the_wheel_holds_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fluxnb"}
    assert any(name.endswith("licenses/LICENSE") for name in names) and any(name.endswith("NOTICE") for name in names)
    assert wheel.stat().st_size < MOST


def test_the_wheel_ships_the_pocket_model(wheel):
    inside = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fluxnb/pocket/")]
    assert any(name.endswith(".safetensors") for name in inside)
    assert any(name.endswith("card.json") for name in inside)


@pytest.mark.slow
def test_installed_into_an_empty_environment_it_makes_a_picture(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The constraints choose versions already at hand; what is installed is what the wheel asks for.
    done = subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    code = (
        "import fluxnb as fnb, pathlib; walk = fnb.run(fnb.load('pocket'), 'a cat in the snow', seed=0, steps=4);"
        "walk.image.save('cat.png'); walk.to_html('cat.html'); print(fnb.__file__)"
    )
    made = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    assert str(tmp_path) in made.stdout, "the installed package, not the checkout"
    from PIL import Image

    with Image.open(tmp_path / "cat.png") as picture:
        low, high = zip(*picture.convert("RGB").getextrema(), strict=True)
        assert max(high) - min(low) > 60, "a picture, not one colour"
    assert (tmp_path / "cat.html").stat().st_size > 10_000
