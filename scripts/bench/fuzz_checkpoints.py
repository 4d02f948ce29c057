"""The fuzz target for folders of models (see fuzz.py): a sound one is loaded as it is, any other is refused by name.

checkpoints  tiny models of all families, in the layouts of keys that are read, in one file or several, in other dtypes;
             most are damaged: files gone, cut, swapped, empty, pointers of Git LFS; weights gone, renamed, of another
             shape, NaN, too many; settings of another model; templates and tokenizers that do not fit.

The reference compares the bytes of a folder with those of the whole one, with struct, json and numpy alone.
"""

import json
import random
import shutil
import struct
import traceback
from collections import Counter

import numpy as np

from unifiedreward_think.errors import InputError
from unifiedreward_think.models import tiny
from unifiedreward_think.models.loading import load_model, load_processor

__all__ = ["TARGETS", "fuzz"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 123456\n" % 0
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
TEMPLATE = "chat_template.jinja"
NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "depth", "num_key_value_heads")
MEANT = (*SIZES, "embed_dim", "patch_size", "image_token_id", "image_token_index", "text_config", "vision_config")
BESIDE = ("v_head.summary.weight", "score.weight", "rm_head.0.bias")  # heads of reward models


def read_weights(file):
    """Return key -> (dtype, array of float32) of a safetensors file; ValueError if it is no whole one."""
    data = file.read_bytes()
    if len(data) < 8 or (size := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        raise ValueError("no header")
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    head.pop("__metadata__", None)
    if sum(row["data_offsets"][1] - row["data_offsets"][0] for row in head.values()) != len(body):
        raise ValueError("not all of its data, or too much")
    found = {}
    for key, row in head.items():
        start, end = row["data_offsets"]
        raw = np.frombuffer(body[start:end], NUMBERS[row["dtype"]])
        wide = (raw.astype("<u4") << 16).view("<f4") if row["dtype"] == "BF16" else raw.astype("<f4")
        found[key] = row["dtype"], wide.reshape(row["shape"])
    return found


def write_weights(file, weights, metadata=True):
    """Write key -> (dtype, array) as a safetensors file."""
    head, body = {"__metadata__": {"format": "pt"}} if metadata else {}, b""
    for key, (dtype, values) in weights.items():
        if dtype == "BF16":
            raw = (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                raw = np.ascontiguousarray(values).astype(NUMBERS[dtype]).tobytes()
        head[key] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def all_weights(folder):
    """Return the weights of a folder in one file or several."""
    if (folder / WEIGHTS).exists():
        return read_weights(folder / WEIGHTS)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    return {key: row for name in sorted(set(places.values())) for key, row in read_weights(folder / name).items()}


class Whole:
    """A sound folder: what is in its files, and the names of its weights in memory."""

    def __init__(self, family, folder, *, tied=False):
        tiny.build(family, folder, corpus=["Which of Image 1 and Image 2 is better?", family])
        noise = np.random.default_rng(0)  # no two weights are equal, so that each can be told
        weights = all_weights(folder)
        weights = {key: (dtype, row + noise.normal(0, 0.02, row.shape)) for key, (dtype, row) in weights.items()}
        if tied:
            weights = {key: row for key, row in weights.items() if "lm_head" not in key}
            config = json.loads((folder / "config.json").read_text())
            config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
            (folder / "config.json").write_text(json.dumps(config))
        write_weights(folder / WEIGHTS, weights)
        self.folder, self.weights = folder, all_weights(folder)
        self.settings = {name: json.loads((folder / name).read_text()) for name in SETTINGS}
        self.template = (folder / TEMPLATE).read_text()
        places = {}
        for name, values in load_model(folder).state_dict().items():
            places.setdefault(values.numpy().tobytes(), name)
        self.names = {key: places[values.tobytes()] for key, (_, values) in self.weights.items()}

    def owns(self, key):
        """Whether a key begins as one of the model's: what begins otherwise is a head or a model beside it."""
        return key.split(".")[0] in {name.split(".")[0] for name in (*self.names, *self.names.values())}


def unsound(folder, whole):
    """Return what is wrong with a folder, told from its bytes alone; nothing if it is sound."""
    for name, wanted in whole.settings.items():
        if name == "generation_config.json" and not (folder / name).exists():
            continue
        try:
            found = json.loads((folder / name).read_bytes().decode())
            if name == "tokenizer_config.json":  # which names the processor, too, but does not choose it
                found, wanted = {**found, "processor_class": ""}, {**wanted, "processor_class": ""}
            if found != wanted:
                return f"{name} says something else"
        except (OSError, ValueError, TypeError) as error:
            return f"{name}: {error}"
    template = folder / TEMPLATE
    if not template.exists() or template.read_bytes().strip() != whole.template.encode().strip():
        return "another template"
    try:
        found = all_weights(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"weights: {error!r}"
    memory = {name: key for key, name in whole.names.items()}
    mine = {memory.get(key, key): row for key, row in found.items() if whole.owns(key)}
    if mine.keys() != whole.weights.keys():
        return f"keys {sorted(mine.keys() ^ whole.weights.keys())[:3]}"
    for key, (dtype, values) in mine.items():
        if values.shape != whole.weights[key][1].shape or not np.isfinite(values).all() or dtype == "I32":
            return f"{key} {dtype} {values.shape}"
    return ""


def change_file(folder, whole, others, chance):
    """Delete, cut, empty, rename or replace a file."""
    file = chance.choice([file for file in sorted(folder.iterdir()) if file.is_file()])
    data, kind = file.read_bytes(), chance.randrange(8)
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.rename(file.with_name(file.name + chance.choice((".bak", ".part", ".1"))))
    elif kind == 2:
        file.write_bytes(POINTER)
    elif kind == 3:
        file.write_bytes(data[: chance.randrange(len(data))])
    elif kind == 4:
        file.write_bytes(chance.choice((b"", b"[]", b"{}", b"null", b"<html>404</html>", chance.randbytes(200))))
    elif kind == 5:
        file.write_bytes(data + chance.choice((b"\0", b"}", b"trailing", chance.randbytes(9))))
    elif kind == 6:
        start = chance.randrange(min(len(data), 400))
        file.write_bytes(data[:start] + b"\xff\xfe" + data[start + 2 :])
    else:
        other = chance.choice(others)
        if (other.folder / file.name).exists():
            shutil.copy(other.folder / file.name, file)


def change_weights(folder, whole, others, chance):
    """Take weights away, rename, reshape, spoil or add some."""
    weights = all_weights(folder)
    key = chance.choice(sorted(weights))
    dtype, values = weights[key]
    kind = chance.randrange(9)
    if kind == 0:
        part = chance.choice((key, key.split(".")[0] + ".", ".layers.1.", ".blocks.0.", "vis"))
        weights = {name: row for name, row in weights.items() if part not in name}
    elif kind == 1:
        start = chance.choice(("module.", "base_model.model.", "_orig_mod.", "policy.", "student."))
        weights = {start + name: row for name, row in weights.items()}
    elif kind == 2:
        weights[key.replace("weight", "weights") + chance.choice(("", "_"))] = weights.pop(key)
    elif kind == 3:
        shapes = (values.T, values.reshape(-1), values[None], values[:-1], np.concatenate([values, values]))
        weights[key] = dtype, chance.choice(shapes)
    elif kind in (4, 5):
        spoilt = values.copy()
        spoilt.reshape(-1)[chance.randrange(values.size)] = chance.choice((np.nan, np.inf, -np.inf))
        weights[key] = dtype, spoilt
    elif kind == 6:
        parts = (key.replace(".1.", ".7."), key + ".lora_A.default.weight", key.replace("weight", "weight_scale"))
        weights[chance.choice(parts)] = dtype, values
    elif kind == 7:
        weights |= {name: row for name, row in chance.choice(others).weights.items() if chance.random() < 0.5}
    else:
        weights = chance.choice(others).weights
    put(folder, weights)


def change_settings(folder, whole, others, chance):
    """Change a size, a token or a name in the settings, or take it out."""
    name = chance.choice(("config.json", "config.json", "config.json", "tokenizer.json", "processor_config.json"))
    try:
        settings = json.loads((folder / name).read_bytes())
        if name == "tokenizer.json":
            pictures = [row for row in settings["added_tokens"] if "image" in row["content"]]
            settings["added_tokens"].remove(chance.choice(pictures))
        elif name == "processor_config.json":
            settings["processor_class"] = chance.choice(("LlavaProcessor", "Qwen2Tokenizer", "Nothing"))
            settings["image_processor"]["patch_size"] = 14
        else:
            parts = [part for part in (settings, settings.get("text_config"), settings.get("vision_config")) if part]
            part = chance.choice(parts)
            key = chance.choice([key for key in part if key in MEANT])
            number = part[key]
            values = ({}, None) if isinstance(number, dict) else (number * 2, number + 1, str(number), None, -1)
            part[key] = chance.choice(values)
            if chance.random() < 0.2:
                del part[key]
            if chance.random() < 0.2:
                settings["model_type"] = chance.choice((*tiny.FAMILIES, "qwen2", "llava_qwen", "", None, 7))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):  # damaged before
        return
    (folder / name).write_text(json.dumps(settings))


def change_layout(folder, whole, others, chance):
    """Write the same model in another way: key names, dtypes, files, a head beside it, what nobody reads."""
    weights, kind = all_weights(folder), chance.randrange(6)
    if kind == 0:
        weights = {whole.names.get(key, key): row for key, row in weights.items()}
    elif kind == 1:
        dtypes = chance.choice((["F16"], ["BF16"], ["F64"], ["F32", "BF16"]))
        weights = {key: (chance.choice(dtypes), values) for key, (_, values) in weights.items()}
    elif kind == 2:
        weights[chance.choice(BESIDE)] = "F32", np.ones((1, 64), "<f4")
    elif kind == 3:
        shards = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
        places = {key: chance.choice(shards) for key in weights}
        (folder / WEIGHTS).unlink(missing_ok=True)
        for shard in set(places.values()):
            write_weights(folder / shard, {key: row for key, row in weights.items() if places[key] == shard})
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return
    elif kind == 4:
        for name in SETTINGS:
            if (folder / name).exists() and chance.random() < 0.5:
                rows = list(json.loads((folder / name).read_bytes()).items())
                (folder / name).write_text(json.dumps(dict(rows[::-1]), indent=chance.choice((None, 1, 4))))
    else:
        (folder / "pytorch_model.bin").write_bytes(POINTER)
        (folder / "README.md").write_bytes(b"\xff")
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    put(folder, weights, metadata=chance.random() < 0.8)


def put(folder, weights, metadata=True):
    """Write the weights into one file, the only one."""
    for file in [*folder.glob("model*.safetensors"), *folder.glob(INDEX)]:
        file.unlink()
    write_weights(folder / WEIGHTS, weights, metadata)


def differs(model, folder, whole):
    """Return the weights of a loaded model that are not those in its files."""
    state, found = model.state_dict(), all_weights(folder)
    return [
        key
        for key, (_, values) in found.items()
        if whole.owns(key) and not np.array_equal(state[whole.names.get(key, key)].float().numpy(), values)
    ]


def checkpoints(count, chance, folder):
    """Yield (outcome, what went wrong, what was done) for folders of models."""
    families = [(family, False) for family in tiny.FAMILIES] + [("qwen2_5_vl", True)]
    wholes = [Whole(family, folder / f"{family}-{tied}", tied=tied) for family, tied in families]
    for _ in range(count):
        whole, made = chance.choice(wholes), folder / "made"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(whole.folder, made)
        changes = [change_layout] * chance.choice((0, 1, 1, 2))
        changes += chance.choices((change_file, change_weights, change_settings), k=chance.choice((0, 1, 1, 1)))
        for change in changes:
            change(made, whole, [other for other in wholes if other is not whole], chance)
        reason, names = unsound(made, whole), f"{whole.folder.name}: {[change.__name__ for change in changes]}"
        try:
            model = load_model(made)
            load_processor(made)
        except InputError as error:
            said = str(error)
            fine = reason and str(made) in said and "\n" not in said
            yield ("refused", "", names) if fine else ("wrong", f"{said!r}, but {reason or 'it is sound'}", names)
        except Exception:
            yield "crash", traceback.format_exc()[-1500:], f"{names} {reason}"
        else:
            wrong = reason or differs(model, made, whole)
            yield ("wrong", f"loaded, but {wrong}", names) if wrong else ("loaded", "", names)


TARGETS = {"checkpoints": checkpoints}


def fuzz(name, count, seed, folder, kept):
    """Load `count` folders and return the outcomes, and what crashed or was wrong."""
    chance, outcomes, faults = random.Random(f"{seed} {name}"), Counter(), []
    for outcome, why, data in TARGETS[name](count, chance, folder):
        outcomes["crash" if why else outcome] += 1
        if why and len(faults) < kept:
            faults.append({"error": why, "input": data})
    return dict(sorted(outcomes.items())), faults
