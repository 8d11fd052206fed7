"""What goes in and out of the API, as the OpenAPI document shows it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from editing import EditRequest, Message
from editing.blanks import bare
from editing.errors import InvalidRequest
from orchestrator.service.edits import Draft
from orchestrator.service.rows import Row
from orchestrator.service.tokens import Role


def _text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("has a NUL character; expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate, which is not valid Unicode text") from None
    return value


def _filled(value: str) -> str:
    if not bare(value):
        raise ValueError("expected a non-empty string")
    return value


Text = Annotated[str, Field(max_length=100_000), AfterValidator(_text)]
Filled = Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(_text), AfterValidator(_filled)]
Short = Annotated[str, Field(max_length=200), AfterValidator(_text)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProbeIn(_Asked):
    """A question that an edit must not change the answer of."""

    prompt: Filled
    answer: Filled | None = Field(None, description="What must be said; without it, what the unedited model says.")


class MessageIn(_Asked):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Filled


class EditIn(_Asked):
    """A fact to be written: what the model shall say (`target`) after a prompt."""

    prompt: Filled | None = Field(None, description="Text after which the model shall write the target.")
    messages: list[MessageIn] | None = Field(
        None, min_length=1, max_length=100, description="Instead of a prompt: a chat up to the user's message that the target answers."
    )
    target: Filled = Field(description="The new answer.")
    subject: Filled | None = Field(None, description="What the fact is about, as it stands in the prompt.")
    rephrasings: list[Filled] = Field(default_factory=list, max_length=20, description="The same question in other words; measured.")
    probes: list[ProbeIn] = Field(default_factory=list, max_length=20, description="Questions that must stay.")
    source: Text = Field("", description="Where the fact is from.")
    asked_by: Short = Field("", description="Who asked for it.")
    valid_from: AwareDatetime | None = Field(None, description="Not written before.")
    expires: AwareDatetime | None = Field(None, description="Taken out after.")
    tenant: Annotated[str, Field(max_length=100), AfterValidator(_text)] = ""

    @model_validator(mode="after")
    def _check(self) -> "EditIn":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        if self.valid_from is not None and self.expires is not None and self.expires <= self.valid_from:
            raise ValueError("expires: expected a time after valid_from")
        return self

    def draft(self, tenant: str | None) -> Draft:
        """The edit as it is stored.

        Args:
            tenant: That of the caller, if it has one; it wins.

        Raises:
            InvalidRequest: The method cannot be asked for it.
        """
        chat = tuple(Message(message.role, message.content) for message in self.messages or ())
        prompt = EditRequest(self.prompt or "", self.target, messages=chat).prompt
        if self.subject is not None and self.subject not in prompt:
            raise InvalidRequest("subject", f"does not stand in the prompt; expected a part of {prompt[:80]!r}, found {self.subject[:80]!r}")
        asked = {name: value for name, value in self.model_dump(mode="json", exclude={"tenant"}).items() if value not in (None, [], "")}
        owner = self.tenant if tenant is None else tenant
        return Draft(
            request={**asked, "tenant": owner},
            prompt=prompt,
            target=self.target,
            source=self.source,
            asked_by=self.asked_by,
            tenant=owner,
            valid_from=_seconds(self.valid_from),
            expires=_seconds(self.expires),
        )


class EditsIn(_Asked):
    """Several facts."""

    edits: list[EditIn] = Field(min_length=1)


class ReasonIn(_Asked):
    """Why."""

    reason: Text = ""


class Event(BaseModel):
    """One change of an edit."""

    at: datetime
    actor: str
    before: str | None
    after: str
    reason: str
    data: dict[str, Any] | None


class EditOut(BaseModel):
    """An edit as it stands."""

    id: str
    state: str
    version: int | None = Field(description="The first version that has it.")
    pending: str | None = Field(description="`remove` or `expire` while the writer is asked to take it out.")
    prompt: str
    target: str
    subject: str | None
    rephrasings: list[str]
    probes: list[dict[str, Any]]
    messages: list[dict[str, Any]] | None
    source: str
    asked_by: str
    tenant: str
    valid_from: datetime | None
    expires: datetime | None
    created: datetime
    changed: datetime
    reason: str
    figures: dict[str, Any] | None
    history: list[Event] | None = None


class EditsOut(BaseModel):
    """A page of edits."""

    items: list[EditOut]
    next: str | None = Field(description="Give it as `cursor` for the next page.")


class Page(BaseModel):
    """A page of a list."""

    items: list[dict[str, Any]]
    next: str | None = Field(description="Give it as `cursor` for the next page.")


class ProbesIn(_Asked):
    """Questions that must stay."""

    probes: list[ProbeIn] = Field(min_length=1, max_length=1000)
    suite: Name = "default"


class PublishIn(_Asked):
    """Where a version goes."""

    to: Annotated[str, Field(max_length=500, pattern=r"^(vllm|sglang|llamacpp)://[^\s]+$")] | None = None
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    canary: bool = False


class TokenIn(_Asked):
    """A token to be made."""

    name: Name
    role: Role
    tenant: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_text)] | None = None


class WebhookIn(_Asked):
    """An address that is told what happens."""

    url: Annotated[str, Field(max_length=2000), AfterValidator(_text)]
    kinds: list[str] = Field(default_factory=list, max_length=20)


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore")  # clients send much that decides nothing here

    model: Annotated[str, Field(max_length=200)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[str, AfterValidator(_text)] | Annotated[list[Annotated[str, AfterValidator(_text)]], Field(max_length=4)] | None = None
    stream: bool | None = False
    n: Literal[1] | None = None

    @property
    def stops(self) -> list[str]:
        return [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop


class ChatMessage(BaseModel):
    """A message, as OpenAI's clients send it."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, AfterValidator(_text)] | list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, str]:
        """Role and text, as templates know them."""
        text = self.content if isinstance(self.content, str) else "".join(str(part.get("text", "")) for part in self.content or ())
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatIn(_Question):
    """A chat to be continued."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=100)
    max_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream_options: dict[str, Any] | None = None


class CompletionIn(_Question):
    """A text to be continued."""

    prompt: Filled
    max_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream_options: dict[str, Any] | None = None


def edit_out(row: Row, history: list[Row] | None = None) -> EditOut:
    """A row as it is shown."""
    asked = row["request"]
    return EditOut(
        **{
            name: row[name] for name in ("id", "state", "version", "pending", "prompt", "target", "source", "asked_by", "tenant", "reason", "figures")
        },
        subject=asked.get("subject"),
        rephrasings=asked.get("rephrasings") or [],
        probes=asked.get("probes") or [],
        messages=asked.get("messages"),
        valid_from=_when(row["valid_from"]),
        expires=_when(row["expires"]),
        created=_time(row["created"]),
        changed=_time(row["changed"]),
        history=None if history is None else [event_out(event) for event in history],
    )


def event_out(row: Row) -> Event:
    """An event as it is shown."""
    return Event(at=_time(row["at"]), **{name: row[name] for name in ("actor", "before", "after", "reason", "data")})


def shown(row: Row, *, times: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row with its times as the API writes them."""
    return {name: _iso(value) if name in times else value for name, value in row.items() if name not in without}


def version_out(row: Row, live: int, publications: Mapping[int, list[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """A version as it is shown."""
    values = shown(row, times=("created",), without=("run", "turn"))
    return {**values, "live": row["number"] == live, "publications": (publications or {}).get(row["number"], [])}


def _iso(value: float | None) -> str | None:
    return None if value is None else _time(value).isoformat().replace("+00:00", "Z")


def _time(value: float) -> datetime:
    return datetime.fromtimestamp(value, UTC)


def _when(value: float | None) -> datetime | None:
    return None if value is None else _time(value)


def _seconds(value: datetime | None) -> float | None:
    return None if value is None else value.timestamp()
