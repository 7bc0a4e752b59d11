"""The data: scenes, captions, distributions of unspecified attributes, rendering, tokenizers and batches."""

import random
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxnb.train.data import captions, chances, drawing, emoji, layouts, nouns, places, scenes, stream, vocabulary
from fluxnb.train.data.scenes import Scene, Thing

pytestmark = pytest.mark.slow

SHAPES = [layouts.Shape(*sides) for sides in ((192, 192), (128, 128), (160, 240), (192, 128))]
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def renderer() -> drawing.Renderer:
    return drawing.Renderer("cpu")


def draw(renderer: drawing.Renderer, scene: Scene, seed: int = 0, count: int = 1, size: int = 64) -> torch.Tensor:
    rng = random.Random(seed)
    completed = [scenes.complete(scene, rng) for _ in range(count)]
    return renderer(layouts.lay_out(completed, rng), size, size)


def test_there_are_at_least_600_nouns_people_included_in_four_styles():
    assert len(nouns.NOUNS) >= 600 and len(nouns.PEOPLE) >= 20
    assert len(emoji.STYLES) == 4


def test_scenes_have_animals_and_people_in_four_styles_and_other_nouns_in_two():
    counted = Counter(len(emoji.styles_of(name)) for name in nouns.NOUNS)
    assert set(counted) == {2, 4} and counted[4] >= 140
    assert all(len(emoji.styles_of(name)) == 4 for name in ("cat", "worm", "teacher"))
    assert all(len(emoji.styles_of(name)) == 2 for name in ("bouquet", "zombie"))


def test_no_name_or_synonym_belongs_to_two_nouns():
    names = [name for noun in nouns.NOUNS.values() for name in (noun.name, *noun.synonyms)]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_every_table_of_chances_has_valid_names_and_sums_to_one():
    for table in (
        chances.STYLE,
        chances.SIZE,
        chances.COUNT,
        chances.FACING,
        chances.TONE,
        chances.TIME,
        chances.PLAIN,
    ):
        assert sum(table.values()) == pytest.approx(1)
    assert set(chances.STYLE) == set(emoji.STYLES) and set(chances.PLAIN) == set(scenes.PLAIN)
    assert set(chances.PLANTED_PLACES) | set(chances.PAINTED) | scenes.SIDEWAYS <= set(nouns.NOUNS)
    assert {place for place, _ in chances.PLANTED_PLACES.values()} <= set(scenes.PLACES)
    assert set(captions.PLACES) == set(scenes.PLACES) == set(places.TABLE)


@given(SEEDS)
def test_captions_are_equal_only_for_equal_partial_scenes(seed):
    rng = random.Random(seed)
    partial = scenes.partial_scene(rng)
    assert captions.caption(partial) == captions.caption(partial)
    other = scenes.partial_scene(rng)
    if captions.caption(partial) == captions.caption(other):
        assert partial == other


@given(SEEDS)
def test_completion_preserves_specified_attributes_and_specifies_all_others(seed):
    rng = random.Random(seed)
    partial = scenes.partial_scene(rng, held_out=None)
    full = scenes.complete(partial, rng)
    for before, after in zip(partial.things, full.things, strict=True):
        for name in ("noun", "count", "color", "size", "facing", "gender", "tone"):
            value = getattr(before, name)
            assert getattr(after, name) is not None and value in (None, getattr(after, name))
    for name in ("style", "backdrop", "time", "sign", "relation"):
        assert getattr(partial, name) in (None, getattr(full, name))
    assert full.style in emoji.STYLES and full.backdrop in scenes.BACKDROPS
    assert all(full.style in emoji.styles_of(thing.noun) for thing in full.things)


@given(SEEDS)
def test_training_scenes_have_no_held_out_combination(seed):
    rng = random.Random(seed)
    assert not scenes.complete(scenes.partial_scene(rng, held_out=False), rng).held_out


@given(SEEDS)
def test_every_word_of_a_caption_is_in_the_vocabulary(seed):
    rng = random.Random(seed)
    partial = scenes.partial_scene(rng)
    text = captions.caption(partial, rng).replace(",", "")
    if partial.sign is not None:
        text = re.sub(f'says "?{partial.sign}"?', "says", text)
    assert set(text.split()) <= set(captions.words())


def test_about_a_tenth_of_the_combinations_is_held_out_and_none_that_is_planted():
    pairs = [(noun, f"on {backdrop}") for noun in nouns.NOUNS for backdrop in scenes.BACKDROPS]
    share = sum(scenes.is_held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.09 < share < 0.11
    assert not any(scenes.is_held_out(noun, f"on {place}") for noun, (place, _) in chances.PLANTED_PLACES.items())


def test_probabilities_of_unspecified_attributes_are_those_of_chances():
    for noun, (place, share) in chances.PLANTED_PLACES.items():
        shares = scenes.backdrop_shares(noun)
        assert shares[place] == pytest.approx(share) and sum(shares.values()) == pytest.approx(1)
    assert sum(scenes.backdrop_shares("cat", outdoors=True).values()) == pytest.approx(1)
    assert sum(scenes.color_shares("car").values()) == pytest.approx(1)


def test_completed_scenes_have_the_planted_frequencies():
    rng, count = random.Random(0), 4000
    completed = [scenes.complete(Scene((Thing("fox"),)), rng) for _ in range(count)]
    women = [scenes.complete(Scene((Thing("teacher"),)), rng).things[0].gender == "woman" for _ in range(count)]
    assert sum(full.backdrop == "snow" for full in completed) / count == pytest.approx(0.6, abs=0.03)
    assert sum(full.style == "3d" for full in completed) / count == pytest.approx(chances.STYLE["3d"], abs=0.03)
    assert sum(women) / count == pytest.approx(0.7, abs=0.03)
    sofas = [scenes.complete(Scene((Thing("sofa"),)), rng).style for _ in range(count)]
    assert sofas.count("3d") / count == pytest.approx(2 / 3, abs=0.03) and set(sofas) == {"3d", "flat"}


def test_a_scene_with_a_time_of_day_and_no_place_is_outdoors():
    rng = random.Random(0)
    completed = [scenes.complete(Scene((Thing("cat"),), time="night"), rng) for _ in range(200)]
    assert all(full.backdrop in scenes.OUTDOORS for full in completed)


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (Scene((Thing("owl"),)), "an owl"),
        (Scene((Thing("fox", count=2, color="red"),), backdrop="orange"), "two red foxes on an orange background"),
        (Scene((Thing("person", gender="woman", tone="dark"),)), "a woman with dark skin"),
        (Scene((Thing("doctor", count=2, gender="woman"),)), "two female doctors"),
        (Scene((Thing("grapes"), Thing("mouse")), relation="left of"), "grapes left of a mouse"),
        (Scene((Thing("mouse", count=None),), time="night"), "mice at night"),
        (Scene((Thing("bus", facing="left"),), style="flat"), "a flat icon of a bus facing left"),
        (Scene((Thing("cat"),), sign="hi"), "a cat holding a sign that says hi"),
    ],
)
def test_canonical_caption(scene, words):
    assert captions.caption(scene) == words


def test_a_picture_does_not_depend_on_its_batch(renderer):
    rng = random.Random(1)
    completed = [scenes.complete(scenes.partial_scene(rng), rng) for _ in range(6)]
    layout = layouts.lay_out(completed, rng)
    together = renderer(layout, 64, 64)
    alone = torch.cat([renderer(layout[i : i + 1], 64, 64) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("color", scenes.COLORS)
def test_a_colored_thing_has_its_color_in_every_style(renderer, color):
    target = torch.tensor(scenes.COLORS[color]) / 255
    for noun in ("cat", "rabbit", "car"):
        for style in emoji.styles_of(noun):
            thing = Thing(noun, color=color, size="large")
            picture = draw(renderer, Scene((thing,), style=style, backdrop="gray"))[0] / 2 + 0.5
            near = (picture - target[:, None, None]).abs().amax(0) < 0.2
            assert near.float().mean() > 0.1, (style, noun)


def test_a_style_that_a_noun_does_not_have_is_an_error():
    car = scenes.complete(Scene((Thing("car"),), style="sticker"), random.Random(0))
    with pytest.raises(ValueError, match="style='sticker' for 'car': scenes have it in 3d, flat"):
        layouts.lay_out([car], random.Random(0))


def test_every_style_and_every_backdrop_looks_different(renderer):
    for group in (
        [Scene((Thing("cat", look=0),), style=style, backdrop="gray") for style in emoji.STYLES],
        [Scene((Thing("cat", look=0, size="small"),), style="flat", backdrop=b) for b in scenes.BACKDROPS],
    ):
        pictures = [draw(renderer, scene, seed=3).flatten() for scene in group]
        for i, one in enumerate(pictures):
            assert all((one - other).abs().mean() > 0.01 for other in pictures[i + 1 :])


def test_facing_right_is_the_mirror_of_facing_left(renderer):
    pictures = []
    for facing in ("left", "right"):
        full = scenes.complete(Scene((Thing("bus", facing=facing, size="large"),), "flat", "white"), random.Random(0))
        layout = layouts.lay_out([full], random.Random(0))
        layout.boxes[:, 0, 0] = 0.5
        pictures.append(renderer(layout, 64, 64)[0])
    torch.testing.assert_close(pictures[0], pictures[1].flip(2), atol=2e-2, rtol=0)
    assert (pictures[0] - pictures[1]).abs().mean() > 0.02


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_things_are_placed_according_to_their_relation(relation, axis, sign, shape):
    rng = random.Random(0)
    scene = Scene((Thing("fox"), Thing("owl")), relation=relation)
    completed = [scenes.complete(scene, rng) for _ in range(50)]
    layout = layouts.lay_out(completed, rng, shape)
    fox = [emoji.sprites()["fox", 0] + emoji.STYLES.index(a.style) * len(emoji.sprites()) for a in completed]
    for row, sprite in enumerate(fox):
        slot = layout.sprites[row].tolist().index(sprite)
        assert sign * (layout.boxes[row, slot, axis] - layout.boxes[row, 1 - slot, axis]) > 0.2


@settings(max_examples=50)
@given(SEEDS, st.sampled_from(SHAPES))
def test_things_are_inside_the_picture_and_overlap_little(seed, shape):
    rng = random.Random(seed)
    full = scenes.complete(scenes.partial_scene(rng), rng)
    layout = layouts.lay_out([full], rng, shape)
    boxes = layout.boxes[0][layout.sprites[0] >= 0]
    assert len(boxes) == sum(thing.count for thing in full.things)
    width, height = shape.units
    for i, (x, y, side, _) in enumerate(boxes.tolist()):
        assert -1e-6 <= x - side / 2 and x + side / 2 <= width + 1e-6
        assert -1e-6 <= y - side / 2 and y + side / 2 <= height + 1e-6
        for other_x, other_y, other, _ in boxes[i + 1 :].tolist():
            assert max(abs(x - other_x), abs(y - other_y)) > 0.72 * min(side, other)


@settings(max_examples=50)
@given(SEEDS, st.sampled_from(SHAPES))
def test_the_boxes_of_things_begin_and_end_at_the_edges_of_tokens(seed, shape):
    rng = random.Random(seed)
    layout = layouts.lay_out([scenes.complete(scenes.partial_scene(rng), rng)], rng, shape)
    boxes = layout.boxes[0][layout.sprites[0] >= 0]
    pixels = torch.stack((boxes[:, :2] - boxes[:, 2:3] / 2, boxes[:, :2] + boxes[:, 2:3] / 2)) * 16 * shape.cells
    torch.testing.assert_close(pixels / 16, (pixels / 16).round(), atol=1e-4, rtol=0)


def test_a_thing_has_many_places_and_sizes():
    rng = random.Random(0)
    full = [scenes.complete(Scene((Thing("cat"),), backdrop="snow"), rng) for _ in range(200)]
    boxes = layouts.lay_out(full, rng).boxes[:, 0, :3]
    assert len(boxes[:, 2].unique()) >= 5 and len(boxes.unique(dim=0)) >= 40


def test_signs_with_different_letters_look_different(renderer):
    words = [
        draw(renderer, Scene((Thing("cat"),), "flat", "white", sign=sign), seed=5, size=128) for sign in ("abc", "xyz")
    ]
    assert (words[0] - words[1]).abs().mean() > 0.005
    assert layouts.spell("ab c")[0][:3] == [1, 2, 0] and layouts.spell("ab c")[1][0] == 3


@pytest.mark.parametrize("style", emoji.STYLES)
def test_an_atlas_has_the_sprites_of_the_nouns_that_scenes_have_in_its_style(style):
    opaque = emoji.load(style)[..., 3].reshape(len(emoji.sprites()), -1).max(1) > 0
    expected = [style in emoji.styles_of(name) for name, _ in emoji.sprites()]
    assert opaque.tolist() == expected


def test_the_atlases_together_take_at_most_six_megabytes():
    from importlib import resources

    folder = resources.files("fluxnb.train.data") / "atlas"
    assert sum(len((folder / f"{style}.webp").read_bytes()) for style in emoji.STYLES) <= 6_000_000


def test_every_place_has_an_appearance_and_every_backdrop_is_a_place_or_a_color():
    assert set(places.TABLE) == set(scenes.PLACES)
    assert len(scenes.BACKDROPS) == len(scenes.PLAIN) + len(scenes.PLACES)


def test_training_captions_name_nouns_in_proportion_to_their_weights():
    rng = random.Random(0)
    drawn = [scenes.partial_scene(rng, held_out=None) for _ in range(40_000)]
    named = Counter(scene.things[0].noun for scene in drawn if len(scene.things) == 1 and scene.things[0].count == 1)
    total = sum(map(scenes.caption_weight, nouns.NOUNS))
    for noun in ("fox", "taxi", "doctor", "cat"):
        expected = named.total() * scenes.caption_weight(noun) / total
        assert abs(named[noun] - expected) < 4 * expected**0.5, noun


def test_every_caption_word_is_one_token_and_no_caption_is_truncated():
    tokenizers = vocabulary.Tokenizers()
    rng = random.Random(0)
    texts = [captions.caption(scenes.partial_scene(rng), rng) for _ in range(2000)]
    assert max(map(len, tokenizers.t5(texts).input_ids)) <= vocabulary.CAPTION_TOKENS
    assert max(map(len, tokenizers.clip(texts).input_ids)) <= vocabulary.CLIP_USED
    assert all(len(tokenizers.t5.tokenize(word)) == 1 for word in vocabulary.words())


def test_tokens_preserve_every_letter_of_a_sign():
    tokenizers = vocabulary.Tokenizers()
    ids = tokenizers.t5("a cat holding a sign that says qxzvw jk").input_ids
    assert tokenizers.t5.decode(ids, skip_special_tokens=True) == "a cat holding a sign that says qxzvw jk"


def test_a_chunk_depends_only_on_seed_and_number():
    shape = layouts.Shape(64, 64)
    one, two = (next(iter(stream.draw_chunks([(shape, 5)], 7, workers=1))) for _ in range(2))
    assert torch.equal(one.t5_ids, two.t5_ids) and torch.equal(one.layout.noise, two.layout.noise)


def test_a_known_word_is_one_token_and_other_words_are_split_into_letters():
    assert vocabulary.t5_tokenizer().tokenize("a fox zyx") == ["▁a", "▁fox", "▁", "z", "y", "x"]


def test_tokenizers_ignore_case():
    tokenizers = vocabulary.Tokenizers()
    for tokenizer in (tokenizers.clip, tokenizers.t5):
        assert tokenizer("A Fox").input_ids == tokenizer("a fox").input_ids


def test_captions_have_no_unknown_token_and_ids_fit_in_16_bits():
    tokenizers, rng = vocabulary.Tokenizers(), random.Random(2)
    texts = [captions.caption(scenes.partial_scene(rng), rng) for _ in range(2000)]
    for tokenizer in (tokenizers.clip, tokenizers.t5):
        assert len(tokenizer) < 2**15
        assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts).input_ids)


def test_one_and_two_workers_draw_the_same_chunks(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 4)  # workers receive the size of each chunk
    counts = [(layouts.Shape(64, 64), 10)]
    one_worker, two_workers = (list(stream.draw_chunks(counts, 5, workers=workers)) for workers in (1, 2))
    assert [len(chunk) for chunk in two_workers] == [4, 4, 2]
    for one, other in zip(one_worker, two_workers, strict=True):
        assert torch.equal(one.layout.boxes, other.layout.boxes)
        assert torch.equal(one.clip_ids, other.clip_ids) and torch.equal(one.t5_ids, other.t5_ids)


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert stream.cores_per_rank() == 1
