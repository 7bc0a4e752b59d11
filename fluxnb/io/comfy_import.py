"""A ComfyUI graph as a recipe.

The graph is the API form: nodes by their id, each with a class and inputs; an input is a value, or a link [id, output].
It is followed backwards from its only sampler. A node that a recipe cannot repeat is refused by its name; what a recipe
repeats differently is listed. Nothing of a graph is executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fluxnb.errors import InputError
from fluxnb.io.comfy_levels import SCHEDULERS, Table, levels
from fluxnb.io.comfyui import MODELS, TEMPLATE_TOKENS, draws_other_noise, estimated_tokens
from fluxnb.io.imported import Imported, imported, quoted, refusal
from fluxnb.io.model_files import has_fewer_bits, is_vae_of_flux1, known_model
from fluxnb.io.weighted_text import without_weights
from fluxnb.records.recipe import LARGEST_SIDE, LONGEST_TEXT, MOST_STEPS

__all__ = ["is_graph", "is_window_form", "read_graph"]

MOST_NODES = 10_000
MOST_INPUTS = 1_000
LONGEST_KIND = 500
LONGEST_CHAIN = 500  # links followed from one node to the next
CLOSE = 1e-6

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "FluxnbKSampler")
PASSED = ("Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss")
# Nodes that hold one value, and the inputs that it may have.
CONSTANTS = re.compile(
    r"Primitive\w*|INTConstant|FloatConstant|StringConstant\w*|Seed \(rgthree\)|Seed|easy (seed|int|float)"
)
CONSTANT_INPUTS = ("value", "seed", "int", "float", "string", "text", "number")
LOADERS = {
    "UNETLoader": "unet_name",
    "CheckpointLoaderSimple": "ckpt_name",
    "UnetLoaderGGUF": "unet_name",
    "UnetLoaderGGUFAdvanced": "unet_name",
    "NunchakuFluxDiTLoader": "model_path",
    "CheckpointLoaderNF4": "ckpt_name",
    "UNETLoaderNF4": "unet_name",
}
TEXT_LOADERS = ("DualCLIPLoader", "DualCLIPLoaderGGUF")
LATENTS = ("EmptySD3LatentImage", "EmptyLatentImage")
EULER = ("euler", "ddim")  # the second is the first where nothing is inpainted
# Nodes after the sampler that leave the picture as it is.
HARMLESS = re.compile(r"VAEDecode|SaveImage|PreviewImage|Reroute.*|FluxnbFilm|.*(Save|Preview).*", re.IGNORECASE)
SHIFT_OF_DEV = 1.15  # mu, where no node sets it


@dataclass(frozen=True)
class Node:
    """One node of a graph."""

    id: str
    kind: str
    inputs: Mapping[str, Any]

    def refuse(self, why: str, remedy: str = "import a picture that was made without it") -> NoReturn:
        raise refusal(f"node {quoted(self.id)} ({self.kind[:60]})", why, remedy)


@dataclass
class Model:
    """The transformer of a graph and its table of levels."""

    name: str
    table: Table
    pocket: Node | None = None


@dataclass
class Reading:
    """A graph while it is read."""

    nodes: Mapping[str, Node]
    differs: list[str] = field(default_factory=list)

    # ----------------------------------------------------------------------------------------------- following links
    def source(self, node: Node, name: str) -> tuple[Node, int]:
        """The node and the output that an input is linked to, through nodes that pass it on."""
        for _ in range(LONGEST_CHAIN):
            link = node.inputs.get(name)
            if link is None or not _is_link(link):
                node.refuse(f"its input {name!r} is not linked")
            target, slot = self.nodes.get(str(link[0])), link[1]
            if target is None:
                node.refuse(f"its input {name!r} is linked to node {quoted(link[0])}, which is not in the graph")
            if target.kind not in PASSED:
                return target, slot
            links = [key for key, value in target.inputs.items() if _is_link(value)]
            if not links:
                target.refuse("it is not linked")
            node, name = target, links[0]
        node.refuse("its links lead in a circle")

    def value(self, node: Node, name: str, default: Any = None) -> Any:
        """The value of an input, which may be linked to a node that holds it."""
        given = node.inputs.get(name, default)
        if not _is_link(given):
            return given
        origin, _ = self.source(node, name)
        for _ in range(LONGEST_CHAIN):
            if not CONSTANTS.fullmatch(origin.kind):
                origin.refuse(f"it computes {name!r}, and a graph is not executed", "set the value in its node")
            key = next((key for key in CONSTANT_INPUTS if key in origin.inputs), None)
            if key is None:
                origin.refuse(f"it holds no value for {name!r}")
            if not _is_link(origin.inputs[key]):
                return origin.inputs[key]
            origin, _ = self.source(origin, key)
        origin.refuse("its links lead in a circle")

    def number(self, node: Node, name: str, default: Any = None) -> int | float:
        given = self.value(node, name, default)
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(_real(given)):
            node.refuse(f"its {name} is {quoted(given)}, and a number is needed")
        return given

    def text(self, node: Node, name: str, default: Any = None) -> str:
        given = self.value(node, name, default)
        if not isinstance(given, str) or len(given) > LONGEST_TEXT:
            node.refuse(f"its {name} is {quoted(given)}, and a text of at most {LONGEST_TEXT} characters is needed")
        return given


def _real(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _is_link(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], str | int)
        and type(value[1]) is int
    )


# ------------------------------------------------------------------------------------------------------------ the graph
def is_graph(value: object) -> bool:
    """Whether a value looks like a graph in the API form."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and any(isinstance(node, Mapping) and "class_type" in node for node in list(value.values())[:100])
    )


def is_window_form(value: object) -> bool:
    """Whether a value looks like a workflow as ComfyUI's window saves it, with the places of nodes."""
    return isinstance(value, Mapping) and isinstance(value.get("nodes"), list) and "links" in value


def read_graph(graph: Mapping[str, Any]) -> Imported:
    """The recipe of a graph.

    Raises:
        InputError: a graph that a recipe cannot repeat; the error names the node.
    """
    reading = Reading(dict(_nodes(graph)))
    sampler = _only_sampler(reading)
    fields = _sampled(reading, sampler)
    _note_what_follows(reading, sampler)
    if MODELS[fields["model"]].file and draws_other_noise():  # pocket is in 32 bits
        reading.differs.append("In 16 bits, this version of PyTorch draws other noise than ComfyUI.")
    return imported("comfyui", fields, reading.differs)


def _nodes(graph: Mapping[str, Any]) -> Iterator[tuple[str, Node]]:
    if len(graph) > MOST_NODES:
        raise refusal(
            f"a graph of {len(graph)} nodes", f"at most {MOST_NODES} are read", "give the graph of one picture"
        )
    for key, node in graph.items():
        if not isinstance(node, Mapping) or "class_type" not in node:
            continue
        kind, inputs = node["class_type"], node.get("inputs", {})
        valid = isinstance(kind, str) and len(kind) <= LONGEST_KIND and isinstance(inputs, Mapping)
        if not valid or len(inputs) > MOST_INPUTS:
            raise refusal(f"node {quoted(key)}", "it has no class or no inputs", "export the graph again")
        yield str(key), Node(str(key), kind, inputs)


def _only_sampler(reading: Reading) -> Node:
    samplers = [node for node in reading.nodes.values() if node.kind in SAMPLERS]
    if len(samplers) > 1:
        # The window also saves nodes that nothing uses.
        used = _before(reading, [node for node in reading.nodes.values() if HARMLESS.fullmatch(node.kind)])
        samplers = [node for node in samplers if node.id in used] or samplers
    if len(samplers) > 1:
        names = " and ".join(f"{node.id[:20]} ({node.kind})" for node in samplers[:3])
        raise refusal(f"a graph with {len(samplers)} samplers, nodes {names}", "a recipe has one", "keep one of them")
    if samplers:
        return samplers[0]
    for node in reading.nodes.values():
        if re.search("sampler", node.kind, re.IGNORECASE) and any(_is_link(each) for each in node.inputs.values()):
            node.refuse(f"known samplers are {', '.join(SAMPLERS)}", "sample with one of them")
    kinds = ", ".join(f"{node.id[:20]} ({node.kind[:40]})" for node in list(reading.nodes.values())[:3])
    raise refusal(f"a graph without a sampler, with nodes {kinds}", f"known are {', '.join(SAMPLERS)}", "add one")


def _before(reading: Reading, ends: list[Node]) -> set[str]:
    """The ids of the nodes that lead to `ends`."""
    found, left = set[str](), [node.id for node in ends]
    while left:
        name = left.pop()
        if name in found or name not in reading.nodes:
            continue
        found.add(name)
        left += [str(link[0]) for link in reading.nodes[name].inputs.values() if _is_link(link)]
    return found


def _note_what_follows(reading: Reading, sampler: Node) -> None:
    """Note the nodes between the sampler and the picture that change it."""
    users: dict[str, list[Node]] = {}
    for node in reading.nodes.values():
        for link in node.inputs.values():
            if _is_link(link):
                users.setdefault(str(link[0]), []).append(node)
    seen, left = {sampler.id}, [sampler.id]
    while left:
        for node in users.get(left.pop(), ()):
            if node.id in seen:
                continue
            seen.add(node.id)
            left.append(node.id)
            if not HARMLESS.fullmatch(node.kind):
                reading.differs.append(f"Node {node.id[:20]} ({node.kind[:60]}) comes after the sampler.")
            if node.kind == "VAEDecode":
                _note_decoder(reading, node)


def _note_decoder(reading: Reading, node: Node) -> None:
    loader, _ = reading.source(node, "vae")
    file = loader.inputs.get("vae_name")
    if loader.kind == "VAELoader" and isinstance(file, str) and not is_vae_of_flux1(file):
        reading.differs.append(f"Node {loader.id[:20]} (VAELoader) decodes with {quoted(file)}.")


# -------------------------------------------------------------------------------------------------------------- sampler
def _sampled(reading: Reading, sampler: Node) -> dict[str, Any]:
    """The fields of the recipe of a graph."""
    custom = sampler.kind == "SamplerCustomAdvanced"
    guided = reading.source(sampler, "guider")[0] if custom else sampler
    schedule = reading.source(sampler, "sigmas")[0] if "sigmas" in sampler.inputs else sampler
    if schedule is not sampler and schedule.kind != "BasicScheduler":
        schedule.refuse("known is BasicScheduler", "set the levels with it")
    if custom and guided.kind not in ("BasicGuider", "CFGGuider"):
        guided.refuse("known guiders are BasicGuider and CFGGuider")
    _require_all_steps(reading, sampler, schedule)
    _require_euler(reading, sampler)
    model = _model(reading, guided, "model")
    if schedule is not sampler:  # the levels are those of the scheduler's model
        model.table = _model(reading, schedule, "model").table
    height, width = _size(reading, sampler)
    fields: dict[str, Any] = {"seed": _seed(reading, sampler), "sampler": "euler"}
    fields |= _schedule(reading, schedule, model, height=height, width=width)
    fields |= {"height": height, "width": width}
    fields |= _conditioning(reading, guided, model)
    fields |= {"model": model.name}
    if model.pocket is not None:
        fields["dtype"] = reading.value(model.pocket, "dtype", "float32")
        fields["revision"] = reading.value(model.pocket, "revision", "") or None
    return fields


def _seed(reading: Reading, sampler: Node) -> int:
    holder, name = sampler, "seed" if "seed" in sampler.inputs else "noise_seed"
    if sampler.kind == "SamplerCustomAdvanced":
        holder, name = reading.source(sampler, "noise")[0], "noise_seed"
        if holder.kind != "RandomNoise":
            holder.refuse("known is RandomNoise")
    seed = reading.number(holder, name)
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        holder.refuse(f"its seed is {quoted(seed)}, and 0 to 2**64 - 1 are possible", "set another seed")
    return seed


def _require_all_steps(reading: Reading, sampler: Node, schedule: Node) -> None:
    denoise = reading.value(schedule, "denoise", 1.0)
    if denoise != 1.0:
        schedule.refuse(f"denoise is {quoted(denoise)}: it begins from a picture", "set denoise to 1")
    noise = reading.value(sampler, "add_noise", True)
    if noise not in (True, "enable"):
        sampler.refuse("it adds no noise", "import the graph of the first sampler")
    if sampler.kind == "KSamplerAdvanced":
        last = reading.number(sampler, "end_at_step", MOST_STEPS)
        first, steps = reading.number(sampler, "start_at_step", 0), reading.number(sampler, "steps")
        if first != 0 or last < steps or reading.value(sampler, "return_with_leftover_noise") == "enable":
            sampler.refuse("it does not sample every step", "sample from the first step to the last")


def _require_euler(reading: Reading, sampler: Node) -> None:
    holder, name = sampler, "sampler_name"
    if "sampler" in sampler.inputs:
        holder = reading.source(sampler, "sampler")[0]
        if holder.kind == "SamplerEulerAncestral" or holder.kind != "KSamplerSelect":
            holder.refuse("known is KSamplerSelect", 'select the sampler "euler"')
    chosen = reading.value(holder, name)
    if chosen not in EULER:
        holder.refuse(f"its sampler is {quoted(chosen)}, and a recipe samples with euler", 'select the sampler "euler"')


def _size(reading: Reading, sampler: Node) -> tuple[int, int]:
    latent, _ = reading.source(sampler, "latent_image")
    if latent.kind not in LATENTS:
        latent.refuse(f"a recipe begins with noise, as {' and '.join(LATENTS)} do")
    height, width = reading.number(latent, "height"), reading.number(latent, "width")
    for name, side in (("height", height), ("width", width)):
        if side != int(side) or side % 16 or not 16 <= side <= LARGEST_SIDE:
            latent.refuse(f"its {name} is {quoted(side)}, and multiples of 16 up to {LARGEST_SIDE} are possible")
    count = reading.value(latent, "batch_size", 1)
    if count != 1:
        reading.differs.append(f"It is one of {quoted(count)} pictures of a batch, and the recipe repeats the first.")
    return int(height), int(width)


# ---------------------------------------------------------------------------------------------------------------- model
def _model(reading: Reading, node: Node, name: str) -> Model:
    """The transformer that an input leads to."""
    table: Table | None = None
    for _ in range(LONGEST_CHAIN):
        node, _ = reading.source(node, name)
        name = "model"
        if node.kind in LOADERS:
            return _loaded(reading, node, table)
        if node.kind == "FluxnbLoader":
            pocket = reading.text(node, "model_name")
            if pocket not in MODELS or MODELS[pocket].file:
                node.refuse(f"its model is {quoted(pocket)}, and pocket and pocket-base are known")
            return Model(pocket, table or Table(1000, 1.0), node)
        if node.kind in ("ModelSamplingFlux", "ModelSamplingAuraFlow"):
            table = table or _table(reading, node)  # the node nearest to the sampler counts
        elif node.kind in ("LoraLoader", "LoraLoaderModelOnly"):
            if reading.value(node, "strength_model") != 0:
                node.refuse(f"it applies the adapter {quoted(node.inputs.get('lora_name'))}")
        elif re.search("TeaCache|FBCache|EasyCache|SageAttention", node.kind):
            reading.differs.append(f"Node {node.id[:20]} ({node.kind[:60]}) approximates evaluations.")
        elif node.kind not in ("TorchCompileModel", "DifferentialDiffusion"):
            node.refuse("it changes the model")
    node.refuse("its links lead in a circle")


def _table(reading: Reading, node: Node) -> Table:
    if node.kind == "ModelSamplingAuraFlow":
        shift, size = reading.number(node, "shift"), 1000
    else:
        high, low, width, height = (
            _real(reading.number(node, name)) for name in ("max_shift", "base_shift", "width", "height")
        )
        mu = low + (width * height / 256 - 256) * (high - low) / (4096 - 256)
        shift, size = (math.exp(mu) if abs(mu) < 10 else math.inf), 10_000
    if not 0.01 <= shift <= 100:
        node.refuse(f"it shifts the levels by {shift:g}, and 0.01 to 100 are possible")
    return Table(size, float(shift))


def _loaded(reading: Reading, node: Node, table: Table | None) -> Model:
    file = reading.text(node, LOADERS[node.kind])
    name = known_model(file)
    if name is None:
        node.refuse(f"its file is {quoted(file)}, and FLUX.1 schnell and dev are known")
    stored = reading.value(node, "weight_dtype", "default")
    if has_fewer_bits(file) or stored not in ("default", "fp16", "bf16") or "GGUF" in node.kind:
        weights = file if has_fewer_bits(file) else f"{file} as {stored}"
        reading.differs.append(f"Node {node.id[:20]} ({node.kind}) holds weights in fewer bits: {quoted(weights)}.")
    default = Table(1000, 1.0) if name == "schnell" else Table(10_000, math.exp(SHIFT_OF_DEV))
    return Model(name, table or default)


def _schedule(reading: Reading, node: Node, model: Model, *, height: int, width: int) -> dict[str, Any]:
    """Steps, levels and shift of a recipe."""
    steps, scheduler = reading.number(node, "steps"), reading.value(node, "scheduler")
    if not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        node.refuse(f"its steps are {quoted(steps)}, and 1 to {MOST_STEPS} are possible")
    if not isinstance(scheduler, str) or scheduler not in SCHEDULERS:
        node.refuse(f"its scheduler is {quoted(scheduler)}, and {', '.join(SCHEDULERS)} are known")
    try:
        found = levels(scheduler, steps, model.table)
    except ZeroDivisionError:
        node.refuse(f"the scheduler {scheduler} has no levels for {steps} step")
    own = math.exp(_mu(height, width)) if model.name == "dev" else 1.0
    shift = None if abs(model.table.shift - own) <= CLOSE * own else model.table.shift
    if scheduler == "simple":
        off = max(abs(level - (1 - index / steps)) for index, level in enumerate(found))
        if off > CLOSE:
            reading.differs.append(f"ComfyUI rounds the levels of {steps} steps, by at most {off:.1g}.")
        return {"steps": steps, "shift": shift}
    if abs(found[0] - 1) > CLOSE:
        reading.differs.append(f"ComfyUI scales the noise by the first level, {found[0]:.4g}.")
    return {"steps": len(found), "sigmas": tuple(found), "shift": shift}


def _mu(height: int, width: int) -> float:
    """The shift of dev for a size, as diffusers computes it: 0.5 for 256 tokens, 1.15 for 4096."""
    return 0.5 + (height * width / 256 - 256) * (1.15 - 0.5) / (4096 - 256)


# --------------------------------------------------------------------------------------------------------- conditioning
def _conditioning(reading: Reading, guided: Node, model: Model) -> dict[str, Any]:
    """Prompt, guidance, negative prompt and text length."""
    single = guided.kind == "BasicGuider"
    prompt, clip, embedded = _prompt(reading, guided, "conditioning" if single else "positive")
    cfg = 1.0 if single else reading.number(guided, "cfg", 1.0)
    tokens = _tokens(reading, clip, model)
    fields: dict[str, Any] = {"prompt": prompt, "max_sequence_length": tokens}
    known = MODELS[model.name]
    if known.guided_by == "true_cfg":
        negative = _prompt(reading, guided, "negative")[0] if not single and cfg != 1 else ""
        fields |= {"guidance": cfg, "negative": negative}
    elif cfg != 1:
        guided.refuse(f"cfg is {quoted(cfg)}, and FLUX.1 {model.name} is sampled with 1", "set cfg to 1")
    elif known.guided_by == "embedded":
        fields["guidance"] = known.guidance if embedded is None else embedded
    if known.file and estimated_tokens(prompt) > tokens:
        reading.differs.append(f"The prompt may be longer than {tokens} tokens; ComfyUI encodes all of it.")
    return fields


def _prompt(reading: Reading, node: Node, name: str) -> tuple[str, Node, int | float | None]:
    """A prompt, the node that encodes it, and the guidance that is set on the way."""
    guidance: int | float | None = None
    for _ in range(LONGEST_CHAIN):
        node, _ = reading.source(node, name)
        name = "conditioning"
        if node.kind == "FluxGuidance":
            guidance = reading.number(node, "guidance") if guidance is None else guidance
        elif node.kind == "CLIPTextEncodeFlux":
            text, short = reading.text(node, "t5xxl"), reading.text(node, "clip_l")
            if short != text:
                reading.differs.append(f"Node {node.id[:20]} ({node.kind}) gives CLIP another text: {quoted(short)}.")
            guidance = reading.number(node, "guidance") if guidance is None else guidance
            return _plain(reading, node, text), node, guidance
        elif node.kind == "CLIPTextEncode":
            return _plain(reading, node, reading.text(node, "text")), node, guidance
        else:
            node.refuse("a recipe is conditioned on one text", "encode the prompt with CLIPTextEncode")
    node.refuse("its links lead in a circle")


def _plain(reading: Reading, node: Node, text: str) -> str:
    """The text of a prompt without ComfyUI's syntax."""
    if "embedding:" in text.lower():
        node.refuse("its text names an embedding file")
    plain, weights = without_weights(text)
    if weights:
        listed = ", ".join(quoted(weight) for weight in weights[:3])
        reading.differs.append(f"Node {node.id[:20]} ({node.kind}) weights parts of the prompt: {listed}.")
    return plain


def _tokens(reading: Reading, node: Node, model: Model) -> int:
    """The number of tokens to which ComfyUI pads a prompt."""
    tokens: Any = TEMPLATE_TOKENS
    name = "clip"
    options: Node | None = None
    for _ in range(LONGEST_CHAIN):
        node, _ = reading.source(node, name)
        if node.kind == "T5TokenizerOptions":
            options = options or node
        elif node.kind == "LoraLoader":
            if reading.value(node, "strength_clip") != 0 or reading.value(node, "strength_model") != 0:
                node.refuse(f"it applies the adapter {quoted(node.inputs.get('lora_name'))}")
        elif node.kind == "FluxnbLoader":
            tokens = reading.value(node, "max_sequence_length", MODELS[model.name].tokens)
            break
        else:
            _require_text_loader(reading, node)
            break
    else:
        node.refuse("its links lead in a circle")
    if options is not None and node.kind != "FluxnbLoader":
        tokens = reading.number(options, "min_length")
        if reading.value(options, "min_padding", 0) != 0:
            options.refuse("it pads every prompt")
    if not isinstance(tokens, int) or not 1 <= tokens <= 512:
        (options or node).refuse(f"it pads to {quoted(tokens)} tokens, and 1 to 512 are possible")
    return tokens


def _require_text_loader(reading: Reading, node: Node) -> None:
    if node.kind in ("CheckpointLoaderSimple", "CheckpointLoaderNF4"):
        return
    if node.kind not in TEXT_LOADERS:
        node.refuse("a recipe encodes with CLIP and T5", "load both with DualCLIPLoader")
    kind = reading.value(node, "type", "flux")
    if kind != "flux":
        node.refuse(f"its type is {quoted(kind)}", "set its type to flux")
    files = [file for name in ("clip_name1", "clip_name2") if isinstance(file := node.inputs.get(name), str)]
    for file in files:
        if has_fewer_bits(file):
            reading.differs.append(f"Node {node.id[:20]} ({node.kind}) holds weights in fewer bits: {quoted(file)}.")


def window_form_refusal(workflow: Mapping[str, Any]) -> InputError:
    """The error for a workflow that holds places of nodes and positional values."""
    nodes = workflow.get("nodes")
    kinds = [node.get("type") for node in nodes[:3] if isinstance(node, Mapping)] if isinstance(nodes, list) else []
    listed = ", ".join(quoted(kind) for kind in kinds)
    return InputError(
        f"a workflow of ComfyUI's window with nodes {listed}",
        "recipes are read from the API form, where values have names",
        "in ComfyUI choose Workflow > Export (API), or give a picture that ComfyUI saved",
    )
