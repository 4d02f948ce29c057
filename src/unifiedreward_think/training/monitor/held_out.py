"""Watch a run while it trains: its speed and memory, its health, and how it judges held-out pairs.

    python -m unifiedreward_think.training.grpo --config configs/toy/grpo.yaml \
        --eval_files outputs/toy/data/heldout.jsonl --eval_strategy steps --eval_steps 20 --eval_max_new_tokens 192 \
        --load_best_model_at_end true --metric_for_best_model accuracy

docs/health.md explains the metrics. Nothing here changes what is trained: tests/test_watch.py compares all weights.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from unifiedreward_think.backends.choose import BackendArguments
from unifiedreward_think.data.arguments import ShownArguments
from unifiedreward_think.data.formats.files import report_left_out
from unifiedreward_think.data.formats.loading import load_checked_records
from unifiedreward_think.errors import InputError
from unifiedreward_think.judging.judge import judge
from unifiedreward_think.judging.settings import JudgingArguments, JudgingConfig, set_up
from unifiedreward_think.judging.store import write_evaluation
from unifiedreward_think.metrics import MEASURES, summarize
from unifiedreward_think.provenance import config_yaml, data_files
from unifiedreward_think.records import Judgment, PreferenceRecord
from unifiedreward_think.strict_json import json_lines
from unifiedreward_think.terminal import note
from unifiedreward_think.training.arguments import DataArguments, TrainingExtras
from unifiedreward_think.training.memory.job import GIB
from unifiedreward_think.training.monitor.health import Watch
from unifiedreward_think.training.monitor.thresholds import with_limits
from unifiedreward_think.training.reading import Reading, prompt_rows
from unifiedreward_think.writing import write_whole

HEALTH_FILE = "health.jsonl"
FOLDER = "held_out"  # of evaluations, one for each judged step
BEST_BY = ("accuracy", "macro_accuracy", "parse_rate", "readable_rate", "agreement")


class HeldOut(NamedTuple):
    """Pairs to judge during training, and how; `asked` and `data` are what config.yaml says of that."""

    records: list[PreferenceRecord]
    config: JudgingConfig
    min_pixels: int | None
    max_pixels: int | None
    asked: dict[str, Any]
    data: list[dict[str, Any]]


def load_held_out(
    data: DataArguments, extras: TrainingExtras, args: Any, reading: Reading | None = None
) -> HeldOut | None:
    """Return what `eval_files` asks for, None without; refuse what a run cannot be watched with.

    Pairs that a `reading` refuses are bad rows.

    Raises:
        InputError: the options do not fit together, or no pair has a label; the message names them.
        RecordError: a row cannot be used.
    """
    health_watch(extras)
    if problem := _problem(data, extras, args):
        raise InputError(problem)
    if not extras.eval_files:
        return None
    loaded = load_checked_records(
        extras.eval_files,
        sampling=data.frame_sampling,
        media_root=data.media_root,
        skip_bad=data.skip_bad,
        limit=extras.eval_limit,
        form=data.asked_form,
    )
    shown = {each.name: getattr(data, each.name) for each in fields(ShownArguments)} | {"orders": extras.eval_orders}
    config = JudgingArguments(**shown, max_new_tokens=extras.eval_max_new_tokens).config()
    if reading is not None:
        held_out_reading = replace(reading, completion=extras.eval_max_new_tokens)
        loaded = held_out_reading.readable(loaded, lambda record: prompt_rows(record, config))
    report_left_out(loaded.bad)
    if not any(map(data.asked_form.decides, loaded.rows)):
        raise InputError(f"eval_files: no record has {data.asked_form.needs}, so there is no accuracy")
    asked = {"input": extras.eval_files, "media_root": data.media_root, "limit": extras.eval_limit, **shown}
    files = data_files(extras.eval_files, Counter(place.file for place in loaded.places))
    return HeldOut(loaded.rows, config, data.min_pixels, data.max_pixels, asked, files)


def _problem(data: DataArguments, extras: TrainingExtras, args: Any) -> str | None:
    """Return the first reason why the options of an evaluation do not fit together."""
    judged, scheduled, best = bool(extras.eval_files), args.eval_strategy != "no", _best_by(args)
    fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    problems = {
        "eval_strategy: needs eval_files, the held-out pairs to judge": scheduled and not judged,
        "eval_files: would never be judged; set eval_strategy: steps and eval_steps": judged and not scheduled,
        "eval_files: some are trained on; hold them out": set(extras.eval_files) & set(data.train_files),
        "eval_files: FSDP is not covered; use deepspeed": judged and fsdp,
        f"metric_for_best_model: {best!r} is not measured on eval_files; choose one of {', '.join(BEST_BY)}": (
            judged and best not in BEST_BY
        ),
        "metric_for_best_model: agreement needs eval_orders: both": best == "agreement" and extras.eval_orders == "one",
    }
    return next((text for text, applies in problems.items() if applies), None)


def health_watch(extras: TrainingExtras) -> Watch:
    """Return a watch with the window and the limits of the config.

    Raises:
        InputError: they cannot be read; the message names the key.
    """
    if extras.health_window < 1:
        raise InputError(f"health_window: {extras.health_window} rows cannot be averaged; take 1 or more")
    return Watch(with_limits(extras.health_bands), window=extras.health_window)


def trainer_arguments(args: Any, held_out: HeldOut | None) -> Any:
    """Return a copy for a trainer, which changes it; run.json records the user's.

    The trainer must not look for a data set of its own to evaluate on: `Watched.watch` sets `eval_strategy` again.
    """
    changed = copy.copy(args)
    if held_out is not None:
        changed.eval_strategy = type(args.eval_strategy)("no")
        changed.metric_for_best_model, changed.greater_is_better = _best_by(args), True
        changed.load_best_model_at_end = False  # `output.save_model` takes the best weights
    return changed


def rates(results: Mapping[str, Any]) -> dict[str, float]:
    """Return what is logged of a summary: every rate of `metrics`, the interval of accuracy, accuracy by task."""
    overall = results["overall"]
    measured = {name: overall[name]["value"] for name in MEASURES}
    measured |= {f"accuracy_{end}": overall["accuracy"][end] for end in ("low", "high")}
    measured |= {f"accuracy/{task}": part["accuracy"]["value"] for task, part in results["tasks"].items()}
    measured["macro_accuracy"] = results["macro_accuracy"]["value"]
    if "both_orders" in results:
        measured["agreement"] = results["both_orders"]["overall"]["agreement"]["value"]
    return {name: value for name, value in measured.items() if value is not None}


class Watched:
    """Mixin for TRL's trainers that logs what a run costs, warns when it is sick, and judges held-out pairs."""

    _health: Watch | None = None
    _held_out: HeldOut | None = None
    _counted: tuple[float, float] | None = None  # clock and tokens when tokens were last counted

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorded: dict[str, list[float]] = defaultdict(list)

    def record(self, name: str, value: float) -> None:
        """Let the next logged row hold the mean of the values of this name; NaN is no value."""
        if not math.isnan(value):
            self._recorded[name].append(value)

    def watch(self, args: Any, extras: TrainingExtras, held_out: HeldOut | None) -> None:
        """Begin to watch; `args` are the user's."""
        from unifiedreward_think.training.monitor.steps import StepLines

        trainer: Any = self
        trainer.args.eval_strategy = args.eval_strategy
        self._held_out = held_out
        self._health = health_watch(extras)
        trainer.add_callback(StepLines())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See transformers; adds what was recorded and what the run costs, and looks at its health."""
        if "loss" in logs:
            recorded = {name: fmean(values) for name, values in self._recorded.items()}
            logs.update(recorded | self._speed() | self._memory())
            self._recorded.clear()
        super().log(logs, start_time)  # type: ignore[misc]
        self._look()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See transformers; judges `eval_files` where there are any."""
        if self._held_out is None:
            return super().evaluate(*args, **kwargs)  # type: ignore[misc, no-any-return]
        from transformers import Trainer

        trainer: Any = self
        started = time.perf_counter()
        judgments = self._judge(self._held_out)
        results = summarize(judgments)
        metrics = {f"eval_{name}": value for name, value in rates(results).items()}
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir, FOLDER, f"step_{trainer.state.global_step:06d}")
            write_whole(folder / "judgments.jsonl", json_lines(judgments))
            write_evaluation(folder, self._held_out.records, results)
            write_whole(folder / "config.yaml", config_yaml(self._held_out.asked, data=self._held_out.data))
        took = time.perf_counter() - started
        if self._counted is not None:
            self._counted = (self._counted[0] + took, self._counted[1])
        metrics["eval_runtime"] = round(took, 2)
        Trainer.log(trainer, metrics)  # TRL's would take the training metrics gathered so far for those of this
        self._look()
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    def _judge(self, held_out: HeldOut) -> list[Judgment]:
        """Return the judgments of all pairs, in their order; each rank judges its share."""
        import torch
        from accelerate.utils import gather_object

        trainer: Any = self
        device, training = trainer.accelerator.device, trainer.model.training
        share = held_out.records[trainer.args.process_index :: trainer.args.world_size]
        devices = [device] if device.type == "cuda" else []
        with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices), self._whole() as network:
            chosen = BackendArguments(
                model=f"step {trainer.state.global_step}",
                batch_size=trainer.args.per_device_eval_batch_size,
                device=str(device),
                min_pixels=held_out.min_pixels,
                max_pixels=held_out.max_pixels,
            )
            config, backend = set_up(held_out.config, chosen, loaded=(network, trainer.processing_class))
            label = f"judging held-out pairs at step {trainer.state.global_step}"
            judged = judge(share, backend, config, Path(scratch, "judgments.jsonl"), label=label)
        trainer.model.train(training)
        if devices:
            torch.cuda.empty_cache()  # caches of keys and values, which training has no use for
        place = {record.id: i for i, record in enumerate(held_out.records)}
        return sorted(gather_object(judged), key=lambda row: place[row.record_id])

    @contextmanager
    def _whole(self) -> Iterator[Any]:
        """Yield the transformers model with all of its weights, also where ZeRO-3 has spread them over the ranks."""
        from trl.models import unwrap_model_for_generation

        trainer: Any = self
        again = trainer.args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=again
        ) as model:
            yield model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters stay in it

    def _speed(self) -> dict[str, float]:
        """Return the tokens of all ranks, prompts included, for each second since they were last counted."""
        trainer: Any = self
        before, tokens = self._counted, trainer.state.num_input_tokens_seen
        if before is not None and tokens == before[1]:  # an optimizer step on completions that were counted before
            return {}
        self._counted = time.perf_counter(), tokens
        if before is None:
            return {}
        return {"tokens_per_second": (self._counted[1] - before[1]) / (self._counted[0] - before[0])}

    def _memory(self) -> dict[str, float]:
        """Return the most memory that any rank has used: of its GPU since the last log, or else of its process."""
        import torch

        trainer: Any = self
        device = trainer.accelerator.device
        if device.type == "cuda":
            peak, limit = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
            torch.cuda.reset_peak_memory_stats(device)
        else:
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        used = trainer.accelerator.gather(torch.tensor([[peak / GIB, peak / limit]], device=device))
        gib, share = used.max(0).values.tolist()
        return {"memory_gib": gib, "memory_share": share}

    def _look(self) -> None:
        """Look at what was logged: print what is wrong when it begins, and keep all of it in health.jsonl."""
        trainer: Any = self
        if self._health is None or not trainer.is_world_process_zero():
            return
        path, before = Path(trainer.args.output_dir, HEALTH_FILE), list(self._health.episodes)
        *earlier, last = trainer.state.log_history[self._health.seen :]
        for row in earlier:  # of the run that this one goes on from, which has printed them
            self._health.see(row)
        for episode in self._health.see(last):
            band = episode.symptom.band
            cause = f"{episode.headline}. Likely: {band.cause}. Fix: {band.fix}. See docs/health.md."
            note(f"health, step {episode.first}: {cause}")
        if self._health.episodes != before or not path.exists():
            write_whole(path, json_lines(self._health.episodes))


def _best_by(args: Any) -> str:
    """Return what picks the best checkpoint: accuracy, unless `metric_for_best_model` says otherwise."""
    return str(args.metric_for_best_model or "accuracy").removeprefix("eval_")
