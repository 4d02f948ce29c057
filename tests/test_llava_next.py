"""A LLaVA-NeXT checkpoint becomes a LLaVA-OneVision folder with equal logits, or is refused by name."""

import json
import re
import sys

import pytest
from PIL import Image

from unifiedreward_think.errors import InputError
from unifiedreward_think.models import llava_next, tiny
from unifiedreward_think.models.loading import UnsupportedModelError, load_model, load_processor

CORPUS = ["Which of the two pictures is better? Image 1 is better"]
# fmt: off
TEXT_LAYER = [
    "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.k_proj.bias",
    "self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight", "mlp.gate_proj.weight",
    "mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
]
VISION_LAYER = [
    "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.k_proj.bias",
    "self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias",
    "layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias", "mlp.fc1.weight",
    "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
]
# fmt: on
SIGLIP = "model.vision_tower.vision_tower.vision_model"


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("onevision")
    tiny.build("llava_onevision", folder, corpus=CORPUS)
    model = load_model(folder).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start as zeros and norms as ones, which would hide a mix-up
            parameter.add_(torch.randn_like(parameter) / 20)
    return model


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    monkeypatch.setitem(llava_next.TOWERS, "siglip-tiny", (32, 64, 2, 2, 32, 8))


def llava_next_weights(model):
    """Return the model's weights under the names of LLaVA-NeXT."""
    text, tower = model.model.language_model, model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)  # transformers before 5.20
    projector = model.model.multi_modal_projector
    weights = {
        "lm_head.weight": model.lm_head.weight,
        "model.embed_tokens.weight": text.embed_tokens.weight,
        "model.norm.weight": text.norm.weight,
        "model.image_newline": model.model.image_newline,
        "model.mm_projector.0.weight": projector.linear_1.weight,
        "model.mm_projector.0.bias": projector.linear_1.bias,
        "model.mm_projector.2.weight": projector.linear_2.weight,
        "model.mm_projector.2.bias": projector.linear_2.bias,
        f"{SIGLIP}.embeddings.patch_embedding.weight": tower.embeddings.patch_embedding.weight,
        f"{SIGLIP}.embeddings.patch_embedding.bias": tower.embeddings.patch_embedding.bias,
        f"{SIGLIP}.embeddings.position_embedding.weight": tower.embeddings.position_embedding.weight,
        f"{SIGLIP}.post_layernorm.weight": tower.post_layernorm.weight,
        f"{SIGLIP}.post_layernorm.bias": tower.post_layernorm.bias,
    }
    for n, layer in enumerate(text.layers):
        weights |= {f"model.layers.{n}.{name}": layer.get_parameter(name) for name in TEXT_LAYER}
    for n, layer in enumerate(tower.encoder.layers):
        weights |= {f"{SIGLIP}.encoder.layers.{n}.{name}": layer.get_parameter(name) for name in VISION_LAYER}
    return {name: weight.detach().clone() for name, weight in weights.items()}


def llava_next_config(**changes):
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
        "mm_hidden_size": 32,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-tiny",
        "use_mm_proj": True,
    }
    return {key: value for key, value in {**config, **changes}.items() if value is not ...}


def write_checkpoint(folder, weights, *, shards=1, **changes):
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(llava_next_config(**changes)))
    # Without <image> and <video>, as the tokenizer that LLaVA-NeXT saves.
    tiny.train_tokenizer(CORPUS, ("<|im_start|>",)).save_pretrained(folder)
    names, weight_map = list(weights), {}
    for n in range(shards):
        part = {name: weights[name] for name in names[n::shards]}
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def row(processor, *sizes):
    pictures = [Image.effect_noise(size, 90 + n).convert("RGB") for n, size in enumerate(sizes)]
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": CORPUS[0]}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def assert_equal_logits(onevision, folder, *, vocabulary=None):
    import torch

    model, processor = load_model(folder).eval(), load_processor(folder)
    for sizes in [((40, 20), (24, 70)), ((90, 30),), ((30, 90),), ()]:
        inputs = row(processor, *sizes)
        assert (inputs["input_ids"] == model.config.image_token_id).any() == bool(sizes)
        with torch.no_grad():
            expected, logits = onevision(**inputs).logits, model(**inputs).logits
        assert torch.isfinite(logits).all() and logits.std() > 0.1
        assert torch.equal(logits[..., :vocabulary], expected[..., :vocabulary])


@pytest.mark.parametrize("shards", [1, 3])
def test_a_converted_checkpoint_has_the_logits_of_the_model_it_was_written_from(onevision, shards, tmp_path):
    source = write_checkpoint(tmp_path / "source", llava_next_weights(onevision), shards=shards)
    llava_next.convert(source, tmp_path / "out" / "hf")
    assert_equal_logits(onevision, tmp_path / "out" / "hf")
    converted = load_model(tmp_path / "out" / "hf").state_dict()
    assert converted.keys() == onevision.state_dict().keys()
    assert all(weight.equal(converted[name]) for name, weight in onevision.state_dict().items())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hf"]
    written = sorted(path.name for path in (tmp_path / "out" / "hf").glob("*.safetensors"))
    assert written == sorted(path.name for path in source.glob("*.safetensors"))


def test_the_layer_and_head_that_llava_next_deletes_and_old_buffers_are_left_out(onevision, tmp_path):
    import torch

    weights = llava_next_weights(onevision)
    weights |= {f"{SIGLIP}.encoder.layers.2.{name}": torch.ones(3) for name in VISION_LAYER}
    weights |= {f"{SIGLIP}.head.probe": torch.ones(1, 1, 32), f"{SIGLIP}.embeddings.position_ids": torch.arange(16)}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    # lmms-lab's releases name another model_type for the same layout.
    source = write_checkpoint(tmp_path / "source", weights, model_type="llava", mm_vision_tower="/data/siglip-tiny")
    llava_next.convert(source, tmp_path / "hf")
    assert_equal_logits(onevision, tmp_path / "hf")


def test_a_tied_output_head_may_be_absent(onevision, tmp_path):
    import copy

    tied = copy.deepcopy(onevision)
    tied.lm_head.weight = tied.model.language_model.embed_tokens.weight
    weights = llava_next_weights(tied)
    del weights["lm_head.weight"]
    llava_next.convert(write_checkpoint(tmp_path / "source", weights, tie_word_embeddings=True), tmp_path / "hf")
    assert_equal_logits(tied, tmp_path / "hf")


def test_an_embedding_without_room_for_the_picture_tokens_grows(onevision, tmp_path):
    weights = llava_next_weights(onevision)
    video = onevision.config.video_token_id
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:video].clone()
    llava_next.convert(write_checkpoint(tmp_path / "source", weights), tmp_path / "hf")
    assert load_model(tmp_path / "hf").config.text_config.vocab_size == video + 1
    assert_equal_logits(onevision, tmp_path / "hf", vocabulary=video)


def test_a_bfloat16_checkpoint_stays_bfloat16(onevision, tmp_path):
    import torch

    weights = {name: weight.bfloat16() for name, weight in llava_next_weights(onevision).items()}
    llava_next.convert(write_checkpoint(tmp_path / "source", weights, torch_dtype="bfloat16"), tmp_path / "hf")
    assert load_model(tmp_path / "hf").lm_head.weight.equal(weights["lm_head.weight"])
    assert load_model(tmp_path / "hf").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.image_newline",
        "model.mm_projector.2.bias",
        "model.layers.1.self_attn.k_proj.bias",
        f"{SIGLIP}.encoder.layers.1.mlp.fc2.weight",
    ],
)
def test_a_missing_weight_is_named_and_nothing_is_written(onevision, name, tmp_path):
    weights = llava_next_weights(onevision)
    del weights[name]
    source = write_checkpoint(tmp_path / "source", weights, shards=2)
    with pytest.raises(InputError, match=f"1 missing weight.*{re.escape(name)}"):
        llava_next.convert(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "name",
    [
        "model.faster_token",
        "model.vision_resampler.query",
        "model.layers.2.mlp.up_proj.weight",
        f"{SIGLIP}.encoder.layers.3.x",
    ],
)
def test_an_unknown_weight_is_named(onevision, name, tmp_path):
    weights = llava_next_weights(onevision)
    source = write_checkpoint(tmp_path / "source", {**weights, name: weights["model.norm.weight"].clone()})
    with pytest.raises(InputError, match=f"1 unknown weight.*{re.escape(name)}"):
        llava_next.convert(source, tmp_path / "hf")


def test_a_repeated_weight_and_a_weight_of_another_shape_are_named(onevision, tmp_path):
    weights = llava_next_weights(onevision)
    source = write_checkpoint(tmp_path / "source", weights)
    (source / "copy.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"repeated weight.*lm_head\.weight"):
        llava_next.convert(source, tmp_path / "hf")
    weights["model.mm_projector.0.weight"] = weights["model.mm_projector.0.weight"][:, :16].clone()
    source = write_checkpoint(tmp_path / "other", weights)
    with pytest.raises(InputError, match=r"mismatched.*multi_modal_projector\.linear_1\.weight"):
        llava_next.convert(source, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "source"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model_type", "qwen2_vl", "'qwen2_vl' is not llava_qwen"),
        ("mm_vision_tower", "openai/clip-vit-large-patch14-336", "known towers: siglip-so400m-patch14-384"),
        ("mm_projector_type", "mlp2x_res2x_gelu", "two linear layers"),
        ("mm_projector_type", ..., "two linear layers"),
        ("mm_patch_merge_type", "spatial_unpad_nobase", "unpads"),
        ("mm_patch_merge_type", "flat", "unpads"),
        ("mm_vision_select_layer", -1, "last but one"),
        ("mm_resampler_type", "spatial_pool", "no resampler"),
        ("mm_spatial_pool_mode", "average", "bilinear"),
        ("mm_newline_position", "grid", "one image_newline behind a whole video"),
        ("add_faster_video", True, "coarser"),
        ("mm_use_im_start_end", True, "marker tokens"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "ignores the option"),
        ("image_aspect_ratio", "anyres", "anyres_max_N"),
        ("image_aspect_ratio", "pad", "anyres_max_N"),
        ("image_grid_pinpoints", "(1x1),...,(6x6)", "list of sizes"),
        ("rope_theta", ..., "is needed"),
        ("mm_new_trick", 3, "unknown"),
    ],
)
def test_an_option_that_llava_onevision_does_not_have_is_refused_by_name(key, value, reason, tmp_path):
    changes = {"architectures": ["X"]} if key == "model_type" else {}
    source = write_checkpoint(tmp_path / "source", {}, **{key: value}, **changes)
    with pytest.raises(UnsupportedModelError, match=f"{key}.*{reason}"):
        llava_next.convert(source, tmp_path / "hf")


def test_what_is_not_a_checkpoint_or_would_be_overwritten_is_refused(onevision, tmp_path):
    source = write_checkpoint(tmp_path / "source", llava_next_weights(onevision))
    with pytest.raises(InputError, match="source holds files"):
        llava_next.convert(source, source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        llava_next.convert(source, tmp_path / "hf")
    with pytest.raises(UnsupportedModelError, match=r"python -m unifiedreward_think\.models\.llava_next"):
        load_model(source)


def test_tile_grids_change_from_width_height_to_height_width(onevision, tmp_path):
    source = write_checkpoint(tmp_path / "source", llava_next_weights(onevision), image_grid_pinpoints=[[64, 32]])
    llava_next.convert(source, tmp_path / "hf")
    processor = load_processor(tmp_path / "hf")
    assert processor.image_processor.image_grid_pinpoints == load_model(tmp_path / "hf").config.image_grid_pinpoints
    # A wide picture fills the two tiles side by side: 4 rows of 8 patches and a newline, behind the 16 of the overview.
    ids = row(processor, (64, 32))["input_ids"]
    assert (ids == processor.image_token_id).sum() == 16 + 4 * (8 + 1)


def test_the_command_line_converts_and_a_prompt_starts_as_in_training(onevision, monkeypatch, capsys, tmp_path):
    source = write_checkpoint(tmp_path / "source", llava_next_weights(onevision))
    (source / "generation_config.json").write_text(json.dumps({"do_sample": True, "repetition_penalty": 1.05}))
    argv = ["llava_next", "--input", str(source), "--output", str(tmp_path / "hf")]
    monkeypatch.setattr(sys, "argv", argv)
    llava_next.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "hf")
    processor, generation = load_processor(tmp_path / "hf"), load_model(tmp_path / "hf").generation_config
    messages = [{"role": "user", "content": "Hello"}]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    user = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == system + user
    own = [{"role": "system", "content": "Judge."}, *messages]
    assert processor.apply_chat_template(own).startswith("<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user")
    assert generation.repetition_penalty == 1.05 and not generation.do_sample
    assert processor.tokenizer.convert_ids_to_tokens(generation.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]


def test_qwen2s_real_tokenizer_gets_the_token_ids_of_the_published_conversion(onevision, test_data, tmp_path):
    from transformers import Qwen2Tokenizer

    common, published = (test_data / "qwen_processors" / name for name in ("common", "llava-onevision-qwen2-7b-ov-hf"))
    specials = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab=str(common / "vocab.json"),
        merges=str(common / "merges.txt"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens(["<|endoftext|>", *specials], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = write_checkpoint(tmp_path / "source", llava_next_weights(onevision))
    llava_next.convert(source, tmp_path / "hf", processor=tmp_path / "tokenizer")
    config, expected = load_model(tmp_path / "hf").config, json.loads((published / "config.json").read_text())
    for key in ("image_token_index", "video_token_index"):
        assert getattr(config, key) == expected[key]


def test_the_real_tower_gets_the_settings_of_the_published_conversion(test_data, tmp_path):
    published = test_data / "qwen_processors" / "llava-onevision-qwen2-7b-ov-hf"
    files = ("config.json", "preprocessor_config.json", "processor_config.json")
    model, pictures, processor = (json.loads((published / file).read_text()) for file in files)
    changes = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_hidden_size": 1152}
    grids = [[w, h] for w in range(384, 2305, 384) for h in range(384, 2305, 384)]
    source = write_checkpoint(tmp_path / "source", {}, image_grid_pinpoints=grids, **changes)
    config = llava_next.read_config(source)
    llava_next.write_processor(tmp_path, config, tiny.train_tokenizer(CORPUS, tiny.LLAVA_SPECIALS))
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert sorted(written["image_processor"].pop("image_grid_pinpoints")) == sorted(pictures["image_grid_pinpoints"])
    assert written["image_processor"].items() <= pictures.items()
    for key in ("num_image_tokens", "vision_feature_select_strategy", "image_token", "video_token"):
        assert written[key] == processor[key]
    assert {**config["tower"], "model_type": "siglip_vision_model", "vision_use_head": False} == model["vision_config"]
