"""Grids at endpoints: sweep, stream, explore and lab, the store, errors, and how many requests there are at a time."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections import Counter

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError, RunError, StorageError
from tests.remote.double import FAULTS, one_color, picture, status

SMALL = {"width": 64, "height": 64}


@pytest.fixture
def remote(double):
    return fnb.Remote("schnell@fal-ai")


def test_a_sweep_draws_each_cell_once(double, remote):
    grid = fnb.sweep(remote, prompts=["a fox", "a cat"], seeds=range(3), steps=[1, 4], **SMALL)
    assert (len(grid), grid.finished, grid.evaluations, grid.encodes) == (12, True, 0, 0)
    assert [(cell.recipe.prompt, cell.recipe.seed, cell.recipe.steps) for cell in grid] == [
        (prompt, seed, steps) for prompt in ("a fox", "a cat") for seed in range(3) for steps in (1, 4)
    ]
    asked = Counter((each.body["prompt"], each.body["seed"], each.body["num_inference_steps"]) for each in double.paid)
    assert len(asked) == 12 and set(asked.values()) == {1}


def test_a_cell_states_who_drew_it_and_no_trajectory(double, remote):
    grid = fnb.sweep(remote, prompts="a fox", seeds=range(2), **SMALL)
    cell = grid[0]
    assert (cell.trajectory, cell.exact, cell.numerics, cell.evaluations) == (None, False, "remote", 0)
    assert (cell.drawn_by, cell.recipe.model, cell.recipe.dtype) == ("fal-ai", "schnell@fal-ai", "remote")
    assert cell.seconds["request"] > 0
    assert grid.note == "drawn by fal-ai; seeds there are not the seeds here" and grid.note in repr(grid)


def test_a_figure_and_a_page_state_who_drew_the_cells(double, remote, tmp_path):
    grid = fnb.sweep(remote, prompts="a fox", seeds=range(2), **SMALL)
    texts = [text.get_text() for text in fnb.contact_sheet(grid).findobj(lambda artist: hasattr(artist, "get_text"))]
    assert any("drawn by fal-ai; seeds there are not the seeds here" in text for text in texts)
    page = grid.to_html(tmp_path / "grid.html").read_text()
    assert "drawn by fal-ai, whose seeds are not the seeds here" in page and '"drawn by"' in page
    assert "fnb.sweep(fnb.load('schnell@fal-ai:fal-ai/flux/schnell'), prompts='a fox', seeds=0" in page
    assert "keep=fnb.Keep()" not in page


def test_a_local_cell_has_no_note(toy):
    grid = fnb.sweep(toy, prompts="a fox", steps=1, height=32, width=32)
    assert (grid.note, grid[0].drawn_by) == ("", "")


def test_a_stored_cell_is_not_requested_again(double, remote, tmp_path):
    first = fnb.sweep(remote, prompts="a fox", seeds=range(4), store=tmp_path, **SMALL)
    again = fnb.sweep(fnb.Remote("schnell@fal-ai"), prompts="a fox", seeds=range(6), store=tmp_path, **SMALL)
    assert double.seeds == [0, 1, 2, 3, 4, 5]
    assert [cell.made for cell in again] == [False] * 4 + [True] * 2
    assert [cell.image.tobytes() for cell in again][:4] == [cell.image.tobytes() for cell in first]
    assert fnb.open_recipe(again[0].path) == first[0].recipe


@pytest.mark.moderate
def test_a_key_of_an_endpoint_is_never_one_of_a_local_model(double, remote, toy, tmp_path):
    from fluxnb.grid.remote_runner import RemoteRunner

    recipe = remote.resolve(fnb.Recipe(prompt="a fox", **SMALL))
    local = toy.resolve(fnb.Recipe(prompt="a fox", **SMALL))
    runner = RemoteRunner(remote)
    # The keys differ even for equal recipes, by who drew them.
    assert len({runner.key(recipe), runner.key(local), local.key(toy.versions), recipe.key(toy.versions)}) == 4
    fnb.sweep(remote, prompts="a fox", store=tmp_path, **SMALL)
    assert not fnb.sweep(remote, prompts="a fox", store=tmp_path, **SMALL)[0].made
    assert fnb.sweep(toy, prompts="a fox", steps=4, store=tmp_path, height=64, width=64)[0].made


def test_each_provider_has_keys_of_its_own(double):
    recipe = fnb.Recipe(prompt="a fox", width=512, height=512)
    from fluxnb.grid.remote_runner import RemoteRunner

    names = ["schnell@fal-ai", "schnell@fal-ai:fal-ai/flux-1/schnell", "schnell@together", "schnell@replicate"]
    remotes = [fnb.Remote(name) for name in names]
    assert len({RemoteRunner(each).key(each.resolve(recipe)) for each in remotes}) == 4


@pytest.mark.parametrize("concurrent", [1, 2, 5])
def test_so_many_requests_are_sent_at_a_time(double, concurrent):
    double.delay = 0.02
    fnb.sweep(fnb.Remote("schnell@fal-ai", concurrent=concurrent), prompts="a fox", seeds=range(10), **SMALL)
    assert double.most_working == concurrent


def test_two_sweeps_of_one_handle_share_its_limit(double, remote):
    double.delay = 0.02
    threads = [
        threading.Thread(target=fnb.sweep, args=(remote,), kwargs={"prompts": text, "seeds": range(4), **SMALL})
        for text in ("a fox", "a cat")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (double.most_working, len(double.paid)) == (2, 8)


def test_each_cell_is_stored_when_it_arrives(double, remote, tmp_path):
    cells = fnb.stream(remote, prompts="a fox", seeds=range(4), store=tmp_path, **SMALL)
    next(cells)
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")]
    assert 1 <= len(stored) <= 3 and all(each["numerics"] == "remote" for each in stored)
    cells.close()


def test_leaving_a_stream_ends_the_requests(double, remote):
    for _ in fnb.stream(remote, prompts="a fox", seeds=range(20), **SMALL):
        break
    time.sleep(0.1)
    assert len(double.paid) <= 3
    count = len(double.paid)
    assert len(fnb.sweep(remote, prompts="a fox", seeds=range(20), **SMALL)) == 20
    assert len(double.paid) == 20 and count <= 3  # what had arrived and was not received is not requested again


def test_closing_a_stream_waits_for_the_pictures_that_were_requested(double, remote, tmp_path):
    double.delay = 0.1
    cells = fnb.stream(remote, prompts="a fox", seeds=range(20), store=tmp_path, **SMALL)
    next(cells)
    cells.close()
    assert not any(thread.name == "fluxnb-remote" for thread in threading.enumerate())
    assert len(list(tmp_path.glob("*/*.json"))) == len(double.paid) < 5


def test_a_plan_of_a_sweep_counts_paid_requests_and_sends_none(double, remote, tmp_path):
    fnb.sweep(remote, prompts="a fox", seeds=range(2), store=tmp_path, **SMALL)
    cost = fnb.plan_sweep(remote, prompts="a fox", seeds=range(5), store=tmp_path, **SMALL)
    assert (cost.cells, cost.missing, cost.provider, cost.seconds) == (5, 3, "fal-ai", None)
    assert str(cost).startswith("5 cells, 3 paid requests to fal-ai")
    assert len(double.paid) == 2


def test_a_refused_value_anywhere_in_a_grid_is_an_error_before_the_first_request(double, remote):
    with pytest.raises(InputError, match="steps=13"):
        fnb.sweep(remote, prompts="a fox", steps=[1, 4, 13], **SMALL)
    with pytest.raises(InputError, match="takes no number of steps"):
        fnb.sweep(fnb.Remote("klein@bfl"), prompts="a fox", steps=[2, 4], **SMALL)
    assert double.requests == []


# -------------------------------------------------------------------------------------------------------------- errors
def test_an_error_after_the_first_cell_returns_the_finished_cells(double, remote):
    double.faults["request"] = [lambda _: False] * 5 + [status(402)] * 9
    with pytest.warns(fnb.RemoteWarning, match="no credit"):
        grid = fnb.sweep(remote, prompts="a fox", seeds=range(12), **SMALL)
    assert len(grid) == 5 and not grid.finished
    assert len(double.paid) <= 7


@pytest.mark.parametrize("first", [0, 1])
def test_threads_that_do_not_start_are_an_error_after_what_has_arrived(double, remote, monkeypatch, first):
    start, starts = threading.Thread.start, []

    def refuse(thread):
        if thread.name == "fluxnb-remote":
            starts.append(thread)
            if len(starts) > first:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    received = []
    with pytest.raises(RunError, match="concurrent=1"):
        received.extend(fnb.stream(remote, prompts="a fox", seeds=range(3), **SMALL))
    assert len(received) == len(double.paid) <= first


def test_an_error_of_the_first_cell_is_raised(double, remote):
    double.faults["request"] = [status(401)] * 9
    with pytest.raises(RunError, match="HF_TOKEN"):
        fnb.sweep(remote, prompts="a fox", seeds=range(12), **SMALL)
    assert len(double.paid) <= 2


def test_a_stream_yields_what_has_arrived_before_an_error(double, remote):
    double.faults["request"] = [lambda _: False] * 3 + [status(402)] * 9
    cells, received = fnb.stream(remote, prompts="a fox", seeds=range(12), **SMALL), []
    with pytest.raises(RunError, match="no credit"):
        received.extend(cells)
    assert len(received) == 3


def test_a_dead_network_loses_nothing_and_the_same_call_completes_the_grid(double, remote, tmp_path):
    double.faults["picture"] = [lambda _: False] * 3 + [FAULTS["truncated"]] * 40
    with pytest.warns(fnb.RemoteWarning, match="its picture did not arrive"):
        first = fnb.sweep(remote, prompts="a fox", seeds=range(8), store=tmp_path, **SMALL)
    assert 3 <= len(first) < 8
    double.faults["picture"] = []
    assert fnb.sweep(remote, prompts="a fox", seeds=range(8), store=tmp_path, **SMALL).finished
    assert double.seeds == list(range(8))


def test_a_full_disk_loses_no_picture(double, remote, tmp_path, monkeypatch):
    from fluxnb.grid.store import Store

    store, put = fnb.Store(tmp_path), Store.put

    def full(*_, **__):
        raise StorageError("the disk is full", "pictures need space", "free some")

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(StorageError):
        fnb.sweep(remote, prompts="a fox", seeds=range(6), store=store, **SMALL)
    monkeypatch.setattr(Store, "put", put)
    grid = fnb.sweep(remote, prompts="a fox", seeds=range(6), store=store, **SMALL)
    assert grid.finished and all(cell.path.exists() for cell in grid)
    assert double.seeds == list(range(6)) and not remote.undelivered


def test_a_withheld_picture_is_a_warning_and_the_other_cells_are_drawn(double, remote):
    double.faults["request"] = [lambda _: False, FAULTS["refusal"]]
    with pytest.warns(fnb.RemoteWarning, match=r"seed \d: the picture was withheld by the filter of fal-ai"):
        grid = fnb.sweep(remote, prompts="a fox", seeds=range(6), **SMALL)
    assert len(grid) == 5 and not grid.finished


def test_a_long_prompt_has_one_warning_before_its_pictures_are_requested(double, remote):
    long = "a fox in the snow " * 60
    with pytest.warns(fnb.RemoteWarning, match="reads 256 and ignores the rest") as raised:
        assert len(fnb.sweep(remote, prompts=[long, "a cat"], seeds=[1, 2])) == 4
    assert len(raised) == 1
    with warnings.catch_warnings(), pytest.raises(fnb.RemoteWarning):
        warnings.simplefilter("error")
        fnb.sweep(remote, prompts=long, seeds=3)
    assert len(double.paid) == 4


def test_a_flagged_picture_is_stored_with_its_flag_and_not_requested_again(double, remote, tmp_path):
    double.encode = lambda seed, width, height: one_color(width, height) if seed == 1 else picture(seed, width, height)
    with pytest.warns(fnb.RemoteWarning, match="seed 1: the picture is flagged: one color"):
        grid = fnb.sweep(remote, prompts="a fox", seeds=range(3), store=tmp_path, **SMALL)
    assert [cell.numerics for cell in grid] == ["remote", "remote, one color", "remote"]
    page = grid.to_html(tmp_path / "grid.html").read_text()
    assert '"flagged"' in page
    again = fnb.sweep(remote, prompts="a fox", seeds=range(3), store=tmp_path, **SMALL)
    assert [cell.numerics for cell in again] == ["remote", "remote, one color", "remote"]
    assert double.seeds == [0, 1, 2]


@pytest.mark.parametrize("stored", [True, False])
def test_a_picture_of_another_size_is_kept_under_its_size(double, remote, tmp_path, stored):
    double.encode = lambda seed, width, height: picture(seed, 80, 64)
    store = tmp_path if stored else None
    with pytest.raises(RunError, match=r"80 x 64 pixels instead of 64 x 64.*width=80, height=64"):
        fnb.sweep(remote, prompts="a fox", store=store, **SMALL)
    assert fnb.sweep(remote, prompts="a fox", width=80, height=64, store=store)[0].image.size == (80, 64)
    assert len(double.paid) == 1


def test_warnings_as_errors_lose_no_picture(double, remote, tmp_path):
    double.encode = lambda seed, width, height: one_color(width, height)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(fnb.RemoteWarning):
            fnb.sweep(remote, prompts="a fox", seeds=range(4), store=tmp_path, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fnb.sweep(remote, prompts="a fox", seeds=range(4), store=tmp_path, **SMALL).finished
    assert double.seeds == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------------- other processes
def test_a_cell_that_another_process_requests_is_waited_for(double, remote, tmp_path):
    from fluxnb.grid.remote_runner import RemoteRunner

    store = fnb.Store(tmp_path)
    recipe = remote.resolve(fnb.Recipe(prompt="a fox", seed=1, **SMALL))
    key = RemoteRunner(remote, store).key(recipe)
    other, result = fnb.Store(tmp_path), []
    with other.claim(key) as claimed:
        assert claimed
        thread = threading.Thread(
            target=lambda: result.append(fnb.sweep(remote, prompts="a fox", seeds=range(3), store=store, **SMALL))
        )
        thread.start()
        time.sleep(0.3)
        assert double.seeds == [0, 2] and not result
        RemoteRunner(remote, other).cell(recipe, remote.draw(recipe))
    thread.join(10)
    assert len(result[0]) == 3 and double.seeds == [0, 1, 2]


@pytest.mark.moderate
def test_two_sweeps_of_one_store_pay_each_cell_once(double, tmp_path):
    double.delay = 0.005
    results = []

    def work():
        remote = fnb.Remote("schnell@fal-ai")
        results.append(fnb.sweep(remote, prompts="a fox", seeds=range(12), store=fnb.Store(tmp_path), **SMALL))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [len(grid) for grid in results] == [12, 12, 12] and double.seeds == list(range(12))


# ------------------------------------------------------------------------------------------------------------- widgets
def test_the_explorer_displays_a_stream_of_an_endpoint(double, remote):
    widget = fnb.explore(fnb.stream(remote, prompts="a fox", seeds=range(4), **SMALL))
    widget.wait(10)
    assert (len(widget.grid), widget.grid.finished) == (4, True)
    assert "drawn by fal-ai" in widget.data["note"]
    assert "finished picture alone" in widget.data["scrub_note"]


def test_the_explorer_displays_the_error_of_an_endpoint(double, remote):
    double.faults["request"] = [lambda _: False, lambda _: False, *[status(402)] * 9]
    widget = fnb.explore(fnb.stream(remote, prompts="a fox", seeds=range(6), **SMALL))
    with pytest.raises(RunError, match="no credit"):
        widget.wait(10)
    assert len(widget.grid) == 2 and "no credit" in widget.data["message"]


def test_the_lab_draws_with_an_endpoint(double, remote):
    lab = fnb.lab(remote)
    assert lab.fields["seeds"] == "0" and lab.fields["steps"] == "4" and double.requests == []
    lab.generate(prompt="a fox", seeds="0-3", width=64, height=64).wait(10)
    assert len(lab.grid) == 4 and double.seeds == [0, 1, 2, 3]


def test_a_stopped_lab_has_the_pictures_that_were_requested(double, remote, tmp_path):
    double.delay = 0.05
    lab = fnb.lab(remote, store=tmp_path).generate(prompt="a fox", seeds="0-19", width=64, height=64)
    while not double.paid:
        time.sleep(0.01)
    lab.cancel()
    lab.wait(10)
    paid = double.seeds
    assert len(paid) < 20
    grid = fnb.sweep(remote, prompts="a fox", seeds=paid, store=tmp_path, **SMALL)
    assert len(grid) == len(paid) and double.seeds == paid
