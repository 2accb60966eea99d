"""The predictor as a process, on the toy model: whose weights answer, and what it does when it can't."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from factedit.checkpoint_store import CheckpointStore
from factedit.generation import generate, rank
from factedit.models import LanguageModel, load_model
from factedit.overlay import applied
from factedit.toy import write_toy_model
from workers.stack.redis import free_port

REPOSITORY = Path(__file__).parents[2]
PROMPTS = ["The capital of France is", "The capital of Italy is", "The capital of Japan is", "France"]
TOKENS = 6


@dataclass
class Versions:
    """A store with the toy model's root and versions of it, and what each is to answer to PROMPTS."""

    data_dir: Path
    store: CheckpointStore
    toy: Path
    lm: LanguageModel
    root: str
    answers: dict[str | None, list[str]] = field(default_factory=dict)

    def add(self, seed: int) -> str:
        """Publish a version that mixes up the words: it answers in its own way and never stops by itself."""
        name = "model.embed_tokens.weight"
        words = self.lm.tensors[name].detach()
        mixed = 3 + torch.randperm(len(words) - 3, generator=torch.Generator().manual_seed(seed))
        tensor = words[torch.cat([torch.arange(3), mixed])]
        tensor[self.lm.eos_token_id] *= -1
        overlay = {name: tensor}
        digest = self.store.publish_overlay(overlay).digest
        with applied(self.lm, overlay):
            self.answers[digest] = self.texts()
        return digest

    def texts(self) -> list[str]:
        return [answer.text for answer in generate(self.lm, PROMPTS, TOKENS)]

    def file(self, overlay: str) -> Path:
        return self.store.path / "overlays" / overlay


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("predictor")
    write_toy_model(folder / "toy")
    store = CheckpointStore(folder / "data" / "store")
    root = store.publish_root(folder / "toy")
    made = Versions(folder / "data", store, folder / "toy", load_model(folder / "toy", device="cpu"), root)
    made.answers[None] = made.texts()
    return made


@dataclass
class Running:
    """A predictor process and a client of it."""

    process: "subprocess.Popen[bytes]"
    client: httpx2.Client

    def predict(
        self, root: str, overlay: str | None = None, prompts: Sequence[str] = PROMPTS, **more: Any
    ) -> httpx2.Response:
        body = {"root_digest": root, "overlay_digest": overlay, "prompts": prompts, "max_tokens": TOKENS}
        return self.client.post("/predict", json=body | more)

    def texts(self, root: str, overlay: str | None = None, **more: Any) -> list[str]:
        response = self.predict(root, overlay, **more)
        assert response.status_code == 200, response.text
        return [answer["text"] for answer in response.json()["answers"]]


@contextmanager
def started(data_dir: Path, **settings: object) -> Iterator[Running]:
    port = free_port()
    own = {"data_dir": data_dir, "predictor_port": port, "predictor_token": "shared", "device": "cpu"}
    environment = {f"FACTEDIT_{name.upper()}": str(value) for name, value in {**own, **settings}.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.predictor"], cwd=REPOSITORY, env={**os.environ, **environment}
    )
    headers = {"Authorization": "Bearer shared"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
        try:
            _wait_until_ready(process, client)
            yield Running(process, client)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", client: httpx2.Client) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError("The predictor did not get ready.")


@pytest.fixture(scope="module")
def predictor(versions: Versions) -> Iterator[Running]:
    # A shelf of three, so that versions come and go.
    with started(versions.data_dir, overlays_cached=3) as running:
        yield running


def test_a_version_answers_with_its_own_weights_and_the_root_with_the_roots(
    versions: Versions, predictor: Running
) -> None:
    overlay = versions.add(seed=1)
    assert versions.answers[overlay] != versions.answers[None]
    for asked in (None, overlay, None, overlay):
        assert predictor.texts(versions.root, asked) == versions.answers[asked]


def test_candidates_come_best_first_and_their_probabilities_add_up(
    versions: Versions, predictor: Running
) -> None:
    names = ["Rome", "Paris", "Tokyo"]
    response = predictor.predict(versions.root, prompts=PROMPTS[:2], candidates=names, top_k=4, max_tokens=0)
    answers = response.json()["answers"]
    assert len(answers) == 2
    for answer in answers:
        scores = {each["text"]: each["log_probability"] for each in answer["candidates"]}
        assert sorted(scores) == sorted(names)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert sum(each["probability"] for each in answer["candidates"]) == pytest.approx(1)
        assert len(answer["top_k"]) == 4
        assert answer["text"] == ""
    first = answers[0]["candidates"]
    expected = rank(versions.lm, PROMPTS[:1], [[each["text"] for each in first]])[0]
    assert [each["log_probability"] for each in first] == pytest.approx(expected, abs=1e-4)


def test_many_clients_of_many_versions_each_get_their_own_versions_answers(
    versions: Versions, predictor: Running
) -> None:
    digests = [None, *(versions.add(seed) for seed in range(10, 16))]
    assert len({tuple(versions.answers[digest]) for digest in digests}) == len(digests)

    def ask(number: int) -> None:
        digest = digests[number % len(digests)]
        place = number % len(PROMPTS)
        texts = predictor.texts(versions.root, digest, prompts=[PROMPTS[place]])
        assert texts == [versions.answers[digest][place]]

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(200)))


def test_an_answer_does_not_depend_on_what_else_is_asked_in_its_batch(
    versions: Versions, predictor: Running
) -> None:
    overlay = versions.add(seed=2)
    prompts = [
        f"{start} {country} is" for start in ("The capital of", "of") for country in ("France", "Mali")
    ]
    prompts += ["France", "The capital city of Peru is called", *PROMPTS]
    for digest in (None, overlay):
        together = predictor.texts(versions.root, digest, prompts=prompts, max_tokens=20)
        alone = [predictor.texts(versions.root, digest, prompts=[p], max_tokens=20)[0] for p in prompts]
        assert together == alone


def test_one_flipped_bit_is_answered_410_and_the_mended_file_is_served_again(
    versions: Versions, predictor: Running
) -> None:
    overlay = versions.add(seed=3)
    file = versions.file(overlay)
    whole = file.read_bytes()
    file.write_bytes(_flipped(whole))
    for _ in range(2):
        response = predictor.predict(versions.root, overlay)
        assert response.status_code == 410
        assert response.json() == {
            "code": "corrupt_checkpoint",
            "digest": overlay,
            "message": response.json()["message"],
        }
    assert predictor.texts(versions.root) == versions.answers[None]
    file.write_bytes(whole)
    assert predictor.texts(versions.root, overlay) == versions.answers[overlay]


def test_one_flipped_bit_in_a_root_is_answered_410(
    versions: Versions, predictor: Running, tmp_path: Path
) -> None:
    for file in versions.toy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    other = versions.store.publish_root(tmp_path)
    weights = versions.store.path / "roots" / other / "model.safetensors"
    weights.write_bytes(_flipped(weights.read_bytes()))
    response = predictor.predict(other)
    assert (response.status_code, response.json()["code"]) == (410, "corrupt_checkpoint")
    assert other not in predictor.client.get("/readyz").json()["roots"]


def test_a_root_in_memory_does_not_change_with_its_file(versions: Versions, predictor: Running) -> None:
    before = predictor.predict(versions.root, top_k=5).json()["answers"]
    file = versions.store.path / "roots" / versions.root / "model.safetensors"
    whole = file.read_bytes()
    try:
        with file.open("r+b") as opened:  # in place, as a failing disk does it
            opened.seek(len(whole) // 4)
            opened.write(b"\x11" * (len(whole) // 2))
        assert predictor.predict(versions.root, top_k=5).json()["answers"] == before
    finally:
        with file.open("r+b") as opened:
            opened.write(whole)


def test_weights_the_store_does_not_have_are_answered_404(versions: Versions, predictor: Running) -> None:
    for root, overlay in ((versions.root, "f" * 64), ("f" * 64, None)):
        response = predictor.predict(root, overlay)
        assert (response.status_code, response.json()["code"]) == (404, "missing_checkpoint")
        assert response.json()["digest"] == "f" * 64


def test_an_overlay_of_another_model_is_refused_and_the_root_unharmed(
    versions: Versions, predictor: Running
) -> None:
    strange = versions.store.publish_overlay({"no.such.tensor": torch.ones(2)}).digest
    name = versions.lm.block_tensors(0, "mlp")[0]
    too_small = versions.store.publish_overlay({name: torch.ones(2)}).digest
    for overlay in (strange, too_small):
        response = predictor.predict(versions.root, overlay)
        assert (response.status_code, response.json()["code"]) == (422, "bad_request")
    assert predictor.texts(versions.root) == versions.answers[None]


def test_weights_that_yield_no_numbers_are_an_error_not_an_answer(
    versions: Versions, predictor: Running
) -> None:
    name = versions.lm.block_tensors(0, "mlp")[0]
    nan = versions.store.publish_overlay({name: torch.full_like(versions.lm.tensors[name], torch.nan)})
    response = predictor.predict(versions.root, nan.digest, top_k=3)
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert predictor.texts(versions.root) == versions.answers[None]


def test_a_prompt_that_does_not_fit_the_model_fails_alone(versions: Versions, predictor: Running) -> None:
    with ThreadPoolExecutor(8) as clients:
        long = [clients.submit(predictor.predict, versions.root, prompts=["France " * 200]) for _ in range(4)]
        good = [clients.submit(predictor.texts, versions.root) for _ in range(4)]
    for each in long:
        assert each.result().status_code == 422
        assert "tokens" in each.result().json()["message"]
    assert all(each.result() == versions.answers[None] for each in good)


def test_a_full_queue_answers_503_with_a_time_to_come_back(versions: Versions) -> None:
    with started(versions.data_dir, predictor_queue=4, predictor_batch=2) as running:
        overlay = versions.add(seed=4)
        running.texts(versions.root, overlay)

        def ask(_: int) -> httpx2.Response:
            return running.predict(versions.root, overlay, PROMPTS[:2], max_tokens=100)

        with ThreadPoolExecutor(20) as clients:
            responses = list(clients.map(ask, range(20)))
        refused = [response for response in responses if response.status_code != 200]
        assert 0 < len(refused) < 20
        assert {(r.status_code, r.json()["code"]) for r in refused} == {(503, "overloaded")}
        assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
        assert running.texts(versions.root, overlay) == versions.answers[overlay]


def test_told_to_stop_it_answers_what_it_has_taken_and_ends_cleanly(versions: Versions) -> None:
    overlay = versions.add(seed=5)
    prompts = PROMPTS[:3] * 6
    with started(versions.data_dir, predictor_batch=2) as running, ThreadPoolExecutor(1) as client:
        running.texts(versions.root, overlay)
        asked = client.submit(running.predict, versions.root, overlay, prompts, max_tokens=90)
        time.sleep(0.05)
        assert not asked.done()
        running.process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 200
        assert len(asked.result().json()["answers"]) == len(prompts)
        assert running.process.wait(10) == 0


def test_many_versions_of_one_root_do_not_multiply_memory(versions: Versions, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(versions.lm.tokenizer), hidden_size=512, intermediate_size=2048, num_hidden_layers=6
    )
    config.eos_token_id = versions.lm.eos_token_id
    model = LlamaForCausalLM(config)
    assert isinstance(versions.lm.tokenizer, PreTrainedTokenizerFast)
    model.save_pretrained(tmp_path / "large")
    versions.lm.tokenizer.save_pretrained(tmp_path / "large")
    store = CheckpointStore(tmp_path / "data" / "store")
    root = store.publish_root(tmp_path / "large")
    norm = model.model.layers[5].input_layernorm.weight
    overlays = [
        store.publish_overlay({"model.layers.5.input_layernorm.weight": norm + number}).digest
        for number in range(40)
    ]
    with started(tmp_path / "data") as running:
        memory = psutil.Process(running.process.pid).memory_info
        running.texts(root, overlays[0], prompts=["France"])
        with_one = memory().rss
        for overlay in overlays:
            running.texts(root, overlay, prompts=["France"])
        assert memory().rss - with_one < sum(p.nbytes for p in model.parameters()) / 2


def test_open_to_a_network_it_does_not_start_without_a_token(tmp_path: Path) -> None:
    environment = {"FACTEDIT_PREDICTOR_HOST": "0.0.0.0", "FACTEDIT_PREDICTOR_TOKEN": ""}
    ended = subprocess.run(
        [sys.executable, "-m", "workers.predictor"],
        cwd=REPOSITORY,
        env={**os.environ, **environment, "FACTEDIT_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "FACTEDIT_PREDICTOR_TOKEN" in ended.stderr


def _flipped(raw: bytes) -> bytes:
    flipped = bytearray(raw)
    flipped[len(raw) * 3 // 4] ^= 1
    return bytes(flipped)
