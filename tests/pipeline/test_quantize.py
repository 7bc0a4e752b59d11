"""Models with rounded weights: the arithmetic, what stays as it was, and pictures that no store mixes up."""

from __future__ import annotations

import copy

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.pipeline.identity import identity_of
from fluxnb.runtime.quantisation import block_layers
from fluxnb.runtime.rounding import block_weights, round_weight
from tests.conftest import toy_pipeline
from tests.families.tiny import klein, z_image


def weights(flux: fnb.Flux, part: str = "transformer") -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in getattr(flux.pipe, part).state_dict().items()}


def changed(one: fnb.Flux, other: fnb.Flux, part: str = "transformer") -> set[str]:
    a, b = weights(one, part), weights(other, part)
    return {name for name in a if not torch.equal(a[name], b[name])}


# ------------------------------------------------------------------------------------------------------------ rounding
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group", [1, 5, 16, 24, None, 100])
def test_a_group_has_so_many_even_levels_and_keeps_its_largest_value(bits, group):
    weight = torch.randn(3, 24, generator=torch.Generator().manual_seed(bits))
    rounded = round_weight(weight, bits, group)
    for row, before in zip(rounded, weight, strict=True):
        for part, original in zip(row.split(group or 24), before.split(group or 24), strict=True):
            scale = original.abs().max() / (2 ** (bits - 1) - 1)
            levels = part / scale
            torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
            assert (part - original).abs().max() <= scale / 2 + 1e-6
            torch.testing.assert_close(part.abs().max(), original.abs().max())


def test_rounding_twice_is_rounding_once():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    once = round_weight(weight, 4, 8)
    torch.testing.assert_close(round_weight(once, 4, 8), once, atol=1e-6, rtol=0)


def test_smaller_groups_and_more_bits_are_nearer():
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))

    def error(bits, group):
        return float((round_weight(weight, bits, group) - weight).norm())

    assert error(4, 16) < error(4, 64) < error(4, None)
    assert error(8, 64) < error(6, 64) < error(4, 64) < error(3, 64) < error(2, 64)


def test_zeros_shape_and_dtype_are_kept():
    kernel = torch.randn(4, 3, 3, 3).bfloat16()
    assert round_weight(kernel, 4, 8).shape == kernel.shape
    assert round_weight(kernel, 4, 8).dtype == torch.bfloat16
    assert torch.equal(round_weight(torch.zeros(2, 8), 2, 4), torch.zeros(2, 8))


def test_the_rounded_layers_of_flux_are_those_that_the_presets_store_in_few_bits():
    transformer = toy_pipeline().transformer
    assert set(block_weights(transformer)) == set(block_layers(transformer)) and block_weights(transformer)


@pytest.mark.moderate
@pytest.mark.parametrize("make", [lambda: klein(distilled=True), lambda: z_image(turbo=True)], ids=["klein", "z-image"])
def test_other_families_have_layers_to_round(make):
    flux = fnb.load(make())
    few = fnb.quantize(flux, 3)
    found = changed(flux, few)
    assert found and not any("norm" in name or "modulation" in name for name in found)
    fnb.run(few, "a fox", steps=1, height=64, width=64)


# -------------------------------------------------------------------------------------------------------------- handles
@pytest.mark.parametrize("part", ["transformer", "text_encoder", "text_encoder_2", "vae"])
def test_only_the_given_part_is_rounded_and_the_given_handle_stays(toy, part):
    before = {name: weights(toy, name) for name in ("transformer", "text_encoder", "text_encoder_2", "vae")}
    identity, revision = identity_of(toy.pipe), toy.revision
    few = fnb.quantize(toy, 3, group=8, parts=part)
    assert changed(toy, few, part)
    assert all(few.pipe.components[name] is toy.pipe.components[name] for name in before if name != part)
    for name, tensors in before.items():
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in getattr(toy.pipe, name).state_dict().items())
    toy.refresh_if_changed()
    assert (identity_of(toy.pipe), toy.revision) == (identity, revision)


def test_the_ends_of_a_network_and_what_is_no_matrix_keep_their_bits(toy):
    found = changed(toy, fnb.quantize(toy, 2))
    assert found and all("transformer_blocks." in name and name.endswith(".weight") for name in found)
    assert not any("norm" in name for name in found)
    found = changed(toy, fnb.quantize(toy, 2, parts="vae"), "vae")
    assert found and not any("conv_in" in name or "conv_out" in name or "norm" in name for name in found)


def test_the_velocities_are_those_of_the_rounded_weights(toy):
    few = fnb.quantize(toy, 3, group=16)
    by_hand = copy.deepcopy(toy.pipe.transformer)
    with torch.no_grad():
        for layer in block_layers(by_hand).values():
            layer.weight.copy_(round_weight(layer.weight, 3, 16))
    pipe = toy_pipeline()
    pipe.transformer = by_hand
    pipe.set_progress_bar_config(disable=True)
    expected = fnb.run(fnb.load(pipe), "a fox", seed=1, steps=2)
    assert torch.equal(fnb.run(few, "a fox", seed=1, steps=2).final, expected.final)


def test_fewer_bits_are_farther_from_the_velocity(toy):
    v = fnb.run(toy, "a fox", seed=1, steps=1)[0].v
    errors = [float((fnb.run(fnb.quantize(toy, b), "a fox", seed=1, steps=1)[0].v - v).norm()) for b in (8, 5, 2)]
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.moderate
def test_records_state_the_bits_and_a_plan_is_not_exact(toy):
    few = fnb.quantize(toy, 4)
    assert not few.plan.exact and "4 bits, groups of 64" in repr(few.plan)
    assert fnb.run(few, "a fox", steps=1).numerics == "4 bits, groups of 64"
    assert few.numerics() != fnb.quantize(toy, 4, group=None).numerics()
    assert "vae" in fnb.quantize(toy, 4, parts=["vae"]).numerics()
    assert "4 bits" in fnb.quantize(few, 3).numerics() and "3 bits" in fnb.quantize(few, 3).numerics()
    assert few.defaults == toy.defaults and few.model == toy.model and few.vocabulary == toy.vocabulary


@pytest.mark.moderate
def test_every_way_of_rounding_has_a_revision_of_its_own(toy):
    ways = [(4, 64, "transformer"), (3, 64, "transformer"), (4, None, "transformer"), (4, 64, "vae"),
            (4, 64, ("transformer", "vae"))]  # fmt: skip
    made = [fnb.quantize(toy, bits, group=group, parts=parts) for bits, group, parts in ways]
    revisions = {toy.revision, *(flux.revision for flux in made)}
    assert len(revisions) == len(ways) + 1
    recipe = fnb.Recipe(prompt="a fox", seed=1, steps=1)
    assert len({flux.resolve(recipe).key(flux.versions) for flux in (toy, *made)}) == len(ways) + 1
    assert made[0].revision == fnb.quantize(toy, 4).revision


def test_the_order_of_the_parts_does_not_matter(toy):
    one, other = (fnb.quantize(toy, 4, parts=parts) for parts in (["vae", "transformer"], ["transformer", "vae"]))
    assert one.revision == other.revision


@pytest.mark.moderate
def test_a_store_does_not_mix_up_pictures_of_other_bits(toy, tmp_path):
    axes = {"prompts": ["a fox"], "seeds": [1], "steps": 1, "store": tmp_path}
    handles = [toy, fnb.quantize(toy, 4), fnb.quantize(toy, 2)]
    pictures = [fnb.sweep(flux, **axes)[0] for flux in handles]
    assert len({cell.path for cell in pictures}) == 3
    assert len({cell.image.tobytes() for cell in pictures}) == 3
    again = fnb.sweep(fnb.quantize(toy, 2), **axes)[0]
    assert again.path == pictures[2].path and again.image.tobytes() == pictures[2].image.tobytes()
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_a_change_of_the_rounded_pipeline_is_noticed():
    few = fnb.quantize(fnb.load(toy_pipeline()), 4)
    before = few.revision
    with torch.no_grad():
        few.pipe.transformer.proj_out.weight.mul_(0.9)
    few.refresh_if_changed()
    assert few.revision != before


def test_a_change_before_rounding_is_in_the_revision():
    flux = fnb.load(toy_pipeline())
    before = fnb.quantize(flux, 4).revision
    with torch.no_grad():
        flux.pipe.transformer.proj_out.weight.mul_(0.9)
    assert fnb.quantize(flux, 4).revision != before


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["lean", "lean-fp8"])
def test_weights_that_are_not_in_memory_in_16_bits_are_refused(preset):
    flux = fnb.load("pocket-base", preset=preset)
    with pytest.raises(InputError) as caught:
        fnb.quantize(flux, 4)
    assert preset in caught.value.given and 'fnb.load("pocket-base", preset="cpu")' in caught.value.remedy
    fnb.quantize(flux, 4, parts="vae")


def test_an_adapter_is_refused():
    pytest.importorskip("peft")
    from peft import LoraConfig

    flux = fnb.load(toy_pipeline())
    flux.pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(InputError, match="adapter"):
        fnb.quantize(flux, 4)


@pytest.mark.moderate
def test_a_compiled_model_is_refused():
    flux = fnb.load(toy_pipeline())
    flux.pipe.transformer.compile()
    with pytest.raises(InputError, match="not compiled"):
        fnb.quantize(flux, 4)
