"""The tables, the same on SQLite and PostgreSQL. Times are seconds since 1970, as floating point.

``events`` and ``audit`` are append-only: a trigger refuses to change or delete a row of them.
"""

from sqlalchemy import DDL, JSON, BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, event

metadata = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only under this name

edits = Table(
    "edits",
    metadata,
    Column("seq", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("pending", String(16)),  # "remove" or "expire": the writer is asked to take it out
    Column("version", Integer),  # the first version that has it
    Column("tenant", String(100), nullable=False, default=""),
    Column("prompt", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("prompt_key", String(64), nullable=False),  # the same for prompts that differ in blanks at their edges alone
    Column("request", JSON, nullable=False),  # what was asked for, whole
    Column("request_sha256", String(64), nullable=False),
    Column("source", Text, nullable=False, default=""),
    Column("asked_by", Text, nullable=False, default=""),
    Column("valid_from", Float),
    Column("expires", Float),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("figures", JSON),  # measured by the gates, and when it was taken out
    Index("edits_state", "state", "seq"),
    Index("edits_prompt", "prompt_key"),
    Index("edits_expires", "expires"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("edit", String(40), nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("before", String(16)),
    Column("after", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("data", JSON),
    Index("events_edit", "edit", "id"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(40), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("before", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

chain = Table(  # one row: the end of the audit log, which every change of the database takes hold of first
    "chain",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
    Column("hash", String(64), nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),  # base, turn, removal or rollback
    Column("parent", Integer),  # whose ledger this one's begins with
    Column("of", Integer),  # for a rollback, the version that it goes back to
    Column("run", String(100), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("num_edits", Integer, nullable=False),  # written or taken out
    Column("total_edits", Integer, nullable=False),
    Column("digests", JSON, nullable=False),
    Column("gates", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("has_state", Boolean, nullable=False),
)

gate_failures = Table(
    "gate_failures",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("version", Integer, nullable=False),  # the version that the turn would have followed
    Column("num_edits", Integer, nullable=False),
    Column("gate", String(40), nullable=False),
    Column("reason", Text, nullable=False),
    Column("gates", JSON, nullable=False),
)

settings = Table("settings", metadata, Column("name", String(40), primary_key=True), Column("value", JSON, nullable=False))

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("role", String(16), nullable=False),
    Column("tenant", String(100)),
    Column("sha256", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("token", String(16), nullable=False),
    Column("form_key", String(64), nullable=False),
    Column("expires", Float, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("token", String(16), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("edits", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

probes = Table(
    "probes",
    metadata,
    Column("seq", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("prompt", Text, nullable=False),
    Column("answer", Text),  # without one, what the unedited model says
    Column("base_answer", Text),
    Column("suite", String(100), nullable=False),
    Column("created", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("removed", Float),
    Column("kept", Boolean),  # at the last gate
)

jobs = Table(  # what the API asks of the writer, besides edits
    "jobs",
    metadata,
    Column("seq", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("kind", String(20), nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("state", String(16), nullable=False),  # waiting, done or failed
    Column("result", JSON),
    Column("created", Float, nullable=False),
    Column("finished", Float),
    Index("jobs_state", "state", "seq"),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(20), primary_key=True),
    Column("owner", String(100), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("renewals", BigInteger, nullable=False),
    Column("doing", Text, nullable=False, default=""),
)

publications = Table(
    "publications",
    metadata,
    Column("seq", _NUMBER, primary_key=True, autoincrement=True),
    Column("version", Integer, nullable=False),
    Column("target", Text, nullable=False),
    Column("name", String(100), nullable=False),
    Column("canary", Boolean, nullable=False),
    Column("number", Integer),  # in the run's own record
    Column("state", String(16), nullable=False),  # live, failed, dropped or replaced
    Column("reason", Text, nullable=False),
    Column("verdict", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(200), nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("kinds", JSON, nullable=False),
    Column("created", Float, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", _NUMBER, primary_key=True, autoincrement=True),
    Column("webhook", String(40), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
    Column("state", String(16), nullable=False),  # waiting, delivered or given up
    Column("last_error", Text, nullable=False, default=""),
    Index("deliveries_due", "state", "due"),
)

_SQLITE = """
CREATE TRIGGER IF NOT EXISTS {table}_keeps_{what} BEFORE {what} ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END
"""
_POSTGRESQL_FUNCTION = """
CREATE OR REPLACE FUNCTION ultraedit_append_only() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'append-only'; END $$ LANGUAGE plpgsql
"""
_POSTGRESQL = "CREATE OR REPLACE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} EXECUTE FUNCTION ultraedit_append_only()"


def _statement(text: str) -> DDL:
    return DDL(text)  # type: ignore[no-untyped-call]


for _table in (events, audit):
    for _what in ("update", "delete"):
        event.listen(_table, "after_create", _statement(_SQLITE.format(table=_table.name, what=_what)).execute_if(dialect="sqlite"))
    event.listen(_table, "after_create", _statement(_POSTGRESQL_FUNCTION).execute_if(dialect="postgresql"))
    event.listen(_table, "after_create", _statement(_POSTGRESQL.format(table=_table.name)).execute_if(dialect="postgresql"))
