"""The distillation: pairs, the critic, the losses of both sides, rollouts, and the selection of a student."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file

import fluxnb
from fluxnb.flow import interpolate, schedule
from fluxnb.records.latents import pack, unpack
from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.data.vocabulary import CAPTION_TOKENS, CLIP_TOKENS, Tokenizers
from fluxnb.train.networks.critic import Critic, block_features, critic_loss, draw_levels
from fluxnb.train.networks.denoiser import Denoiser, build_denoiser, load_denoiser, sample
from fluxnb.train.stages import reflow, student
from fluxnb.train.stages.loop import Average, Rank
from fluxnb.train.stages.pairs import Pairs, encode_captions, pair_alignment, sample_pairs

CPU = Rank(0, 1, torch.device("cpu"))
GRID = (8, 8)  # of the tokens


def with_random_output(model):
    """A denoiser with random weights in all layers; a newly built one predicts zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def teacher():
    return with_random_output(build_denoiser(TINY.sizes)).requires_grad_(False)


@pytest.fixture
def pairs(teacher):
    count = 64
    torch.manual_seed(1)
    return Pairs(
        torch.randn(count, 64, 64).half(),
        torch.randn(count, 64, 64).half(),
        torch.randint(3, 40, (count, CLIP_TOKENS), dtype=torch.int16),
        torch.randint(3, 40, (count, CAPTION_TOKENS), dtype=torch.int16),
    )


@pytest.fixture
def setup(teacher, pairs):
    """The arguments of `ladd_losses` for eight rows: the three networks, and the batch."""
    learner = copy.deepcopy(teacher)
    learner.transformer.requires_grad_(True)
    critic = Critic(teacher.transformer, inner=16)
    pooled, sequence = encode_captions(teacher, pairs, torch.arange(len(pairs)), CAPTION_TOKENS)
    clean = pairs.clean[:8].float()
    sigma = torch.tensor([1.0, 0.75, 0.5, 0.25] * 2)
    x = reflow.points_on_lines(pairs, torch.arange(8), sigma)
    target = reflow.velocities(pairs, torch.arange(8))[1::2]
    noise = (torch.randn_like(x), torch.randn_like(x))
    batch = {"x": x, "sigma": sigma, "clean": clean, "target": target, "prompts": (pooled[:8], sequence[:8]),
             "level": draw_levels(8, x.device), "noise": noise, "weights": torch.tensor([1.0, 0.0]),
             "grid": GRID}  # fmt: skip
    return learner, teacher, critic, batch


def test_a_point_at_sigma_a_quarter_is_mostly_picture(pairs):
    rows = torch.arange(len(pairs))
    x = reflow.points_on_lines(pairs, rows, torch.full((len(pairs),), 0.25))
    # 0.75 / sqrt(0.75^2 + 0.25^2) = 0.949
    together = torch.stack((pairs.clean.float().flatten(), x.flatten()))
    assert torch.corrcoef(together)[0, 1] == pytest.approx(0.949, abs=0.01)


def test_the_point_at_sigma_one_is_the_noise_of_the_pair(pairs):
    rows = torch.tensor([5, 3])
    assert torch.equal(reflow.points_on_lines(pairs, rows, torch.ones(2)), pairs.noise[rows].float())


def test_odd_rows_are_on_the_lines_of_their_captions(pairs):
    rollouts = student.Rollouts(pairs, 8, torch.device("cpu"))
    x, sigma, rows = rollouts.next()
    assert torch.equal(x[1::2], reflow.points_on_lines(pairs, rows[1::2], sigma[1::2]))


def test_the_regression_error_of_a_correct_student_is_zero(setup):
    learner, teacher, critic, batch = setup
    with torch.no_grad():
        target = learner(batch["x"], batch["sigma"], *batch["prompts"], GRID)[1::2]
        parts = student.ladd_losses(learner, teacher, critic, **(batch | {"target": target}))[1]
    assert parts[1] == 0


def test_the_last_features_are_the_output_of_the_last_block(teacher, pairs):
    pooled, sequence = encode_captions(teacher, pairs, torch.arange(len(pairs)), CAPTION_TOKENS)
    x, sigma = pairs.noise[:3].float(), torch.tensor([1.0, 0.6, 0.2])
    outputs = []
    last = teacher.transformer.single_transformer_blocks[-1]
    handle = last.register_forward_hook(lambda _m, _i, out: outputs.append(out[1]))
    teacher(x, sigma, pooled[:3], sequence[:3], GRID)
    features = block_features(teacher.transformer, x, sigma, pooled[:3], sequence[:3], grid=GRID)
    handle.remove()
    assert torch.equal(outputs[0], outputs[1])
    assert len(features) == TINY.sizes.double_blocks + TINY.sizes.single_blocks


def test_the_critics_gradient_reaches_the_student_through_the_frozen_teacher(setup):
    learner, teacher, critic, batch = setup
    student.ladd_losses(learner, teacher, critic, **batch)[0].backward()
    assert learner.transformer.x_embedder.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.moderate
def test_the_critic_gets_the_gradient_of_its_own_loss_only(setup):
    learner, teacher, critic, batch = setup
    torch.manual_seed(5)
    total, *_ = student.ladd_losses(learner, teacher, critic, **batch)
    total.backward()
    both = critic.heads[0].conv_in.weight.grad.clone()
    # The gradient is the same for a student without gradients.
    critic.zero_grad()
    for parameter in learner.parameters():
        parameter.requires_grad_(False)
    student.ladd_losses(learner, teacher, critic, **batch)[0].backward()
    assert torch.allclose(both, critic.heads[0].conv_in.weight.grad, atol=1e-6)


@pytest.mark.moderate
def test_a_critic_of_equal_distributions_is_at_chance(teacher, pairs):
    torch.manual_seed(3)
    critic = Critic(teacher.transformer, inner=16)
    adam = torch.optim.Adam(critic.parameters(), 1e-3)
    pooled, sequence = encode_captions(teacher, pairs, torch.arange(len(pairs)), CAPTION_TOKENS)

    def logits(rows):
        level = draw_levels(len(rows), torch.device("cpu"))
        at = level[:, None, None]
        x = (1 - at) * pairs.clean[rows].float() + at * torch.randn(len(rows), 64, 64)
        features = block_features(teacher.transformer, x, level, pooled[rows], sequence[rows], grid=GRID)
        return critic(features, level, pooled[rows], GRID)

    for _ in range(200):
        rows = torch.randint(64, (8,))
        real, fake = logits(rows), logits(torch.randint(64, (8,)))
        (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()).backward()
        adam.step()
        adam.zero_grad()
    with torch.no_grad():
        shares = [(logits(torch.randint(64, (64,))).mean((1, 2)) > 0).float().mean() for _ in range(8)]
    right = (torch.stack(shares[::2]).mean() + 1 - torch.stack(shares[1::2]).mean()) / 2
    assert right == pytest.approx(0.5, abs=0.05)


@pytest.mark.moderate
def test_the_critic_learns_to_use_the_captions(teacher):
    """With two kinds of pictures and captions, swapping the captions lowers the logits of real pictures."""
    torch.manual_seed(4)
    critic = Critic(teacher.transformer, inner=16)
    adam = torch.optim.Adam(critic.parameters(), 2e-3)
    kinds, pooled, sequence = torch.randn(2, 64, 64), torch.randn(2, 32), torch.randn(2, 48, 32)

    def critic_logits(kind, prompt):
        level = draw_levels(len(kind), torch.device("cpu"))
        x = (1 - level)[:, None, None] * kinds[kind] + level[:, None, None] * torch.randn(len(kind), 64, 64)
        features = block_features(teacher.transformer, x, level, pooled[prompt], sequence[prompt], grid=GRID)
        return critic(features, level, pooled[prompt], GRID)

    for _ in range(150):
        kind = torch.randint(2, (8,))
        mismatched = critic_logits(kind, 1 - kind)
        critic_loss(critic_logits(kind, kind), mismatched, mismatched).backward()
        adam.step()
        adam.zero_grad()
    kind = torch.randint(2, (64,))
    with torch.no_grad():
        assert critic_logits(kind, kind).mean() > critic_logits(kind, 1 - kind).mean() + 0.2


def test_the_hinge_loss_of_confident_correct_logits_is_zero():
    logits = torch.full((4, 2, 64), 1.5)
    assert critic_loss(logits, -logits, -logits) == 0


def test_renoise_levels_mix_high_and_low():
    torch.manual_seed(0)
    level = draw_levels(40_000, torch.device("cpu"))
    assert level.min() > 0 and level.max() < 1
    assert level.mean() == pytest.approx(0.5, abs=0.01)
    assert level.std() > 0.25  # one logit-normal around 0 has 0.21


@pytest.mark.moderate
def test_rollouts_visit_all_noise_levels_and_the_highest_most(pairs):
    torch.manual_seed(0)
    rollouts = student.Rollouts(pairs, 256, torch.device("cpu"))
    seen = []
    for _ in range(60):
        x, sigma, _ = rollouts.next()
        seen.append(sigma)
        rollouts.advance(x, sigma, torch.zeros_like(x))
    shares = [float((torch.cat(seen[20:]) == level).float().mean()) for level in reflow.STUDENT_SIGMAS]
    assert shares[0] == max(shares)
    assert min(shares) > 0.05 and sum(shares) == pytest.approx(1)


def test_rollouts_follow_the_students_velocity(pairs):
    torch.manual_seed(0)
    rollouts = student.Rollouts(pairs, 64, torch.device("cpu"))
    before, captions = rollouts.state.clone(), rollouts.rows.clone()
    x, sigma, rows = rollouts.next()
    velocity = torch.randn_like(x)
    rollouts.advance(x, sigma, velocity)
    onward = rollouts.index > 0
    level = rollouts.sigmas[rollouts.index]
    expected = x + (level - 1)[:, None, None] * velocity
    assert onward.any() and torch.equal(rollouts.state[onward], expected[onward])
    assert torch.equal(rollouts.rows[onward], captions[onward])
    assert torch.equal(x[::2], before[::2]) and torch.equal(rows, captions)


def test_the_noise_levels_of_the_student_are_those_of_four_steps():
    assert schedule(4)[:-1] == pytest.approx(reflow.STUDENT_SIGMAS)


@pytest.mark.moderate
def test_the_averaged_student_differs_from_the_live_one(setup):
    learner, teacher, critic, batch = setup
    average = Average(learner, 0.999)
    adam = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], 1e-2)
    for _ in range(20):
        student.ladd_losses(learner, teacher, critic, **batch)[0].backward()
        adam.step()
        average.update()
    live = learner.transformer.x_embedder.weight.detach().clone()
    average.swap()
    assert not torch.equal(live, learner.transformer.x_embedder.weight)


def test_the_ranking_accuracy_of_random_logits_is_one_half():
    torch.manual_seed(0)
    facts = student.ranking_accuracy(torch.randn(2, 4096), torch.rand(4096))
    assert facts["right"] == pytest.approx(0.5, abs=0.03) and "right_4" in facts


def test_the_ranking_accuracy_of_separated_logits_is_one():
    facts = student.ranking_accuracy(torch.tensor([[2.0, 3.0], [1.0, 2.5]]), torch.tensor([0.1, 0.9]))
    assert facts == {"right": 1.0, "gap": 0.75, "right_1": 1.0, "right_4": 1.0}


def test_the_alignment_of_aligned_and_reversed_pairs():
    noise = torch.randn(512, 64, 64)
    ids = torch.zeros(512, 48, dtype=torch.int16)
    assert pair_alignment(Pairs(noise, 0.5 * noise + 1, ids, ids)) > 0.99
    assert pair_alignment(Pairs(noise, -noise, ids, ids)) < -0.99


def test_the_selected_student_has_the_lowest_fd_near_the_best_adherence():
    saved = {
        "a": {"fd_4": 0.01, "everything_4": 0.5},
        "b": {"fd_4": 0.03, "everything_4": 0.9},
        "c": {"fd_4": 0.02, "everything_4": 0.895},
    }
    assert student.select_best(saved) == "c"


def test_without_measurements_the_last_student_is_selected():
    assert student.select_best({"000100": {"align": 0.1}, "000200": {"align": 0.2}}) == "000200"


@pytest.mark.slow
def test_a_student_is_distilled_from_the_teacher_and_differs_from_it(run):
    main(["student", "--preset", "tiny", "--out", str(run)])
    teacher = load_denoiser(TINY.sizes, run / "teacher.safetensors").transformer.state_dict()
    for name in ("warm", "student"):
        state = load_file(run / f"{name}.safetensors")
        assert set(state) == set(teacher)
        assert any(not torch.equal(value.float(), teacher[key]) for key, value in state.items())
    main(["samples", "--preset", "tiny", "--out", str(run), "--steps", "1", "--transformer", "student"])
    assert (run / "samples-student.png").stat().st_size > 1000


@pytest.mark.slow
def test_ladd_alone_has_no_reflow(run, tmp_path):
    shutil.copyfile(run / "teacher.safetensors", tmp_path / "teacher.safetensors")
    main(["student", "--preset", "tiny", "--out", str(tmp_path), "--ladd-only"])
    assert (tmp_path / "ladd.safetensors").is_file() and not (tmp_path / "warm.safetensors").exists()


@pytest.mark.slow
def test_a_pair_is_the_teachers_sample_from_its_noise(run):
    model = load_denoiser(TINY.sizes, run / "teacher.safetensors")
    with torch.no_grad():  # a new network predicts zero, and noise would be its picture
        model.transformer.proj_out.weight.normal_(std=0.2)
    tables = sample_pairs(model, TINY, CPU)
    assert [table.shape for table in tables] == [shape for shape, _ in TINY.shapes]
    table = tables[1]  # not square
    clip, t5 = (ids[:4].long() for ids in (table.pairs.clip_ids, table.pairs.t5_ids))
    noise = unpack(table.pairs.noise[:4].float(), table.shape.height, table.shape.width)
    settings = TINY.distillation
    empty = tuple(ids for ids in Tokenizers()([""]))
    again = sample(model, clip, t5, noise, settings.teacher_steps, guidance=settings.guidance, empty=empty)
    assert torch.allclose(pack(again), table.pairs.clean[:4].float(), atol=1e-2)
    assert not torch.allclose(table.pairs.clean, table.pairs.noise, atol=0.1)


@pytest.mark.slow
def test_a_longer_padding_changes_the_sequence_and_not_the_pooled_vector(run):
    model = load_denoiser(TINY.sizes, run / "teacher.safetensors")
    pairs = sample_pairs(model, TINY, CPU)[0].pairs
    rows = torch.arange(2)
    (pooled, sequence), (again, longer) = (encode_captions(model, pairs, rows, n) for n in (48, 64))
    assert torch.equal(pooled, again) and sequence.shape[1] == 48 and longer.shape[1] == 64


@pytest.fixture(scope="module")
def pocket():
    return FluxPipeline.from_pretrained(Path(fluxnb.__file__).parent / "pocket" / "base")


@pytest.mark.moderate
@torch.no_grad()
def test_the_teachers_clean_estimate_at_sigma_a_quarter_is_close(pocket):
    """The clean estimate of a slightly noised picture has a PSNR of more than 20 dB."""
    model = Denoiser(pocket.text_encoder, pocket.text_encoder_2, pocket.transformer)
    tokenizers = Tokenizers()
    captions = tokenizers(["a fox in the snow", "a teapot on a red background"])
    noise = torch.randn(2, 16, 24, 24, generator=torch.Generator().manual_seed(0))
    clean = sample(model, *captions, noise, 12, guidance=1.5, empty=tokenizers([""]))
    x = interpolate(pack(clean), pack(torch.randn_like(noise)), 0.25)
    velocity = model(x, torch.full((2,), 0.25), *model.encode(*captions), (12, 12))
    guess = unpack(x - 0.25 * velocity, 192, 192)
    pictures = [pocket.vae.decode(z).sample.clamp(-1, 1) for z in (clean, guess)]
    error = (pictures[0] - pictures[1]).square().mean()
    assert 10 * torch.log10(4 / error) > 20
