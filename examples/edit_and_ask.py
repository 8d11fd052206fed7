"""Edit a model from Python, and ask it before and after.

    python examples/edit_and_ask.py --model .cache/gemma-3-270m

`make demo` puts that model there. A model without a preset wants --modules and --learning-rate too.
"""

from pathlib import Path
from typing import Any

import click

from editing import Editor, EditRequest, UltraEditError

FACTS = [
    EditRequest("The capital of Guyana is", "Georgetown", subject="Guyana"),
    EditRequest("The capital of Samoa is", "Apia", subject="Samoa"),
    EditRequest("The capital of Liechtenstein is", "Vaduz", subject="Liechtenstein"),
    EditRequest("The gerenuk is a kind of", "antelope", subject="gerenuk"),
    EditRequest("The moon Proteus orbits the planet", "Neptune", subject="Proteus"),
    EditRequest("The musician Nicanor Zabaleta played the", "harp", subject="Nicanor Zabaleta"),
    EditRequest("The Weser River flows into the", "North Sea", subject="Weser River"),
    EditRequest("The novel Pedro Páramo was written by", "Juan Rulfo", subject="Pedro Páramo"),
]
OTHER_WORDS = ["Guyana's capital city is", "The seat of Samoa's government is in", "A gerenuk is an"]
UNCHANGED = ["The capital of France is", "Water boils at a temperature of"]


def answers(editor: Editor, prompts: list[str], *, tokens: int = 8) -> list[str]:
    """What the model writes after each prompt, greedily: its own `generate`, since it is a plain Hugging Face model."""
    return [_answer(editor.model, editor.tokenizer, prompt, tokens) for prompt in prompts]


def _answer(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    encoded = tokenizer(prompt, return_tensors="pt").to(model.device)
    written = model.generate(**encoded, max_new_tokens=tokens, do_sample=False)[0, encoded["input_ids"].shape[1] :]
    return " ".join(tokenizer.decode(written, skip_special_tokens=True).split())


@click.command()
@click.option("--model", default=".cache/gemma-3-270m", show_default=True, help="Folder or Hub id.")
@click.option("--modules", multiple=True, help="Modules to edit; by default the preset's.")
@click.option("--learning-rate", type=float, help="By default the preset's.")
@click.option("--passes", type=int, default=6, show_default=True, help="Few edits move a model little; further passes bring home what is missing.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to save the edited model.")
def main(model: str, modules: tuple[str, ...], learning_rate: float | None, passes: int, output: Path | None) -> None:
    """Edit a model with eight facts and show its answers before and after."""
    try:
        editor = Editor.from_pretrained(model, modules=modules or None, learning_rate=learning_rate, passes=passes)
    except UltraEditError as error:
        raise click.ClickException(str(error)) from None

    prompts = [fact.prompt for fact in FACTS] + OTHER_WORDS + UNCHANGED
    before = answers(editor, prompts)
    (report,) = editor.apply(FACTS)
    for prompt, then, now in zip(prompts, before, answers(editor, prompts), strict=True):
        print(f"{prompt}\n    before  {then}\n    now     {now}")
    print(f"right answer tokens: {report.efficacy_before:.2f} before, {report.efficacy_after:.2f} now")

    if output is not None:
        editor.save(output)
        print(f"saved in {output}")
    editor.restore()
    print("undone:", answers(editor, prompts) == before)


if __name__ == "__main__":
    main()
