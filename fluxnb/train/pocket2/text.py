"""Teach the T5 encoder to read captions, before the teacher is trained or trained further.

FLUX's T5 was trained on text before FLUX saw a picture. An untrained encoder that learns from the flow's loss alone
becomes a bag of words: after 70 million pictures, the tokens of "a fox to the left of an owl" and of "an owl to the
left of a fox" were the same to six digits, so that no transformer could draw the difference. Word order can come from
the text encoder alone, because FLUX's transformer gives all text tokens the same position.

Here a `Reader`, which does not see the order of tokens either, reads the attributes of a scene from the encoding of its
caption. What a caption leaves open is read too, by its probability: that a fox is usually in the snow. The reader is
discarded.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import nn

from fluxnb.train.data import captions
from fluxnb.train.data.layouts import Layout
from fluxnb.train.data.stream import draw_chunks, draw_pairs
from fluxnb.train.data.vocabulary import Tokenizers
from fluxnb.train.networks.denoiser import Denoiser
from fluxnb.train.pocket2.config import Preset
from fluxnb.train.pocket2.evaluation import correctness
from fluxnb.train.pocket2.judge import Reader, attribute_loss, layout_attributes
from fluxnb.train.pocket2.networks import build_denoiser, load_denoiser, save_denoiser
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.optimizers import make_optimizer

SEED, CHECK_SEED = 7000, 992_000  # of the training's captions, to which each rank adds its index, and of the check's
LAYERS = 2  # of the reader
PRESERVE = 100.0  # weight of the change of a pretrained encoder's output


class CaptionReader(nn.Module):
    """A T5 encoder and the reader of its tokens.

    Arguments:
        encoder: T5.
        width: of its tokens.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.reader = encoder, Reader(width, LAYERS)


def train_text(preset: Preset, out: Path, rank: Rank, start: Path | None = None) -> Denoiser:
    """Train T5 on captions; saves a network with it as `out`/start.safetensors, from which the teacher can start.

    Arguments:
        start: file of pretrained weights. The encoder's output then changes as little as reading needs, because the
            transformer, which is not trained here, knows the old one.
    """
    schedule = preset.text
    torch.manual_seed(700 + rank.index)
    log = Log(out / "text.jsonl", rank)
    model = (build_denoiser(preset.sizes) if start is None else load_denoiser(preset.sizes, start)).to(rank.device)
    known = None if start is None else copy.deepcopy(model.text_encoder_2).requires_grad_(False)
    network = CaptionReader(model.text_encoder_2, preset.sizes.text_width).train().to(rank.device)
    rank.broadcast_weights(model)
    rank.broadcast_weights(network)
    shape, _ = preset.shapes[0]
    chunks = list(draw_chunks([(shape, schedule.scenes)], SEED + rank.index))
    layouts = Layout.cat([chunk.layout for chunk in chunks]).to(rank.device)
    ids = torch.cat([chunk.t5_ids for chunk in chunks]).to(rank.device)
    log(captions=len(ids), start=None if start is None else start.name)
    adam, pace, average = make_optimizer(network, schedule), Pace(schedule, rank), Average(network, schedule.ema)
    for iteration in pace:
        rows = torch.randint(len(ids), (schedule.batch,), device=rank.device)
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            tokens = network.encoder(ids[rows].long())[0]
            read = network.reader.read(tokens)
        loss, changed = attribute_loss(read, layout_attributes(layouts[rows])), torch.zeros((), device=rank.device)
        if known is not None:
            with torch.no_grad():
                before = known(ids[rows].long())[0]
            changed = (tokens.float() - before).square().mean() / before.square().mean()
        backward_and_step(loss + PRESERVE * changed, network, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 100 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), changed=changed.item(), seconds=pace.seconds())
    average.swap()
    model.eval()
    if rank.first:
        log(iterations=pace.total, seconds=pace.seconds(), devices=rank.world, **accuracy(network, preset, rank))
        save_denoiser(model, out, "start")
    rank.broadcast(0.0)  # the other ranks wait for the file
    return model


@torch.no_grad()
def accuracy(network: CaptionReader, preset: Preset, rank: Rank, count: int = 2048) -> dict[str, float]:
    """How many of what new captions specify is read correctly, by the names of `evaluation.ATTRIBUTES`."""
    scenes, _, _ = draw_pairs(preset.shapes[0][0], CHECK_SEED, 0, count)
    rng = random.Random(CHECK_SEED)
    ids = Tokenizers()([captions.caption(scene, rng) for scene in scenes])[1].to(rank.device)
    parts = [network.reader.read(network.encoder(part)[0]).argmax() for part in ids.split(256)]
    flags = correctness(scenes, type(parts[0]).cat(parts))
    return {name: float(torch.tensor(each).nanmean()) for name, each in flags.items()}
