"""CPU time, work and memory of a GRPO step: the published trainer's algorithm, TRL's passes, and shared prefixes.

    python scripts/bench/grpo_step.py --values 24 64 160 --output steps.json
    python scripts/bench/grpo_step.py --impl trl,ours --vary group --values 2 4 8 --output curve.json --plot curve.png

`original` is our transcription of the published trainer: pixel values and prompt repeated for each completion in every
pass, full-vocabulary logits of all positions. All start from one random Qwen2.5-VL (or one at --model), see the same
pictures and draw from the same seeds, so their losses must agree: a time without its `equal` field is void. The first
step of each process warms up and is not timed. `input_seconds` is CPU time from files of pictures to the model's input,
`waited_seconds` how long the model waits for that by the clock, both in a step between the first and the last.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import measuring

LOGGED = ("loss", "grad_norm", "kl", "reward")
LEAST = 0.01  # the KL estimator subtracts numbers near 1: in float32 a KL or loss is exact to about 1e-7, however small
LORA = {"r": 8, "target_modules": r".*language_model.*(q_proj|v_proj|up_proj)", "lora_dropout": 0.0}
AXES = {  # what can be varied, and how plots call it
    "new-tokens": "tokens of a completion",
    "group": "completions of a prompt",
    "groups": "prompts of a step",
    "words": "words of a prompt",
    "pictures": "pictures of a prompt",
}


def reward_function(settings):
    """Return a reward: the mean token number, or the same for all completions of a prompt in a share of the groups."""

    def reward(completion_ids, number, **_):
        dead = [which % settings.groups < settings.dead * settings.groups for which in number]
        return [1.0 if one else sum(ids) / len(ids) % 1.0 for one, ids in zip(dead, completion_ids, strict=True)]

    return reward


def build(settings, rows, folder, callback, work=None, **arguments):
    """Return TRL's trainer or ours for the steps; `work` counts, `arguments` are TRL's that differ from those here."""
    import trl
    from peft import LoraConfig

    from unifiedreward_think.data.rows import to_dataset
    from unifiedreward_think.models.loading import freeze_vision, load_processor
    from unifiedreward_think.training.trainers.shared_prefix_grpo import SharedPrefixGRPOTrainer

    options = {
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.group * settings.groups,
        "num_generations": settings.group,
        "max_completion_length": settings.new_tokens,
        "generation_kwargs": {"min_new_tokens": settings.new_tokens},
        "beta": settings.beta,
        "use_bias_correction_kl": False,
        "loss_type": "grpo",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "activation_checkpointing": True,
    }
    network, processor = settings.place.load(settings.model), load_processor(settings.model)
    freeze_vision(network)
    if work:
        work.watch_pictures(processor)
    with settings.place.reference(settings.model):
        trainer = {"trl": trl.GRPOTrainer, "ours": SharedPrefixGRPOTrainer}[settings.only](
            model=network,
            reward_funcs=reward_function(settings),
            args=trl.GRPOConfig(output_dir=str(folder), **settings.place.arguments(), **{**options, **arguments}),
            train_dataset=to_dataset(rows),
            processing_class=processor,
            peft_config=LoraConfig(**LORA) if settings.lora else None,
            callbacks=[callback],
        )
    if work:
        work.watch_rollouts(trainer, settings.place)
        for watched in filter(None, (trainer.model, trainer.ref_model)):
            work.watch(watched)
    return trainer


def train(settings, rows, folder):
    """Run the steps with TRL's trainer or ours and return what was measured."""
    import torch
    import transformers

    from unifiedreward_think.training.trainers.prefetch import Reader

    seconds, work, place = [], measuring.Work(), settings.place
    take = Reader.take

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            torch.manual_seed(1000 + state.global_step)
            self.started = place.seconds()

        def on_step_end(self, args, state, control, **_):
            seconds.append(place.seconds() - self.started)
            work.end_step()

    trainer = build(settings, rows, folder, Clock(), work)
    before = place.memory()
    with mock.patch.object(Reader, "take", lambda *args: work.timed(take, *args)):
        trainer.train()
    log = [{key: row[key] for key in LOGGED if key in row} for row in trainer.state.log_history if "loss" in row]
    return seconds, log, work, place.peak_memory() - before


def original(settings, rows, folder):
    """Run the steps as the published trainer does, on today's transformers, a prompt a step."""
    import torch
    from PIL import Image

    from unifiedreward_think.models.loading import freeze_vision, load_model, load_processor

    network, wanted = (load_model(settings.model, dtype="float32") for _ in range(2))
    processor, work = load_processor(settings.model), measuring.Work()
    freeze_vision(network)
    network.activation_checkpointing_enable()
    for watched in (network, wanted):
        work.watch(watched)
    work.watch_pictures(processor)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    config = sampling(network, settings)
    before, seconds, log = measuring.peak_memory(), [], []
    for step in range(settings.steps):
        torch.manual_seed(1000 + step)
        started = time.process_time()
        row = rows[step]
        pictures = [Image.open(file) for file in row["images"]]
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=pictures, return_tensors="pt")
        inputs = {key: value.repeat(settings.group, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
        with torch.no_grad():
            ids = network.generate(**inputs, generation_config=config)
        new = ids[:, inputs["input_ids"].shape[1] :]
        rewards = torch.tensor(reward_function(settings)(new.tolist(), [row["number"]] * settings.group))
        loss, kl = published_loss(network, wanted, ids, inputs, rewards, settings.beta)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
        work.end_step()
        values = {"loss": loss, "grad_norm": norm, "kl": kl, "reward": rewards.mean()}
        log.append({key: value.item() for key, value in values.items()})
    return seconds, log, work, measuring.peak_memory() - before


def sampling(network, settings):
    """Return how the published trainer samples, with the limits of this benchmark."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=settings.new_tokens,
        min_new_tokens=settings.new_tokens,
        do_sample=True,
        top_k=0,
        pad_token_id=network.generation_config.pad_token_id,
        eos_token_id=network.generation_config.eos_token_id,
        suppress_tokens=[network.config.image_token_id],
    )


def published_loss(network, wanted, ids, inputs, rewards, beta):
    """Return the loss of a group and its divergence, from full-vocabulary logits of all positions."""
    import torch

    new = ids.shape[1] - inputs["input_ids"].shape[1]
    types = torch.cat([inputs["mm_token_type_ids"], inputs["mm_token_type_ids"].new_zeros(len(ids), new)], 1)
    media = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}

    def logps(model):
        logits = model(ids, mm_token_type_ids=types, use_cache=False, **media).logits[:, :-1]
        rows = zip(logits, ids[:, 1:], strict=True)
        return torch.stack([one.log_softmax(-1).gather(1, row[:, None])[-new:, 0] for one, row in rows])

    with torch.no_grad():
        reference = logps(wanted)
    scored = logps(network)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    kl = (reference - scored).exp() - (reference - scored) - 1
    return -((scored - scored.detach()).exp() * advantages[:, None] - beta * kl).mean(1).mean(), kl.mean()


def measure(settings):
    """Measure one implementation at one point, in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompt = measuring.Prompt(pictures=settings.pictures, words=settings.words, side=settings.side)
        rows = measuring.make_rows(folder, [prompt] * (settings.steps * settings.groups))
        run = original if settings.only == "original" else train
        seconds, log, work, memory = run(settings, rows, folder / "run")
    per_step = {key: round(value / settings.steps) for key, value in sorted(work.counts.items())}
    # The first step warms up, and trainers read a step ahead, so that the last one has less to read.
    spent = {}
    for key, values in (("input_seconds", work.input_seconds[1:-1]), ("waited_seconds", work.waited_seconds[1:-1])):
        spent |= {key: round(min(values), 5)} if values else {}
    if rollouts := work.rollout_seconds[1:] or work.rollout_seconds:
        spent["rollout_seconds"] = round(min(rollouts), 5)
    return {
        "seconds": seconds[1:] or seconds,
        "log": log,
        "work_per_step": per_step,
        "peak_memory_mib": memory,
        **spent,
    }


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--impl", default="original,trl,ours", help="which to run, separated by commas")
    add("--vary", choices=AXES, default="new-tokens", help="what to change from point to point")
    add("--values", type=int, nargs="+", default=[24, 64, 160], help="of what is varied")
    add("--new-tokens", type=int, default=64, help="of each completion")
    add("--group", type=int, default=8, help="completions of a prompt")
    add("--groups", type=int, default=1, help="prompts of a step (trl and ours)")
    add("--words", type=int, default=290, help="of a prompt")
    add("--pictures", type=int, default=2, help="of a prompt")
    add("--side", type=int, default=measuring.SIDE, help="of a picture, in pixels")
    add("--steps", type=int, default=3, help="optimizer steps of a process; the first is not timed")
    add("--rounds", type=int, default=1, help="of every implementation, in turn")
    add("--beta", type=float, default=0.04, help="weight of the KL term")
    add("--lora", action="store_true", help="train an adapter (trl and ours)")
    add("--dead", type=float, default=0.0, help="share of the groups whose rewards are all equal")
    add("--model", type=Path, help="a Qwen2.5-VL; a random one of 4 layers by default")
    add("--output", type=Path, required=True, help="JSON file to write")
    add("--plot", type=Path, help="PNG file to draw")
    add("--only", choices=("original", "trl", "ours"), help=argparse.SUPPRESS)  # what one process measures
    parser.set_defaults(place=measuring.Place())
    return parser.parse_args()


def main():
    settings = parse()
    if settings.steps < 3:
        raise SystemExit("error: --steps: the first step warms up and the last has less to read: take at least 3")
    measuring.settle()
    if settings.only:
        return measuring.save(measure(settings), settings.output)
    impls = settings.impl.split(",")
    if "original" in impls and (settings.groups > 1 or settings.vary == "groups" or settings.lora):
        raise SystemExit("error: `original` takes one prompt a step and no adapter: leave it out of --impl")
    report = {"arguments": {key: str(value) for key, value in vars(settings).items()}, "points": {}}
    with tempfile.TemporaryDirectory() as name:
        settings.model = settings.model or measuring.build_model(Path(name, "model"))
        keys = ("new_tokens", "group", "groups", "words", "pictures", "side", "steps", "beta", "dead", "model")
        for value in settings.values:
            setattr(settings, settings.vary.replace("-", "_"), value)
            words = [word for key in keys for word in ("--" + key.replace("_", "-"), getattr(settings, key))]
            found = measuring.in_turn(impls, settings.rounds, words + ["--lora"] * settings.lora)
            report["points"][str(value)] = table = measuring.compare(found, least=LEAST)
            measuring.save(report, settings.output)
            for impl, row in table.items():
                print(settings.vary, value, impl, {k: v for k, v in row.items() if k != "log"}, flush=True)
    if settings.plot:
        measuring.plot(report["points"], AXES[settings.vary], settings.plot)


if __name__ == "__main__":
    main()
