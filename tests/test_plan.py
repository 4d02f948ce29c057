"""The memory plan: parameter counts against the real architectures, bytes against what runs of tiny models take."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unifiedreward_think.errors import InputError
from unifiedreward_think.models.loading import freeze_vision, load_model, load_processor
from unifiedreward_think.training import plan as command
from unifiedreward_think.training.arguments import read_config
from unifiedreward_think.training.memory import estimate as memory_plan
from unifiedreward_think.training.memory.architecture import load_architecture, read_architecture
from unifiedreward_think.training.memory.estimate import plan
from unifiedreward_think.training.memory.job import DEFAULTS, GIB, make_job

ROOT = Path(__file__).parents[1]
YAMLS = [path for path in sorted(ROOT.glob("configs/*/*.yaml")) if path.parent.name not in ("data", "toy")]
CONFIGS = [path for path in YAMLS if path.stem != "lora"]
FOR_LORA = [path for path in CONFIGS if path.stem in ("cold_start", "rejection_sft", "grpo_8gpu")]

# The published config.json files, without what does not decide the size.
QWEN25 = {"model_type": "qwen2_5_vl", "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936}
QWEN25_TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
QWEN3_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048}
QWEN3_TOWER |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17], "patch_size": 16}
LARGE_TOWER = {**QWEN3_TOWER, "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}


def text(hidden, intermediate, layers, heads, keys=8, **more):
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": keys, **more}


def qwen3(tower, *sizes, tied=True):
    inner = text(*sizes, head_dim=128, vocab_size=151936, tie_word_embeddings=tied)
    return {"model_type": "qwen3_vl", "text_config": inner, "vision_config": tower, "tie_word_embeddings": tied}


PUBLISHED = {
    "Qwen2.5-VL-3B-Instruct": (
        3_754_622_976,
        {**QWEN25, **text(2048, 11008, 36, 16, 2), "vision_config": QWEN25_TOWER},
    ),
    "Qwen2.5-VL-7B-Instruct": (
        8_292_166_656,
        {
            **QWEN25,
            **text(3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False),
            "vision_config": {**QWEN25_TOWER, "out_hidden_size": 3584},
        },
    ),
    "Qwen3-VL-2B-Instruct": (2_127_532_032, qwen3(QWEN3_TOWER, 2048, 6144, 28, 16)),
    "Qwen3-VL-4B-Instruct": (4_437_815_808, qwen3({**QWEN3_TOWER, "out_hidden_size": 2560}, 2560, 9728, 36, 32)),
    "Qwen3-VL-8B-Instruct": (8_767_123_696, qwen3(LARGE_TOWER, 4096, 12288, 36, 32, tied=False)),
    "llava-onevision-qwen2-7b-ov-hf": (
        8_030_807_584,
        {
            "model_type": "llava_onevision",
            "text_config": {
                **text(3584, 18944, 28, 28, 4, vocab_size=152128, tie_word_embeddings=False),
                "model_type": "qwen2",
            },
            "vision_config": {
                **{"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304},
                **{"num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384, "patch_size": 14},
                "vision_use_head": False,
            },
            "tie_word_embeddings": False,
        },
    ),
}


MODELS = {"qwen2_5_vl_7b": "Qwen2.5-VL-7B-Instruct", "qwen3_vl_8b": "Qwen3-VL-8B-Instruct"}
MODELS["llava_onevision_7b"] = "llava-onevision-qwen2-7b-ov-hf"


def on_meta(config):
    """The model that transformers builds from a config.json, without its weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    rest = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(config["model_type"], **rest))


def parameters(model):
    return sum(weights.numel() for weights in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_a_published_model_are_counted_exactly(name):
    count, config = PUBLISHED[name]
    shape, model = read_architecture(config), on_meta(config)
    assert shape.parameters == parameters(model) == count
    assert shape.tower.parameters == freeze_vision(model)
    assert shape.head == model.lm_head.weight.numel()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_above_are_those_of_the_published_files(name, test_data):
    folder = test_data / "qwen_processors" / name
    assert load_architecture(str(folder)) == read_architecture(PUBLISHED[name][1])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_the_parameters_of_a_saved_model_are_counted_exactly(family, models):
    shape, model = load_architecture(str(models[family])), load_model(models[family])
    assert (shape.parameters, shape.tower.parameters) == (parameters(model), freeze_vision(model))
    names = [name.split(".")[-1] for name, _ in model.named_modules()]
    assert set(shape.linears) <= set(names) and set(shape.tower.linears) <= set(names)


def test_a_family_without_a_formula_is_refused_by_name(models):
    with pytest.raises(InputError, match=r"'qwen3_5' is not covered; covered: qwen2_vl"):
        load_architecture(str(models["qwen3_5"]))


def test_a_model_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder with a config\.json"):
        load_architecture(str(tmp_path / "none"))


# Measured on a tiny model: one row of two pictures, float32, one process.


@pytest.fixture
def step(models):
    """Train one step and return the plan's items and what was measured."""
    from PIL import Image

    def run(family, *, checkpointing=False, lora=False):
        path = models[family]
        model, processor = load_model(path, dtype="float32"), load_processor(path)
        freeze_vision(model)
        if lora:
            from peft import LoraConfig, get_peft_model

            names = ["q_proj", "down_proj"]
            model = get_peft_model(model, LoraConfig(r=4, target_modules=names, exclude_modules=r".*visual\..*"))
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        content = [*([{"type": "image", "image": Image.new("RGB", (32, 32), c)} for c in ("red", "blue")])]
        message = [{"role": "user", "content": [*content, {"type": "text", "text": "Which is red? " * 30}]}]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(message, **options)
        optimizer = torch.optim.AdamW([weights for weights in model.parameters() if weights.requires_grad])
        kept: dict[int, int] = {}
        own = {weights.untyped_storage().data_ptr() for weights in [*model.parameters(), *model.buffers()]}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no two storages share an address
            return tensor

        alive: list[torch.Tensor] = []
        inner = model.get_base_model() if lora else model
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = inner.model(**inputs, use_cache=False).last_hidden_state
        states.square().mean().backward()
        # The head, which training calls in tiles, only needs a gradient here.
        if not lora and inner.lm_head.weight.grad is None:
            inner.lm_head.weight.grad = torch.zeros_like(inner.lm_head.weight)
        optimizer.step()
        sizes = {
            "weights": [*model.parameters()],
            "gradients": [weights.grad for weights in model.parameters() if weights.grad is not None],
            "optimizer": [
                value for state in optimizer.state.values() for name, value in state.items() if name != "step"
            ],
        }
        measured = {name: sum(tensor.nbytes for tensor in tensors) for name, tensors in sizes.items()}
        keys = {"dtype": "float32", "bf16": False, "per_device_train_batch_size": 1, "frames": 1}
        keys |= {"max_pixels": 1024, "gradient_checkpointing": checkpointing, "use_peft": lora}
        keys |= {"lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"]}
        words = inputs["input_ids"].shape[1] - 2 * load_architecture(str(path)).picture_tokens(1024)
        job = make_job(keys, 1, prompt_tokens=words, completion_tokens=1)
        inputs_too = inputs["pixel_values"].nbytes + sum(kept.values())
        return plan(load_architecture(str(path)), job), measured | {"activations": inputs_too}

    return run


@pytest.mark.parametrize("lora", [False, True])
def test_weights_gradients_and_optimizer_states_are_exact(lora, step):
    found, measured = step("qwen2_5_vl", lora=lora)
    assert {name: found.always[name] for name in ("weights", "gradients", "optimizer")} == {
        name: measured[name] for name in ("weights", "gradients", "optimizer")
    }


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_within_a_twentieth(family, checkpointing, step):
    found, measured = step(family, checkpointing=checkpointing)
    told = found.phases["training"]["activations"] + found.phases["training"]["vision"]
    assert told == pytest.approx(measured["activations"], rel=0.05)


# The command.


def job(gpus=8, memory=80, **keys):
    grpo = {
        "num_generations": 8,
        "max_completion_length": 1024,
        "beta": 0.04,
        "dtype": "bfloat16",
        "max_pixels": 147456,
    }
    zero = {"deepspeed": str(ROOT / "configs" / "deepspeed" / "zero3.json")}
    return make_job({**grpo, **zero, **keys}, gpus, memory)


SEVEN = read_architecture(PUBLISHED["Qwen2.5-VL-7B-Instruct"][1])


def test_zero3_splits_the_states_over_the_gpus_and_offloading_takes_them_away():
    names = ("weights", "reference model", "gradients", "optimizer")
    one, eight = (plan(SEVEN, job(gpus)).always for gpus in (1, 8))
    trained = SEVEN.parameters - SEVEN.tower.parameters
    assert [one[name] for name in names] == [2 * SEVEN.parameters] * 2 + [2 * trained, 12 * trained]
    assert [eight[name] for name in names] == [-(-one[name] // 8) for name in names]
    offload = str(ROOT / "configs" / "deepspeed" / "zero3_offload.json")
    assert [plan(SEVEN, job(8, deepspeed=offload)).always[name] for name in names] == [0, 0, 0, 0]


def test_a_stream_budget_repeats_prompts_and_shortens_the_longest_forward():
    prompt = 1024 + 16 * 188
    assert memory_plan.packed_lengths(SEVEN, job()) == (prompt + 8 * 1024, prompt + 8 * 1024)
    assert memory_plan.packed_lengths(SEVEN, job(max_stream_tokens=10**6)) == (prompt + 8 * 1024, prompt + 8 * 1024)
    three = job(max_stream_tokens=prompt + 3 * 1024 + 5)  # three rows fit: streams of 3, 3 and 2
    assert memory_plan.packed_lengths(SEVEN, three) == (3 * prompt + 8 * 1024, prompt + 3 * 1024)
    assert memory_plan.packed_lengths(SEVEN, job(max_stream_tokens=1)) == (8 * (prompt + 1024), prompt + 1024)


CHANGES = {"gradient_accumulation_steps": 2, "shared_prefix": False}


def test_what_a_key_changes():
    base = plan(SEVEN, job())
    assert plan(SEVEN, job(beta=0.0)).always["reference model"] == 0
    assert "generation" not in plan(SEVEN, job(use_vllm=True)).phases
    assert plan(SEVEN, job(use_vllm=True)).always["vLLM"] == int(0.3 * 80 * GIB)
    twice, stock = (plan(SEVEN, job(**{key: value})).phases for key, value in CHANGES.items())
    assert twice["generation"]["KV cache"] == 2 * base.phases["generation"]["KV cache"]
    assert twice["training"] == base.phases["training"]
    assert stock["training"]["activations"] > base.phases["training"]["activations"]
    assert stock["training"]["vision"] > 7e9 > base.phases["training"]["vision"]
    assert plan(SEVEN, job(freeze_vision=False)).always["optimizer"] > base.always["optimizer"]


@settings(max_examples=50, deadline=None)
@given(
    memory=st.integers(10, 200),
    gpus=st.sampled_from([1, 2, 8, 64]),
    stage=st.sampled_from(["sft", "grpo", "sampling"]),
    checkpointing=st.booleans(),
    zero=st.booleans(),
    rows=st.sampled_from([1, 8, 32]),
)
def test_the_advice_makes_a_job_fit_or_says_that_it_does_not(memory, gpus, stage, checkpointing, zero, rows):
    keys = {"dtype": "bfloat16", "max_pixels": 262144, "gradient_checkpointing": checkpointing}
    keys |= {"per_device_train_batch_size": rows, "batch_size": rows}
    keys |= {"grpo": {"num_generations": 8}, "sampling": {"samples": 4}, "sft": {}}[stage]
    keys |= {"deepspeed": str(ROOT / "configs" / "deepspeed" / "zero3.json")} if zero else {}
    found = make_job(keys, gpus, memory)
    steps = command.ladder(SEVEN, found)
    totals = [plan(SEVEN, found).total, *(plan(SEVEN, changed).total for _, changed in steps)]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    said = command.report(SEVEN, found)
    assert ("does not fit" in said) == (totals[0] > memory * GIB)
    assert ("that is not enough" in said) == (totals[-1] > memory * GIB)
    assert all(total > memory * GIB for total in totals[:-1])
    more = command.gpus_needed(SEVEN, found)
    assert more is None or plan(SEVEN, dataclasses.replace(found, gpus=more)).total <= memory * GIB


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """Run the command on a config with the published 7B model; return its status and what it prints."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Qwen2.5-VL-7B-Instruct"][1]))
    monkeypatch.chdir(ROOT)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["plan", *map(str, words), "--model", str(tmp_path)])
        try:
            command.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("path", "overlay"),
    [*((path, None) for path in CONFIGS), *((path, path.with_name("lora.yaml")) for path in FOR_LORA)],
    ids=lambda path: path and f"{path.parent.name}/{path.stem}",
)
def test_every_config_fits_on_the_machine_that_it_names(path, overlay, monkeypatch):
    monkeypatch.chdir(ROOT)
    shape = read_architecture(PUBLISHED[MODELS[path.parent.name]][1])
    machine = (64, 96) if "# 64 x H20 96 GB" in path.read_text() else (8, 80)
    found = make_job(read_config(path, overlay), *machine)
    assert 2 * shape.parameters / found.gpus < plan(shape, found).total < found.gpu_memory
    assert "fits" in command.report(shape, found)
    assert memory_plan.tokens_a_step(shape, found)["completion tokens"] > 0


def test_the_table_of_the_scaling_page_is_the_plan_of_the_configs(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "scaling.md").read_text()
    plans = [("cold_start", 8, 80), ("rejection_sampling", 8, 80), ("grpo_8gpu", 8, 80), ("grpo", 64, 96)]
    for family, name in MODELS.items():
        shape = read_architecture(PUBLISHED[name][1])
        jobs = [make_job(read_config(f"configs/{family}/{stem}.yaml", None), *on) for stem, *on in plans]
        peaks = " | ".join(f"{plan(shape, job).total / GIB:.1f}" for job in jobs)
        assert f"| `{family}` | {peaks} |" in page


def test_a_job_that_does_not_fit_says_what_to_change(told):
    config = ROOT / "configs" / "qwen2_5_vl_7b" / "grpo_8gpu.yaml"
    status, said = told(config, "--gpus", 8, "--gpu-memory", 40)
    flags = [line.split() for line in said.splitlines() if line.startswith("  --")]
    assert status == 1 and "does not fit" in said and flags
    changes = [word for line in flags for word in line[: line.index("->")]]
    assert told(config, "--gpus", 8, "--gpu-memory", 40, *changes)[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "must be above 0"),
        (["--gpus", "8", "--learning_rate", "1"], "learning_rate is no key that memory depends on"),
        (["--gpus", "8", "--frames"], "frames has no value"),
        (["--gpus", "8", "--frames", "many"], "frames takes a value like 8, found 'many'"),
        (["--gpus", "8", "--frames", "[4"], r"--frames \[4: not valid YAML"),
        (["--gpus", "8", "4"], "'4' does not belong to any key"),
        (["--gpus", "8", "--optim", "adafactor"], "optim: adafactor is not covered"),
        (["--gpus", "8", "--use_peft", "true", "--lora_target_modules", "all-linear"], "is not a list of layers"),
        (["--gpus", "8", "--max_pixels", "null"], "max_pixels is not set"),
    ],
)
def test_what_cannot_be_planned_is_refused(words, message, told):
    with pytest.raises(InputError, match=message):
        told(ROOT / "configs" / "qwen2_5_vl_7b" / "cold_start.yaml", *words)


def test_zero_stages_without_formulas_are_refused(told, tmp_path):
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    config = ROOT / "configs" / "qwen2_5_vl_7b" / "cold_start.yaml"
    with pytest.raises(InputError, match="ZeRO stage 2 is not covered"):
        told(config, "--gpus", "8", "--deepspeed", tmp_path / "zero2.json")
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read .* check the path"):
        told(tmp_path / "none.yaml", "--gpus", "8")
    (tmp_path / "list.yaml").write_text("- frames")
    with pytest.raises(InputError, match=r"list\.yaml: expected keys and values, found list"):
        told(tmp_path / "list.yaml", "--gpus", "8")


@pytest.mark.slow
def test_the_defaults_are_those_of_the_arguments():
    from trl import GRPOConfig, ModelConfig

    from unifiedreward_think.backends.choose import BackendArguments
    from unifiedreward_think.training.arguments import DataArguments, SharedPrefixArguments, TrainingExtras
    from unifiedreward_think.training.rejection_sampling import SamplingArguments

    theirs = {}
    own = (DataArguments, TrainingExtras, SharedPrefixArguments, SamplingArguments, BackendArguments)
    for kind in (GRPOConfig, ModelConfig, *own):
        for field in dataclasses.fields(kind):
            if field.name != "dtype" or kind is ModelConfig:
                theirs[field.name] = field.default
    # None stands for a choice that the arguments make when they are built.
    chosen = {"bf16": True, "gradient_checkpointing": True, "batch_size": 8, "tensor_parallel_size": 1}
    assert {name: chosen.get(name, theirs.get(name)) for name in DEFAULTS} == DEFAULTS
