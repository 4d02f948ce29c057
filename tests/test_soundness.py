"""A loaded model is complete, finite and of the expected family, and its processor its own: in every command."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.processes import REPO, checked, free_port
from helpers.stages import train_sft, weights
from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.backends.vllm import VllmBackend
from unifiedreward_think.errors import InputError
from unifiedreward_think.models import tiny
from unifiedreward_think.models.adapters import AdapterError
from unifiedreward_think.models.loading import UnsupportedModelError, load_model, load_processor, must_be_sound
from unifiedreward_think.models.soundness import BrokenModelError, must_be_finite

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def copied(models, tmp_path):
    """A copy of a tiny model's folder."""

    def copy(family="qwen2_5_vl"):
        folder = tmp_path / family
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(models[family], folder)

    return copy


def change(folder, edit):
    """Rewrite the weights of a folder as `edit` returns them."""
    save_file(edit(weights(folder)), folder / "model.safetensors", {"format": "pt"})


def change_config(folder, *path, **changes):
    config = json.loads((folder / "config.json").read_text())
    part = config
    for name in path:
        part = part[name]
    part.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def without(part):
    return lambda found: {key: value for key, value in found.items() if part not in key}


def prefixed(start):
    return lambda found: {start + key: value for key, value in found.items()}


def spoilt(value, part="embed_tokens"):
    """One number of one weight is not finite, the last one."""

    def edit(found):
        key = next(key for key in found if part in key)
        found[key].view(-1)[-1] = value
        return found

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            without("visual."),
            r"lacks \d+ of the model's \d+ weights \(model\.visual\.\S+, .*\.\.\.\); download or save it",
        ),
        (without("layers.1."), r"lacks \d+ of the model's \d+ weights \(model\.language_model\.layers\.1\."),
        (without("lm_head"), r"lacks 1 of the model's \d+ weights \(lm_head\.weight\)"),
        (prefixed("module."), r"lacks .*; \d+ keys begin with module\.: save the model out of its wrapper"),
        (prefixed("base_model.model."), r"lacks .*; \d+ keys begin with base_model\.model\.: save"),
        (prefixed("policy."), r"lacks .*; \d+ keys begin with policy\.: save"),
        (spoilt(float("nan")), r"1 weights hold NaN or infinity in float32 \(model\.\S*embed_tokens\.weight\)"),
        (spoilt(-float("inf"), "visual."), r"1 weights hold NaN or infinity in float32 \(model\.visual\."),
    ],
)
def test_weights_that_are_missing_or_not_finite_are_named_with_the_fix(edit, said, copied):
    for family in tiny.FAMILIES if "visual" not in said else ("qwen2_5_vl",):
        folder = copied(family)
        change(folder, edit)
        with pytest.raises(BrokenModelError, match=rf"{folder}: {said}"):
            load_model(folder)


@pytest.mark.parametrize("edit", [without("visual."), prefixed("module."), spoilt(float("nan"))])
def test_every_command_refuses_such_a_model(edit, copied, toy_data, tmp_path):
    folder = copied()
    change(folder, edit)
    for load in (load_model, TransformersBackend, VllmBackend, must_be_sound):
        with pytest.raises(BrokenModelError, match=rf"{folder}\S*: "):
            load(str(folder))
    with pytest.raises(BrokenModelError, match=rf"{folder}: "):
        train_sft(folder, toy_data, tmp_path / "run")


def test_a_command_ends_in_one_line(copied, toy_data, tmp_path):
    folder = copied()
    change(folder, without("visual."))
    command = [
        sys.executable,
        "inference/image_generation.py",
        "--model",
        folder,
        "--input",
        toy_data / "heldout.jsonl",
    ]
    said = checked([*command, "--output", tmp_path / "out.jsonl", "--device", "cpu"], fails=True)
    assert "Traceback" not in said and said.splitlines()[-1].startswith(f"error: {folder}: lacks ")


def test_what_is_random_in_stock_transformers_is_not_run(copied):
    from transformers import AutoModelForImageTextToText

    folder = copied()
    change(folder, without("visual."))
    stock = AutoModelForImageTextToText.from_pretrained(folder)  # no error
    assert not stock.model.visual.patch_embed.proj.weight.isnan().any()
    with pytest.raises(BrokenModelError):
        load_model(folder)


def test_an_adapter_that_was_not_merged_is_told_by_its_keys(copied):
    def edit(found):
        key = next(key for key in found if key.endswith("q_proj.weight"))
        stem = key.removesuffix(".weight")
        found[f"{stem}.base_layer.weight"] = found.pop(key)
        return {**found, f"{stem}.lora_A.default.weight": torch.zeros(4, 64)}

    folder = copied()
    change(folder, edit)
    with pytest.raises(BrokenModelError, match=r"lacks 1 of .* its LoRA adapter was not merged: .* merge_and_unload"):
        load_model(folder)


def test_weights_or_settings_of_another_size_are_refused(copied, tmp_path):
    folder = copied()
    change(folder, lambda found: {**found, "lm_head.weight": found["lm_head.weight"][:-1].clone()})
    said = r"1 weights of another shape \(lm_head\.weight has the shape \(319, 64\), config\.json wants \(320, 64\)\)"
    with pytest.raises(BrokenModelError, match=said):
        load_model(folder)
    change_config(copied(), "text_config", num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(BrokenModelError, match=r"config\.json has no place for 12 weights .*put back the config\.json"):
        load_model(folder)
    change_config(copied(), "text_config", vocab_size=2**40)  # is not even tried in memory
    with pytest.raises(BrokenModelError, match="of another shape"):
        load_model(folder)


def test_a_head_beside_the_model_is_left_out_with_a_note(copied, models, capsys):
    folder = copied()
    change(folder, lambda found: {**found, "v_head.summary.weight": torch.ones(1, 64)})
    loaded = load_model(folder)
    assert f"{folder}: 1 weights beside the model are not used (v_head.summary.weight)" in capsys.readouterr().err
    assert all(
        value.equal(loaded.state_dict()[key]) for key, value in load_model(models["qwen2_5_vl"]).state_dict().items()
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_key_names_of_all_layouts_files_and_dtypes_are_read(family, copied, models):
    folder, whole = copied(family), load_model(models[family])
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    assert sorted(weights(folder)) != sorted(state) or family in ("qwen3_vl", "qwen3_5")
    change(folder, lambda found: {key: value.bfloat16() for key, value in state.items()})  # the names in memory
    assert all(
        torch.equal(value, state[key].bfloat16().float()) for key, value in load_model(folder).state_dict().items()
    )
    whole.save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert all(value.equal(state[key]) for key, value in load_model(folder).state_dict().items())
    must_be_sound(folder)


def test_a_tied_head_is_not_missing(copied):
    folder = copied()
    change_config(folder, tie_word_embeddings=True)
    change_config(folder, "text_config", tie_word_embeddings=True)
    change(folder, without("lm_head"))
    loaded = load_model(folder)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight


def test_weights_too_large_for_the_dtype_are_refused(copied):
    folder = copied()
    change(folder, spoilt(1e6))
    assert load_model(folder, dtype="bfloat16")
    with pytest.raises(BrokenModelError, match="hold NaN or infinity in float16"):
        load_model(folder, dtype="float16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_finite_weights_pass_whatever_they_sum_up_to(dtype):
    large = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    must_be_finite([("large", large), ("empty", large[:0]), ("whole numbers", torch.arange(3))], "here")
    for value in (float("nan"), *([float("inf")] if dtype != torch.float8_e4m3fn else [])):
        spoilt = large.clone()
        spoilt[999] = value
        with pytest.raises(BrokenModelError, match=r"here: 1 weights hold .*\(spoilt\)"):
            must_be_finite([("large", large), ("spoilt", spoilt)], "here")


FILES = [
    ("model.safetensors", POINTER, "a pointer of Git LFS, not the file; run git lfs pull"),
    ("model.safetensors", 5000, "cut short or damaged"),
    ("model.safetensors", "", "cut short or damaged"),
    ("model.safetensors", None, "cannot be loaded .*no file named model.safetensors"),
    ("config.json", 300, "not valid JSON"),
    ("config.json", "[]", "it holds list, not an object"),
    ("generation_config.json", 20, "not valid JSON"),
    ("generation_config.json", "{}", "no eos_token_id"),
    ("tokenizer.json", None, "no tokenizer.json or vocab.json; copy the tokenizer"),
    ("tokenizer.json", POINTER, "a pointer of Git LFS"),
    ("tokenizer_config.json", None, "no tokenizer_config.json; copy"),
    ("tokenizer_config.json", "{}", "it has no tokenizer_class"),
    ("processor_config.json", None, "no processor_config.json or preprocessor_config.json; copy"),
    ("chat_template.jinja", None, "no chat template"),
    ("chat_template.jinja", POINTER, "does not show one picture and one text"),
    ("chat_template.jinja", 700, "its chat template cannot be loaded .*TemplateSyntaxError"),
    ("chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}", "does not show one picture"),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_damaged_file_is_named_in_one_line_with_the_fix(family, name, content, said, copied):
    folder = copied(family)
    if content is None:
        (folder / name).unlink()
    elif isinstance(content, int):
        (folder / name).write_bytes((folder / name).read_bytes()[:content])
    else:
        (folder / name).write_text(content)
    with pytest.raises(BrokenModelError, match=said) as caught:
        load_model(folder)
        load_processor(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=said):
        VllmBackend(str(folder))


def test_a_shard_that_is_gone_and_an_index_that_is_none_are_named(copied):
    folder = copied()
    load_model(folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink()
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.rename(folder / "elsewhere")
    with pytest.raises(BrokenModelError, match=rf"{gone}: cannot be read \(No such file or directory\); download"):
        load_model(folder)
    (folder / INDEX).write_text('{"weight_map": {"lm_head.weight": 3}}')
    with pytest.raises(BrokenModelError, match=rf"{folder / INDEX}: weight_map is no table"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "other", "said"),
    [
        ("processor_config.json", "qwen3_vl", "the processor is Qwen3VLProcessor, not Qwen2_5_VLProcessor"),
        ("tokenizer.json", "llava_onevision", r"<\|image_pad\|> is not the token \d+, which stands for pictures"),
        ("tokenizer_config.json", "llava_onevision", r"tokenizer\.json lacks special tokens .*\(<image>, <video>\)"),
        ("chat_template.jinja", "llava_onevision", "does not show one picture"),
        ("config.json", "qwen3_vl", "lacks"),
    ],
)
def test_files_of_another_family_are_refused(file, other, said, copied, models):
    folder = copied()
    shutil.copy(models[other] / file, folder / file)
    with pytest.raises(BrokenModelError, match=said):
        load_model(folder)
        load_processor(folder)


@pytest.mark.parametrize(
    ("library", "settings"), [("gptqmodel", {"quant_method": "awq"}), ("hqq", {"quant_method": "hqq"})]
)
def test_a_quantized_model_without_its_library_names_it(library, settings, copied):
    folder = copied()
    change_config(folder, quantization_config={**settings, "bits": 4, "group_size": 128})
    with pytest.raises(
        BrokenModelError, match=rf"(?i)cannot be loaded \(ImportError: .*{library}.*; install what it needs"
    ):
        load_model(folder)


@pytest.mark.parametrize("family", [["qwen2_vl"], 7, "", None])
def test_a_model_type_that_is_no_name_is_refused(family, copied):
    folder = copied()
    change_config(folder, model_type=family)
    with pytest.raises(UnsupportedModelError, match="is not supported; supported: "):
        load_model(folder)


def test_an_adapter_that_is_damaged_or_not_finite_is_refused(models, toy_data, tmp_path):
    lora = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}
    train_sft(models["qwen3_vl"], toy_data, tmp_path / "run", lora=lora, max_steps=1)
    adapter = tmp_path / "run" / "adapter"
    file = adapter / "adapter_model.safetensors"
    whole, found = file.read_bytes(), load_file(file)
    key = next(iter(found))
    found[key][0, 0] = float("nan")
    save_file(found, file)
    with pytest.raises(BrokenModelError, match=rf"{adapter}: 1 weights hold NaN or infinity in float32 \({key}\)"):
        load_model(adapter)
    for content, said in ((whole[:-10], "cut short or damaged"), (POINTER.encode(), "a pointer of Git LFS")):
        file.write_bytes(content)
        with pytest.raises(BrokenModelError, match=rf"{file}: {said}"):
            load_model(adapter)
    file.unlink()
    with pytest.raises(BrokenModelError, match=rf"{adapter}: the adapter cannot be loaded"):
        load_model(adapter)
    file.write_bytes(whole)
    assert load_model(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(BrokenModelError, match=r"adapter_config\.json: not valid JSON"):
        load_model(adapter)
    shutil.copytree(models["qwen3_vl"], tmp_path / "base")
    change(tmp_path / "base", without("visual."))
    settings = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=r"the base of this adapter cannot be loaded: .* lacks "):
        load_model(adapter)


def test_a_run_does_not_go_on_from_a_checkpoint_that_lacks_weights(models, toy_data, tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    train_sft(models["qwen2_5_vl"], toy_data, tmp_path, **options)
    checkpoint = tmp_path / "checkpoint-1"
    for edit, said in ((without("layers.1."), "lacks 12 of"), (spoilt(float("nan")), "hold NaN")):
        kept = (checkpoint / "model.safetensors").read_bytes()
        change(checkpoint, edit)
        with pytest.raises(BrokenModelError, match=rf"{checkpoint}: .*{said}"):
            train_sft(models["qwen2_5_vl"], toy_data, tmp_path, checkpoint=str(checkpoint), **options)
        (checkpoint / "model.safetensors").write_bytes(kept)


@pytest.mark.slow
def test_all_ranks_of_zero3_refuse_the_same(copied, models, tmp_path):
    """Rank 0 alone reads the values there, and transformers tells neither shapes nor what is too much."""
    edits = {
        "missing": without("visual."),
        "prefixed": prefixed("module."),
        "shape": lambda found: {**found, "lm_head.weight": found["lm_head.weight"][:-1].clone()},
        "surplus": lambda found: found | {key.replace("s.1.", "s.7."): value.clone() for key, value in found.items()},
        "first half": lambda found: {
            **found,
            "lm_head.weight": found["lm_head.weight"].index_fill(0, torch.tensor(0), torch.nan),
        },
        "second half": spoilt(float("nan"), "lm_head"),
    }
    for name, edit in edits.items():
        change(copied(), edit)
        (tmp_path / "qwen2_5_vl").rename(tmp_path / name)
    folders = [*(tmp_path / name for name in edits), models["qwen2_5_vl"]]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    checked([*launch, REPO / "tests" / "helpers" / "zero3_broken.py", tmp_path, *folders])
    one, two = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    wanted = ["lacks", "begin with module", "another shape", "no place for", "hold NaN", "hold NaN", "loaded"]
    assert all(said in found for said, found in zip(wanted, one, strict=True)), one
