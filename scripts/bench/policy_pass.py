"""Forward and backward of one group's policy pass against the token bound G (P + C) / (P + G C).

    python scripts/bench/policy_pass.py --output results/policy_pass.json
    python scripts/bench/policy_pass.py --new-tokens 128 --vocabulary 151936 --output results/vocabulary.json

`original` is our transcription of the published trainer (full-vocabulary logits of all positions), `trl` calls TRL's
own method for log-probabilities, `ours` the one that replaces it, on the same completions and advantages. The gradients
must agree: a time without its `equal` field is void. Pictures are encoded in every row by the first two; by ours before
generation, outside this pass, in `encoding_seconds`. --vocabulary gives the model as many tokens as Qwen's real one.
"""

import argparse
import tempfile
from pathlib import Path

import measuring


def prepare(settings, folder):
    """Return a trainer, the prompt's fields, completions and advantages."""
    import torch
    import trl

    from unifiedreward_think.data.rows import to_dataset
    from unifiedreward_think.models.loading import freeze_vision, load_processor
    from unifiedreward_think.training.trainers.shared_prefix_grpo import SharedPrefixGRPOTrainer

    rows = measuring.make_rows(folder, [measuring.Prompt(pictures=settings.pictures, words=settings.words)])
    network, processor = settings.place.load(settings.model), load_processor(settings.model)
    freeze_vision(network)
    args = trl.GRPOConfig(
        output_dir=str(folder / "run"), **settings.place.arguments(), report_to="none", beta=0.0,
        per_device_train_batch_size=settings.group, num_generations=settings.group,
        max_completion_length=settings.new_tokens, activation_checkpointing=False,
    )  # fmt: skip
    trainer = (SharedPrefixGRPOTrainer if settings.only == "ours" else trl.GRPOTrainer)(
        model=network, reward_funcs=len, args=args, train_dataset=to_dataset(rows), processing_class=processor
    )
    torch.manual_seed(0)
    completions = torch.randint(20, 60, (settings.group, settings.new_tokens)).to(settings.place.device)
    advantages = torch.randn(settings.group).to(settings.place.device)
    messages = trl.data_utils.prepare_multimodal_messages(rows[0]["prompt"], images=to_dataset(rows)[0]["images"])
    return trainer, messages, completions, (advantages - advantages.mean()) / advantages.std()


def passes(settings, trainer, messages, completions):
    """Return a function that computes the log-probabilities of the completions, and the seconds of encoding."""
    import torch

    from unifiedreward_think.training.trainers.prefetch import Reading

    network, group = trainer.model, settings.group
    trainer.model.train()
    fields = trainer.processing_class.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(settings.place.device)
    ids = torch.cat([fields["input_ids"].expand(group, -1), completions], 1)
    types = torch.cat([fields["mm_token_type_ids"].expand(group, -1), torch.zeros_like(completions)], 1)
    media = {"pixel_values": fields["pixel_values"].repeat(group, 1)}
    media["image_grid_thw"] = fields["image_grid_thw"].repeat(group, 1)
    length = completions.shape[1]
    if settings.only == "original":

        def logps():
            logits = network(ids, mm_token_type_ids=types, use_cache=False, **media).logits[:, :-1]
            rows = zip(logits, ids[:, 1:], strict=True)
            return torch.stack([one.log_softmax(-1).gather(1, row[:, None])[-length:, 0] for one, row in rows])

        return logps, 0.0, fields["input_ids"].shape[1]
    started = settings.place.seconds()
    if settings.only == "ours":
        trainer._row_prompts = torch.zeros(group, dtype=torch.long)
        trainer._readings = [Reading([], messages, fields)]
        trainer._tokenize_prompts([messages] * group)
    encoding = settings.place.seconds() - started
    rest = {"mm_token_type_ids": types, "num_images": [settings.pictures] * group, **media}

    def logps():
        call = trainer._get_per_token_logps_and_entropies
        return call(network, ids, torch.ones_like(ids), length, batch_size=group, **rest)[0]

    return logps, encoding, fields["input_ids"].shape[1]


def measure(settings):
    """Measure one implementation in this process."""
    with tempfile.TemporaryDirectory() as name:
        trainer, messages, completions, advantages = prepare(settings, Path(name))
    logps, encoding, prompt = passes(settings, trainer, messages, completions)
    place, network, seconds = settings.place, trainer.model, []
    before = place.memory()
    for _ in range(settings.repeats + 1):
        network.zero_grad(set_to_none=True)
        started = place.seconds()
        with trainer.compute_loss_context_manager():  # in bfloat16 autocast, as in training
            scored = logps()
            loss = -((scored - scored.detach()).exp() * advantages[:, None]).mean()
        loss.backward()
        seconds.append(place.seconds() - started)
    weights = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    log = {f"norm of {name}": grad.norm().item() for name, grad in weights.items()}
    log |= {
        f"sample of {name}": grad.flatten()[:: max(1, grad.numel() // 64)].sum().item()
        for name, grad in weights.items()
    }
    log["mean log-probability"] = scored.mean().item()
    bound = settings.group * (prompt + settings.new_tokens) / (prompt + settings.group * settings.new_tokens)
    report = {"seconds": seconds[1:], "log": [log], "encoding_seconds": round(encoding, 3), "prompt_tokens": prompt}
    return report | {"token_bound": round(bound, 2), "peak_memory_mib": place.peak_memory() - before}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--impl", default="original,trl,ours", help="which to run, separated by commas")
    add("--new-tokens", type=int, nargs="+", default=[128, 400], help="of each completion")
    add("--group", type=int, default=8, help="completions of the prompt")
    add("--words", type=int, default=290, help="of the prompt")
    add("--pictures", type=int, default=2, help="of the prompt, 512 x 512")
    add("--vocabulary", type=int, help="tokens of the model; as many as its tokenizer has by default")
    add("--repeats", type=int, default=2, help="timed passes of a process, after one to warm up")
    add("--rounds", type=int, default=1, help="of every implementation, in turn")
    add("--output", type=Path, required=True, help="JSON file to write")
    add("--model", type=Path, help="a Qwen2.5-VL; a random one of 4 layers by default")
    add("--only", choices=("original", "trl", "ours"), help=argparse.SUPPRESS)  # what one process measures
    parser.set_defaults(place=measuring.Place())
    settings = parser.parse_args()
    measuring.settle()
    if settings.only:
        settings.new_tokens = settings.new_tokens[0]
        return measuring.save(measure(settings), settings.output)
    report = {"arguments": {key: str(value) for key, value in vars(settings).items()}, "points": {}}
    with tempfile.TemporaryDirectory() as name:
        model = settings.model or measuring.build_model(Path(name, "model"), vocabulary=settings.vocabulary)
        for length in settings.new_tokens:
            words = ["--new-tokens", length, "--model", model]
            for key in ("group", "words", "pictures", "repeats"):
                words += [f"--{key}", getattr(settings, key)]
            table = measuring.compare(measuring.in_turn(settings.impl.split(","), settings.rounds, words))
            report["points"][str(length)] = table
            for impl, row in table.items():
                if "token_bound" in row and "times_ours" in row:
                    row["share_of_token_bound"] = round(row["times_ours"] / row["token_bound"], 2)
                print(length, impl, {k: v for k, v in row.items() if k != "log"}, flush=True)
                row.pop("log")  # hundreds of norms, which `largest_relative_difference_to_trl` sums up
            measuring.save(report, settings.output)


if __name__ == "__main__":
    main()
