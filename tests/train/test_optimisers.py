"""Who moves which weights, how fast, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("sentencepiece")

from fluxnb.errors import InputError
from fluxnb.train.config import TINY
from fluxnb.train.networks.files import build_denoiser
from fluxnb.train.stages.loop import Average, Rank, step_with
from fluxnb.train.stages.muon import Muon
from fluxnb.train.stages.optimisers import optimiser

CPU = Rank(0, 1, torch.device("cpu"))
MUON = dataclasses.replace(TINY.teacher, optimizer="muon")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_denoiser(TINY.sizes)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def moved(model, schedule, rate):
    """How far one step takes each weight."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step_with(model, optimiser(model, schedule), rate, CPU)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_unsaid_everything_is_moved_by_adamw(model):
    assert type(optimiser(model, TINY.teacher)) is torch.optim.AdamW


def test_muon_moves_the_matrices_of_the_blocks_and_nothing_else(model):
    named = {p: name for name, p in model.named_parameters()}
    both = optimiser(model, MUON)
    by_muon = {named[p] for group in both.muon.param_groups for p in group["params"]}
    blocks = {n for n in named.values() if n.startswith("transformer.") and "_blocks." in n and "norm_" not in n}
    assert by_muon == {name for name in blocks if name.endswith("weight") and model.get_parameter(name).ndim == 2}
    assert "transformer.single_transformer_blocks.0.proj_out.weight" in by_muon
    assert "transformer.proj_out.weight" not in by_muon and "transformer.x_embedder.weight" not in by_muon


def test_every_weight_is_moved_by_one_of_both(model):
    held = [p for group in optimiser(model, MUON).param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())


def test_a_step_of_muon_goes_equally_far_in_all_directions(model):
    name, rate = "transformer.transformer_blocks.0.attn.to_q.weight", 0.01
    far = torch.linalg.svdvals(moved(model, MUON, rate)[name]) / (rate * 0.2 * 32**0.5)
    assert far.min() > 0.2 and far.max() < 1.4  # five Newton-Schulz steps come no nearer to one


def test_the_schedule_sets_the_rate_of_both(model):
    both = optimiser(model, dataclasses.replace(MUON, muon_times=3.0))
    step_with(model, both, 0.5, CPU)
    assert {group["lr"] for group in both.rest.param_groups} == {0.5}
    assert {group["lr"] for group in both.muon.param_groups} == {1.5}


def test_no_weight_moves_at_rate_zero(model):
    assert all(not far.any() for far in moved(model, MUON, 0.0).values())


def test_a_step_of_muon_leaves_no_gradient_behind(model):
    moved(model, MUON, 0.1)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon is part of torch from 2.9 on")
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_many_matrices_at_a_time_go_where_torchs_muon_takes_each(shape):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.1, "weight_decay": 0.1}
    both = (Muon(ours, **settings), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings))
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(shape)
            other.grad = one.grad.clone()
        for muon in both:
            muon.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=0.01)  # both step in bfloat16, and sum in another order


def test_a_matrix_without_a_gradient_stays():
    still, moves = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    moves.grad = torch.eye(2)
    Muon([still, moves], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, torch.ones(2, 2)) and not torch.equal(moves, torch.ones(2, 2))


def test_an_unknown_optimizer_is_answered_with_the_known_ones(model):
    with pytest.raises(InputError, match=r"'adamw' and 'muon'"):
        optimiser(model, dataclasses.replace(MUON, optimizer="moon"))


def test_muon_is_refused_where_no_block_learns():
    with pytest.raises(InputError, match="Train it with 'adamw'"):
        optimiser(torch.nn.Linear(2, 2), MUON)


def test_an_average_of_known_weights_keeps_its_start():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = Average(layer, 0.9, known=True)
    torch.nn.init.ones_(layer.weight)
    average.update()
    assert average.mean[0].item() == pytest.approx(0.1)
