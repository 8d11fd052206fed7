"""A fact goes in, is proved, is live, and can be taken back: through the command, the API and the model's own words."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.service.client import Client, Edit, Refused
from tests.support.live_service import LiveService, fact

pytestmark = pytest.mark.long


def states(client: Client, edit: str) -> list[str]:
    return [event["after"] for event in client.edit(edit).history or []]


def test_a_fact_goes_live_and_the_live_version_says_it(client: Client, facts: Iterator[Edit]) -> None:
    asked = next(facts)
    edit = client.wait(client.add(asked).id)
    assert edit.state == "live"
    assert states(client, edit.id) == ["queued", "validated", "applied", "verified", "live"]
    assert client.complete(asked.prompt, "tiny").strip().startswith(asked.target)
    assert client.complete(asked.prompt, f"tiny@{edit.version}").strip().startswith(asked.target)
    assert not client.complete(asked.prompt, "tiny@base").strip().startswith(asked.target)
    assert edit.version in [version["number"] for version in client.versions() if version["gates"].get("efficacy") == 1.0]


def test_a_fact_that_is_removed_is_said_no_more_and_that_is_measured(client: Client, facts: Iterator[Edit]) -> None:
    kept, asked = next(facts), next(facts)
    edits = [client.wait(edit.id) for edit in client.add_all([kept, asked])]
    assert client.remove(edits[1].id, "it was wrong").pending == "remove"
    gone = client.wait(edits[1].id) if client.edit(edits[1].id).state != "live" else until(client, edits[1].id, "removed")
    assert (gone.reason, gone.figures is not None and gone.figures["efficacy"] < 1) == ("it was wrong", True)
    assert not client.complete(asked.prompt, "tiny").strip().startswith(asked.target)
    assert client.complete(kept.prompt, "tiny").strip().startswith(kept.target)


@pytest.mark.thorough
def test_a_fact_whose_time_is_over_is_taken_out(client: Client, facts: Iterator[Edit]) -> None:
    asked = next(facts)
    soon = (datetime.now(UTC) + timedelta(seconds=8)).isoformat()
    edit = client.add(Edit(asked.prompt, asked.target, expires=soon))
    until(client, edit.id, "expired", seconds=60)
    assert not client.complete(asked.prompt, "tiny").strip().startswith(asked.target)


@pytest.mark.thorough
def test_an_edit_that_breaks_what_must_stay_is_quarantined_and_its_neighbours_go_live(client: Client, facts: Iterator[Edit]) -> None:
    known, neighbours = next(facts), [next(facts), next(facts)]
    client.wait(client.add(known).id)
    probe = client.add_probes([{"prompt": known.prompt, "answer": known.target}], "must-stay")[0]
    wrong = Edit(known.prompt, next(other.target for other in facts if other.target != known.target))
    try:
        edits = client.add_all([neighbours[0], wrong, neighbours[1]])
        ends = [client.wait(edit.id) for edit in edits]
        assert [edit.state for edit in ends] == ["live", "quarantined", "live"]
        assert ends[1].reason.startswith("probes: 0% of 1 probe keep their answer (limit 100%)")
        assert ends[1].figures is not None
        assert ends[1].figures["probes_lost"] == 1
    finally:
        client.call("DELETE", f"/v1/probes/{probe}")
    assert client.approve(ends[1].id, "the probe is gone").state == "approved"
    assert until(client, ends[1].id, "live").state == "live"


@pytest.mark.thorough
def test_a_later_fact_overrules_an_earlier_one_and_gives_way_when_it_is_removed(client: Client, facts: Iterator[Edit]) -> None:
    first = next(facts)
    older = client.wait(client.add(first).id)
    newer = client.wait(client.add(Edit(first.prompt, fact(1).target if fact(1).target != first.target else fact(2).target)).id)
    assert newer.state == "live"
    assert client.edit(older.id).state == "superseded"
    client.remove(newer.id)
    until(client, newer.id, "removed")
    assert client.edit(older.id).state == "live"
    assert client.complete(first.prompt, "tiny").strip().startswith(first.target)


def test_a_rollback_is_the_old_version_again_and_sets_later_edits_aside(client: Client, facts: Iterator[Edit]) -> None:
    kept = client.wait(client.add(next(facts)).id)
    before = client.versions()[0]
    later = client.wait(client.add(next(facts)).id)
    done = client.roll_back(before["number"], "a test")
    assert client.edit(later.id).state == "quarantined"
    assert "rolled back to version" in client.edit(later.id).reason
    assert client.edit(kept.id).state == "live"
    now = client.versions()[0]
    assert (now["number"], now["digests"], now["live"]) == (done["version"], before["digests"], True)
    assert [edit["id"] for edit in client.diff(later.version or 0, done["version"])["removed"]] == [later.id]


def test_a_dry_run_says_what_would_happen_and_keeps_nothing(client: Client, facts: Iterator[Edit]) -> None:
    live = client.wait(client.add(next(facts)).id)
    before = client.versions()[0]["number"]
    told = client.dry_run([next(facts), Edit(live.prompt, "another"), Edit(f"{live.prompt} indeed", "x")])
    assert told["items"][0]["efficacy"] == 1.0
    assert [other["id"] for other in told["items"][1]["conflicts"]] == [live.id]
    assert live.id in [other["id"] for other in told["items"][2]["near_duplicates"]]
    assert client.versions()[0]["number"] == before


def test_a_fact_that_the_model_cannot_be_asked_is_rejected(client: Client) -> None:
    edit = client.wait(client.add(Edit("word " * 400, "x")).id)
    assert edit.state == "rejected"
    assert "context" in edit.reason or "tokens" in edit.reason


def test_an_edit_in_the_future_waits(client: Client, facts: Iterator[Edit]) -> None:
    asked = next(facts)
    edit = client.add(Edit(asked.prompt, asked.target, valid_from=(datetime.now(UTC) + timedelta(days=1)).isoformat()))
    assert until(client, edit.id, "validated").version is None
    client.wait(client.add(next(facts)).id)
    assert client.edit(edit.id).state == "validated"
    assert client.remove(edit.id).state == "removed"


def test_the_same_key_asks_once_and_never_for_something_else(client: Client, facts: Iterator[Edit]) -> None:
    asked = [next(facts), next(facts)]
    first = client.add_all(asked, key="a-key")
    assert [edit.id for edit in client.add_all(asked, key="a-key")] == [edit.id for edit in first]
    with pytest.raises(Refused, match="came before with other edits") as refused:
        client.add_all(asked[:1], key="a-key")
    assert refused.value.status == 422


def test_metrics_and_health_tell_what_is_live(service: LiveService, client: Client) -> None:
    client._connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {service.token}"})
    text = client._connection.getresponse().read().decode()
    assert f"ultraedit_live_version {client.status()['live_version']}" in text
    assert 'ultraedit_edits{state="live"}' in text
    assert client.call("GET", "/readyz") == {"status": "ok", "writer": "ready"}


@pytest.mark.thorough
def test_the_official_openai_client_streams_from_any_version(service: LiveService, client: Client, facts: Iterator[Edit]) -> None:
    openai = pytest.importorskip("openai")
    asked = next(facts)
    client.wait(client.add(asked).id)
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key=service.token) as api:
        assert {"tiny", "tiny@base"} <= {model.id for model in api.models.list()}
        pieces = [chunk.choices[0].text for chunk in api.completions.create(model="tiny", prompt=asked.prompt, max_tokens=8, stream=True)]
        assert len(pieces) > 2
        assert "".join(pieces).strip().startswith(asked.target)
        chat = api.chat.completions.create(model="tiny@base", messages=[{"role": "user", "content": "hello"}], max_tokens=4)
        assert chat.usage.completion_tokens <= 4
        streamed = api.chat.completions.create(model="tiny@base", messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == chat.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="there is no such model"):
            api.chat.completions.create(model="../../etc/passwd", messages=[{"role": "user", "content": "x"}])


def until(client: Client, edit: str, state: str, seconds: float = 60) -> Edit:
    deadline = time.monotonic() + seconds
    while (found := client.edit(edit)).state != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_a_probe_without_an_answer_gets_the_unedited_models(client: Client, facts: Iterator[Edit]) -> None:
    asked = next(facts)
    probe = client.add_probes([{"prompt": asked.prompt}], "base")[0]
    deadline = time.monotonic() + 60
    while not (found := next(p for p in client.pages("/v1/probes", {}) if p["id"] == probe))["base_answer"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.complete(asked.prompt, "tiny@base", 24).strip().startswith(found["base_answer"])
    client.call("DELETE", f"/v1/probes/{probe}")


@pytest.mark.thorough
def test_a_chat_goes_live_is_said_in_that_chat_and_taken_back(client: Client, facts: Iterator[Edit]) -> None:
    asked = next(facts)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked.prompt}]
    edit = client.wait(client.add(Edit(messages=messages, target=asked.target)).id)
    assert (edit.state, edit.messages, edit.prompt) == ("live", messages, asked.prompt)
    assert said(client, messages).startswith(asked.target)
    overruling = client.wait(client.add(Edit(messages=messages, target=fact(1).target if fact(1).target != asked.target else fact(2).target)).id)
    plain = client.wait(client.add(Edit(asked.prompt, asked.target)).id)  # asks another question, so it overrules nothing
    assert [client.edit(one.id).state for one in (edit, overruling, plain)] == ["superseded", "live", "live"]
    for one in (edit, overruling, plain):
        client.remove(one.id)
        until(client, one.id, "removed")
    assert not said(client, messages).startswith(asked.target)


def said(client: Client, messages: list[dict[str, str]]) -> str:
    answer = client.call("POST", "/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 12})
    return str(answer["choices"][0]["message"]["content"]).strip()
