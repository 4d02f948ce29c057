"""GRPO ends when its vLLM server goes away in the middle of a rollout, even if a new one answers in its place.

The server here is scripted: it speaks the requests that TRL's client sends, and its completions depend on the weights
it was given last. NCCL, which carries the weights, is replaced by a call. vLLM itself is not run.
"""

import hashlib
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from helpers.stages import mean_token, train_grpo
from unifiedreward_think.training.survival.faults import TrainingFault
from unifiedreward_think.training.trainers import grpo


class Server(ThreadingHTTPServer):
    """A vLLM server as far as TRL looks.

    Attributes:
        dies_at: numbers of the requests for completions at which it goes away.
        comes_back: whether it is there again when somebody asks for its health.
        stale: completions it gave with the weights it was started with.
    """

    daemon_threads = True

    def __init__(self, dies_at=(), comes_back=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.dies_at, self.comes_back = set(dies_at), comes_back
        self.weights, self.joined, self.down = "of its start", False, False
        self.asked = self.stale = self.starts = 0
        self.lock = threading.Lock()

    def restart(self):
        self.weights, self.joined, self.down = "of its start", False, False
        self.starts += 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.server.down and self.server.comes_back:
            self.server.restart()
        self.reply(lambda _: {"/v1/models": {"data": [{"id": "judge"}]}}.get(self.path, {}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        paths = {"/v1/chat/completions/render": self.features, "/inference/v1/generate": self.generate}
        self.reply(paths.get(self.path, self.weights), body)

    def reply(self, make, body=None):
        with self.server.lock:
            said = None if self.server.down else make(body)
            if said is None:  # as a process that is killed: the connection ends without an answer
                self.close_connection = True
                return
            status = 500 if "error" in said else 200
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def features(self, body):
        images = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
        return {"features": {"mm_placeholders": {"image": [{}] * len(images)}}}

    def weights(self, body):
        if self.path == "/init_weight_transfer_engine":
            self.server.joined = True
        return {} if self.server.joined else {"error": "no weight transfer engine was initialised"}

    def generate(self, body):
        self.server.asked += 1
        if self.server.asked in self.server.dies_at:
            self.server.down = True
            if self.server.comes_back == "at once":
                self.server.restart()
            return None
        self.server.stale += self.server.weights == "of its start"
        chance = random.Random(f"{self.server.weights} {body['token_ids']}")
        choices = []
        for _ in range(body["sampling_params"]["n"]):
            ids = [chance.randrange(300) for _ in range(6)]
            content = [{"token": f"token_id:{token}", "logprob": -1.0, "top_logprobs": []} for token in ids]
            choices.append({"token_ids": ids, "logprobs": {"content": content}})
        return {"choices": choices}

    def log_message(self, *_):
        pass


@pytest.fixture
def train(models, toy_data, tmp_path, monkeypatch):
    """Train against a scripted server and return the log."""
    from trl.generation import vllm_client, vllm_generation

    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm_client.time, "sleep", lambda _: None)

    def run(server, **options):
        def join(client, device):
            client._post(f"{client.base_url}/init_weight_transfer_engine", json={})

        def send(iterator, trainer_args):
            whole = hashlib.sha256()
            for name, weight in iterator:
                whole.update(name.encode() + weight.detach().numpy().tobytes())
            server.weights = whole.hexdigest()

        engine = SimpleNamespace(trainer_send_weights=send)
        monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", join)
        monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", engine, raising=False)
        monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", SimpleNamespace, raising=False)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        own = {"use_vllm": True, "vllm_mode": "server", "vllm_server_timeout": 5.0, "max_steps": 3}
        own |= {"vllm_server_base_url": f"http://127.0.0.1:{server.server_port}"}
        own |= {"vllm_importance_sampling_correction": False, "rewards": [mean_token], **options}
        try:
            return train_grpo(models["qwen2_5_vl"], toy_data, tmp_path / f"run-{server.server_port}", **own)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return run


@pytest.mark.parametrize("comes_back", [False, "at once"])
def test_a_server_that_goes_away_ends_the_run_even_if_another_one_takes_its_place(comes_back, train):
    server = Server(dies_at={4}, comes_back=comes_back)  # two prompts a step: in the middle of the second rollout
    with pytest.raises(TrainingFault, match=r"a server was lost at step 1: .* the same command goes on from"):
        train(server)
    assert server.stale == 0


def test_trl_alone_trains_on_completions_of_the_weights_that_a_new_server_starts_with(train, monkeypatch):
    as_trl = HTTPAdapter(max_retries=Retry(5, allowed_methods=None))
    monkeypatch.setattr(grpo, "HTTPAdapter", lambda **_: as_trl)
    server = Server(dies_at={4}, comes_back="at once")
    train(server, max_steps=2)
    assert server.stale > 0  # silently: when this fails, TRL sees it, and the adapter can go
