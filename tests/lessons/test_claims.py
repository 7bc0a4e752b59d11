"""Claims of the notebooks: counts with intervals, the table, the long form, and reading a table back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.lessons.claims import LONG_PROMPTS, LONG_SEEDS, MIME, read_claims
from fluxnb.metrics import Count
from tests.docs.scripts import script


@pytest.fixture
def claims():
    return fnb.Claims("seeds", "pocket", prompts=["a fox", "a cat"], seeds=range(3))


@pytest.fixture(scope="module")
def command():
    return script("claims")


def notebook(path: Path, *tables: dict) -> Path:
    """A notebook with these tables in its outputs."""
    outputs = [{"output_type": "display_data", "data": {MIME: table, "text/plain": "x"}} for table in tables]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]}))
    return path


# --------------------------------------------------------------------------------------------------------------- counts
# Wilson's interval in closed form: the roots of (p - share)^2 = z^2 p (1 - p) / n.
@pytest.mark.parametrize(("hits", "trials"), [(0, 24), (1, 2), (18, 24), (24, 24), (64, 384), (3, 1000)])
def test_the_ends_of_the_interval_solve_the_score_equation(hits, trials):
    count, z = Count(hits, trials), 1.959964
    for end in {0: [count.high], trials: [count.low]}.get(hits, [count.low, count.high]):
        assert (end - hits / trials) ** 2 == pytest.approx(z**2 * end * (1 - end) / trials, rel=1e-9)
    assert 0 <= count.low <= count.share <= count.high <= 1


def test_the_interval_reaches_zero_and_one_at_the_ends_only():
    assert Count(0, 24).low == 0 and Count(24, 24).high == 1
    assert Count(1, 24).low > 0 and Count(23, 24).high < 1


def test_a_count_prints_its_interval_and_adds_up():
    assert repr(Count(18, 24)) == "18 of 24 (55 to 88 %)"
    assert Count.of([1, 0, True]) + Count(1, 1) == Count(3, 4)
    assert repr(Count(0, 0)) == "0 of 0" and math.isnan(Count(0, 0).share)


@pytest.mark.parametrize(("hits", "trials"), [(2, 1), (-1, 3), (0, -1)])
def test_a_count_with_more_hits_than_trials_is_refused(hits, trials):
    with pytest.raises(InputError, match="hits are 0 to trials"):
        Count(hits, trials)


# --------------------------------------------------------------------------------------------------------------- claims
def test_a_function_is_called_for_every_prompt_and_seed(claims):
    seen = []
    claim = claims.add("It is called.", lambda prompt, seed: seen.append((prompt, seed)) is None)
    assert seen == [(prompt, seed) for prompt in ("a fox", "a cat") for seed in range(3)]
    assert claim.count == Count(6, 6) and claim.status == "pass" and claim.tried == "2 prompts x 3 seeds"


def test_a_function_of_the_seed_alone_is_called_once_for_each(claims):
    assert claims.add("Even.", lambda seed: seed % 2 == 0).count == Count(2, 3)


@pytest.mark.parametrize(
    ("outcomes", "required", "status"),
    [([True] * 9 + [False], {}, "pass"), ([True] * 8 + [False] * 2, {}, "fail"), ([], {}, "not tried"),
     ([True, False], {"at_least": 0.4, "at_most": 0.6}, "pass"),
     ([True, True], {"at_least": 0.4, "at_most": 0.6}, "fail"),
     ([False], {"at_most": 0.1}, "pass"), ([True], {"at_most": 0.1}, "fail"), (True, {}, "pass"), (False, {}, "fail")],
)  # fmt: skip
def test_the_status_follows_the_share_and_what_is_required(claims, outcomes, required, status):
    assert claims.add("A claim.", outcomes, **required).status == status


def test_what_is_required_is_stated_in_words(claims):
    assert claims.add("A.", True).required == "at least 90 %"
    assert claims.add("A.", True, at_most=0.1).required == "at most 10 %"
    assert claims.add("A.", True, at_least=0.4, at_most=0.6).required == "40 to 60 %"


def test_a_failure_on_another_model_differs():
    schnell = fnb.Claims("seeds", "schnell", prompts=["a fox"], seeds=[1])
    assert schnell.add("A claim.", [False]).status == "differs" and schnell.add("Another.", [True]).status == "pass"


def test_the_long_form_has_twelve_prompts_and_eight_seeds_that_are_not_those_of_the_notebook(monkeypatch):
    monkeypatch.setenv("FLUXNB_CLAIMS", "long")
    claims, seen = fnb.Claims("seeds", "pocket", prompts=["a turtle", "a fox"], seeds=range(3)), []
    claim = claims.add("A claim.", lambda prompt, seed: seen.append((prompt, seed)) is None, kind="things")
    prompts = {prompt for prompt, _ in seen}
    assert claim.count == Count(96, 96) and len(set(seen)) == 96 and len(prompts) == 12
    assert prompts < set(LONG_PROMPTS["things"]) - {"a turtle", "a fox"}
    assert {seed for _, seed in seen} == set(LONG_SEEDS) and min(LONG_SEEDS) > 100 and "long form" in repr(claims)
    assert all(len(set(prompts)) == 18 for prompts in LONG_PROMPTS.values())


@pytest.mark.moderate
def test_the_prompts_of_the_long_form_are_in_the_language_of_pocket():
    from fluxnb.train.data import captions
    from fluxnb.train.data.nouns import NOUNS
    from fluxnb.train.data.scenes import SIGN_WORDS

    phrases = {phrase for table in (captions.PLACES, captions.TIMES) for each in table.values() for phrase in each}
    language = phrases | {f"holding a sign that says {word}" for word in SIGN_WORDS} | {""}
    for prompt in (prompt for prompts in LONG_PROMPTS.values() for prompt in prompts):
        _, noun, *rest = prompt.split(" ")
        assert noun in NOUNS and " ".join(rest) in language


def test_the_table_displays_every_claim_as_text_as_html_and_as_data(claims):
    claims.add("A seed <b>holds</b>.", [True, False])
    claims.add("Not tried.", [])
    bundle = claims._repr_mimebundle_()
    assert repr(claims).split("\n") == [
        "Claims of seeds on pocket, short form",
        "fail       1 of 2 (9 to 91 %)  at least 90 %  2 cases  A seed <b>holds</b>.",
        "not tried  0 of 0              at least 90 %  0 cases  Not tried.",
    ]
    assert bundle["text/plain"] == repr(claims) and "A seed &lt;b&gt;holds" in bundle["text/html"]
    assert [row["status"] for row in json.loads(json.dumps(bundle[MIME]))["claims"]] == ["fail", "not tried"]


@pytest.mark.parametrize("name", ["at_least", "at_most"])
@pytest.mark.parametrize("share", [1.5, -0.1, "x", (0.5,), True, math.nan])
def test_a_required_share_that_is_no_share_is_refused(claims, name, share):
    with pytest.raises(InputError, match=name):
        claims.add("A claim.", [True], **{name: share})


def test_a_range_that_is_empty_is_refused(claims):
    with pytest.raises(InputError, match="Exchange them"):
        claims.add("A claim.", [True], at_least=0.8, at_most=0.2)


@pytest.mark.parametrize("cases", [3, "text", None, lambda: True, lambda picture: True])
def test_cases_of_another_form_are_refused_in_three_parts(claims, cases):
    with pytest.raises(InputError) as caught:
        claims.add("A claim.", cases)
    assert caught.value.possible and caught.value.remedy and not len(claims)


def test_an_unknown_kind_of_prompts_is_refused(claims):
    with pytest.raises(InputError, match="known are 'things'"):
        claims.add("A claim.", [True], kind="thing")


# -------------------------------------------------------------------------------------------------------------- reading
def test_a_table_is_read_from_the_outputs_of_a_notebook(claims, tmp_path):
    claims.add("A claim.", [True, True])
    path = notebook(tmp_path / "a.ipynb", {"notebook": "old", "model": "x", "claims": []}, claims.to_json())
    assert read_claims(path) == claims.to_json()
    assert read_claims(notebook(tmp_path / "b.ipynb")) is None


@pytest.mark.parametrize(
    "table",
    [{}, {"notebook": "a", "model": 3, "claims": []}, {"notebook": "a", "model": "b", "claims": [{"status": "x"}]},
     {"notebook": "a", "model": "b",
      "claims": [{"holds": 3, "of": 2, "status": "pass", "sentence": "x", "required": ""}]}, [1]],
)  # fmt: skip
def test_a_table_of_another_form_is_refused(table, tmp_path):
    with pytest.raises(StorageError, match="make notebooks"):
        read_claims(notebook(tmp_path / "a.ipynb", table))


def test_the_command_collects_the_claims_and_reports_a_failure(command, claims, tmp_path, capsys):
    claims.add("A | claim.", [True, True])
    path = notebook(tmp_path / "03_seeds.ipynb", claims.to_json())
    assert command.main([str(path)]) == 0
    row = (
        "| [03_seeds](notebooks/03_seeds.ipynb) | A \\| claim. | at least 90 % | pass: 2 of 2 (34 to 100 %) | not run |"
    )
    assert row in capsys.readouterr().out
    claims.add("Another.", [False])
    assert command.main([str(notebook(path, claims.to_json()))]) == 1


def test_the_page_has_the_counts_of_both_forms_beside_each_other(command, claims):
    claims.add("A claim.", [True, False], at_least=0.4, at_most=0.6)
    long = {"notebook": {"claims": [{**claims.to_json()["claims"][0], "holds": 50, "of": 96}]}}
    row = command.markdown({"notebook": claims.to_json()}, long).split("\n")[2]
    assert row.endswith("| 40 to 60 % | pass: 1 of 2 (9 to 91 %) | pass: 50 of 96 (42 to 62 %) |")


@pytest.mark.parametrize(("weights", "counted"), [("current", True), ("other", False), (None, True)])
def test_the_page_has_no_counts_of_other_weights(command, weights, counted, tmp_path, monkeypatch):
    row = {"sentence": "A claim.", "required": "all", "status": "pass", "holds": 1, "of": 1}
    long = tmp_path / "claims.json"
    monkeypatch.setattr(command, "LONG", long)
    monkeypatch.setattr(command, "committed", lambda paths: {"a": {"claims": [row]}})
    given = command.weights() if weights == "current" else weights
    long.write_text(json.dumps({"a": {"claims": [row], "weights": given}}))
    assert ("not run" not in command.table()) == counted


@pytest.mark.slow
def test_the_long_form_of_a_notebook_runs_on_other_cases(command, tmp_path, monkeypatch):
    code = 'import fluxnb as fnb\nclaims = fnb.Claims("a", "pocket", prompts=["x"], seeds=[1])\n' \
        'claims.add("Long.", lambda prompt, seed: seed >= 1000)\nclaims'  # fmt: skip
    cell = {"cell_type": "code", "source": code, "outputs": [], "metadata": {}, "execution_count": None, "id": "a"}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    monkeypatch.setattr(command, "LONG", tmp_path / "claims.json")
    assert command.main(["--long", str(path)]) == 0
    (row,) = json.loads((tmp_path / "claims.json").read_text())["a"]["claims"]
    assert (row["holds"], row["of"], row["tried"]) == (96, 96, "12 prompts x 8 seeds")
