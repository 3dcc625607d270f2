import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.tasks.embedding import cosine_distances, embed, nearest, prompt_text


@dataclass(frozen=True)
class Centre:
    name: str
    centroid: list[float] = field(default_factory=list)
    radius: float = 0.5


def test_unit_vectors_of_the_asked_shape():
    vectors = embed(["turn on the kitchen light", "what is the weather", "x"], 64)
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embed([], 64).shape == (0, 64)


def test_alike_texts_are_closer_than_others():
    a, b, c = embed(
        [
            "please turn on the kitchen lights",
            "turn on the lights in the kitchen",
            "my invoice was charged twice, I want a refund",
        ]
    )
    assert a @ b > 0.5 > a @ c + 0.2


def test_variables_do_not_move_the_embedding():
    a, b = embed(["refund order 12345 to ann@example.org", "refund order 9 to <EMAIL_1>"])
    assert np.allclose(a, b)


def test_nothing_to_say_is_the_zero_vector():
    assert not embed(["", "12345 67", "<EMAIL_1>"]).any()


def test_another_process_computes_the_same():
    code = "from infra.tasks.embedding import embed; print(embed(['refund my order'],32).tobytes().hex())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert runs == {embed(["refund my order"], 32).tobytes().hex()}


@given(st.text(max_size=500))
def test_any_text_embeds(text):
    norm = float(np.linalg.norm(embed([text], 64)[0]))
    assert norm == pytest.approx(1, abs=1e-4) or norm == 0


def message(role, content):
    return {"role": role, "content": content}


def test_prompt_text_is_the_last_run_of_user_messages():
    messages = [
        message("system", "s"),
        message("user", "first"),
        message("assistant", "a"),
        message("user", "second"),
        message("user", [{"type": "text", "text": "third"}, {"type": "image_url"}]),
    ]
    assert prompt_text({"messages": messages}) == "second\nthird"


def test_the_steps_of_an_agent_loop_have_one_prompt_text():
    start = [message("system", "s"), message("user", "book a flight")]
    step = [*start, {"role": "assistant", "tool_calls": []}, message("tool", "{}")]
    assert prompt_text({"messages": step}) == prompt_text({"messages": start}) == "book a flight"


@pytest.mark.parametrize(
    "odd", [None, [], {}, {"messages": "x"}, {"messages": [None, {"role": 3}]}]
)
def test_prompt_text_of_odd_requests_is_empty(odd):
    assert prompt_text(odd) == ""


def test_prompt_text_is_bounded():
    assert len(prompt_text({"messages": [message("user", "word " * 2_000_000)]})) <= 20_000


def test_nearest_takes_the_closest_within_its_radius():
    light, bill = embed(["turn on the kitchen light", "refund my invoice please"])
    tasks = [Centre("bill", bill.tolist()), Centre("light", light.tolist())]
    found = nearest(embed(["turn on the office light"])[0], tasks)
    assert found is not None
    assert found.name == "light"


def test_nearest_abstains():
    light = embed(["turn on the kitchen light"])[0]
    vector = embed(["a poem about the sea"])[0]
    assert nearest(vector, [Centre("light", light.tolist(), radius=0.6)]) is None
    assert nearest(vector, []) is None


def test_nearest_passes_over_tasks_it_cannot_compare():
    vector = embed(["turn on the light"])[0]
    assert nearest(vector, [Centre("none"), Centre("short", [1.0])]) is None


def test_distances():
    vectors = embed(["turn on the light", "refund"])
    distances = cosine_distances(vectors, vectors[0])
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert 0.5 < distances[1] < 1.5
