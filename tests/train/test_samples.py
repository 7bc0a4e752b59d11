"""Sheets of samples of a run."""

import pytest

from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.evaluation import samples


@pytest.mark.slow
def test_a_sheet_of_the_teacher_is_drawn_at_a_size(run):
    main(["samples", "--preset", "tiny", "--out", str(run), "--steps", "1", "--size", "32", "48"])
    assert (run / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "guidance"),
    [([], TINY.distillation.guidance), (["--transformer", "student"], 1.0), (["--guidance", "3"], 3.0)],
    ids=["teacher", "student", "given"],
)
def test_a_sheet_of_samples_has_the_guidance_of_its_model(options, guidance, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(samples, "save_sheet", lambda *given, **settings: found.update(settings))
    main(["samples", "--preset", "tiny", "--out", str(tmp_path), *options])
    assert found["guidance"] == guidance
