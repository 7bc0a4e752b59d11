"""AdamW, Muon and their combination."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("sentencepiece")

from fluxnb.errors import InputError
from fluxnb.train.config import TINY
from fluxnb.train.networks.denoiser import build_denoiser
from fluxnb.train.stages.loop import Rank, optimizer_step
from fluxnb.train.stages.optimizers import Muon, make_optimizer

CPU = Rank(0, 1, torch.device("cpu"))
MUON = TINY.teacher


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_denoiser(TINY.sizes)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def updates(model, schedule, rate):
    """The change of each weight in one step."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer_step(model, make_optimizer(model, schedule), rate, CPU)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_the_default_optimizer_is_adamw(model):
    assert type(make_optimizer(model, TINY.judge)) is torch.optim.AdamW


def test_muon_updates_exactly_the_matrices_of_the_blocks(model):
    named = {p: name for name, p in model.named_parameters()}
    both = make_optimizer(model, MUON)
    by_muon = {named[p] for group in both.muon.param_groups for p in group["params"]}
    blocks = {n for n in named.values() if n.startswith("transformer.") and "_blocks." in n and "norm_" not in n}
    assert by_muon == {name for name in blocks if name.endswith("weight") and model.get_parameter(name).ndim == 2}
    assert "transformer.single_transformer_blocks.0.proj_out.weight" in by_muon
    assert "transformer.proj_out.weight" not in by_muon and "transformer.x_embedder.weight" not in by_muon


def test_every_weight_belongs_to_one_of_the_two_optimizers(model):
    held = [p for group in make_optimizer(model, MUON).param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())


def test_an_update_of_muon_has_similar_singular_values(model):
    name, rate = "transformer.transformer_blocks.0.attn.to_q.weight", 0.01
    values = torch.linalg.svdvals(updates(model, MUON, rate)[name]) / (rate * 0.2 * 32**0.5)
    assert values.min() > 0.2 and values.max() < 1.4  # the precision of five Newton-Schulz iterations


def test_a_step_sets_the_learning_rate_of_both_optimizers(model):
    both = make_optimizer(model, dataclasses.replace(MUON, muon_lr_ratio=3.0))
    optimizer_step(model, both, 0.5, CPU)
    assert {group["lr"] for group in both.adamw.param_groups} == {0.5}
    assert {group["lr"] for group in both.muon.param_groups} == {1.5}


def test_a_learning_rate_of_zero_changes_no_weight(model):
    assert all(not change.any() for change in updates(model, MUON, 0.0).values())


def test_a_step_clears_all_gradients(model):
    updates(model, MUON, 0.1)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon is part of torch from 2.9 on")
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_batched_muon_agrees_with_torchs_muon(shape):
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
        assert torch.allclose(one, other, atol=0.01)  # both compute in bfloat16, in different orders


def test_muon_leaves_a_matrix_without_a_gradient_unchanged():
    without, with_gradient = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    with_gradient.grad = torch.eye(2)
    Muon([without, with_gradient], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(without, torch.ones(2, 2)) and not torch.equal(with_gradient, torch.ones(2, 2))


def test_an_unknown_optimizer_lists_the_known_ones(model):
    with pytest.raises(InputError, match=r"'adamw' and 'muon'"):
        make_optimizer(model, dataclasses.replace(MUON, optimizer="moon"))


def test_muon_is_rejected_for_a_module_without_blocks():
    with pytest.raises(InputError, match="Train it with 'adamw'"):
        make_optimizer(torch.nn.Linear(2, 2), MUON)
