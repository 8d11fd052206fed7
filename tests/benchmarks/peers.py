"""This project beside other ways to give a model new facts: the same edits, the same probes, as many settings each.

    ultraedit     the published method, `refined`, or solved targets, by the options of :class:`editing.EditorConfig`
    memit, alphaedit, lora, fine-tuning, retrieval     see peer_located.py, peer_trained.py and peer_retrieved.py

Tuned and reported as by :mod:`tests.benchmarks.quality`: a setting is chosen on a fifth of the subjects, by the harmonic mean of efficacy and
retention, and reported on the rest, in turns of 100. Every peer that holds a text holds the same one: the everyday text, and what the model writes
by itself after the beginnings of its passages. Where the model has a chat template, every peer writes every fact raw and in chat, there with
its end, and is asked both ways; a setting is then chosen by what it does in chat. Facts that are retrieved stand before every probe,
locality too; a text that is no prompt has none before it, so perplexity says nothing of retrieval. Seconds are the processor's, for all edits,
without what is done once for a model.

    efficacy, generalization, locality_retention    teacher-forced, prompts as typed (editing.monitoring.evaluation)
    exact, exact_rephrase                           the text after a prompt as typed begins with the target
    chat, chat_rephrase                             the answer in chat is the target and nothing else, and ends by itself
    chat_contained                                  the target stands in it
    chat_retention, chat_stops                      locality probes in chat as before, teacher-forced; answers in chat that end by themselves
    perplexity_growth                               of the held-out text, which nobody holds

python -m tests.benchmarks.peers --model .cache/gemma-3-270m --settings tests/benchmarks/peers_gemma.yaml --counterfact FILE --out OUT
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from editing import Editor, EditorConfig
from editing.config import DEFAULT_BATCH_TOKENS, HELD_OUT, RAW
from editing.model.framing import CHAT
from editing.model.generation import Written, write
from editing.model.matmul import full_speed
from editing.monitoring.evaluation import Predictions, predict_probes, score, summarize
from editing.monitoring.held_out import perplexity_of, read_passages
from editing.monitoring.texts import CHAT_TOKENS, VERDICTS, Answers
from editing.presets.resolve import resolve_settings
from editing.turn import TokenizedEdit, in_turns
from tests.benchmarks.peer_bench import EDITS_PER_TURN, Ask, Bench, as_asked, write_own_text
from tests.benchmarks.peer_located import alphaedit, memit
from tests.benchmarks.peer_retrieved import retrieval
from tests.benchmarks.peer_trained import fine_tuning, lora
from tests.benchmarks.quality import Plan, Search, read_settings
from tests.benchmarks.quality_cell import Setting, Sizes
from tests.benchmarks.quality_report import merit, plot_peers, samples, table

FIGURES = ("efficacy", "generalization", "locality_retention", "exact", "exact_rephrase")
IN_CHAT = ("chat", "chat_rephrase", "chat_contained", "chat_retention", "chat_stops")
COSTS = ("perplexity_growth", "seconds")

Texts = list[tuple[Written, Written | None]]
"""What a model writes after each edit's prompt, and after its rephrased prompt if it has one."""


def ultraedit(bench: Bench, edits: Sequence[TokenizedEdit], *, preset: str | None = None, **options: Any) -> Ask:
    """Write edits by this project, turn by turn, with a preset of the model or with options alone."""
    if preset is not None:
        modules, learning_rate, further = resolve_settings(bench.decoder, "the model", preset=preset)
        options = {"modules": modules, "learning_rate": learning_rate, **further, **options}
    if options.get("preserve", "none") != "none":
        options["preserve_text"] = bench.text
    options |= {"framings": bench.framings, "answer_end": bench.joiner.answer_end, "edits_per_turn": EDITS_PER_TURN}
    editor = Editor(bench.model, bench.tokenizer, EditorConfig(**options))
    which = ("reference", tuple(editor.modules), editor.config.preserve, bench.text)
    editor.preserved._of_text = bench.once(which, editor.preserved.of_text)  # of the unedited model, so the same for every setting
    editor.preserved._of_outputs = bench.once((*which, editor.config.preserve_outputs), editor.preserved.of_outputs)
    for turn in in_turns(edits, editor.config.edits_per_turn):
        editor.apply_turn(editor.prepare([turn])[0], measure=False)
    return str


METHODS: dict[str, Callable[..., Ask]] = {
    "ultraedit": ultraedit,
    "memit": memit,
    "alphaedit": alphaedit,
    "lora": lora,
    "fine-tuning": fine_tuning,
    "retrieval": retrieval,
}


def measure(bench: Bench, setting: Setting, edits: Sequence[TokenizedEdit], sizes: Sizes) -> dict[str, Any]:
    """Let a peer write edits, measure, and give the model its weights back."""
    edits = [bench.tokenized(edit) for edit in edits]
    chosen = random.Random(0).sample(edits, min(sizes.evaluated, len(edits)))
    asked = tuple(edit.request for edit in chosen)
    unedited = bench.once(("unedited", asked), lambda: {framing: _look(bench, chosen, str, sizes, framing) for framing in bench.framings})
    perplexity_before = bench.once("perplexity", lambda: _perplexity(bench))
    bench.borrowed, began = 0.0, time.process_time()
    try:
        with full_speed(bench.decoder.device, bench.model):
            ask = METHODS[setting.method](bench, edits, **setting.options)
        seconds = time.process_time() - began + bench.borrowed
        edited = {framing: _look(bench, chosen, ask, sizes, framing) for framing in bench.framings}
        growth = _perplexity(bench) / perplexity_before
    finally:
        bench.restore()
    means = {framing: summarize(score(look.probes, look.predictions, unedited[framing].predictions)) for framing, look in edited.items()}
    said = {framing: _shares(chosen, look.texts) for framing, look in edited.items()}
    found = {
        **{name: means[RAW][name] for name in ("efficacy", "generalization", "specificity", "locality_retention")},
        "exact": said[RAW]["begins"],
        "exact_rephrase": said[RAW]["rephrased_begins"],
    }
    if CHAT in edited:
        found |= {"chat": said[CHAT]["exact"], "chat_rephrase": said[CHAT]["rephrased_exact"]}
        found |= {"chat_contained": said[CHAT]["contained"], "chat_retention": means[CHAT]["locality_retention"], "chat_stops": said[CHAT]["stopped"]}
    shown = bench.framings[-1]
    pairs = zip(chosen[:10], unedited[shown].texts, edited[shown].texts, strict=False)
    return {
        **found,
        "perplexity_growth": growth,
        "seconds": seconds,
        "samples": [{"prompt": e.request.prompt, "target": e.request.target, "before": b.text, "after": a.text} for e, (b, _), (a, _) in pairs],
    }


@dataclass(frozen=True)
class _Look:
    """What a model predicts and says in one way of asking."""

    probes: list[TokenizedEdit]
    predictions: Predictions
    texts: Texts


def _look(bench: Bench, edits: Sequence[TokenizedEdit], ask: Ask, sizes: Sizes, framing: str) -> _Look:
    probes = [as_asked(edit, ask, bench, framing) for edit in edits]
    return _Look(probes, predict_probes(bench.decoder, probes), _texts(bench, edits[: sizes.generated], ask, sizes, framing))


class Comparison(Search):
    """Tunes and reports peers.

    Args:
        plan: What is measured.
        out: Where results are.
        text_tokens: Tokens that the model writes after the beginning of each passage; 0 holds the everyday text alone.
    """

    def __init__(self, plan: Plan, out: Path, *, text_tokens: int) -> None:
        super().__init__(plan, out, lambda _model, _tokenizer, setting, edits, sizes, _unedited: measure(self.bench, setting, edits, sizes))
        self.bench = Bench(self._model, self._tokenizer)
        if text_tokens:
            path = out / "text.txt"
            if not path.exists():
                write_own_text(self.bench, path, tokens=text_tokens)
            self.bench.text = str(path)

    def write(self) -> None:
        """The report in one table and a picture, what was tuned in another table, and texts as they come."""
        parts = ["# Peers", "", "Written by `python -m tests.benchmarks.peers`, which tells what the columns are."]
        for stage in ("report", "tune"):
            if rows := self.of(stage):
                figures = [name for name in (*FIGURES, *IN_CHAT, *COSTS) if any(name in row for row in rows)]
                parts += ["", f"## {stage}", "", table(sorted(rows, key=merit, reverse=True), figures)]
                plot_peers(rows, self.out / f"{stage}.png")
        for row in self.of("report"):
            parts += ["", samples(row)]
        (self.out / "peers.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _texts(bench: Bench, edits: Sequence[TokenizedEdit], ask: Ask, sizes: Sizes, framing: str) -> Texts:
    """Greedy text after what is asked in place of each prompt and each rephrased prompt."""
    rephrased = [edit.request.rephrase for edit in edits]
    asked = [ask(prompt) for prompt in (*(edit.request.prompt for edit in edits), *filter(None, rephrased))]
    tokens = CHAT_TOKENS if framing == CHAT else sizes.text_tokens
    texts = iter(write(bench.decoder, bench.asked_in[framing], asked, max_new_tokens=tokens))
    own = [next(texts) for _ in edits]
    return [(text, next(texts) if prompt else None) for text, prompt in zip(own, rephrased, strict=True)]


def _shares(edits: Sequence[TokenizedEdit], texts: Texts) -> dict[str, float | None]:
    """Share of the texts of which each verdict is true."""
    verdicts = [Answers(*pair).verdicts(edit.request.target) for edit, pair in zip(edits, texts, strict=False)]
    known = {name: [float(v[name]) for v in verdicts if v[name] is not None] for name in (verdicts[0] if verdicts else VERDICTS)}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}


def _perplexity(bench: Bench) -> float:
    return perplexity_of(bench.decoder, bench.joiner, read_passages(HELD_OUT), batch_tokens=DEFAULT_BATCH_TOKENS)


@click.command()
@click.option("--model", default=".cache/gemma-3-270m", show_default=True)
@click.option("--settings", type=click.Path(path_type=Path), default=Path(__file__).with_name("peers_gemma.yaml"), show_default=True)
@click.option("--counterfact", type=click.Path(path_type=Path), required=True)
@click.option("--only", default="", help="Settings whose family or name contains this.")
@click.option("--tune-size", default=100, show_default=True, help="Edits of the tuning part.")
@click.option("--size", default=100, show_default=True, help="Edits that are reported.")
@click.option("--seeds", default="0", show_default=True, help="Seeds of the edit order.")
@click.option("--evaluated", default=200, show_default=True, help="Edits whose probes are measured.")
@click.option("--generated", default=50, show_default=True, help="Edits for which text is generated.")
@click.option("--text-tokens", default=16, show_default=True, help="Tokens of each of these texts.")
@click.option("--own-text", default=512, show_default=True, help="Tokens that the model writes after each passage's beginning, to be held.")
@click.option("--stages", default="tune,report", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    model: str,
    settings: Path,
    counterfact: Path,
    only: str,
    tune_size: int,
    size: int,
    seeds: str,
    own_text: int,
    stages: str,
    out: Path,
    **look: int,
) -> None:
    plan = Plan(
        model=model,
        data={"counterfact": counterfact},
        settings=[s for s in read_settings(settings) if only in f"{s.family} {s.name}"],
        tune_sizes=[tune_size],
        sizes=[size],
        seeds=[int(seed) for seed in seeds.split(",")],
        stages=stages.split(","),
        look=Sizes(**look),
    )
    Comparison(plan, out, text_tokens=own_text).run()


if __name__ == "__main__":
    main()
