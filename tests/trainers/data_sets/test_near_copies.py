import datasketch
import pytest

from tests.trainers.recorded import START, call
from trainers.data_sets.golden import make_case
from trainers.data_sets.labels import Example
from trainers.data_sets.near_copies import repeating

LONG = " ".join(f"word{n}" for n in range(80))


def example(name: str, text: str, answer: str = "yes") -> Example:
    request = call(user=text).request
    return Example(
        name, "s", START, request, {"role": "assistant", "content": answer}, 1.0, "teacher", ""
    )


def test_a_golden_case_is_not_trained_on_in_another_wording_nor_with_another_answer():
    case = make_case(
        "mail", example("", LONG).request, {"content": "yes"}, why="it is", by="ann"
    ).example()
    twin = make_case(
        "mail", example("", f"{LONG} ok").request, {"content": "yes"}, why="it is", by="ann"
    ).example()
    rows = [
        example("same", LONG, "no"),
        example("near", f"{LONG} please", "maybe"),
        example("near-twin", f"{LONG} ok then"),
        example("other", "Is it raining in Spain today or tomorrow?"),
    ]
    assert repeating(rows, [case, twin], 0.95) == {"same", "near", "near-twin"}
    assert repeating(rows, [twin, case], 0.95) == {"same", "near", "near-twin"}
    assert repeating(rows, [], 0.95) == set()
    other = example("structure", LONG)
    other.request["tools"] = [{"type": "function", "function": {"name": "look"}}]
    assert repeating([other], [case], 0.95) == set()


def test_a_golden_prompt_is_known_though_the_request_has_more_that_no_prompt_shows():
    asked, pinned = example("same", LONG), example("case", LONG)
    asked.request["functions"] = [{"name": "look"}]
    assert repeating([asked], [pinned], 0.95) == {"same"}


def test_each_prompt_is_hashed_once_however_many_like_cases_there_are(
    monkeypatch: pytest.MonkeyPatch,
):
    hashed = []
    bulk = datasketch.MinHash.bulk

    def counted(texts, **more):
        hashed.append(len(texts))
        return bulk(texts, **more)

    monkeypatch.setattr(datasketch.MinHash, "bulk", counted)
    cases = [example(f"case-{n}", f"{LONG} {n}") for n in range(20)]
    rows = [example("near", f"{LONG} and so on"), example("other", " ".join("abcdefg" * 9))]
    assert repeating(rows, cases, 0.9) == {"near"}
    assert sum(hashed) == len(cases) + len(rows)
