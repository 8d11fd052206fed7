"""Where in a model does an edit's key differ from those of its neighbours? Only there can a shift change the one and leave the others.

For each edit, in one framing, where its answer would begin, per module:

    own        share of its key that the keys of 12 neighbours (:mod:`editing.neighbours`) do not explain: r'k / k'k, where r is what a ridge
               regression on them leaves of k
    neighbour  |r'n| / r'k of 12 further neighbours: what they get of a shift that the first 12 hold back
    locality   the same of the edit's locality prompt
    rephrased  r'q / r'k of its rephrased prompt: what that gets of the edit

Medians over the edits, of the tuning part (:mod:`tests.benchmarks.quality`).

python -m tests.benchmarks.distinct_keys --model FOLDER --counterfact FILE --framing chat
"""

import random
from pathlib import Path

import click
import torch
from torch import Tensor

from editing import Editor
from editing.config import DEFAULT_BATCH_TOKENS, RAW
from editing.datasets import EditFile, NumberedRequest
from editing.model.modules import editable
from editing.model.prefix import Prefixed
from editing.model.token_keys import token_keys
from editing.model.tokenization import encode
from editing.neighbours import read_others
from editing.requests import EditRequest
from tests.benchmarks.quality import is_tuning_subject

_HOLDING = 12
_RIDGE = 0.02
"""Of the mean square of the neighbours' keys."""

FIGURES = ("own", "neighbour", "locality", "rephrased")


def prompts_of(request: EditRequest) -> list[str] | None:
    """An edit's prompt, the same about all other subjects, its locality prompt and its rephrased one; ``None`` if something is missing."""
    before, subject, after = request.prompt.partition(request.subject or "\0")
    if not (subject and request.locality_prompt and request.rephrase):
        return None
    return [request.prompt, *(before + other + after for other in read_others()), request.locality_prompt, request.rephrase]


def figures(keys: Tensor) -> Tensor:
    """``FIGURES`` of an edit, given the keys ``(n, d)`` of :func:`prompts_of`."""
    own, holding, further, locality, rephrased = keys.double().split([1, _HOLDING, len(keys) - 3 - _HOLDING, 1, 1])
    gram = holding @ holding.T
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(_HOLDING, dtype=gram.dtype)
    rest = own - torch.linalg.solve(gram, holding @ own.T).T @ holding
    taught = rest @ own.T
    shares = [taught / (own @ own.T), (further @ rest.T / taught).abs().mean(), (locality @ rest.T / taught).abs(), rephrased @ rest.T / taught]
    return torch.stack([share.flatten()[0] for share in shares])


@click.command()
@click.option("--model", default=".cache/gemma-3-270m", show_default=True)
@click.option("--counterfact", type=click.Path(path_type=Path), required=True)
@click.option("--framing", default=RAW, show_default=True)
@click.option("--kind", default="o_proj", show_default=True, help="Linears whose name ends so.")
@click.option("--size", default=60, show_default=True, help="Edits.")
@torch.no_grad()
def main(model: str, counterfact: Path, framing: str, kind: str, size: int) -> None:
    editor = Editor.from_pretrained(model)
    requests = [record.request for record in EditFile(counterfact) if isinstance(record, NumberedRequest)]
    asked = [prompts for request in requests if is_tuning_subject(request) and (prompts := prompts_of(request))]
    asked = random.Random(0).sample(asked, size)
    form = editor.joiner.framed(framing)
    sequences = [encode(form, prompt, None) for prompts in asked for prompt in prompts]
    modules = {name: editor.model.get_submodule(name) for name in editable(editor.decoder) if name.endswith(kind)}
    parts: dict[str, list[Tensor]] = {name: [] for name in modules}
    for name, keys in token_keys(editor.decoder, modules, Prefixed(sequences, None), start=0, batch_tokens=DEFAULT_BATCH_TOKENS, of_rows=True):
        parts[name].append(keys)
    click.echo(f"{'module':40}" + "".join(f"{name:>12}" for name in FIGURES))
    for name, several in parts.items():
        of_edits = torch.stack([figures(keys) for keys in torch.cat(several).split(len(asked[0]))])
        click.echo(f"{name:40}" + "".join(f"{value:12.3f}" for value in of_edits.median(0).values.tolist()))


if __name__ == "__main__":
    main()
