"""LADD's pieces do what the papers say: most of these are mistakes that somebody trained with."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

pytest.importorskip("sentencepiece")

from safetensors.torch import load_file

from fluxnb.flow import interpolate, schedule
from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.networks.critic import Critic, critic_loss, draw_levels, features
from fluxnb.train.networks.files import build_denoiser, save_denoiser
from fluxnb.train.stages import reflow
from fluxnb.train.stages import student as distil
from fluxnb.train.stages.loop import Rank
from fluxnb.train.stages.pairs import Pairs, draw_pairs
from fluxnb.train.stages.teacher import sample

CPU = Rank(0, 1, torch.device("cpu"))


def awake(model):
    """A denoiser whose answers depend on what it is asked: a fresh one answers zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def teacher():
    return awake(build_denoiser(TINY.sizes)).requires_grad_(False)


@pytest.fixture
def pairs(teacher):
    count, length = 64, TINY.sizes.text_tokens
    torch.manual_seed(1)
    return Pairs(
        torch.randn(count, 64, 64).half(),
        torch.randn(count, 64, 64).half(),
        torch.randint(3, 40, (count, length), dtype=torch.int16),
        torch.randint(3, 40, (count, length), dtype=torch.int16),
    )


@pytest.fixture
def game(teacher, pairs):
    """Everything that `ladd_losses` takes, for eight rows."""
    student = copy.deepcopy(teacher)
    student.transformer.requires_grad_(True)
    critic = Critic(teacher.transformer, inner=16)
    pooled, sequence = pairs.embed(teacher)
    clean = pairs.clean[:8].float()
    sigma = torch.tensor([1.0, 0.75, 0.5, 0.25] * 2)
    x = reflow.on_the_line(pairs, torch.arange(8), sigma)
    target = (pairs.noise[:8].float() - clean)[1::2]
    noise = (torch.randn_like(x), torch.randn_like(x))
    words, level = (pooled[:8], sequence[:8]), draw_levels(8, x.device)
    batch = (x, sigma, clean, target, words, level, noise, torch.tensor([1.0, 0.0]))
    return student, teacher, critic, batch


def test_the_line_at_a_quarter_is_mostly_picture(pairs):
    rows = torch.arange(len(pairs))
    x = reflow.on_the_line(pairs, rows, torch.full((len(pairs),), 0.25))
    # 0.75 / sqrt(0.75^2 + 0.25^2) = 0.949
    together = torch.stack((pairs.clean.float().flatten(), x.flatten()))
    assert torch.corrcoef(together)[0, 1] == pytest.approx(0.949, abs=0.01)


def test_the_line_at_one_is_the_noise_of_the_pair(pairs):
    rows = torch.tensor([5, 3])
    assert torch.equal(reflow.on_the_line(pairs, rows, torch.ones(2)), pairs.noise[rows].float())


def test_odd_rows_lie_on_the_lines_of_their_captions(pairs):
    trajectories = distil.Walks(pairs, 8, torch.device("cpu"))
    x, sigma, rows = trajectories.next()
    assert torch.equal(x[1::2], reflow.on_the_line(pairs, rows[1::2], sigma[1::2]))


def test_a_student_on_the_lines_goes_nowhere_astray(game):
    student, teacher, critic, (x, sigma, clean, _, *rest) = game
    with torch.no_grad():
        target = student(x, sigma, *rest[0])[1::2]
        parts = distil.ladd_losses(student, teacher, critic, x, sigma, clean, target, *rest)[1]
    assert parts[1] == 0


def test_the_features_end_in_the_answer_of_the_transformer(teacher, pairs):
    pooled, sequence = pairs.embed(teacher)
    x, sigma = pairs.noise[:3].float(), torch.tensor([1.0, 0.6, 0.2])
    ends = []
    last = teacher.transformer.single_transformer_blocks[-1]
    handle = last.register_forward_hook(lambda _m, _i, out: ends.append(out[1]))
    teacher(x, sigma, pooled[:3], sequence[:3])
    seen = features(teacher.transformer, x, sigma, pooled[:3], sequence[:3])
    handle.remove()
    assert torch.equal(ends[0], ends[1])
    assert len(seen) == TINY.sizes.double_blocks + TINY.sizes.single_blocks


def test_the_student_feels_the_critic_through_the_frozen_teacher(game):
    student, teacher, critic, batch = game
    distil.ladd_losses(student, teacher, critic, *batch)[0].backward()
    assert student.transformer.x_embedder.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_each_side_feels_its_own_loss_only(game):
    student, teacher, critic, batch = game
    torch.manual_seed(5)
    total, *_ = distil.ladd_losses(student, teacher, critic, *batch)
    total.backward()
    both = critic.heads[0].enter.weight.grad.clone()
    # The critic's gradient is that of its loss alone: the same with a student that gives no gradient.
    critic.zero_grad()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    distil.ladd_losses(student, teacher, critic, *batch)[0].backward()
    assert torch.allclose(both, critic.heads[0].enter.weight.grad, atol=1e-6)


def test_a_critic_cannot_tell_the_teacher_from_the_teacher(teacher, pairs):
    torch.manual_seed(3)
    critic = Critic(teacher.transformer, inner=16)
    adam = torch.optim.Adam(critic.parameters(), 1e-3)
    pooled, sequence = pairs.embed(teacher)

    def logits(rows):
        level = draw_levels(len(rows), torch.device("cpu"))
        at = level[:, None, None]
        x = (1 - at) * pairs.clean[rows].float() + at * torch.randn(len(rows), 64, 64)
        return critic(features(teacher.transformer, x, level, pooled[rows], sequence[rows]), level, pooled[rows])

    for _ in range(200):
        rows = torch.randint(64, (8,))
        real, fake = logits(rows), logits(torch.randint(64, (8,)))
        (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()).backward()
        adam.step()
        adam.zero_grad()
    with torch.no_grad():
        verdicts = [(logits(torch.randint(64, (64,))).mean((1, 2)) > 0).float().mean() for _ in range(8)]
    right = (torch.stack(verdicts[::2]).mean() + 1 - torch.stack(verdicts[1::2]).mean()) / 2
    assert right == pytest.approx(0.5, abs=0.05)


def test_the_critic_learns_to_read_the_words(teacher):
    """Two kinds of picture, each with its words: after training, swapped words lower the verdict on real pictures."""
    torch.manual_seed(4)
    critic = Critic(teacher.transformer, inner=16)
    adam = torch.optim.Adam(critic.parameters(), 2e-3)
    kinds, pooled, sequence = torch.randn(2, 64, 64), torch.randn(2, 32), torch.randn(2, 48, 32)

    def verdict(kind, words):
        level = draw_levels(len(kind), torch.device("cpu"))
        x = (1 - level)[:, None, None] * kinds[kind] + level[:, None, None] * torch.randn(len(kind), 64, 64)
        return critic(features(teacher.transformer, x, level, pooled[words], sequence[words]), level, pooled[words])

    for _ in range(150):
        kind = torch.randint(2, (8,))
        wrong = verdict(kind, 1 - kind)
        critic_loss(verdict(kind, kind), wrong, wrong).backward()
        adam.step()
        adam.zero_grad()
    kind = torch.randint(2, (64,))
    with torch.no_grad():
        assert verdict(kind, kind).mean() > verdict(kind, 1 - kind).mean() + 0.2


def test_hinge_asks_nothing_of_a_critic_that_is_sure():
    sure = torch.full((4, 2, 64), 1.5)
    assert critic_loss(sure, -sure, -sure) == 0


def test_levels_are_a_mixture_of_high_and_low():
    torch.manual_seed(0)
    level = draw_levels(40_000, torch.device("cpu"))
    assert level.min() > 0 and level.max() < 1
    assert level.mean() == pytest.approx(0.5, abs=0.01)
    assert level.std() > 0.25  # one logit-normal around 0 has 0.21


def test_walks_visit_the_levels_as_often_as_they_say(pairs):
    torch.manual_seed(0)
    trajectories = distil.Walks(pairs, 256, torch.device("cpu"))
    seen = []
    for _ in range(60):
        x, sigma, _ = trajectories.next()
        seen.append(sigma)
        trajectories.take(x, sigma, torch.zeros_like(x))
    shares = [float((torch.cat(seen[20:]) == level).float().mean()) for level in reflow.GRID]
    assert shares[0] == max(shares)
    assert min(shares) > 0.05 and sum(shares) == pytest.approx(1)


def test_a_walk_is_the_students_own_euler_walk(pairs):
    torch.manual_seed(0)
    trajectories = distil.Walks(pairs, 64, torch.device("cpu"))
    before, captions = trajectories.state.clone(), trajectories.at.clone()
    x, sigma, rows = trajectories.next()
    velocity = torch.randn_like(x)
    trajectories.take(x, sigma, velocity)
    onward = trajectories.index > 0
    level = trajectories.grid[trajectories.index]
    expected = x + (level - 1)[:, None, None] * velocity
    assert onward.any() and torch.equal(trajectories.state[onward], expected[onward])
    assert torch.equal(trajectories.at[onward], captions[onward])
    assert torch.equal(x[::2], before[::2]) and torch.equal(rows, captions)


def test_few_step_schedules_end_at_zero_and_step_there_from_one_over_the_steps():
    for steps in (1, 2, 3, 4):
        assert schedule(steps)[-1] == 0 and schedule(steps)[-2] == pytest.approx(1 / steps)


def test_the_average_is_not_the_live_student(game):
    from fluxnb.train.stages.loop import Average

    student, teacher, critic, batch = game
    average = Average(student, 0.999)
    adam = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    for _ in range(20):
        distil.ladd_losses(student, teacher, critic, *batch)[0].backward()
        adam.step()
        average.update()
    live = student.transformer.x_embedder.weight.detach().clone()
    average.swap()
    assert not torch.equal(live, student.transformer.x_embedder.weight)


def test_the_same_noise_gives_the_same_picture_twice(teacher):
    ids = torch.randint(3, 40, (2, TINY.sizes.text_tokens))
    noise = torch.randn(2, 16, 16, 16)
    assert torch.equal(*(sample(teacher, ids, ids, noise, schedule(4)) for _ in range(2)))


def test_a_blind_critic_is_right_half_of_the_time():
    torch.manual_seed(0)
    facts = distil.accuracy(torch.randn(2, 4096), torch.rand(4096))
    assert facts["right"] == pytest.approx(0.5, abs=0.03) and "right_4" in facts


def test_a_critic_that_sees_ranks_the_teacher_higher():
    facts = distil.accuracy(torch.tensor([[2.0, 3.0], [1.0, 2.5]]), torch.tensor([0.1, 0.9]))
    assert facts == {"right": 1.0, "gap": 0.75, "right_1": 1.0, "right_4": 1.0}


def test_aligned_pairs_say_so():
    noise = torch.randn(512, 64, 64)
    ids = torch.zeros(512, 48, dtype=torch.int16)
    assert reflow.align_of_pairs(Pairs(noise, 0.5 * noise + 1, ids, ids)) > 0.99
    assert reflow.align_of_pairs(Pairs(noise, -noise, ids, ids)) < -0.99


def test_the_best_student_is_near_the_best_adherence():
    kept = {
        "a": {"fd_4": 0.01, "everything_4": 0.5},
        "b": {"fd_4": 0.03, "everything_4": 0.9},
        "c": {"fd_4": 0.02, "everything_4": 0.895},
    }
    assert distil.choose(kept) == "c"


def test_without_figures_the_last_student_is_the_best():
    assert distil.choose({"000100": {"align": 0.1}, "000200": {"align": 0.2}}) == "000200"


def test_pairs_come_back_as_they_were_saved(pairs, tmp_path):
    pairs.save(tmp_path / "pairs.safetensors")
    again = Pairs.load(tmp_path / "pairs.safetensors")
    assert all(torch.equal(getattr(pairs, f.name), getattr(again, f.name)) for f in dataclasses.fields(Pairs))


def test_a_pair_is_the_teachers_own_walk_from_its_noise(tmp_path):
    save_denoiser(awake(build_denoiser(TINY.sizes)), tmp_path)
    pairs = draw_pairs(TINY, tmp_path, CPU)
    from fluxnb.train.data.tokens import Tokens
    from fluxnb.train.networks.files import load_denoiser

    model, tokens = load_denoiser(TINY.sizes, tmp_path), Tokens.of(TINY.sizes)
    words = [ids[8:].long() for ids in (pairs.clip_ids, pairs.t5_ids)]
    from fluxnb.records.latents import pack, unpack

    noise = unpack(pairs.noise[8:].float(), 128, 128)
    again = sample(model, *words, noise, schedule(2), guidance=TINY.distillation.guidance, nothing=tokens([""]))
    assert torch.allclose(pack(again), pairs.clean[8:].float(), atol=2e-3)


def test_every_stage_of_distillation_runs_at_its_smallest(tmp_path):
    save_denoiser(awake(build_denoiser(TINY.sizes)), tmp_path)
    common = ["--preset", "tiny", "--out", str(tmp_path)]
    main(["pairs", *common, "--guidance", "1.5"])
    assert '"guidance": 1.5' in (tmp_path / "pairs.jsonl").read_text()
    main(["reflow", "--warm", *common])
    main(["student", *common])
    main(["reflow", *common])
    teacher = load_file(tmp_path / "transformer.safetensors")
    for name in ("warm", "student", "reflow"):
        state = load_file(tmp_path / f"{name}.safetensors")
        assert {f"transformer.{key}" for key in state} == set(teacher)
        assert any(not torch.equal(value, teacher[f"transformer.{key}"]) for key, value in state.items())


@pytest.fixture(scope="module")
def pocket():
    from pathlib import Path

    import fluxnb

    base = Path(fluxnb.__file__).parent / "pocket" / "base"
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(base)


@torch.no_grad()
def test_the_teacher_at_a_quarter_sees_the_picture(pocket):
    """Its clean estimate of a lightly noised picture is that picture: at least 20 dB."""
    from fluxnb.records.latents import pack, unpack
    from fluxnb.train.data.tokens import Tokens
    from fluxnb.train.stages.objective import Denoiser

    model = Denoiser(pocket.text_encoder, pocket.text_encoder_2, pocket.transformer)
    tokens = Tokens(pocket.tokenizer, pocket.tokenizer_2)
    words = tokens(["a fox in the snow", "a teapot on a red background"])
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    clean = sample(model, *words, noise, schedule(12), guidance=2.5, nothing=tokens([""]))
    x = interpolate(pack(clean), pack(torch.randn_like(noise)), 0.25)
    velocity = model(x, torch.full((2,), 0.25), *model.encode(*words))
    guess = unpack(x - 0.25 * velocity, 128, 128)
    pictures = [pocket.vae.decode(z).sample.clamp(-1, 1) for z in (clean, guess)]
    error = (pictures[0] - pictures[1]).square().mean()
    assert 10 * torch.log10(4 / error) > 20
