"""Two threads in one model: every preset that holds state gives each of them the bytes of a call made alone."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import pickle
import sys
import threading
import time
import types

import pytest
import torch
from torch import nn

import fluxnb as fnb
from fluxnb.planning.presets import PRESETS
from fluxnb.runtime import exclusive
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.cuda_graphs import GraphReplay
from fluxnb.runtime.exclusive import ExclusiveGroup, ending_interrupted_calls, group_of, protect
from tests.conftest import toy_pipeline
from tests.interrupts import Opcodes, Signals, chosen, in_thread
from tests.runtime.test_adaln_cache import inputs_for
from tests.runtime.test_assembly import built

CPU = torch.device("cpu")
STATEFUL = ("lean", "lean-fp8", "stream", "stream-mapped")


class Probe(nn.Module):
    """Counts how many threads are inside at once, and waits there."""

    def __init__(self, seconds=0.01):
        super().__init__()
        self.seconds, self.inside, self.most, self.calls = seconds, 0, 0, 0

    def forward(self, problem=None):
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            time.sleep(self.seconds)
            if problem is not None:
                raise problem
            self.calls += 1
        finally:
            self.inside -= 1


def in_threads(*calls):
    """Run the calls at once, one thread each, and raise what any of them raised."""
    together, results, problems = threading.Barrier(len(calls)), [None] * len(calls), []

    def work(index, call):
        try:
            together.wait(10)
            results[index] = call()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    if problems:
        raise problems[0]
    return results


def is_free(group):
    """Whether another thread gets the lock at once."""
    taken = []
    thread = threading.Thread(target=group.wrap(taken.append), args=(True,), daemon=True)
    thread.start()
    thread.join(5)
    return bool(taken)


# ------------------------------------------------------------------------------------------------------- the lock
def test_one_thread_at_a_time_is_inside_a_module():
    probe = Probe()
    ExclusiveGroup(probe)
    in_threads(*[lambda: [probe() for _ in range(5)]] * 4)
    assert probe.most == 1 and probe.calls == 20


def test_modules_of_one_group_exclude_each_other():
    outer, inner = nn.Sequential(), Probe()
    outer.append(nn.Identity())
    group = ExclusiveGroup(outer, inner)
    entered, leave = threading.Event(), threading.Event()
    outer[0].register_forward_pre_hook(lambda *_: (entered.set(), leave.wait(10)) and None)
    first = threading.Thread(target=outer, args=(1,), daemon=True)
    first.start()
    assert entered.wait(5)
    second = threading.Thread(target=inner, daemon=True)
    second.start()
    second.join(0.2)
    assert inner.calls == 0
    leave.set()
    second.join(5)
    first.join(5)
    assert inner.calls == 1 and is_free(group)


def test_a_module_inside_another_of_its_group_runs_in_the_same_thread():
    inner = Probe()
    outer = nn.Sequential(inner)
    group = ExclusiveGroup(outer, inner)
    outer(None)
    assert inner.calls == 1 and is_free(group)


def test_waiting_threads_take_turns():
    probe, order = Probe(0.005), []
    ExclusiveGroup(probe)

    def work(name):
        for _ in range(6):
            probe()
            order.append(name)

    in_threads(lambda: work("a"), lambda: work("b"))
    swaps = sum(first != second for first, second in itertools.pairwise(order))
    assert swaps >= 6, order


@pytest.mark.parametrize("problem", [ValueError("forward"), KeyboardInterrupt(), SystemExit()])
def test_a_forward_that_raises_leaves_the_lock_free(problem):
    probe = Probe(0)
    group = ExclusiveGroup(probe)
    with pytest.raises(type(problem)):
        probe(problem)
    assert is_free(group)
    probe()
    assert probe.calls == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["before ours", "after ours", "afterwards"])
def test_a_hook_that_raises_leaves_the_lock_free(kind, when):
    probe = Probe(0)

    def fail(*_):
        raise kind

    group = ExclusiveGroup(probe)
    if when == "afterwards":
        hook = probe.register_forward_hook(fail, prepend=True)
    else:
        hook = probe.register_forward_pre_hook(fail, prepend=when == "before ours")
    with pytest.raises(kind):
        probe()
    assert is_free(group)
    hook.remove()
    probe()


def test_a_hook_that_raises_before_ours_releases_nothing_of_an_outer_call():
    inner, group = Probe(0), ExclusiveGroup()
    group.add(inner)
    inner.register_forward_pre_hook(lambda *_: 1 / 0, prepend=True)

    def outer():
        with pytest.raises(ZeroDivisionError):
            inner()
        assert repr(group).startswith("ExclusiveGroup(held")

    group.wrap(outer)()
    assert is_free(group)


def test_an_interrupt_while_waiting_leaves_the_queue(monkeypatch):
    probe = Probe(0)
    group = ExclusiveGroup(probe)
    entered, leave = threading.Event(), threading.Event()

    hold = group.wrap(lambda: (entered.set(), leave.wait(10)))
    threading.Thread(target=hold, daemon=True).start()
    assert entered.wait(5)
    with monkeypatch.context() as patch:
        patch.setattr(group, "_is_granted", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            probe()
    leave.set()
    assert is_free(group) and "0 waiting" in repr(group)


@contextlib.contextmanager
def held_elsewhere(group):
    """Another thread holds the lock, and releases it soon after the block has begun."""
    entered, leave = threading.Event(), threading.Event()
    hold = group.wrap(lambda: (entered.set(), leave.wait(5), time.sleep(0.002)))
    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert entered.wait(5)
    leave.set()
    yield
    thread.join(5)


@pytest.mark.moderate
@pytest.mark.parametrize("kind", [Signals, functools.partial(Opcodes, file=exclusive.__file__)])
@pytest.mark.parametrize("held", [held_elsewhere, contextlib.nullcontext])
def test_an_interrupt_at_any_instruction_of_the_lock_leaves_it_free(held, kind):
    probe, group = Probe(0), ExclusiveGroup()
    group.add(probe, during=contextlib.nullcontext)
    wrapped = group.wrap(probe)

    def call(interrupt):
        with held(group), contextlib.suppress(KeyboardInterrupt), interrupt:
            wrapped()
        return interrupt.places

    call(kind())
    places = call(kind())
    assert len(places) > 20
    for index in chosen(places):
        call(kind(index))
        in_thread(probe, places[index], limit=5)
        probe()
        assert repr(group) == "ExclusiveGroup(free, 0 waiting)", places[index]


def test_a_thread_that_is_waiting_gets_the_lock_of_an_interrupted_call():
    probe, raised = Probe(0), threading.Event()
    group = ExclusiveGroup(probe)
    tracebacks = []

    def interrupted():
        try:
            probe(KeyboardInterrupt())
        except KeyboardInterrupt:
            tracebacks.append(sys.exc_info())  # as a notebook stores the traceback, and with it the frames
            raised.set()
            time.sleep(1)

    threading.Thread(target=interrupted, daemon=True).start()
    assert raised.wait(5)
    started = time.perf_counter()
    probe()
    assert time.perf_counter() - started < 0.5 and probe.calls == 1 and is_free(group)


@pytest.mark.parametrize("problem", [None, ValueError(), KeyboardInterrupt()])
def test_what_is_entered_during_a_call_is_left_before_another_thread_enters(problem):
    events = []

    class Block:
        def __enter__(self):
            events.append("in")

        def __exit__(self, *_):
            events.append("out")

    probe, group = Probe(0), ExclusiveGroup()
    group.add(probe, during=Block)
    try:
        probe(problem)
    except BaseException as raised:
        assert raised is problem
    assert is_free(group) and events == ["in", "out"]


def test_a_compiled_module_is_exclusive():
    probe = nn.Sequential(nn.Linear(2, 2), Probe(0))
    probe[1].forward = lambda x: x + 1
    group = ExclusiveGroup(probe)
    probe.compile(backend="eager")
    with torch.no_grad():
        in_threads(*[lambda: probe(torch.ones(1, 2))] * 2)
    assert is_free(group)


def test_a_copied_module_has_a_lock_of_its_own():
    pair = nn.ModuleList([nn.Identity(), nn.Identity()])
    group = ExclusiveGroup(*pair)
    twins = copy.deepcopy(pair)
    group.wrap(lambda: in_threads(lambda: twins[0](1)))()
    assert isinstance(pickle.loads(pickle.dumps(group)), ExclusiveGroup)
    hooks = [next(iter(twin._forward_pre_hooks.values())).__self__ for twin in twins]
    assert hooks[0].group is hooks[1].group is not group


# -------------------------------------------------------------------------------------------------- presets
def assert_each_call_gives_what_it_gives_alone(transformer):
    """Two calls at different timesteps, twenty times at once."""
    inputs = [inputs_for(transformer, [sigma], seed=seed) for seed, sigma in enumerate((0.9, 0.31))]

    def twenty(given):
        with torch.no_grad():
            return [transformer(**given)[0] for _ in range(20)]

    alone = [twenty(given)[0] for given in inputs]
    for right, results in zip(alone, in_threads(*[lambda given=given: twenty(given) for given in inputs]), strict=True):
        assert all(torch.equal(right, result) for result in results)


@pytest.mark.moderate
@pytest.mark.parametrize("preset", STATEFUL)
def test_raw_calls_at_different_timesteps_give_what_each_gives_alone(toy_folder, preset):
    assert_each_call_gives_what_it_gives_alone(built(toy_folder, preset).transformer)


@pytest.mark.moderate
@pytest.mark.parametrize("preset", STATEFUL)
def test_two_pipelines_over_one_model_give_the_pictures_of_each_alone(toy_folder, preset):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    first = built(toy_folder, preset)
    second = FluxPipeline(**{**first.components, "scheduler": FlowMatchEulerDiscreteScheduler()})
    second.set_progress_bar_config(disable=True)

    def draw(pipe, prompt, steps):
        return [
            pipe(prompt, height=64, width=64, num_inference_steps=steps, max_sequence_length=48, output_type="pt",
                 generator=torch.Generator().manual_seed(steps)).images
            for _ in range(3)
        ]  # fmt: skip

    alone = [draw(first, "a fox", 4)[0], draw(second, "a cat", 3)[0]]
    both = in_threads(lambda: draw(first, "a fox", 4), lambda: draw(second, "a cat", 3))
    for right, results in zip(alone, both, strict=True):
        assert all(torch.equal(right, result) for result in results)


@pytest.mark.moderate
def test_prompts_are_encoded_by_layer_from_two_threads(toy_folder):
    pipe = built(toy_folder, "lean")

    def encode(prompt):
        return [pipe.encode_prompt(prompt, None, max_sequence_length=48)[0] for _ in range(8)]

    prompts = ("a fox", "the blue dog in snow")
    alone = [encode(prompt)[0] for prompt in prompts]
    for right, results in zip(alone, in_threads(*[lambda p=p: encode(p) for p in prompts]), strict=True):
        assert all(torch.equal(right, result) for result in results)
    assert all(weight.is_meta for weight in pipe.text_encoder_2.parameters())


@pytest.mark.moderate
def test_a_tokenizer_called_from_two_threads_gives_each_its_padding(toy_folder):
    pipe = toy_pipeline()
    protect(pipe)
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):

        def short(tokenizer=tokenizer):
            return [len(tokenizer("a fox", padding="longest").input_ids) for _ in range(300)]

        def padded(tokenizer=tokenizer):
            return [len(tokenizer("a fox", padding="max_length", max_length=40).input_ids) for _ in range(300)]

        short, padded = in_threads(short, padded)
        assert len(set(short)) == 1 and set(padded) == {40}
    twin = copy.deepcopy(pipe.tokenizer_2)
    assert twin("a fox").input_ids == pickle.loads(pickle.dumps(pipe.tokenizer_2))("a fox").input_ids


@pytest.mark.moderate
def test_blocks_that_wait_in_main_memory_while_decoding_are_back_for_the_next_evaluation(toy_folder, monkeypatch):
    import contextlib

    from fluxnb.runtime import assembly

    away = []

    @contextlib.contextmanager
    def moved(layers, _):
        weights = [weight for layer in layers for weight in layer.parameters()]
        held = [weight.data for weight in weights]
        for weight in weights:
            weight.data = torch.empty(0)
        away.append(len(weights))
        yield
        for weight, data in zip(weights, held, strict=True):
            weight.data = data

    monkeypatch.setattr(assembly, "offloaded_blocks", moved)
    pipe = built(toy_folder, "lean", offload_blocks=True)
    inputs, latents = inputs_for(pipe.transformer, [0.5]), torch.ones(1, 16, 8, 8)

    def evaluate():
        with torch.no_grad():
            return [pipe.transformer(**inputs)[0] for _ in range(20)]

    def decode():
        with torch.no_grad():
            return [pipe.vae.decode(latents, return_dict=False)[0] for _ in range(10)]

    alone = evaluate()[0], decode()[0]
    both = in_threads(evaluate, decode, decode)
    for right, results in zip((*alone, alone[1]), both, strict=True):
        assert all(torch.equal(right, result) for result in results)
    interrupt = pipe.vae.decoder.conv_out.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        decode()
    interrupt.remove()
    assert torch.equal(evaluate()[0], alone[0]) and len(away) == 10 + 20 + 1


@pytest.mark.moderate
def test_a_replayed_transformer_is_exclusive():
    transformer = toy_pipeline().transformer

    def record(call):
        answer = call()
        return (lambda: answer.copy_(call())), answer

    GraphReplay(transformer, record)
    assert_each_call_gives_what_it_gives_alone(transformer)


def test_what_a_plain_pipeline_holds_is_not_exclusive(toy):
    assert group_of(toy.pipe.transformer) is None and group_of(toy.pipe.vae) is None


# ---------------------------------------------------------------------------------------- diffusers' CPU offload
def waits_for(pipe, module, call):
    """Whether `call` in another thread waits until a forward pass of `module` is over."""
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()
    hook = module.register_forward_pre_hook(lambda *_: (entered.set(), leave.wait(20)) and None)
    with torch.no_grad():
        inputs = inputs_for(pipe.transformer, [0.5])
    first = threading.Thread(target=torch.no_grad()(lambda: module(**inputs)), daemon=True)
    second = threading.Thread(target=torch.no_grad()(lambda: (call(), done.set())), daemon=True)
    first.start()
    assert entered.wait(10)
    second.start()
    early = done.wait(0.3)
    leave.set()
    first.join(10)
    assert done.wait(10)
    hook.remove()
    return not early


def offloaded(kind):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    getattr(pipe, f"enable_{kind}_cpu_offload")(device="cpu")
    protect(pipe)
    return pipe


@pytest.mark.parametrize("what", ["decode", "encode", "offload", "prompt"])
def test_under_model_offload_whatever_moves_a_model_waits_for_the_running_one(what):
    pipe = offloaded("model")
    call = {
        "decode": lambda: pipe.vae.decode(torch.zeros(1, 16, 8, 8)),
        "encode": lambda: pipe.vae.encode(torch.zeros(1, 3, 64, 64)),
        "offload": pipe.maybe_free_model_hooks,
        "prompt": lambda: pipe.encode_prompt("a fox", None, max_sequence_length=48, device=CPU),
    }[what]
    assert waits_for(pipe, pipe.transformer, call)


def test_model_offload_keeps_its_hooks_between_calls(toy_trajectory):
    from tests.plain_calls import plain_call

    pipe = offloaded("model")
    hooks = [pipe.transformer._hf_hook, pipe.vae._hf_hook]
    assert plain_call(pipe, toy_trajectory.recipe).tobytes() == toy_trajectory.image.tobytes()
    assert [pipe.transformer._hf_hook, pipe.vae._hf_hook] == hooks
    pipe.remove_all_hooks()
    pipe.maybe_free_model_hooks()
    assert not hasattr(pipe.transformer, "_hf_hook")


def test_under_sequential_offload_each_model_is_exclusive():
    pipe = offloaded("sequential")
    groups = {group_of(part) for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)}
    assert None not in groups and len(groups) == 4


def test_a_pipeline_that_is_given_with_offloading_is_protected():
    pipe = toy_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    fnb.load(pipe)
    group = group_of(pipe.transformer)
    fnb.load(pipe)
    assert group is group_of(pipe.transformer) is group_of(pipe.vae) is not None
    assert group_of(pipe.tokenizer) is not None


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["resident", "cpu"])
def test_only_models_that_hold_state_are_exclusive(toy_folder, preset):
    pipe = assemble(toy_folder, PRESETS[preset], device=CPU, dtype=torch.float32)
    assert (group_of(pipe.transformer) is not None) == PRESETS[preset].adaln_cache


def test_the_models_of_a_pipeline_are_found_while_another_thread_calls_it():
    pipe = types.SimpleNamespace()

    class Part:
        @property
        def __class__(self):  # read by `isinstance`
            setattr(pipe, f"attribute {len(vars(pipe))}", None)
            return object

    pipe.part, pipe.transformer = Part(), Probe()
    group = ExclusiveGroup(pipe.transformer)
    with pytest.raises(KeyboardInterrupt), ending_interrupted_calls(pipe):
        pipe.transformer(KeyboardInterrupt())
    assert repr(group) == "ExclusiveGroup(free, 0 waiting)" and len(vars(pipe)) > 2
