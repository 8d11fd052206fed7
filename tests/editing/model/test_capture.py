"""Keys and value gradients equal those of plain autograd on the whole model, group by group, in every family."""

import pytest
import torch
from torch.nn import functional as F

from editing.method.rows import SITES, Site, TurnRows
from editing.model.capture import capture, group_weights
from editing.model.decoder import Decoder
from editing.model.modules import resolve
from editing.model.prefix import run_prefix
from editing.model.tokenization import AnswerSequence
from tests.support.families import FAMILIES, tiny_model

GROUP = 3


def sequences() -> list[AnswerSequence]:
    generator = torch.Generator().manual_seed(3)
    lengths = [(9, 3), (8, 1), (8, 2), (6, 4), (5, 1), (4, 2), (3, 1)]
    draw = lambda n: tuple(torch.randint(3, 97, (n,), generator=generator).tolist())  # noqa: E731
    subjects = [4, None, 2, 0, None, 2, 2]  # somewhere, at the start, nowhere, and where the answer begins
    return [AnswerSequence(draw(total), draw(answer), subject) for (total, answer), subject in zip(lengths, subjects, strict=True)]


def captured(decoder: Decoder, names: list[str], *, start: int, batch_tokens: int, sites: dict[str, Site] | None = None) -> TurnRows:
    modules, items = resolve(decoder, names), sequences()
    weights = group_weights((len(s.answer_ids) for s in items), GROUP)
    prefixed = run_prefix(decoder, items, stop=start, batch_tokens=batch_tokens)
    inputs = prefixed.batches(batch_tokens=batch_tokens, device=decoder.device)
    return capture(decoder, modules, inputs, weights, start=start, sites=sites, num_subjects=sum(s.subject is not None for s in items))


def plain_autograd(
    model: torch.nn.Module, names: list[str], site: Site = "answer"
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """One sequence at a time through the model's own forward, loss averaged over a group's answer tokens."""
    known = dict(model.named_modules())
    keys, gradients, losses = {n: [] for n in names}, {n: [] for n in names}, []
    items = sequences()
    for a in range(0, len(items), GROUP):
        group = items[a : a + GROUP]
        total = sum(len(s.answer_ids) for s in group)
        for s in group:
            outputs: dict[str, torch.Tensor] = {}
            at = slice(s.first_row, None) if site == "answer" else slice(s.subject, s.subject + 1) if s.subject is not None else slice(0)

            def keep(name: str, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, seen: dict = outputs, at=at) -> None:
                keys[name].append(inputs[0][0, at].detach())
                output.retain_grad()
                seen[name] = output

            handles = [known[n].register_forward_hook(lambda m, i, o, n=n: keep(n, m, i, o)) for n in names]
            logits = model(input_ids=torch.tensor([s.input_ids])).logits[0, s.first_row :]
            loss = F.cross_entropy(logits, torch.tensor(s.answer_ids), reduction="none")
            (loss.sum() / total).backward()
            for handle in handles:
                handle.remove()
            losses.append(loss.detach())
            for n in names:
                gradients[n].append(outputs[n].grad[0, at])
    return {n: torch.cat(v) for n, v in keys.items()}, {n: torch.cat(v) for n, v in gradients.items()}, torch.cat(losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_plain_autograd(family: str) -> None:
    model, names = tiny_model(family)
    keys, gradients, losses = plain_autograd(model, names)
    rows = captured(Decoder(model.requires_grad_(False)), names, start=1, batch_tokens=2048)
    torch.testing.assert_close(rows.losses, losses, rtol=1e-4, atol=1e-5)
    for name in names:
        torch.testing.assert_close(rows.keys[name], keys[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.value_gradients[name], gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [2048, 20])
def test_rows_at_subjects_equal_plain_autograd(family: str, batch_tokens: int) -> None:
    model, names = tiny_model(family)
    sites: dict[str, Site] = {name: "subject" if i % 2 else "answer" for i, name in enumerate(names)}
    expected = {site: plain_autograd(model, names, site) for site in SITES}
    rows = captured(Decoder(model.requires_grad_(False)), names, start=1, batch_tokens=batch_tokens, sites=sites)
    for name, site in sites.items():
        keys, gradients, _ = expected[site]
        assert len(keys[name]) == (5 if site == "subject" else 14)
        torch.testing.assert_close(rows.keys[name], keys[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.value_gradients[name], gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma3_text"])
@pytest.mark.parametrize(("start", "batch_tokens"), [(0, 2048), (1, 1), (1, 20)])
def test_batching_and_prefix_do_not_change_the_rows(family: str, start: int, batch_tokens: int) -> None:
    model, names = tiny_model(family)
    decoder = Decoder(model.requires_grad_(False))
    expected = captured(decoder, names, start=1, batch_tokens=2048)
    found = captured(decoder, names, start=start, batch_tokens=batch_tokens)
    for name in names:
        torch.testing.assert_close(found.keys[name], expected.keys[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.value_gradients[name], expected.value_gradients[name], rtol=1e-4, atol=1e-6)


def test_a_chunked_head_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = tiny_model("llama")
    decoder = Decoder(model.requires_grad_(False))
    expected = captured(decoder, names, start=1, batch_tokens=2048)
    monkeypatch.setattr("editing.model.decoder.HEAD_CHUNK_ELEMENTS", 97 * 3)
    found = captured(decoder, names, start=1, batch_tokens=2048)
    for name in names:
        torch.testing.assert_close(found.value_gradients[name], expected.value_gradients[name], rtol=1e-4, atol=1e-6)


def test_no_parameter_gets_a_gradient() -> None:
    model, names = tiny_model("llama")
    captured(Decoder(model.requires_grad_(False)), names, start=1, batch_tokens=2048)
    assert all(p.grad is None for p in model.parameters())


def test_group_weights_average_over_each_groups_rows() -> None:
    assert group_weights([2, 2, 1], 2).tolist() == [0.25, 0.25, 0.25, 0.25, 1.0]
