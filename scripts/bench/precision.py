"""What bfloat16 costs a GRPO step in accuracy: TRL's passes and shared prefixes, each against TRL's in float32.

All take one step on the same completions from the same weights, which bfloat16 holds exactly. Compared is what the step
computes: log-probabilities while tokens are written, those of the reference and of the policy, and the gradient. The
completions are drawn here and put in place of what each implementation's own loop would draw. Errors of
log-probabilities are means over tokens; that of the gradient is the norm of the difference over the norm.
"""

import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from unittest import mock

import grpo_step
import measuring

LIMIT = 1.5  # times TRL's own error in bfloat16
ROUNDING = 1e-3  # of the float32 steps to each other: sums in another order, kernels of other shapes


class Step:
    """What one GRPO step computed: log-probabilities of its passes by name, and the gradient of every weight."""

    def __init__(self, settings, completions):
        self.logps, self.gradient = {}, {}
        with tempfile.TemporaryDirectory() as name:
            self._run(settings, completions, Path(name))

    def _run(self, settings, completions, folder):
        import transformers

        step = self

        class Keep(transformers.TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model, **_):
                for name, weight in model.named_parameters():
                    if weight.grad is not None:
                        step.gradient[name], weight.grad = weight.grad, None

        prompt = measuring.Prompt(pictures=settings.pictures, words=settings.words, side=settings.side)
        rows = measuring.make_rows(folder, [prompt])
        trainer = grpo_step.build(settings, rows, folder, Keep(), learning_rate=0.0, optim="sgd", max_grad_norm=0.0)
        self._listen(trainer)
        with mock.patch("torch.multinomial", self._forced(completions)):
            trainer.train()

    def _forced(self, completions):
        """Return what takes the place of a draw: the next token of each completion, whose probability is kept."""
        written = iter(completions.T)
        self.logps["decode"] = drawn = []

        def draw(probabilities, _=1, **__):
            token = next(written)[:, None].to(probabilities.device)
            drawn.append(probabilities.gather(1, token).log())
            return token

        return draw

    def _listen(self, trainer):
        """Keep the log-probabilities of the reference and policy passes, rows sorted: TRL shuffles them, ours stay."""
        import torch

        method = trainer._get_per_token_logps_and_entropies

        def call(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            found = method(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
            completions = input_ids[:, -logits_to_keep:].tolist()
            order = sorted(range(len(completions)), key=completions.__getitem__)
            name = "policy" if torch.is_grad_enabled() else "reference"
            self.logps[name] = [found[0].detach().float()[order]]
            return found

        trainer._get_per_token_logps_and_entropies = call

    def errors(self, truth):
        """Return how far this step is from another one."""
        import torch

        found = {}
        for name, logps in truth.logps.items():
            found[f"{name}_error"] = (torch.cat(self.logps[name], 1) - torch.cat(logps, 1)).abs().mean().item()
        pairs = [(self.gradient[name], wanted) for name, wanted in truth.gradient.items()]
        missed = sum((gradient.float() - wanted).square().sum() for gradient, wanted in pairs)
        norm = sum(wanted.square().sum() for _, wanted in pairs)
        return found | {"gradient_error": (missed / norm).sqrt().item()}


class Truth:
    """TRL's step in float32, to which others are compared."""

    def __init__(self, settings):
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.manual_seed(0)
        self._completions = torch.randint(20, 200, (settings.group, settings.new_tokens))
        self._settings = settings
        self._step = self._take("trl", "float32")
        if not any(gradient.any() for gradient in self._step.gradient.values()):
            raise ValueError("the gradient is 0: the completions have equal rewards; take more tokens")

    def _take(self, impl, dtype):
        arguments = {**vars(self._settings), "only": impl, "place": replace(self._settings.place, dtype=dtype)}
        return Step(Namespace(**arguments), self._completions)

    def errors(self, impl, dtype):
        """Return how far the step of an implementation in a dtype is from this one."""
        return self._take(impl, dtype).errors(self._step)
