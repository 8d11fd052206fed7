"""The store without a model: keys, states, the audit log, tokens, the lease, and a database that fails."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DatabaseError

from editing.errors import WorkerLost
from orchestrator.service import audit, edits, tokens
from orchestrator.service import database as database_module
from orchestrator.service.attempts import Attempts
from orchestrator.service.database import Database, DiskFull, Unavailable, sqlite_url
from orchestrator.service.edits import Draft, Filter, KeyReused
from orchestrator.service.lease import Lease, LeaseLost
from orchestrator.service.states import Conflict
from orchestrator.service.tables import edits as table


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path / "service.db"))
    yield opened
    opened.close()


def draft(prompt: str = "The capital of Samoa is", target: str = "Apia") -> Draft:
    return Draft(request={"prompt": prompt, "target": target}, prompt=prompt, target=target)


def add(database: Database, *drafts: Draft, key: str | None = None) -> list[str]:
    return edits.add_once(database, drafts or [draft()], actor="eve", token="t", key=key)[0]


def test_a_key_is_answered_with_the_same_edits_and_refused_with_others(database: Database) -> None:
    first = add(database, draft(), draft("p", "q"), key="k")
    assert add(database, draft(), draft("p", "q"), key="k") == first
    with pytest.raises(KeyReused):
        add(database, draft("p", "q"), key="k")
    assert len(first) == 2
    with database.reading() as connection:
        assert sum(edits.counts(connection).values()) == 2


def test_two_who_post_one_key_at_once_get_one_answer(database: Database) -> None:
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(add(database, key="k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(answer) for answer in answers}) == 1


def test_a_state_that_cannot_follow_is_refused_with_what_can(database: Database) -> None:
    (edit,) = add(database)
    with pytest.raises(Conflict, match="is queued and cannot become live; what can follow is validated"), database.changing("eve", "x") as work:
        work.change(edits.get(work.connection, edit), "live", "")
    with database.reading() as connection:
        assert edits.get(connection, edit)["state"] == "queued"
        assert len(edits.history(connection, edit)) == 1


def test_lists_are_paged_filtered_and_searched_by_words(database: Database) -> None:
    add(database, *(draft(f"The height of peak {i} is", f"{i} m") for i in range(5)), draft("100% sure_", "x"))
    with database.reading() as connection:
        page, after = edits.find(connection, Filter(limit=4))
        rest, end = edits.find(connection, Filter(limit=4, after=after))
        assert [row["seq"] for row in (*page, *rest)] == [6, 5, 4, 3, 2, 1]
        assert end is None
        assert [row["target"] for row in edits.find(connection, Filter(words=("PEAK", "3")))[0]] == ["3 m"]
        assert [row["prompt"] for row in edits.find(connection, Filter(words=("%", "_")))[0]] == ["100% sure_"]
        assert edits.find(connection, Filter(words=("' or 1=1 --",))) == ([], None)


def test_an_altered_log_history_or_content_is_found(database: Database, tmp_path: Path) -> None:
    (edit,) = add(database)
    with database.changing("eve", "approve", edit) as work:
        edits.reject(work, edits.get(work.connection, edit), "no")
    with database.reading() as connection:
        whole = audit.verify(connection)
        assert audit.verify(connection, whole.head) == whole
        with pytest.raises(audit.Altered, match="no entry has the hash"):
            audit.verify(connection, "0" * 63 + "1")
    changes = (
        ("update audit set actor = 'mallory' where seq = 2", "entry 2"),
        ("update events set reason = 'yes' where id = 2", "the events of entry 2"),
        ("delete from audit where seq = 2", "the log ends at entry 1"),
        ("update edits set state = 'live'", "is live, and its history says rejected"),
        ("""update edits set request = '{"prompt": "x"}'""", "does not have the content"),
        ("delete from edits", "is missing"),
    )
    for number, (change, found) in enumerate(changes):
        copy = tmp_path / f"{number}.db"
        with sqlite3.connect(tmp_path / "service.db") as source, sqlite3.connect(copy) as target:
            source.backup(target)
            for trigger in ("audit_keeps_update", "audit_keeps_delete", "events_keeps_update", "events_keeps_delete"):
                target.execute(f"drop trigger {trigger}")
            target.execute(change)
        other = Database(sqlite_url(copy))
        with other.reading() as connection, pytest.raises(audit.Altered, match=found):
            audit.verify(connection)
        other.close()


@pytest.mark.parametrize("change", ["update audit set actor = ''", "delete from audit", "update events set reason = ''", "delete from events"])
def test_the_database_itself_refuses_to_change_what_is_append_only(database: Database, change: str) -> None:
    add(database)
    with pytest.raises(DatabaseError, match="append-only"), database.engine.begin() as connection:
        connection.execute(text(change))


def test_time_never_goes_back_in_the_log(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = add(database)
    monkeypatch.setattr(database_module.time, "time", lambda: 1000.0)
    (second,) = add(database)
    with database.reading() as connection:
        assert edits.get(connection, second)["created"] >= edits.get(connection, first)["created"]
        audit.verify(connection)


def test_a_token_is_kept_as_a_hash_and_is_worthless_once_revoked(database: Database) -> None:
    with database.changing("admin", "make token") as work:
        token = tokens.make(work, "eve", "editor", tenant="a")
    with database.reading() as connection:
        caller = tokens.who(connection, token)
        assert caller is not None
        assert (caller.may("editor"), caller.may("approver"), caller.tenant) == (True, False, "a")
        assert tokens.who(connection, token[:-1]) is None
        assert tokens.who(connection, "") is None
        stored = str(connection.execute(text("select * from tokens")).all()) + str(connection.execute(text("select * from audit")).all())
        assert token not in stored
        assert token.split("_", 2)[2] not in stored
    with database.changing("admin", "revoke") as work:
        tokens.revoke(work, caller.token)
    with database.reading() as connection:
        assert tokens.who(connection, token) is None


def test_a_second_writer_waits_and_takes_over_and_the_first_can_change_nothing_more(database: Database) -> None:
    first, second = Lease(database, take_over=1.0), Lease(database, take_over=1.0)
    assert first.acquire(lambda: False)
    began = time.monotonic()
    assert not second.acquire(lambda: time.monotonic() - began > 1.5)  # the first one is alive
    first._stop.set()  # and now it is silent
    assert second.acquire(lambda: False)
    assert second.epoch == first.epoch + 1
    with pytest.raises(LeaseLost), database.changing("writer", "x") as work:
        first.check(work.connection)
    second.release()
    assert Lease(database).acquire(lambda: False)


def test_a_locked_database_says_so_and_works_again(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.close()
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.2)
    quick = Database(sqlite_url(tmp_path / "service.db"))
    with sqlite3.connect(tmp_path / "service.db", isolation_level=None) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match=r"cannot be used now \(database is locked\); try again"):
            add(quick)
        with quick.reading() as connection:  # who only reads does not wait
            assert edits.counts(connection) == {}
        other.execute("rollback")
    assert len(add(quick)) == 1
    quick.close()


def test_a_full_disk_says_so_and_what_was_there_stays(database: Database) -> None:
    (edit,) = add(database)
    with database.engine.connect() as connection:
        pages = connection.execute(text("pragma page_count")).scalar()
    database.close()

    def limited(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"pragma max_page_count = {pages}")

    from sqlalchemy import event

    event.listen(database.engine, "connect", limited)
    with pytest.raises(DiskFull, match="there is no room for the change"):
        add(database, *(draft(f"prompt {i} " + "x" * 2000) for i in range(50)))
    with database.reading() as connection:
        assert edits.counts(connection) == {"queued": 1}
        assert edits.get(connection, edit)["state"] == "queued"
        audit.verify(connection)


def test_an_update_beside_the_history_is_found(database: Database) -> None:
    add(database)
    with database.engine.begin() as connection:
        connection.execute(update(table).values(state="live"))
    with database.reading() as connection, pytest.raises(audit.Altered, match="is live, and its history says queued"):
        audit.verify(connection)


def test_a_turn_that_writers_die_of_is_tried_again_then_halved_then_set_aside(database: Database) -> None:
    due = [{"id": name} for name in "abcde"]
    tried, aside = [], ""
    for _ in range(20):
        now, deadly = (attempts := Attempts(database)).choose(due)
        if deadly:
            aside = "".join(row["id"] for row in deadly)
            break
        tried.append("".join(row["id"] for row in now))
        with pytest.raises(WorkerLost), attempts.noted(now):
            raise WorkerLost("the memory is full")
    assert (tried, aside) == (["abcde", "abcde", "ab", "ab", "a", "a"], "a")


@pytest.mark.parametrize("error", [None, Unavailable("busy")], ids=["done", "an error that passes"])
def test_a_turn_that_ends_without_a_death_leaves_no_trace(error: Exception | None, database: Database) -> None:
    due, attempts = [{"id": name} for name in "abc"], Attempts(database)
    for _ in range(2):
        with pytest.raises(WorkerLost), attempts.noted(due):
            raise WorkerLost("a")
    with suppress(Unavailable), attempts.noted(due):
        if error is not None:
            raise error
    assert attempts.choose(due) == (due, [])
