"""Two threads that use the modules of one pipeline on a GPU at the same time each get the bytes that they get alone.

`python -m pytest tests/gpu -m gpu -o addopts=` on a machine with CUDA. Without the options of pyproject.toml, because
functions whose shapes are checked do not compile.
"""

from __future__ import annotations

import threading

import pytest
import torch

import fluxnb as fnb

pytestmark = pytest.mark.gpu
ROUNDS = 50


def two_handles(**options):
    """Two handles over the same modules, each with a pipeline and a scheduler of its own."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    first = fnb.load("pocket", **options)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(first.pipe.scheduler.config)
    second = fnb.load(FluxPipeline(**{**first.pipe.components, "scheduler": scheduler}))
    return first, second


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "resident"},
        {"preset": "lean"},
        {"preset": "lean-fp8"},
        {"preset": "stream"},
        {"preset": "stream-mapped"},
        {"preset": "model-offload"},
        {"preset": "lean", "fast": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_two_threads_over_shared_modules_get_their_own_bytes(options):
    handles = two_handles(**options)
    requests = [("a fox", {"seed": 1, "steps": 4}), ("a cat in the snow", {"seed": 2, "steps": 3})]
    size = {"height": 128, "width": 128}

    def picture(item):
        prompt, more = requests[item]
        return fnb.run(handles[item], prompt, **more, **size).image.tobytes()

    alone = [picture(0), picture(1)]
    assert alone == [picture(0), picture(1)], "the same bytes again, before two threads are compared"
    results: list[list[object]] = [[], []]
    start = threading.Barrier(2)

    def work(item):
        start.wait()
        for _ in range(ROUNDS):
            try:
                results[item].append(picture(item) == alone[item])
            except Exception as problem:
                results[item].append(repr(problem))

    threads = [threading.Thread(target=work, args=(item,)) for item in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[True] * ROUNDS] * 2


def test_attention_recorded_in_one_thread_is_that_of_its_own_call():
    handles = two_handles(preset="resident")
    keep = fnb.Keep(attention="all")

    def maps():
        return fnb.run(handles[0], "a red fox in the snow", seed=1, steps=4, keep=keep).attention("fox")

    expected, stop, problems = maps(), threading.Event(), []

    def sample():
        while not stop.is_set():
            try:
                fnb.run(handles[1], "a cat", seed=2, steps=2, height=128, width=128)
            except Exception as problem:
                problems.append(problem)

    other = threading.Thread(target=sample)
    other.start()
    try:
        assert all(torch.equal(maps(), expected) for _ in range(10))
    finally:
        stop.set()
        other.join()
    assert not problems


def test_a_plain_call_beside_a_filling_stream_gets_its_own_bytes():
    flux = fnb.load("pocket", preset="lean")
    flux.pipe.set_progress_bar_config(disable=True)

    def plain(seed):
        generator = torch.Generator("cpu").manual_seed(seed)
        options = {"height": 128, "width": 128, "num_inference_steps": 4, "max_sequence_length": 48}
        return flux.pipe("a dog on grass", generator=generator, **options).images[0].tobytes()

    request = {"prompts": ["a fox", "a cat"], "seeds": range(8), "steps": [1, 2, 3, 4]}
    expected = {seed: plain(seed) for seed in range(4)}
    cells = {cell.recipe: cell.image.tobytes() for cell in fnb.stream(flux, **request)}
    found: dict[object, bytes] = {}

    def fill():
        found.update({cell.recipe: cell.image.tobytes() for cell in fnb.stream(flux, **request)})

    thread = threading.Thread(target=fill)
    thread.start()
    right = []
    while thread.is_alive():
        right += [plain(seed) == expected[seed] for seed in range(4)]
    thread.join()
    assert right and all(right)
    assert found == cells
