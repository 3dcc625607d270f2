from hypothesis import given
from hypothesis import strategies as st

from trainers.ingest.duplicates import Exchange, exchange, group, weights

STORY = " ".join(f"word{n}" for n in range(120))


def call(*user, answer="fine", signature="s"):
    messages = [{"role": "system", "content": "sys"}]
    for index, text in enumerate(user):
        if index:
            messages.append({"role": "assistant", "content": "ok"})
        messages.append({"role": "user", "content": text})
    return exchange({"messages": messages}, {"content": answer}, signature)


def test_exact_copies_point_to_the_first():
    assert group([call("a b c d"), call("e f g h"), call("a b c d")], 0.95) == [0, 1, 0]


def test_a_changed_word_in_a_long_text_is_a_near_copy():
    assert group([call(STORY), call(STORY + " more"), call("else " + STORY[:200])], 0.9) == [
        0,
        0,
        2,
    ]


def test_another_answer_is_another_exchange():
    assert group(
        [call("turn on the light", answer="on"), call("turn on the light", answer="off")], 0.95
    ) == [0, 1]


def test_short_texts_that_differ_stay_apart():
    assert group([call("turn on the kitchen light"), call("turn on the office light")], 0.8) == [
        0,
        1,
    ]


def test_the_steps_of_an_agent_loop_are_no_duplicates():
    steps = [call(STORY), call(STORY, "go on"), call(STORY, "go on", "go on")]
    assert group(steps, 0.5) == [0, 1, 2]


def test_a_long_past_in_common_makes_no_copies():
    assert group([call(STORY, "turn on the lamp"), call(STORY, "what is new?")], 0.8) == [0, 1]


def test_other_structures_are_never_compared():
    assert group([call(STORY, signature="a"), call(STORY, signature="b")], 0.5) == [0, 1]


def test_the_random_ids_of_tool_calls_do_not_matter():
    def answer(number):
        function = {"name": "f", "arguments": "{}"}
        return {"tool_calls": [{"id": f"call_{number}", "function": function}]}

    request = {"messages": [{"role": "user", "content": "x"}]}
    assert exchange(request, answer(1), "s") == exchange(request, answer(2), "s")


def test_a_group_weighs_as_much_as_one_call():
    assert weights([0, 1, 0, 0]) == [1 / 3, 1, 1 / 3, 1 / 3]


def test_a_flood_of_near_copies_ends_soon():
    flood = [Exchange("s", str(n), f"{STORY} end{n}") for n in range(600)]
    assert len(set(group(flood, 0.95))) < 60


@given(st.lists(st.sampled_from(["a b c", "a b d", STORY, STORY + " x"]), max_size=12))
def test_leaders_come_first_and_lead_themselves(texts):
    leaders = group([call(text) for text in texts], 0.95)
    assert all(leader <= index for index, leader in enumerate(leaders))
    assert all(leaders[leader] == leader for leader in leaders)


def test_odd_messages_are_no_obstacle():
    odd = [
        exchange({"messages": m}, None, "s")
        for m in (3, None, [None], [{"role": 1}], [{"role": "user", "content": 3}])
    ]
    assert len(group(odd, 0.95)) == 5
