"""A vLLM server that goes away while it generates: wait for it, give it the weights again, and ask again.

TRL's client asks again by itself, up to a minute long. A server that was started anew in that time answers with the
weights it was started with, without an error, and the run trains on completions of another model. Here every lost
connection is seen: the whole rollout is asked for again, after the server has the weights of this step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from unifiedreward_think.training.survival.faults import TrainingFault

TRIES = 3  # of one rollout
GONE = ("Request failed: 502", "Request failed: 503")  # what a proxy says whose server is gone; TRL's words


class ServerRecovery:
    """GRPO trainer mixin: see the module. Without a vLLM server it does nothing.

    A server that is lost while it receives weights ends the run with TRL's error: the processes are then in the middle
    of a broadcast. The same command goes on from the last checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self._served = bool(trainer.use_vllm and trainer.vllm_mode == "server")
        if self._served and trainer.accelerator.is_main_process:
            self._client = LossTold(trainer.vllm_generation.vllm_client)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """See trl; asks again where the server was lost.

        Raises:
            TrainingFault: the server does not come back within `vllm_server_timeout`, or is lost again and again.
        """
        trainer: Any = self
        for _ in range(TRIES):
            answer = super()._generate_single_turn(prompt_ids, *args, **kwargs)  # type: ignore[misc]
            if answer[0] or not self._served:
                return answer
            # No process has completions: the one that asks has lost the server, and all of them know it by this.
            if trainer.accelerator.is_main_process:
                self._client.wait_until_back(trainer.args.vllm_server_timeout, trainer.accelerator.device)
            trainer._last_loaded_step = -1  # all processes send the weights before they ask again
        raise TrainingFault(
            f"the vLLM server was lost {TRIES} times in one rollout, at step {trainer.state.global_step}; look at its "
            "log (memory?), start it again, and run the same command: it goes on from the last checkpoint"
        )


class LossTold:
    """Make a client of TRL answer with no completions when its server is lost, instead of asking again by itself."""

    def __init__(self, client: Any) -> None:
        from requests.adapters import HTTPAdapter

        self.client, self.lost = client, False
        for scheme in ("http://", "https://"):
            client.session.mount(scheme, HTTPAdapter(max_retries=0, pool_maxsize=64))
        client.image_features = self._told(client.image_features, lambda images, **_: [None] * len(images))
        client.generate = self._told(client.generate, lambda **_: NOTHING)

    def _told(self, ask: Callable[..., Any], nothing: Callable[..., Any]) -> Callable[..., Any]:
        from requests import RequestException

        def asked(*args: Any, **kwargs: Any) -> Any:
            if self.lost:
                return nothing(*args, **kwargs)
            try:
                return ask(*args, **kwargs)
            except RequestException as error:
                self._note(error)
            except Exception as error:
                if type(error) is not Exception or not str(error).startswith(GONE):
                    raise
                self._note(error)
            return nothing(*args, **kwargs)

        return asked

    def _note(self, error: Exception) -> None:
        self.lost = True
        print(f"the vLLM server at {self.client.base_url} is lost: {error}", file=sys.stderr, flush=True)

    def wait_until_back(self, seconds: float, device: Any) -> None:
        """Wait for the server and join it for the transfer of weights, as at the start of the run.

        Raises:
            TrainingFault: it does not come back in time.
        """
        from requests import ConnectionError as Unreachable

        print(f"waiting up to {seconds:g} s for it", file=sys.stderr, flush=True)
        try:
            self.client.check_server(seconds)
        except Unreachable as error:
            raise TrainingFault(
                f"{error} Start it again and run the same command: it goes on from the last checkpoint"
            ) from error
        self.client.close_communicator()
        self.client.init_communicator(device=device)
        self.lost = False
        print("the vLLM server is back; it gets the weights of this step", file=sys.stderr, flush=True)


NOTHING: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "logprob_token_ids": []}
