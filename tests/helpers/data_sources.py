"""Tiny files in the layout of every public source: the right keys and types, invented values, drawn pictures."""

import io
import json
import zipfile

import pyarrow as pa
from PIL import Image, ImageDraw
from pyarrow import parquet

PAIRS = 12


def picture(seed, size=(48, 40)):
    """A drawing that differs clearly from that of another seed."""
    image = Image.new("RGB", size, ((seed * 67) % 256, (seed * 131 + 60) % 256, (seed * 29 + 120) % 256))
    draw = ImageDraw.Draw(image)
    for k in range(4):
        x, y = (seed * (17 + 7 * k)) % (size[0] - 12), (seed * (31 + 5 * k)) % (size[1] - 12)
        draw.rectangle((x, y, x + 5 + (seed + k) % 9, y + 9), fill=((seed * 53 + 80 * k) % 256, 255 - 60 * k, 40 * k))
    return image


def png(seed, size=(48, 40)):
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, format="PNG")
    return buffer.getvalue()


def image(seed):
    """A picture as the parquet files of the Hub hold it."""
    return {"bytes": png(seed), "path": None}


def save_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def save_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def save_pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i + 1))


def hpd(root):
    rows = [
        {
            "prompt": f"a fox reading map {i}",
            "image1": image(2 * i),
            "image2": image(2 * i + 1),
            "votes_image1": 19 if i % 3 else 4,
            "votes_image2": 7,
            "model1": "flux-1-pro",
            "model2": "dalle-3",
            "detailed_results": "[]",
            "image1_path": "a.png",
            "image2_path": "b.png",
        }
        for i in range(PAIRS)
    ]
    return save_parquet(root / "train_0001.parquet", rows), None


def hpdv2_train(root):
    save_pictures(root / "train", [f"{i:08d}.jpg" for i in range(2 * PAIRS)])
    rows = [
        {
            "human_preference": [0, 1] if i % 2 else [1, 0],
            "prompt": f"an old tram at dusk {i}",
            "file_path": [f"{2 * i:08d}.jpg", f"{2 * i + 1:08d}.jpg"],
        }
        for i in range(PAIRS)
    ]
    return save_json(root / "train.json", rows), None


def hpdv2_test(root):
    save_pictures(root / "test", [f"{i:08d}.jpg" for i in range(12)])
    rows = [
        {
            "prompt": f"a glass owl {i}",
            "image_path": [f"{3 * i + k:08d}.jpg" for k in range(3)],
            "rank": [2, 1, 3],
            "raw_annotations": [{"rank": [2, 1, 3], "user_hash": "ab12"}],
        }
        for i in range(4)
    ]
    return save_json(root / "test.json", rows), None


def open_image_preferences(root):
    rows = [
        {
            "id": f"{4711 + i // 2}-{'quality' if i % 2 else 'simplified'}",
            "prompt": f"pixel art lighthouse {i}",
            "chosen": image(2 * i),
            "rejected": image(2 * i + 1),
            "chosen_model": "black-forest-labs/FLUX.1-dev",
            "rejected_model": "stabilityai/stable-diffusion-3.5-large",
            "evolution": "quality",
            "category": "Pixel art",
            "sub_category": "8-bit graphics",
        }
        for i in range(PAIRS)
    ]
    return save_parquet(root / "train-00000-of-00005.parquet", rows), None


def evalmuse(root):
    rows = [
        {
            "prompt_id": f"{i:05d}",
            "prompt": f"three green apples {i}",
            "type": "synthetic",
            "img_path": f"model-{k}/{i:05d}.jpg",
            "total_score": [k + 1, k + 1, k + 2] if i % 2 else float(k + 1),
            "element_score": {"apples (food)": [1, 1, 1]},
            "promt_meaningless": [0, 0, 0],
            "split_confidence": [0, 0, 0],
            "attribute_confidence": [1, 1, 1],
            "fidelity_label": ["..."],
        }
        for i in range(PAIRS)
        for k in range(3)
    ]
    names = [row["img_path"] for row in rows]
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(f"images/{name}", png(i + 1))
    return save_json(root / "train_list.json", rows), None


def openai_4o(root):
    rows = []
    for i in range(PAIRS):
        row = {"prompt": f"a cat with two tails {i}", "image1": image(2 * i), "image2": image(2 * i + 1)}
        for metric, weight in (("preference", 0.31), ("coherence", 0.45), ("alignment", 0.5)):
            row[f"weighted_results_image1_{metric}"] = weight
            row[f"weighted_results_image2_{metric}"] = 1 - weight
            row[f"detailed_results_{metric}"] = "[]"
        rows.append({**row, "model1": "imagen-3", "model2": "4o-26-3-25"})
    return save_parquet(root / "train-00000-of-00001.parquet", rows), None


def videodpo(root):
    clips = [{"basic": {"clip_path": f"clips/{i:03d}.mp4", "clip_duration": 2.0}, "misc": {}} for i in range(2 * PAIRS)]
    short = {"basic": {"clip_path": "clips/short.mp4", "clip_duration": 0.5}, "misc": {"frame_caption": ["short"]}}
    save_json(root / "metadata.json", [short, *clips])
    save_pictures(root / "clips", [f"{i:03d}.mp4" for i in range(2 * PAIRS)])
    rows = [
        {"video1": 2 * i, "video2": 2 * i + 1, "frame_caption": [f"a surfer {i}"], "label": 0, "score": 0.64}
        for i in range(PAIRS)
    ]
    return save_json(root / "pair.json", rows), None


def text2video(root):
    save_pictures(root / "Videos", [f"{i:04d}_{m}.mp4" for i in range(PAIRS) for m in ("sora", "hunyuan")])
    rows = [
        {
            "prompt": f"a paper boat in a gutter {i}",
            "file_name1": f"{i:04d}_sora.mp4",
            "file_name2": f"{i:04d}_hunyuan.mp4",
            "weighted_results1_Preference": 0.62,
            "weighted_results2_Preference": 0.38,
            "weighted_results1_Coherence": 0.2,
            "weighted_results2_Coherence": 0.8,
            "detailedResults_Preference": "[]",
        }
        for i in range(PAIRS)
    ]
    return save_parquet(root / "data" / "train-00000-of-00001.parquet", rows), root


def llava_critic(root):
    forms = (
        ("The first response", "The second response", "The better response: [1]"),
        ("Response 1", "Response 2", "... The better response: [first]. It is clearer."),
        ("Response A", "Response B", "Both are fine; they are equally good"),
    )
    rows = []
    for i in range(PAIRS):
        first, second, said = forms[i % 3]
        asked = (
            f"<image>\nYou are a judge. Question: [What is on table {i}?]\n"
            f"{first}: [A [red] cup {i}.]\n{second}: [A blue [old] cup {i}.]\nASSISTANT:"
        )
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
        rows.append({"id": f"vlfeedback_{i}", "source": "vlfeedback", "conversations": turns, "image": image(i)})
    return save_parquet(root / "pairwise" / "train-00000-of-00005.parquet", rows), None


def sharegptvideo_dpo(root):
    lines = []
    for i in range(PAIRS):
        save_pictures(root / f"v_ab{i}", ["c01_0001.jpeg", "c01_0002.jpeg", "c01_0010.jpeg"])
        row = {
            "id": f"v_ab{i}-3",
            "video": f"v_ab{i}",
            "prompt": f"<video>\nWhat does man {i} lift?",
            "answer": "A box.",
        }
        chosen = {"value": f"A box {i}."} if i % 2 else f"A box {i}."
        lines.append({**row, "chosen": chosen, "rejected": f"A chair {i}.", "chosen_score": 5, "rejected_score": 2})
    file = root / "sft_dpo_17k.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file, None


COT = (
    "<think>\n1. Aesthetics: Image 1 (4/10); Image 2 (9/10)\nTotal score:\nImage 1: 4=4\nImage 2: 9=9\n</think>\n"
    "<answer>Image 2 is better</answer>"
)


def imagegen_cot_reward_5k(root):
    save_pictures(root / "images", [f"{i:06d}_{side}.jpg" for i in range(PAIRS) for side in "ab"])
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"<image><image>Given a caption ...\nText Caption: [a red [old] kite {i}]"},
                {"from": "gpt", "value": COT},
            ],
            "images": [f"images/{i:06d}_a.jpg", f"images/{i:06d}_b.jpg"],
        }
        for i in range(PAIRS)
    ]
    return save_json(root / "train_data.json", rows), None


def released(root):
    save_pictures(root / "v", [f"{i:02d}_{k}.jpg" for i in range(PAIRS) for k in range(4)])
    rows = [
        {
            "problem": f"<image><image><image><image>Which fits? Text Caption: [a boat {i}]",
            "solution": f"Video {i % 2 + 1} is better",
            "images": [f"v/{i:02d}_{k}.jpg" for k in range(4)],
        }
        for i in range(PAIRS)
    ]
    return save_json(root / "grpo_train_data.json", rows), None


def _unifiedreward_v1(root, noun, frames):
    names = [[f"images/{i}_{k}.jpg" for k in range(2 * frames)] for i in range(PAIRS)]
    save_pictures(root, [name for files in names for name in files])
    rows = []
    for i, files in enumerate(names):
        said = f"The details are sharper. {noun} {'one' if i % 2 else 1} is better than {noun} {'two' if i % 2 else 2}."
        human = {"from": "human", "value": f"Which is better?\nText Caption: [a bee {i}]"}
        rows.append({"conversations": [human, {"from": "gpt", "value": said}], "images": files})
    return save_json(root / "train_data.json", rows), None


def unifiedreward_v1_images(root):
    return _unifiedreward_v1(root, "image", 1)


def unifiedreward_v1_videos(root):
    return _unifiedreward_v1(root, "Video", 3)


def videofeedback_points(root):
    names = (
        "visual quality",
        "temporal consistency",
        "dynamic degree",
        "text-to-video alignment",
        "factual consistency",
    )
    rows = []
    for i in range(PAIRS):
        frames = [f"frames/{i:03d}/{k}.jpg" for k in range(4)]
        save_pictures(root, frames)
        said = "\n".join(f"{name}: {1 + (i + k) % 4}" for k, name in enumerate(names))
        turns = [{"from": "human", "value": f"<image><image><image><image>\nText Caption: [a [red] surfer {i}]"}]
        rows.append({"conversations": [*turns, {"from": "gpt", "value": said}], "images": frames})
    return save_json(root / "train_data.json", rows), None


def llava_critic_points(root):
    rows = []
    for i in range(PAIRS):
        asked = f"<image>\nJudge. Question: [What is on table {i}?] Response: [A [red] cup {i}.]\nASSISTANT:"
        said = f"It names 1 of 2 things.\nFinal Score: {5 * i}{'.5' if i % 2 else ''}"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
        rows.append({"id": f"c_{i}", "source": "c", "conversations": turns, "image": image(i)})
    for said in ("8 7\nThe first is better.", "My verdict: [[A>>B]]"):
        turns = [{"from": "human", "value": "<image>[Question] What? [Assistant 1] .."}, {"from": "gpt", "value": said}]
        rows.append({"id": "p", "source": "p", "conversations": turns, "image": image(0)})
    return save_parquet(root / "pointwise" / "train-00000-of-00006.parquet", rows), None


def own_data(root):
    save_pictures(root / "kite", [f"{i}_{side}.png" for i in range(PAIRS) for side in "ab"])
    lines = ["prompt,image_a,image_b,winner"]
    lines += [f'"a kite, number {i}",kite/{i}_a.png,kite/{i}_b.png,{("a", "b", "tie")[i % 3]}' for i in range(PAIRS)]
    file = root / "pairs.csv"
    file.write_text("\n".join(lines) + "\n")
    return file, None


# Source -> what makes its files: (input, media root or None for the input's own folder); how many pairs come out, and
# how often the candidate that the source lists first is preferred.
SOURCES = {
    "hpd": (hpd, 12, 8),
    "hpdv2_train": (hpdv2_train, 12, 6),
    "hpdv2_test": (hpdv2_test, 12, 8),
    "open_image_preferences": (open_image_preferences, 12, 12),
    "evalmuse": (evalmuse, 12, 12),
    "openai_4o": (openai_4o, 12, 0),
    "videodpo": (videodpo, 12, 12),
    "text2video": (text2video, 12, 12),
    "llava_critic": (llava_critic, 12, 8),
    "sharegptvideo_dpo": (sharegptvideo_dpo, 12, 12),
    "imagegen_cot_reward_5k": (imagegen_cot_reward_5k, 12, 0),
    "released": (released, 12, 6),
    "unifiedreward_v1_images": (unifiedreward_v1_images, 12, 12),
    "unifiedreward_v1_videos": (unifiedreward_v1_videos, 12, 12),
    "own_data": (own_data, 12, 4),
    "evalmuse_points": (evalmuse, 36, 0),
    "videofeedback_points": (videofeedback_points, 12, 0),
    "llava_critic_points": (llava_critic_points, 12, 0),
    "sharegptvideo_points": (sharegptvideo_dpo, 12, 12),
}
