"""Teach a T5 encoder to read captions, before the teacher is trained or trained further.

FLUX's T5 was trained on text before FLUX saw a picture. An encoder that learns from the flow's loss alone can end as a
bag of words: in the teacher of 70 million pictures, the token "fox" is the same to six digits in "a fox left of an owl"
and in "an owl left of a fox" (`training/pocket/text-trial.jsonl`), so that no transformer could draw the difference.
Word order can come from the text encoder alone, because FLUX's transformer gives all text tokens the same position.

Here a `Reader`, which does not see the order of tokens either, reads the attributes of a scene from the encoding of its
caption. Of an attribute that the caption leaves open it learns the probabilities: a fox is usually in the snow. The
reader is discarded.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from fluxnb.train.config import Preset
from fluxnb.train.data import captions
from fluxnb.train.data.layouts import Layout
from fluxnb.train.data.stream import draw_chunks, draw_pairs
from fluxnb.train.data.vocabulary import CAPTION_TOKENS, Tokenizers, t5_tokenizer
from fluxnb.train.networks.denoiser import Denoiser, build_denoiser, load_denoiser, save_denoiser
from fluxnb.train.networks.judge import Attributes, Reader, correctness, layout_attributes
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.losses import attribute_loss
from fluxnb.train.stages.optimizers import make_optimizer

SEED, CHECK_SEED = 7000, 992_000  # of the training's captions, to which each rank adds its index, and of the check's
LAYERS = 2  # of the reader
IMITATION = 50.0  # weight of the distance to the encodings of a pretrained encoder


class CaptionReader(nn.Module):
    """A T5 encoder and the reader of its tokens.

    Arguments:
        encoder: T5.
    """

    def __init__(self, encoder: T5EncoderModel) -> None:
        super().__init__()
        self.encoder, self.reader = encoder, Reader(encoder.config.d_model, LAYERS)


def train_text(preset: Preset, out: Path, rank: Rank, start: Path | None = None) -> Denoiser:
    """Train a new T5 on captions; saves a network with it as `out`/start.safetensors, from which the teacher can start.

    Arguments:
        start: file of pretrained weights, whose transformer and CLIP stay as they are. The new T5 imitates the
            encodings of the old one, with which the transformer was trained. None starts from random weights.
    """
    schedule, device = preset.text, rank.device
    torch.manual_seed(700 + rank.index)
    log, model = Log(out / "text.jsonl", rank), build_denoiser(preset.sizes)
    network, known = CaptionReader(model.text_encoder_2).train().to(device), None
    if start is not None:
        model = load_denoiser(preset.sizes, start)
        known = model.text_encoder_2.requires_grad_(False).to(device)
        model.text_encoder_2 = network.encoder
    model.to(device)
    rank.broadcast_weights(model)
    rank.broadcast_weights(network)
    shape, _ = preset.shapes[0]
    chunks = list(draw_chunks([(shape, schedule.scenes)], SEED + rank.index))
    layouts = Layout.cat([chunk.layout for chunk in chunks]).to(device)
    ids = torch.cat([chunk.t5_ids for chunk in chunks]).to(device)
    order = {} if known is None else {"order_before": difference_by_order(known)}
    log(captions=len(ids), start=None if start is None else start.name, **order)
    adam, pace, average = make_optimizer(network, schedule), Pace(schedule, rank), Average(network, schedule.ema)
    shared = random.Random(SEED)
    for iteration in pace:
        ((padding, _),) = shared.choices(preset.paddings, [share for _, share in preset.paddings])
        size = max(1, schedule.batch * CAPTION_TOKENS // padding)  # a batch has about as many tokens as any other
        rows = torch.randint(len(ids), (size,), device=device)
        tokens = F.pad(ids[rows], (0, padding - CAPTION_TOKENS)).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            encoded = network.encoder(tokens)[0]
            read = network.reader.read(encoded)
        loss, distance = attribute_loss(read, layout_attributes(layouts[rows])), torch.zeros((), device=device)
        if known is not None:
            distance = relative_distance(encoded.float(), known(tokens)[0])
        backward_and_step(loss + IMITATION * distance, network, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 100 == 0:
            facts = {"loss": loss.item(), "distance": distance.item(), "seconds": pace.seconds()}
            log(iteration=iteration, total=pace.total, **facts)
    average.swap()
    model.eval()
    if rank.first:
        facts = {"order": difference_by_order(network.encoder), **accuracy(network, preset, device)}
        log(iterations=pace.total, seconds=pace.seconds(), devices=rank.world, batch=schedule.batch, **facts)
        save_denoiser(model, out, "start")
    rank.broadcast(0.0)  # the other ranks wait for the file
    return model


def relative_distance(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared difference of encodings, relative to the mean square of the second."""
    return (one - other).square().mean() / other.square().mean()


@torch.no_grad()
def difference_by_order(t5: T5EncoderModel) -> float:
    """How much the token "fox" differs between a fox left of an owl and an owl left of a fox: one minus the cosine."""
    tokenizer, encodings = t5_tokenizer(), []
    for caption in ("a fox left of an owl", "an owl left of a fox"):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        place = tokenizer.convert_ids_to_tokens(ids[0].tolist()).index("▁fox")
        encodings.append(t5(ids.to(t5.device))[0][0, place].double())
    return 1 - float(torch.cosine_similarity(*encodings, 0))


@torch.no_grad()
def accuracy(network: CaptionReader, preset: Preset, device: torch.device, count: int = 2048) -> dict[str, float]:
    """How much of what new captions specify is read correctly, by the names of `judge.ATTRIBUTES`."""
    scenes, _, _ = draw_pairs(preset.shapes[0][0], CHECK_SEED, 0, count)
    rng = random.Random(CHECK_SEED)
    _, ids = Tokenizers()([captions.caption(scene, rng) for scene in scenes])
    parts = [network.reader.read(network.encoder(part.to(device))[0]).argmax() for part in ids.split(256)]
    return {
        name: float(torch.tensor(flags).nanmean()) for name, flags in correctness(scenes, Attributes.cat(parts)).items()
    }
