"""One publication: export, try out, load, ask, and only then say that it is live.

run --export--> RUN.published/NNNN-form --try out beside what is served--> asked --load in its place--> asked again --> live
                                                  |                                      |
                                                  `-- refused: nothing has changed       `-- failed: the former version is loaded again
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from editing.errors import InputError, UltraEditError
from orchestrator.export.certificate import digest_of
from orchestrator.export.exporting import ExportOptions, export_run, export_unedited
from orchestrator.export.reference import Reference
from orchestrator.export.sample import edits_between
from orchestrator.export.source import RunSource
from orchestrator.progress import Progress
from orchestrator.publish.engines import Engine, How
from orchestrator.publish.questions import MAX_TOKENS, Question, Verdict, prompts_of
from orchestrator.publish.store import FAILED, LIVE, RESTORED, TAKEN_BACK, Publication, Store, now


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How a run is published.

    Attributes:
        how: As an ``adapter``, or as ``weights``.
        name: Under which an adapter is served.
        verify: Edits that the engine is asked about, each with its locality probe.
        tolerance: Share of the answers that may differ from the edited model's.
        rollback: Load the former version again if the new one does not answer as it should.
        rank: Largest rank of an adapter; ``None`` for the one at which nothing but rounding is lost.
        seed: Of the choice of edits.
    """

    how: How = "adapter"
    name: str = "edited"
    verify: int = 50
    tolerance: float = 0.1
    rollback: bool = False
    rank: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            InputError: Naming the option.
        """
        if not self.name or not all(sign.isalnum() or sign in "-_" for sign in self.name):
            raise InputError(f"name: expected letters, digits, - and _, found {self.name!r}")
        if self.how == "weights" and self.rank is not None:
            raise InputError("rank: belongs to --how adapter; weights are published whole")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a publication.

    Attributes:
        publication: Its line of the record.
        verdict: The engine's answers; ``None`` if it was not asked.
    """

    publication: Publication
    verdict: Verdict | None


def publish(source: RunSource, engine: Engine, options: PublishOptions, progress: Progress, reference: Callable[[], Reference]) -> Outcome:
    """Bring a run's edits into an engine. What came of it is in the record, however it ends.

    Args:
        source: The run.
        engine: The engine.
        options: How.
        progress: Shows a person how far it is.
        reference: Gives the run's model, which is loaded at the first call.

    Raises:
        UltraEditError: The engine does not answer, or nothing could be exported. Nothing was loaded.
    """
    options.check()
    form, whole = engine.form(options.how)
    says = engine.check()
    store = Store(source.path)
    _refuse_both(store, engine.target, options.how)
    with progress.spinner("loading the model"):
        model = reference()
    before, after = source.snapshot(0, progress), source.snapshot(source.last_turn, progress)
    digests = {name: digest_of(weight) for name, weight in after.held.items()}
    folder = store.find(form, {"rank": options.rank, "whole": whole}, digests)
    if folder is None:
        folder = store.new_folder(form)
        export_run(source, ExportOptions(form=form, output=folder, rank=options.rank, whole=whole, measure=options.verify), progress, model)
    engine.check_loadable(folder)
    contained = edits_between(source.ledger, 0, source.last_turn, size=options.verify, seed=options.seed)
    asked = prompts_of(contained.sample)
    prompts = [prompt for _, prompt, _ in asked]
    with progress.spinner("asking the edited model"):
        texts = [model.texts(state.held, prompts, MAX_TOKENS) for state in (after, before)]
    typed = [(kind, model.typed(prompt), target) for kind, prompt, target in asked]
    questions = [Question(*one, *two) for one, two in zip(typed, zip(*texts, strict=True), strict=True)]
    name = options.name if options.how == "adapter" else ""
    publication = Publication(
        store.next_number(), now(), engine.target, says, options.how, name, str(folder), contained.count, FAILED, "it was not finished", {}
    )
    former = store.served(publication.place)
    store.record(publication)
    outcome = _bring(engine, publication, folder, questions, options)
    if outcome.publication.outcome == FAILED and options.rollback:
        outcome = replace(outcome, publication=_restored(source, engine, outcome.publication, former, whole=whole))
    replaced = [replace(former, when=now(), outcome=f"replaced by {publication.number}")] if former and outcome.publication.outcome == LIVE else []
    try:
        store.record(*replaced, outcome.publication)
    except InputError as error:
        if outcome.publication.outcome != LIVE:
            raise
        gone = _restored(source, engine, replace(publication, reason=str(error)), former, whole=whole)
        raise InputError(f"publish: publication {publication.number} is not live ({gone.outcome}): {gone.reason}") from None
    return outcome


def take_back(source: RunSource, engine: Engine, store: Store, number: int) -> Publication:
    """Serve what was served before a publication, or the unedited model.

    Returns:
        The publication that is served now; with the outcome :data:`TAKEN_BACK`, the one that was taken back, if none is.

    Raises:
        InputError: There is no such publication, or it is not what is served.
        EngineError: The engine refuses. The record is as it was.
    """
    found = {p.number: p for p in store.publications()}
    if number not in found:
        raise InputError(f"take-back: there is no publication {number}; 'ultraedit published {source.path}' lists them")
    gone = found[number]
    if gone.outcome != LIVE:
        raise InputError(f"take-back: publication {number} is not served: {gone.outcome}; only one that is live can be taken back")
    marked = f"replaced by {number}"
    former = next((p for p in reversed(found.values()) if p.place == gone.place and p.outcome == marked), None)
    engine.check()
    _serve_former(source, engine, gone, former, whole=engine.form(gone.how)[1])
    gone = replace(gone, when=now(), outcome=TAKEN_BACK)
    if former is None:
        store.record(gone)
        return gone
    former = replace(former, when=now(), outcome=LIVE)
    store.record(gone, former)
    return former


def _refuse_both(store: Store, target: str, how: How) -> None:
    """Refuse an adapter over edited weights, and the reverse: the edits would be in the engine twice.

    Raises:
        InputError: Naming the publication that is in the way.
    """
    other = next((p for p in store.publications() if p.target == target and p.outcome == LIVE and p.how != how), None)
    if other is not None and not target.startswith("folder:"):
        ways = f"take it back first with --take-back {other.number}, or publish --how {other.how}"
        raise InputError(f"how: publication {other.number} is live at {target} as {other.how}, and the edits would be there twice; {ways}")


def _bring(engine: Engine, publication: Publication, folder: Path, questions: Sequence[Question], options: PublishOptions) -> Outcome:
    """Try out, load and ask; what the record is to say."""
    served = publication.name or None
    verdict = None
    loaded = False
    try:
        tried = engine.try_out(publication.name, folder, options.how)
        if tried is not None:
            try:
                verdict = _asked(engine, tried, questions, options)
            finally:
                engine.drop(tried)
            if verdict.why_not:
                return _failed(publication, f"tried out beside what is served: {verdict.why_not}", RESTORED, verdict)
        loaded = True
        engine.load(publication.name, folder, options.how)
        verdict = _asked(engine, served, questions, options)
    except UltraEditError as error:
        return _failed(publication, str(error), FAILED if loaded else RESTORED, verdict)
    if verdict.why_not:
        return _failed(publication, verdict.why_not, FAILED, verdict)
    return Outcome(replace(publication, when=now(), outcome=LIVE, reason="", verdict=verdict.as_dict()), verdict)


def _asked(engine: Engine, served: str | None, questions: Sequence[Question], options: PublishOptions) -> Verdict:
    return Verdict(questions, engine.ask(served, [question.prompt for question in questions], MAX_TOKENS), options.tolerance)


def _failed(publication: Publication, reason: str, outcome: str, verdict: Verdict | None) -> Outcome:
    counts = {} if verdict is None else verdict.as_dict()
    return Outcome(replace(publication, when=now(), outcome=outcome, reason=reason, verdict=counts), verdict)


def _restored(source: RunSource, engine: Engine, publication: Publication, former: Publication | None, *, whole: bool) -> Publication:
    """What the record is to say once the former version was loaded again, or could not be."""
    try:
        _serve_former(source, engine, publication, former, whole=whole)
    except UltraEditError as error:
        return replace(publication, when=now(), reason=f"{publication.reason}; and the former version could not be loaded again: {error}")
    return replace(publication, when=now(), outcome=RESTORED)


def _serve_former(source: RunSource, engine: Engine, gone: Publication, former: Publication | None, *, whole: bool) -> None:
    if former is not None:
        engine.load(former.name, Path(former.folder), gone.how)
    elif gone.how == "adapter":
        engine.unload(gone.name, Path(gone.folder))
    else:
        folder = Store(source.path).folder / ("unedited-whole" if whole else "unedited")
        if not folder.is_dir():
            export_unedited(source, folder, whole=whole)
        engine.load(gone.name, folder, gone.how)
