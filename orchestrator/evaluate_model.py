"""``ultraedit evaluate``: metrics of any model, edited by this project or not, on a file of edits."""

import logging
import random
from itertools import islice
from typing import Any

from editing import InputError
from editing.config import DEFAULT_BATCH_TOKENS, HELD_OUT, RAW, Join
from editing.datasets import BadRecord, EditFile
from editing.files import pretrained
from editing.model.decoder import Decoder
from editing.model.framing import CHAT, check_framings, has_template
from editing.model.generation import write
from editing.model.joining import Joiner
from editing.monitoring.evaluation import Means, predict_probes, score, summarize
from editing.monitoring.held_out import perplexity_of, read_passages
from editing.monitoring.texts import CHAT_TOKENS, RAW_TOKENS, Answers
from editing.turn import TokenizedEdit
from orchestrator.progress import Progress
from orchestrator.run.intake import FirstLook, Intake
from orchestrator.run.results import VERDICT_COLUMNS, Generated
from orchestrator.tasks import Tasks
from orchestrator.tokenizing import RequestTokenizer
from workers.engines.streamed import load_to_measure
from workers.protocol import USUAL_EVALUATION

logger = logging.getLogger("ultraedit")


def measure_model(
    *,
    model: str,
    edits: str,
    base: str | None = None,
    format: str = "auto",
    limit: int | None = None,
    device: str = "auto",
    dtype: pretrained.DTypeName = "auto",
    device_memory: str | None = None,
    generate: int = 50,
    perplexity_text: str = HELD_OUT,
    seed: int = 0,
    join: Join = "raw",
    framing: str = RAW,
    tasks: Tasks | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Metrics of a model on a file of edits. One model is in memory at a time, or as much of it as a budget has room for.

    Args:
        model: Folder or Hub id of the model.
        edits: File with the edits and their probes, or folder of parts.
        base: The unedited model, if there is one to compare with.
        format: Record format of ``edits``.
        limit: Use only the first N usable edits.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        device_memory: Memory that may be used, as for a run.
        generate: Size of the seeded sample of edits for which text is generated.
        perplexity_text: Text whose perplexity is measured: ``held-out``, ``none`` or a file.
        seed: Seed of that sample.
        join: How prompts and answers meet.
        framing: How every prompt is asked: a shipped framing's name, or a definition. A chat is asked as it stands.
        tasks: Tasks of lm-evaluation-harness that the model is measured on too, and the unedited one.
        progress: Shows a person how far it is.

    Returns:
        Means of the metrics, and the numbers of edits and of rejected records.

    Raises:
        UltraEditError: A model or the file cannot be used.
    """
    check_framings([framing])
    passages = read_passages(perplexity_text)
    look = FirstLook(EditFile(edits, format, seed=seed))
    tokenizer, decoder = _load(model, device, dtype, device_memory)
    joiner = Joiner(tokenizer, join, num_embeddings=decoder.config.vocab_size)
    for line in joiner.findings():
        logger.info("text      %s", line)
    if framing != RAW:
        joiner = joiner.framed(framing)
        logger.info("text      every prompt is asked as %r", framing)
    items = list(Intake(look, RequestTokenizer(joiner, decoder.max_tokens), limit=limit).items())
    tokenized = [item for item in items if not isinstance(item, BadRecord)]
    rejected = [item for item in items if isinstance(item, BadRecord)]
    for bad in rejected:
        logger.warning("record %d left out: %s", bad.number, bad.reason)
    if not tokenized:
        raise InputError(f"{edits}: holds no edit that this model can be measured on; record {rejected[-1].number}: {rejected[-1].reason}")
    after = _predict(decoder, tokenized, "evaluating", progress)
    in_chat = framing == RAW and has_template(tokenizer)  # asked in another framing, everything is asked in that one
    generated = _generated(decoder, joiner, tokenized, generate, seed, in_chat=in_chat)
    confusion = _perplexity("perplexity", decoder, joiner, passages)
    on_tasks = tasks.measure(decoder, tokenizer) if tasks else {}
    del decoder
    before = None
    if base is not None:
        base_tokenizer, base_decoder = _load(base, device, dtype, device_memory)
        before = _predict(base_decoder, tokenized, "base model", progress)
        confusion |= _perplexity("perplexity_before", base_decoder, joiner, passages)
        if tasks:
            on_tasks |= {f"{name}_before": value for name, value in tasks.measure(base_decoder, base_tokenizer).items()}
    otherwise = sum(not edit.sequence.whole for edit in tokenized)
    counts = {"edits": len(tokenized), "otherwise_tokenized": otherwise, "rejected": len(rejected)}
    return {**summarize(score(tokenized, after, before)), **generated, **confusion, **on_tasks, **counts}


def _perplexity(name: str, decoder: Decoder, joiner: Joiner, passages: list[str]) -> dict[str, float]:
    return {name: perplexity_of(decoder, joiner, passages, batch_tokens=DEFAULT_BATCH_TOKENS)} if passages else {}


def _load(name: str, device: str, dtype: pretrained.DTypeName, device_memory: str | None) -> tuple[Any, Decoder]:
    chosen = pretrained.choose_device(device)
    if device_memory is not None:
        tokenizer, decoder = load_to_measure(name, device_memory, chosen, dtype)
    else:
        model, tokenizer = pretrained.load(name, device=chosen, dtype=dtype)
        decoder = Decoder(model)
    decoder.verify()
    return tokenizer, decoder


def _predict(decoder: Decoder, edits: list[TokenizedEdit], title: str, progress: Progress) -> list[dict[str, tuple[int, ...]]]:
    predictions = []
    iterator = iter(edits)
    with progress.bar(title, len(edits)) as advance:
        # where layers are on the disk all edits at once, for each pass reads them
        size = USUAL_EVALUATION if decoder.residency.holds(0, decoder.num_layers) else len(edits)
        while chunk := list(islice(iterator, size)):
            predictions += predict_probes(decoder, chunk)
            advance(len(chunk))
    return predictions


def _generated(decoder: Decoder, joiner: Joiner, edits: list[TokenizedEdit], count: int, seed: int, *, in_chat: bool) -> dict[str, Any]:
    """Means of what is said of generated text, over a sample of the edits."""
    chosen = random.Random(seed).sample(edits, min(count, len(edits)))
    chats = [edit for edit in chosen if edit.request.messages]
    typed = [edit for edit in chosen if not edit.request.messages]
    raw = _answers(decoder, joiner, typed, RAW_TOKENS)
    asked_too = _answers(decoder, joiner.framed(CHAT), typed, CHAT_TOKENS) if in_chat else [None] * len(typed)
    answered = _answers(decoder, joiner.framed(CHAT), chats, CHAT_TOKENS) if chats else []
    generated = [*map(Generated, raw, asked_too), *(Generated(None, answers) for answers in answered)]
    verdicts = Means(VERDICT_COLUMNS)
    for edit, one in zip([*typed, *chats], generated, strict=True):
        verdicts.add_values(one.verdicts(edit.request.target))
    return {**{name: mean for name, mean in verdicts.means().items() if mean is not None}, "generated": len(chosen)}


def _answers(decoder: Decoder, joiner: Joiner, edits: list[TokenizedEdit], tokens: int) -> list[Answers]:
    rephrased = {k: edit.request.rephrase for k, edit in enumerate(edits) if edit.request.rephrase}
    written = write(decoder, joiner, [*(e.request.asked for e in edits), *rephrased.values()], max_new_tokens=tokens)
    in_other_words = dict(zip(rephrased, written[len(edits) :], strict=True))
    return [Answers(written[k], in_other_words.get(k)) for k in range(len(edits))]
