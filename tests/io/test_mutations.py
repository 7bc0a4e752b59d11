"""Mutated recipes, PNG files and trajectory files; the trajectories that open are drawn."""

from __future__ import annotations

import io
import json
import random
import struct

import pytest

import fluxnb as fnb
from fluxnb.io.png import decode_png, encode_png, open_recipe
from fluxnb.io.trajectory_files import open_trajectory, save
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from tests.io.test_import import A1111, DEV, INVOKE, MFLUX, SWARM, advanced, graph, png
from tests.mutations import amount, examine, mutated_bytes, mutated_json, mutated_png
from tests.scenes import trajectory

pytestmark = pytest.mark.slow


@amount
@pytest.mark.parametrize("kind", [Recipe, ResolvedRecipe])
def test_mutated_recipes(kind, count):
    rng, recipe = random.Random(1), trajectory().recipe
    recipe = ResolvedRecipe(**{**recipe._values(), "sigmas": (1.0, 0.5, 0.25, 0.1), "negative": "blur", "shift": 3.0})
    text, fields = recipe.to_json().encode(), json.loads(recipe.to_json())

    def inputs():
        for _ in range(count):
            yield mutated_bytes(rng, text) if rng.random() < 0.4 else mutated_json(rng, fields)

    def answer(data):
        opened = kind.from_json(data)
        assert kind.from_json(opened.to_json()) == opened and opened.key()

    assert examine(answer, inputs())["error"]


@amount
def test_mutated_png_files(count, tmp_path):
    rng, made = random.Random(2), trajectory()
    data, size = encode_png(made.image, made.recipe), made.image.size
    path = tmp_path / "a.png"

    def inputs():
        for number in range(count):
            yield mutated_png(rng, data), (None, size)[number % 2]

    def answer(given):
        data, size = given
        path.write_bytes(data)
        try:
            decode_png(data, size)
        finally:
            open_recipe(path if rng.random() < 0.5 else io.BytesIO(data))

    outcomes = examine(answer, inputs())
    assert outcomes["error"] and outcomes["value"]


@amount
def test_mutated_graphs_and_metadata_of_other_programs(count):
    rng = random.Random(4)
    documents = [graph(), graph(DEV), advanced(), {"sui_image_params": SWARM}, INVOKE, MFLUX]
    pictures = [png(prompt=json.dumps(graph())), png(parameters=A1111), png(invokeai_metadata=json.dumps(INVOKE))]

    def inputs():
        for _ in range(count):
            match rng.randrange(6):
                case 0 | 1 | 2:
                    yield mutated_json(rng, rng.choice(documents))
                case 3:  # links between any two nodes, circles among them
                    made = rng.choice((graph(DEV), advanced()))
                    for _ in range(rng.choice((1, 2, 20))):
                        inputs = made[rng.choice(list(made))]["inputs"]
                        if inputs:
                            inputs[rng.choice(list(inputs))] = [rng.choice(list(made)), rng.choice((0, 1, -1))]
                    yield made
                case 4:
                    yield mutated_png(rng, rng.choice(pictures))
                case 5:
                    yield png(parameters=mutated_bytes(rng, A1111.encode()).decode("latin-1").replace("\0", ""))

    outcomes = examine(fnb.import_recipe, inputs())
    assert outcomes["error"] and outcomes["value"]


def safetensors(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


@amount
def test_mutated_trajectory_files_open_and_draw(count, tmp_path):
    rng = random.Random(3)
    data = save(trajectory(steps=3, attention=True), tmp_path / "original").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    record = json.loads(header["__metadata__"]["fluxnb"])
    start, stop = header["image"]["data_offsets"]
    path = tmp_path / "a.safetensors"

    def inputs():
        for _ in range(count):
            match rng.randrange(6):
                case 0:
                    yield mutated_bytes(rng, data)
                case 1:
                    yield safetensors(mutated_json(rng, header), body)
                case 2:  # other numbers in the tensors, such as infinities
                    pieces = [body[place : place + 4] for place in range(0, start, 4)]
                    for place in rng.sample(range(len(pieces)), k=rng.choice((1, 50, len(pieces)))):
                        pieces[place] = rng.choice((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0"))
                    numbers = b"".join(pieces)
                    yield safetensors(json.dumps(header).encode(), numbers + body[len(numbers) :])
                case 3:  # another picture
                    picture = mutated_png(rng, body[start:stop])
                    image = {**header["image"], "shape": [len(picture)], "data_offsets": [start, start + len(picture)]}
                    assert stop == len(body)
                    yield safetensors(json.dumps({**header, "image": image}).encode(), body[:start] + picture)
                case _:  # another record
                    text = mutated_json(rng, record).decode("utf-8", "surrogatepass")
                    changed = {**header, "__metadata__": {"fluxnb": text}}
                    yield safetensors(json.dumps(changed).encode(), body)

    def answer(given):
        path.write_bytes(given)
        opened = open_trajectory(path)
        opened.to_html(tmp_path / "a.html")
        fnb.filmstrip(opened).savefig(io.BytesIO(), format="png", dpi=40)
        assert repr(opened)

    outcomes = examine(answer, inputs())
    assert outcomes["error"] and outcomes["value"]
