"""One picture over several processes gives what one process gives, up to the order of sums."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed

import fluxnb as fnb
from fluxnb.errors import InputError, RunError
from fluxnb.planning.presets import PRESETS
from fluxnb.planning.processes import Processes
from fluxnb.runtime import parallel
from fluxnb.runtime.compat import attention_backends
from fluxnb.runtime.cuda_graphs import GraphReplay
from fluxnb.runtime.parallel import is_split, join, local_decoder, split_decoder, split_transformer
from tests.conftest import toy_pipeline

LIMIT = 240
GPUS = {"device": "cuda", "vram_gib": 80, "ram_gib": 400, "cores": 64}


@pytest.fixture(scope="module")
def found(toy_folder, tmp_path_factory):
    """What two processes found, one entry each."""
    result = tmp_path_factory.mktemp("parallel") / "found.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "tests.runtime.parallel_calls", str(toy_folder), str(result)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, timeout=LIMIT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(result.read_text())


@pytest.mark.slow
def test_the_split_decoder_gives_the_picture_of_the_whole_one(found):
    assert max(each["decoder"] for each in found) < 1e-5


@pytest.mark.slow
def test_the_latents_of_a_run_are_those_of_one_process(found):
    assert max(each["steps"] for each in found) < 1e-5


@pytest.mark.slow
def test_attention_over_the_processes_has_the_bytes_of_that_of_diffusers(found):
    assert all(each["attention"] for each in found)


@pytest.mark.slow
def test_a_block_with_split_tokens_is_traced_as_one_graph(found):
    assert max(each["traced"] for each in found) < 1e-5


@pytest.mark.slow
def test_all_processes_have_the_same_picture(found):
    assert found[0]["picture"] == found[1]["picture"]


@pytest.mark.slow
def test_the_plain_call_gives_the_picture_of_a_run(found):
    assert all(each["plain"] == each["picture"] for each in found)


@pytest.mark.slow
def test_every_process_records_the_steps(found):
    assert [each["recorded"] for each in found] == [3, 3]


@pytest.mark.slow
def test_one_process_can_decode_frames_by_itself(found):
    assert found[0]["frames"] == 3


@pytest.mark.slow
def test_the_weights_of_a_split_decoder_keep_their_names(found):
    assert all(each["names"] for each in found)


@pytest.mark.slow
def test_a_choice_is_that_of_the_first_process(found):
    assert [each["agreed"] for each in found] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("case", [0, 1], ids=["a size that cannot be divided", "a grid"])
def test_every_process_refuses(found, case):
    assert all(each["refused"][case] for each in found)


@pytest.mark.parametrize(
    ("processes", "given"),
    [(Processes(), "a single process"), (Processes(count=2, local_count=2), "processes without an address")],
)
def test_processes_that_no_launcher_connects_are_refused_with_the_launcher(processes, given, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="torchrun") as caught:
        join(processes, torch.device("cpu"))
    assert given in caught.value.given


def test_a_number_of_processes_that_the_heads_do_not_allow_names_one_that_they_do(monkeypatch):
    flux = fnb.load("pocket")
    heads = flux.pipe.transformer.config.num_attention_heads
    monkeypatch.setattr(parallel.distributed, "get_world_size", lambda: heads + 1)
    with pytest.raises(InputError, match=f"--nproc-per-node {heads} ") as caught:
        split_transformer(flux.pipe.transformer)
    assert str(heads) in caught.value.possible


def test_latents_whose_rows_cannot_be_divided_are_refused(toy_pipe, monkeypatch):
    monkeypatch.setattr(parallel.distributed, "get_world_size", lambda: 3)
    with pytest.raises(InputError, match="64 rows over 3 processes"):
        split_decoder(toy_pipe.vae.decoder)(torch.zeros(1, toy_pipe.vae.config.latent_channels, 8, 8))


def test_a_split_decoder_shares_its_weights(toy_pipe):
    split = split_decoder(toy_pipe.vae.decoder)
    whole = {tensor.data_ptr() for tensor in toy_pipe.vae.decoder.parameters()}
    assert {tensor.data_ptr() for tensor in split.parameters()} == whole


def test_the_decoder_for_one_process_is_the_given_one(toy_pipe):
    split = split_decoder(toy_pipe.vae.decoder)
    assert local_decoder(split) is toy_pipe.vae.decoder is local_decoder(toy_pipe.vae.decoder)
    assert is_split(SimpleNamespace(decoder=split)) and not is_split(toy_pipe.vae) and not is_split(object())


def test_the_plan_of_a_picture_over_several_gpus_is_quicker_with_more_of_them():
    seconds = [fnb.plan("schnell", {**GPUS, "gpus": 8}, preset="parallel", processes=n).seconds for n in (2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] < fnb.plan("schnell", GPUS).seconds


def test_the_plan_of_a_picture_over_several_gpus_is_not_exact():
    plan = fnb.plan("schnell", {**GPUS, "gpus": 2}, preset="parallel", processes=2)
    assert plan.preset == "parallel" and not plan.exact


@pytest.mark.parametrize(
    ("gpus", "processes", "reason"),
    [(1, 1, "processes=2"), (1, 2, "there is 1"), (8, 5, "24 attention heads cannot be divided by 5")],
)
def test_a_plan_that_cannot_split_a_picture_gives_the_reason(gpus, processes, reason):
    with pytest.raises(RunError, match=reason):
        fnb.plan("schnell", {**GPUS, "gpus": gpus}, preset="parallel", processes=processes)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_no_plan_chooses_to_split_pictures_by_itself(processes):
    assert fnb.plan("schnell", {**GPUS, "gpus": 8}, processes=processes).preset != "parallel"


@pytest.mark.parametrize(("processes", "listed"), [(1, False), (2, True)])
def test_a_plan_lists_the_preset_for_several_gpus_where_there_are_several_processes(processes, listed):
    assert ("parallel" in repr(fnb.plan("schnell", {**GPUS, "gpus": 2}, processes=processes))) == listed


def test_a_small_gpu_is_not_advised_to_use_several():
    plan = fnb.plan("schnell", {**GPUS, "vram_gib": 24, "gpus": 2}, processes=2)
    assert plan.next_smaller != "parallel"


def test_only_backends_that_can_be_split_are_tried():
    assert set(attention_backends(parallel=True)) <= set(attention_backends())
    assert "native" in attention_backends(parallel=True)


def test_the_preset_is_marked_as_lossy_and_compiled():
    assert PRESETS["parallel"].compiled and not PRESETS["parallel"].exact


def test_graphs_are_freed_before_the_processes_part(monkeypatch):
    # A CUDA graph with collectives keeps NCCL's communicator in use, and leaving waits for it.
    pipe, graphs = toy_pipeline(), []
    replay = GraphReplay(pipe.transformer, record=lambda call: (call, call()))
    replay._graphs["a shape"] = None
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: graphs.append(dict(replay._graphs)))
    parallel._leave()
    assert graphs == [{}]
