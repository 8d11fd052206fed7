"""Measure settings (modules and learning rate) on one edit file, at several numbers of edits. See docs/LOG.md.

python -m tests.benchmarks.sweep --model DIR --edits FILE --at 100,500,2000 'model.layers.{12..15}.mlp.up_proj@3e-5' ...
"""

import random
import time

import click
import torch

from editing import Editor, EditorConfig
from editing.datasets import EditFile, NumberedRequest
from editing.files import pretrained
from editing.model.decoder import Decoder
from editing.model.modules import split_patterns
from editing.monitoring.evaluation import predict_probes, score, summarize
from editing.turn import in_turns, tokenize


@click.command()
@click.option("--model", required=True)
@click.option("--edits", required=True)
@click.option("--at", default="100,500", help="Numbers of edits after which to evaluate.")
@click.option("--sample", default=200, help="Edits evaluated, a seeded sample of those applied so far.")
@click.option("--threads", default=0)
@click.argument("settings", nargs=-1, required=True)
def main(model: str, edits: str, at: str, sample: int, threads: int, settings: tuple[str, ...]) -> None:
    if threads:
        torch.set_num_threads(threads)
    stops = [int(n) for n in at.split(",")]
    loaded, tokenizer = pretrained.load(model, device=torch.device("cpu"))
    decoder = Decoder(loaded)
    requests = [r.request for r in EditFile(edits) if isinstance(r, NumberedRequest)][: stops[-1]]
    tokenized = [tokenize(tokenizer, r, max_tokens=decoder.max_tokens) for r in requests]
    chosen = {n: [tokenized[i] for i in sorted(random.Random(0).sample(range(n), min(sample, n)))] for n in stops}
    before = {n: predict_probes(decoder, part) for n, part in chosen.items()}
    print("| modules | lr | edits | efficacy | generalization | specificity | retention | seconds |\n|---|---|---|---|---|---|---|---|", flush=True)
    for setting in settings:
        modules, _, rate = setting.rpartition("@")
        editor = Editor(loaded, tokenizer, EditorConfig(modules=tuple(split_patterns(modules)), learning_rate=float(rate)))
        began, done = time.perf_counter(), 0
        for turn in in_turns(tokenized, editor.config.edits_per_turn):
            editor.apply_turn(editor.prepare([turn])[0], measure=False)
            done += len(turn.edits)
            if done in chosen:
                seconds = time.perf_counter() - began
                result = summarize(score(chosen[done], predict_probes(decoder, chosen[done]), before[done]))
                figures = " | ".join(f"{result[k]:.3f}" for k in ("efficacy", "generalization", "specificity", "locality_retention"))
                print(f"| `{modules}` | {rate} | {done} | {figures} | {seconds:.0f} |", flush=True)
        editor.restore()


if __name__ == "__main__":
    main()
