"""This project beside other ways to give a model new facts: the same edits, the same probes, as many settings each.

    ultraedit     the published method, `refined`, or solved targets, by the options of :class:`editing.EditorConfig`
    memit, alphaedit, lora, fine-tuning, retrieval     see peer_located.py, peer_trained.py and peer_retrieved.py

Tuned and reported as by :mod:`tests.benchmarks.quality`: a setting is chosen on a fifth of the subjects, by the harmonic mean of efficacy and
retention, and reported on the rest. Every peer that holds a text holds the same one: the everyday text and what the model writes by itself after
the beginnings of its passages. Perplexity is of the held-out text, which nobody holds. Facts that are retrieved stand before every
probe, locality too; a text that is no prompt has none before it, so perplexity says nothing of retrieval. Seconds are the processor's, for all
edits, without what is done once for a model.

python -m tests.benchmarks.peers --model .cache/gemma-3-270m --settings tests/benchmarks/peers_gemma.yaml --counterfact FILE --out OUT
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from editing import Editor, EditorConfig
from editing.config import DEFAULT_BATCH_TOKENS, HELD_OUT
from editing.model.generation import generate
from editing.model.matmul import full_speed
from editing.monitoring.evaluation import predict_probes, score, summarize
from editing.monitoring.held_out import perplexity_of, read_passages
from editing.monitoring.texts import begins_with
from editing.turn import TokenizedEdit, in_turns
from tests.benchmarks.peer_bench import Ask, Bench, as_asked, write_own_text
from tests.benchmarks.peer_located import alphaedit, memit
from tests.benchmarks.peer_retrieved import retrieval
from tests.benchmarks.peer_trained import fine_tuning, lora
from tests.benchmarks.quality import Plan, Search, read_settings
from tests.benchmarks.quality_cell import Setting, Sizes
from tests.benchmarks.quality_report import merit, samples, table

FIGURES = ("efficacy", "generalization", "locality_retention", "exact", "exact_rephrase", "perplexity_growth", "seconds")


def ultraedit(bench: Bench, edits: Sequence[TokenizedEdit], **options: Any) -> Ask:
    """Write edits by this project, turn by turn."""
    holds = options.get("preserve", "none") != "none"
    editor = Editor(bench.model, bench.tokenizer, EditorConfig(**options, **({"preserve_text": bench.text} if holds else {})))
    which = ("reference", tuple(editor.modules), editor.config.preserve, bench.text)
    editor._reference = bench.once(which, editor.prepare_reference_text)  # of the unedited model, so the same for every setting
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
    chosen = random.Random(0).sample(edits, min(sizes.evaluated, len(edits)))
    spoken, asked = chosen[: sizes.generated], tuple(edit.request for edit in chosen)
    before = bench.once(("predictions", asked), lambda: predict_probes(bench.decoder, chosen))
    unedited = bench.once(("texts", asked[: len(spoken)]), lambda: _texts(bench, spoken, str, sizes))
    perplexity_before = bench.once("perplexity", lambda: _perplexity(bench))
    bench.borrowed, began = 0.0, time.process_time()
    try:
        with full_speed(bench.decoder.device, bench.model):
            ask = METHODS[setting.method](bench, edits, **setting.options)
        seconds = time.process_time() - began + bench.borrowed
        as_probed = [as_asked(edit, ask, bench) for edit in chosen]
        means = summarize(score(as_probed, predict_probes(bench.decoder, as_probed), before))
        after, growth = _texts(bench, spoken, ask, sizes), _perplexity(bench) / perplexity_before
    finally:
        bench.restore()
    own, rephrased = ([pair[k] for pair in after] for k in (0, 1))
    return {
        **{name: means[name] for name in ("efficacy", "generalization", "specificity", "locality_retention")},
        "exact": _share(spoken, own),
        "exact_rephrase": _share(spoken, rephrased),
        "perplexity_growth": growth,
        "seconds": seconds,
        "samples": [
            {"prompt": e.request.prompt, "target": e.request.target, "before": b, "after": a}
            for e, (b, _), a in zip(spoken[:10], unedited, own, strict=False)
        ],
    }


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
        """The report in one table, what was tuned in another, and texts as they come."""
        parts = ["# Peers", "", "Written by `python -m tests.benchmarks.peers`, which tells what the columns are."]
        for stage in ("report", "tune"):
            if rows := self.of(stage):
                parts += ["", f"## {stage}", "", table(sorted(rows, key=merit, reverse=True), FIGURES)]
        for row in self.of("report"):
            parts += ["", samples(row)]
        (self.out / "peers.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _texts(bench: Bench, edits: Sequence[TokenizedEdit], ask: Ask, sizes: Sizes) -> list[tuple[str, str | None]]:
    """Greedy text after what is asked in place of each prompt and each rephrased prompt."""
    rephrased = [edit.request.rephrase for edit in edits]
    asked = [ask(prompt) for prompt in (*(edit.request.prompt for edit in edits), *filter(None, rephrased))]
    texts = iter(generate(bench.decoder, bench.tokenizer, asked, max_new_tokens=sizes.text_tokens))
    own = [next(texts) for _ in edits]
    return [(text, next(texts) if prompt else None) for text, prompt in zip(own, rephrased, strict=True)]


def _share(edits: Sequence[TokenizedEdit], texts: Sequence[str | None]) -> float | None:
    """Share of texts that begin with the target."""
    found = [begins_with(text, edit.request.target) for edit, text in zip(edits, texts, strict=True) if text is not None]
    return sum(found) / len(found) if found else None


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
        look=Sizes(evaluated=size, **look),
    )
    Comparison(plan, out, text_tokens=own_text).run()


if __name__ == "__main__":
    main()
