"""What a stage takes on one GPU, as arithmetic: bytes from an architecture, the keys of a config and a number of GPUs.

Weights, gradients and optimizer states are exact. Activations are what autograd keeps for the backward pass, counted
tensor by tensor, and the largest of what lives for a moment; docs/scaling.md states how close they come.
"""

from __future__ import annotations

from dataclasses import dataclass

from unifiedreward_think.errors import InputError
from unifiedreward_think.training.memory.architecture import Architecture, Linears
from unifiedreward_think.training.memory.job import GIB, Job

RESERVE = 3 * GIB  # CUDA context, NCCL buffers, and what the allocator cannot use
# vLLM 0.30 where nothing else is said, offline on a GPU of 70 GiB or more (its EngineArgs, CacheConfig).
UTILIZATION = 0.92  # of the GPU's memory, for weights, KV cache and all else
FORWARD_TOKENS = 16384  # of one forward: text, or pictures in the vision tower
FORWARD_ROWS = 1024  # sequences that get their next token at a time
HEAD_TILE = (4096, 32768)  # tokens and vocabulary of one tile of TRL's fused head


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bytes on one GPU by what takes them: what is always there, and what each phase adds; phases follow each other."""

    always: dict[str, int]
    phases: dict[str, dict[str, int]]

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self.always.values()) + max(sum(parts.values()) for parts in self.phases.values())


def plan(shape: Architecture, job: Job) -> Plan:
    """Count what the job takes on each of its GPUs.

    Raises:
        InputError: a key has a value whose memory is not known here.
    """
    if job.vllm:
        return _engine(shape, job)
    phases = {}
    if job.stage == "sampling" or (job.stage == "grpo" and not job["use_vllm"]):
        phases["generation"] = _generation(shape, job)
    if job.stage != "sampling":
        phases["training"] = _training(shape, job)
        phases["optimizer step"] = _step(shape, job)
    return Plan(always=_states(shape, job), phases=phases)


def _engine(shape: Architecture, job: Job) -> Plan:
    """Return what a vLLM engine needs on each of its GPUs to start: a KV cache that holds one sequence.

    Raises:
        InputError: the length that vLLM makes room for is not given, or too short for the longest row.
    """
    size, share, longest = job.weight_bytes, job.engine_gpus, job["max_model_len"]
    row = prompt_length(shape, job) + job.completion_tokens
    if longest is None or longest < row:
        raise InputError(
            f"max_model_len is {longest}: a row has up to {row} tokens, and vLLM starts where its KV cache holds one "
            f"sequence of max_model_len, the model's own where it is not set; set it to {row} or more"
        )
    patches = FORWARD_TOKENS * shape.tower.merge**2
    layer = FORWARD_TOKENS * (3 * shape.intermediate + 2 * shape.hidden) * size
    generation = {
        "KV cache": longest * cache_bytes(shape, job),
        "vision": patches * vision_block(shape, size) // share,
        "largest moment": max(layer, FORWARD_ROWS * shape.vocabulary * 12) // share,
    }
    outside = job.gpu_memory - int(UTILIZATION * job.gpu_memory)
    always = {"weights": -(-size * shape.parameters // share), "left by vLLM": outside, "reserve": RESERVE}
    return Plan(always=always, phases={"generation": generation})


def cache_bytes(shape: Architecture, job: Job) -> int:
    """Bytes that a token of the KV cache takes on a GPU of an engine."""
    return 2 * shape.layers * shape.keys * job.weight_bytes // job.engine_gpus


def prompt_length(shape: Architecture, job: Job) -> int:
    """Tokens of the longest prompt."""
    return job.prompt_tokens + job.pictures * shape.picture_tokens(job["max_pixels"])


def trainable(shape: Architecture, job: Job) -> int:
    """Parameters that are trained."""
    if job["use_peft"]:
        return adapter(shape, job)
    return shape.parameters - (shape.tower.parameters if job["freeze_vision"] else 0)


def adapter(shape: Architecture, job: Job) -> int:
    """Parameters that LoRA adds: rank times inputs and outputs of each layer that it matches.

    Without `lora_target_modules` these are the linear layers of the language model.

    Raises:
        InputError: the matching layers are not listed by name.
    """
    names = job["lora_target_modules"]
    if names is None:
        return int(job["lora_r"]) * shape.layers * sum(map(sum, shape.linears.values()))
    if not isinstance(names, list):
        raise InputError(
            f"lora_target_modules: {names!r} is not a list of layers; name them, as q_proj, or leave the key out"
        )

    def matched(linears: Linears) -> int:
        return sum(inputs + outputs for name, (inputs, outputs) in linears.items() if name in names)

    tower = 0 if job["freeze_vision"] else shape.tower.depth * matched(shape.tower.linears)
    return int(job["lora_r"]) * (shape.layers * matched(shape.linears) + tower)


def _states(shape: Architecture, job: Job) -> dict[str, int]:
    """Weights, gradients and optimizer states; ZeRO-3 splits them over the GPUs, offloading moves them to the CPU."""
    size, everything = job.weight_bytes, shape.parameters
    if job.stage == "sampling":
        return {"weights": size * everything, "reserve": RESERVE}
    if not str(job["optim"]).startswith("adamw_torch"):
        raise InputError(f"optim: {job['optim']} is not covered; covered: adamw_torch, adamw_torch_fused")
    trained = trainable(shape, job)
    copies = 1 if job.stage == "grpo" and job["beta"] and not job["use_peft"] else 0
    extra = trained if job["use_peft"] else 0
    vllm = int(job["vllm_gpu_memory_utilization"] * job.gpu_memory) if job["use_vllm"] and job.stage == "grpo" else 0
    if job.zero:
        kept = 0 if job.offloaded("param") else 1
        stepped = 0 if job.offloaded("optimizer") else 1
        parts = {
            "weights": kept * size * (everything + extra),
            "reference model": kept * size * everything * copies,
            "gradients": stepped * size * trained,
            "optimizer": stepped * 12 * trained,  # a float32 copy and two moments
        }
        states = {name: -(-value // job.gpus) for name, value in parts.items()}
    else:
        trained_size = 4 if job["use_peft"] else size  # peft keeps adapters in float32
        buckets = 2 if job.gpus > 1 else 1  # data parallel training copies gradients into buckets
        cast = 2 * everything if size == 4 and job.compute_bytes == 2 else 0  # autocast keeps what it has cast
        states = {
            "weights": size * everything + trained_size * extra + cast,
            "reference model": size * everything * copies,
            "gradients": buckets * trained_size * trained,
            "optimizer": 2 * trained_size * trained,
        }
    return {**states, "vLLM": vllm, "reserve": RESERVE}


def text_layer(shape: Architecture, size: int) -> int:
    """Bytes that one layer of the language model keeps for one token, with numbers of `size` bytes.

    A norm keeps a float32 input, what it makes of it, and its output; attention its queries, keys, values and output;
    the MLP both branches, the activated one and their product.
    """
    norms = 2 * (4 + 2 * size) * shape.hidden
    attention = size * 2 * (shape.queries + shape.keys)
    attention += (4 + size) * (shape.queries + shape.keys) if shape.head_norm else 0
    return norms + attention + size * 4 * shape.intermediate


def vision_block(shape: Architecture, size: int) -> int:
    """Bytes that one block of the vision tower keeps for one patch."""
    tower = shape.tower
    norms = 2 * ((4 + 2 * size) if tower.rms_norm else 2 * size) * tower.hidden
    # Values are a view of what queries and keys were cut from, so that stays too.
    return norms + size * 6 * tower.hidden + size * (4 if tower.gated else 2) * tower.intermediate


def packed_lengths(shape: Architecture, job: Job) -> tuple[int, int]:
    """Return the tokens of a micro-batch, and of its longest forward.

    A packed sequence that is too long for `max_stream_tokens` leaves rows to others, and each of these repeats the
    prompt. A row that is longer than the limit still gets one of its own.
    """
    prompt, answer, prompts = prompt_length(shape, job), job.completion_tokens, job.prompts(job.rows)
    tokens = prompts * prompt + job.rows * answer
    limit = job["max_stream_tokens"]
    if job.stage != "grpo" or not job["shared_prefix"] or not limit or tokens <= limit:
        return tokens, tokens
    group = -(-job.rows // prompts)
    together = min(group, max(1, (limit - prompt) // answer))  # rows of a group in one packed sequence
    packed = prompts * -(-group // together)
    return packed * prompt + job.rows * answer, prompt + together * answer


def _patches(shape: Architecture, job: Job, prompts: int) -> int:
    return prompts * job.pictures * shape.picture_tokens(job["max_pixels"]) * shape.tower.merge**2


def _training(shape: Architecture, job: Job) -> dict[str, int]:
    """Return what the forward keeps for the backward pass, and the most that lives for a moment."""
    size, checkpointed = job.compute_bytes, job["gradient_checkpointing"]
    tokens, forward = packed_lengths(shape, job)
    patches = _patches(shape, job, job.prompts(job.rows))
    layer, block = text_layer(shape, size), vision_block(shape, size)
    # Checkpointing asks for gradients of the embeddings, which makes transformers keep the graph of a frozen tower too.
    encoded_before = job.stage == "grpo" and job["shared_prefix"] and job["freeze_vision"]
    graph = not job["freeze_vision"] or (checkpointed and not encoded_before)
    tower_keeps = (size * shape.tower.hidden if checkpointed else block) * shape.tower.depth if graph else 0
    pixels = 0 if encoded_before else 4 * shape.tower.patch_values
    pictures = patches // shape.tower.merge**2 * shape.hidden * size
    moment = {"layer": layer * forward, "block": block * patches, "head": _head(shape, job, forward)}
    if not checkpointed:
        moment["layer"] = 0  # all layers are kept
        moment["block"] = 0 if graph else moment["block"]
    last_norm = (4 + size) * shape.hidden
    parts = {
        "activations": tokens * (shape.layers * (size * shape.hidden if checkpointed else layer) + last_norm),
        "vision": patches * (tower_keeps + pixels) + pictures,
        "largest moment": max(moment.values()),
    }
    if job.zero:
        parts["gathered weights"] = job.weight_bytes * int(
            min(shape.parameters, job.zero.get("stage3_max_live_parameters", 1e9))
        )
    return parts


def _step(shape: Architecture, job: Job) -> dict[str, int]:
    """Return what DeepSpeed adds in an optimizer step: float32 gradients of a group of weights."""
    if not job.zero or job.offloaded("optimizer"):
        return {}
    group = int(job.zero.get("sub_group_size", 1e9))
    return {"float32 gradients": 4 * min(group, -(-trainable(shape, job) // job.gpus))}


def _head(shape: Architecture, job: Job, forward: int) -> int:
    """Bytes of TRL's fused head: a tile of logits, and float32 gradients of its input and of its weights."""
    scored = min(job.rows * job.completion_tokens, forward)
    tile = min(scored, HEAD_TILE[0]) * HEAD_TILE[1] * job.compute_bytes
    weights = 0 if job["use_peft"] else shape.head * (4 + job.weight_bytes)
    return tile + scored * shape.hidden * (job.compute_bytes + 4) + weights


def _generation(shape: Architecture, job: Job) -> dict[str, int]:
    """Return what generating takes: the KV cache, and one forward over the prompts.

    The engine keeps the prompt of a group once, in float32; TRL's `generate` keeps a copy for each completion.
    """
    size, rows = job.weight_bytes, job.generated_rows
    prompt, prompts = prompt_length(shape, job), job.prompts(rows)
    shared = job.stage == "grpo" and job["shared_prefix"]  # encodes the pictures of one prompt after another
    encoded = int(job["batch_size"]) if job.stage == "sampling" else 1 if shared else prompts
    layer = prompts * prompt * (3 * shape.intermediate + 2 * shape.hidden) * size
    kept = prompts * prompt * (4 if shared or job.stage == "sampling" else size)
    scores = rows * shape.vocabulary * 12  # of the newest tokens: float32, sorted, and as probabilities
    parts = {
        "KV cache": (kept + rows * job.completion_tokens * size) * 2 * shape.layers * shape.keys,
        "vision": _patches(shape, job, encoded) * vision_block(shape, size),
        "largest moment": max(layer, scores),
    }
    if job.zero:
        parts["gathered weights"] = size * shape.parameters
    return parts


def tokens_a_step(shape: Architecture, job: Job) -> dict[str, int]:
    """Return the rows and tokens of one optimizer step on all GPUs, at most."""
    sampled = job.stage == "sampling"
    rows = job.gpus * (job.generated_rows if sampled else job.rows * int(job["gradient_accumulation_steps"]))
    name = "completions" if sampled or job.stage == "grpo" else "rows"
    prompts = job.prompts(rows) * prompt_length(shape, job)
    return {name: rows, "prompt tokens": prompts, "completion tokens": rows * job.completion_tokens}
