import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from infra.anonymize.anonymizer import Anonymizer as RealAnonymizer
from infra.settings.serving import Anonymizer
from infra.tasks.masking import mask
from infra.tasks.signature import Signature, signature

LIGHT = {
    "type": "function",
    "function": {
        "name": "turn_on",
        "description": "Turn a light on.",
        "parameters": {
            "type": "object",
            "properties": {"area": {"type": "string", "enum": ["kitchen", "office"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
SYSTEM = "You control a home."


def request(system=SYSTEM, tools=(LIGHT, CLOCK), user="hello", **more):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"model": "m", "messages": messages, "tools": list(tools), **more}


def digest(*args, **kwargs):
    return signature(request(*args, **kwargs)).digest


PAIRS = [
    ("Write to ann@example.org, please.", "Write to <EMAIL_1>, please."),
    ("Call +1 (555) 123-4567 now.", "Call <PHONE_NUMBER_2> now."),
    ("Account DE89 3704 0044 0532 0130 00.", "Account <IBAN_1>."),
    ("The host fe80::a is up", "The host <IPV6_1> is up"),
    ("The host dead:beef::cafe is up", "The host <IP_1> is up"),
    ("Card aa:bb:cc:dd:ee:ff here", "Card <MAC_1> here"),
    ("Key sk-abcdefghijklmnopqrstuvwxyzabcd.", "Key <API_KEY_1>."),
    ("See https://a:b@example.org/x for more", "See <URL_1> for more"),
    (
        "Use -----BEGIN PRIVATE KEY-----\nMII\nabc==\n-----END PRIVATE KEY----- only",
        "Use <KEY_1> only",
    ),
    ("Mail (ann@example.org)", "Mail (<EMAIL_0af31b22>)"),
    ("Mail ann@example.org", "Mail <EMAIL>"),
    ("Mail ann@example.org", "Mail "),
    ("Today is 2026-01-02.", "Today is Monday, March 3, 2027."),
    ("Request 550e8400-e29b-41d4-a716-446655440000", "Request 7"),
]


@pytest.mark.parametrize(("raw", "logged"), PAIRS)
def test_live_and_logged_request_share_a_signature(raw, logged):
    assert digest(system=f"{SYSTEM} {raw}") == digest(system=f"{SYSTEM} {logged}")


@pytest.mark.parametrize("policy", ["replace", "drop", "hash"])
def test_our_own_anonymizer_does_not_change_a_signature(policy):
    raw = request(
        system=f"""{SYSTEM} Ask ann@example.org or +1 415-555-0132, card 4111 1111 1111 1111.
        Account DE89 3704 0044 0532 0130 00, host 10.0.0.7, {"https://bob:s3cret@example.org/x"}.
        Your password: hunter!x. The api_key=sk-abcdefghijklmnopqrstuvwx stays secret.
        -----BEGIN PRIVATE KEY-----\nMIIBVgIBADANBg\nkqhkiG==\n-----END PRIVATE KEY-----""",
        response_format={"type": "json_object"},
    )
    settings = Anonymizer(policy=policy, hash_key=SecretStr("k"))
    scope = RealAnonymizer(settings).scope()
    logged = scope.request(raw)
    assert sum(scope.counts.values()) >= 7
    assert signature(logged) == signature(raw)


def test_the_user_and_the_sampling_options_do_not_matter():
    assert digest() == digest(user="something else", temperature=1, model="other")


def test_order_of_tools_and_their_prose_do_not_matter():
    other = json.loads(json.dumps(LIGHT))
    other["function"]["description"] = "As of 2026: turns on."
    assert digest(tools=(CLOCK, other)) == digest()


def test_what_is_asked_for_does_matter():
    narrower = json.loads(json.dumps(LIGHT))
    del narrower["function"]["parameters"]["properties"]["area"]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    wider = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}
    digests = [
        digest(),
        digest(system="You answer tickets."),
        digest(tools=(LIGHT,)),
        digest(tools=(narrower, CLOCK)),
        digest(response_format=schema),
        digest(response_format=wider),
        digest(response_format={"type": "json_object"}),
        signature(
            {"messages": request()["messages"] + [{"role": "system", "content": "Be rude."}]}
        ).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_a_property_named_like_a_schema_keyword_counts():
    def tool(properties):
        parameters = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": "f", "parameters": parameters}}

    assert digest(tools=[tool({"title": {"type": "string"}})]) != digest(tools=[tool({})])


def test_parts_and_plain_text_are_the_same_prompt():
    parts = [{"type": "text", "text": SYSTEM}]
    assert digest(system=parts) == digest(system=SYSTEM)


def test_its_readable_parts():
    form = {"type": "json_schema", "json_schema": {"name": "triage", "schema": {}}}
    found = signature(request(system="You are Bob. It is 12:30.", response_format=form))
    assert found.tools == ("get_time", "turn_on")
    assert (found.response_kind, found.response_name) == ("json_schema", "triage")
    assert found.system_template == "you are bob it is"


def test_a_huge_system_prompt_is_bounded():
    found = signature(request(system="word " * 2_000_000))
    assert len(found.system_template.split()) == 4000
    assert signature(request(system="x" * 10_000_000)).digest


KEYS = (
    *("messages", "tools", "function", "functions", "role", "content", "response_format", "type"),
    *("name", "json_schema", "schema", "parameters", "properties", "system", "text"),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(anything)
def test_every_value_has_a_signature(value):
    found = signature(value)
    assert isinstance(found, Signature)
    assert len(found.digest) == 64
    assert signature(value) == found


@pytest.mark.parametrize("odd", [None, 3, "x", [], {"messages": 3}, {"messages": [None, 3, "x"]}])
def test_odd_requests_share_the_signature_of_nothing(odd):
    assert signature(odd).digest == signature({}).digest


def test_a_lone_surrogate_is_no_obstacle():
    assert signature(request(system="bad \ud800 text")).digest


@given(
    st.text(max_size=300), st.sampled_from(["ann@example.org", "555-123-4567", "https://u:p@h/"])
)
def test_a_value_leaves_no_trace(text, value):
    assert mask(f"{text} {value} end") == mask(f"{text} <EMAIL_3> end")
