"""Solved targets: residuals that give the answer, written once, remembered by every later turn, the same on any topology."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editing import Editor, EditRequest, InputError, TurnRefused
from editing.config import MethodOptions
from editing.method.features import Features
from editing.method.lifelong import LifelongStatistics
from editing.method.preserve import ridges_of_keys
from editing.method.residuals import ResidualSteps, leads_for_sure
from editing.method.rows import TurnRows
from editing.method.solver import TurnSolver
from editing.sharding.collectives import SingleWorker
from editing.sharding.shards import LinearShard
from editing.state import load_state, save_state
from editing.subject_targets import put_in_context, read_contexts, solve_targets
from editing.turn import PreparedTurn, Turn, tokenize
from tests.support.emulated_workers import run_workers
from tests.support.small_editor import FACTS, editor, requests

ONE = ("model.layers.0.mlp.down_proj",)
SEVERAL = ("model.layers.{0,1}.mlp.down_proj", "model.layers.0.self_attn.o_proj")
ANSWERED = "model.layers.2.mlp.up_proj"
PRESERVING = {"preserve": "exact", "preserve_text": "everyday", "preserve_weight": 5.0}
SOLVED = {"subject_targets": "solved", "subject_weight": 5.0, "subject_bound": 50.0, "subject_steps": 30, "join": "none", **PRESERVING}


def solving(*modules: str, **options: Any) -> Editor:
    given = {"modules": [ANSWERED], "learning_rate": 1e-3, "subject_modules": modules or SEVERAL, **SOLVED, **options}
    return Editor.from_pretrained(editor().model.name_or_path, **given)


def named() -> list[EditRequest]:
    """Facts of one token whose subject ends their prompt: a random model hardly reads what is further away."""
    subjects = ["Kiribati", "the river Struma", "a markhor", "Georgia", "Perl"]
    return [EditRequest(f"The first letter of {subject}", letter, subject=subject) for subject, letter in zip(subjects, "kstgp", strict=True)]


def prepared(one: Editor, asked: list[EditRequest] | None = None) -> PreparedTurn:
    return one.prepare([Turn.of([tokenize(one.joiner, request, max_tokens=None) for request in asked or requests()])])[0]


def found(one: Editor, turn: PreparedTurn, **changes: Any) -> tuple[TurnRows, int]:
    config = replace(one.config, **changes)
    rows = one.capture(turn, tokens=True)
    solved = solve_targets(turn, rows, one.capture, config, one.collectives, one._in_contexts(turn))
    return solved.rows, solved.num_settled


def logits_with(one: Editor, turn: PreparedTurn, number: int, residuals: Mapping[str, Tensor], keys: dict[str, Tensor]) -> Tensor:
    """The model's own logits of one edit, with plain hooks that add its residuals; notes what the modules see there."""
    sequence = turn.turn.sequences[number]
    row = sum(s.subject is not None for s in turn.turn.sequences[:number])

    def hook(name: str) -> Any:
        def add(_module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            keys[name] = inputs[0][0, sequence.subject].clone()
            changed = output.clone()
            changed[0, sequence.subject] += residuals[name][row]
            return changed

        return add

    handles = [one.modules[name].register_forward_hook(hook(name)) for name in residuals]
    try:
        return one.model(torch.tensor([sequence.input_ids])).logits[0]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("modules", [ONE, SEVERAL], ids=["one module", "several"])
def test_with_its_residual_in_place_every_settled_answer_leads_by_the_margin(modules: tuple[str, ...]) -> None:
    one = solving(*modules, subject_margin=0.7)
    turn = prepared(one, named())
    rows, num_settled = found(one, turn)
    assert num_settled == len(named())
    for number, sequence in enumerate(turn.turn.sequences):
        keys: dict[str, Tensor] = {}
        with torch.no_grad():
            logits = logits_with(one, turn, number, rows.residuals, keys)
        for position, token in zip(sequence.rows("answer"), sequence.answer_ids, strict=True):
            others = logits[position].clone()
            others[token] = -torch.inf
            assert logits[position, token] - others.max() >= 0.7 - 1e-3
        for name, key in keys.items():
            torch.testing.assert_close(rows.keys[name][number], key, rtol=1e-3, atol=1e-4)


def test_an_answer_that_the_model_has_already_gets_no_residual() -> None:
    one = solving(*ONE)
    turn = prepared(one, named())
    rows = one.capture(turn, tokens=True)
    rows.losses[[1, 3]] = 0.1
    solved = solve_targets(turn, rows, one.capture, one.config, one.collectives)
    assert (solved.rows.residuals[ONE[0]].norm(dim=1) == 0).tolist() == [False, True, False, True, False]
    assert solved.num_settled == len(named())


@pytest.mark.parametrize("margin", [0.0, 1.0, 3.0])
def test_a_loss_that_says_so_means_a_lead_whatever_the_others_are(margin: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2000, 5, generator=generator)
    losses = -logits.log_softmax(-1)[:, 0]
    leads = logits[:, 0] - logits[:, 1:].amax(1)
    sure = leads_for_sure(losses, margin)
    assert sure.any()
    assert (leads[sure] >= margin - 1e-5).all()
    two = logits[:, :2]
    assert torch.equal(leads_for_sure(-two.log_softmax(-1)[:, 0], margin), two[:, 0] - two[:, 1] >= margin)


def test_steps_are_those_of_adam_within_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 16, generator=generator)
    search = ResidualSteps(outputs, bound=2.0)
    bound = 2.0 * float(outputs.norm(dim=1).mean())
    oracle = torch.nn.Parameter(torch.zeros(3, 16))
    adam = torch.optim.Adam([oracle], lr=bound / (4 * 16**0.5), eps=1e-30)
    for _ in range(3):
        gradients = torch.randn(3, 16, generator=generator)
        oracle.grad = gradients.clone()
        adam.step()
        search.step(torch.arange(3), gradients)
    torch.testing.assert_close(search.residuals, oracle.detach(), rtol=1e-4, atol=1e-6)
    for _ in range(20):
        search.step(torch.tensor([1]), torch.ones(1, 16))
    assert float(search.residuals[1].norm()) == pytest.approx(bound, rel=1e-5)
    torch.testing.assert_close(search.residuals[[0, 2]], oracle.detach()[[0, 2]], rtol=1e-4, atol=1e-6)


def test_no_residual_is_longer_than_the_bound() -> None:
    one = solving(*ONE, subject_bound=0.2, subject_steps=9)
    turn = prepared(one)
    outputs = one.capture(turn).outputs[ONE[0]]
    rows, settled = found(one, turn)
    assert settled < len(named())
    assert float(rows.residuals[ONE[0]].norm(dim=1).max()) == pytest.approx(0.2 * float(outputs.norm(dim=1).mean()), rel=1e-4)


@pytest.mark.parametrize("form", ["exact", "sketch"])
def test_turn_after_turn_gives_the_ridge_regression_over_all_edits_together(form: str) -> None:
    """In float64, by least squares over every edit of every turn at once, the text, and the ridge."""
    d_in, d_out, weight, ridge = 10, 6, 3.0, 0.5
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    options = editor(
        preserve=form, preserve_rank=64, preserve_text="everyday", subject_modules=ONE, subject_targets="solved", subject_weight=weight, ridge=ridge
    ).config
    shards, collectives = {"a": LinearShard((d_in, d_out))}, SingleWorker()
    features = {"a": Features(shards["a"], "keys", collectives)}
    text = draw(30, d_in)
    reference = ridges_of_keys([("a", text)], features, form, 64)
    lifelong, shift = LifelongStatistics(), torch.zeros(d_in, d_out, dtype=torch.float64)
    keys, values = [], []
    for _ in range(3):
        k, v = draw(4, d_in), draw(4, d_out)
        missing = (v.double() - k.double() @ shift).float()
        rows = TurnRows.empty(shards, {"a": "subject"}, {"answer": 4, "subject": 4}, num_tokens=0)
        rows = replace(rows, keys={"a": k}, residuals={"a": missing})
        statistics = lifelong.with_turn(rows, {"answer": [4], "subject": [4]}, shards, options, collectives)
        found = TurnSolver(statistics, shards, options, collectives, reference, lifelong.remembered).solve(rows)
        shift += found.shifts["a"].dense().double()
        lifelong = statistics
        keys.append(k.double())
        values.append(v.double())
    assert lifelong.remembered["a"].count == 12
    scale = (weight / len(text)) ** 0.5
    lines = torch.cat([*keys, scale * text.double(), ridge**0.5 * torch.eye(d_in, dtype=torch.float64)])
    goals = torch.cat([*values, torch.zeros(len(text) + d_in, d_out, dtype=torch.float64)])
    expected = torch.linalg.lstsq(lines, goals).solution
    assert float((shift - expected).norm() / expected.norm()) < 1e-4


def test_the_subject_is_written_first_and_only_what_is_still_pending_at_the_answer() -> None:
    one, more = solving(*ONE), solving(*ONE, passes=3)
    (report,) = one.apply(named())
    assert report.shift_norms[ONE[0]] > 0
    assert report.shift_norms[ANSWERED] == 0
    assert report.settled == len(named())
    (further,) = more.apply(named())
    assert further.num_pending_rows[0] == report.num_pending_rows[0]
    assert (further.shift_norms[ANSWERED] > 0) == (further.num_pending_rows[1] > 0)
    assert further.efficacy_after is not None
    assert report.efficacy_after is not None
    assert further.efficacy_after >= report.efficacy_after > report.efficacy_before
    assert torch.equal(one.weights[ONE[0]], more.weights[ONE[0]])


def test_an_edit_without_a_subject_is_written_at_the_answer() -> None:
    one = solving(*ONE)
    nameless = [EditRequest(*fact) for fact in FACTS]
    (report,) = one.apply(nameless)
    assert (report.shift_norms[ONE[0]], report.settled) == (0, 0)
    assert report.shift_norms[ANSWERED] > 0
    both = solving(*ONE)
    (report,) = both.apply(requests())
    assert min(report.shift_norms.values()) > 0


@pytest.mark.parametrize("contexts", [0, 2])
def test_an_edit_reaches_other_wordings_than_its_own(contexts: int) -> None:
    one = solving(*ONE, subject_contexts=contexts, subject_weight=0.1)
    one.apply(named())
    told = [replace(r, prompt=f"They all know: {r.prompt}") for r in named()]
    assert one.efficacy(prepared(one, told)) > 0.5


def test_a_context_stands_before_the_prompt_and_its_subject_is_found_there() -> None:
    one = solving(*ONE, subject_contexts=2)
    turn = Turn.of([tokenize(one.joiner, request, max_tokens=None) for request in requests()])
    first, second = read_contexts(2)
    moved = put_in_context(turn, second, one.joiner, None)
    assert first != second
    for edit, before in zip(moved.edits, turn.edits, strict=True):
        assert one.tokenizer.decode(edit.forms[0].input_ids, skip_special_tokens=True).startswith(second.strip())
        assert edit.forms[0].answer_ids == before.forms[0].answer_ids
        assert (edit.forms[0].subject is None) == (before.forms[0].subject is None)
    longest = max(len(edit.forms[0].input_ids) for edit in turn.edits)
    assert put_in_context(turn, second, one.joiner, longest) == turn
    with pytest.raises(InputError, match="subject_contexts: expected at most 5, found 6"):
        read_contexts(6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"preserve": "sketch", "preserve_rank": 8}, marks=pytest.mark.thorough),
        pytest.param({"subject_contexts": 1, "passes": 2}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_stored_and_loaded_goes_on_as_if_nothing_had_happened(options: dict[str, Any], tmp_path: Path) -> None:
    whole, first, second = (solving(edits_per_turn=2, **options) for _ in range(3))
    whole.apply(requests())
    first.apply(requests(4))
    save_state(first, tmp_path / "state")
    load_state(second, tmp_path / "state")
    assert second.lifelong.remembered.keys() == first.lifelong.remembered.keys() != set()
    second.apply(requests()[4:])
    assert second.digests() == whole.digests()


def test_a_state_of_other_targets_is_refused(tmp_path: Path) -> None:
    one, other = solving(*ONE), solving(*ONE, subject_targets="gradient")
    one.apply(requests())
    save_state(one, tmp_path / "state")
    with pytest.raises(InputError, match="was written with solved targets; give the options"):
        load_state(other, tmp_path / "state")


def test_replicas_find_what_one_worker_finds() -> None:
    alone = solving(*ONE, group_size=2)
    alone.apply(requests())

    def run(worker: Any) -> dict[str, Tensor]:
        one = alone.__class__(
            Editor.from_pretrained(editor().model.name_or_path, modules=[ANSWERED], learning_rate=1e-3).model, alone.tokenizer, alone.config, worker
        )
        one.apply(requests())
        return {name: weight.clone() for name, weight in one.weights.items()}

    for weights in run_workers(run, num_replicas=2):
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone.weights[name], rtol=1e-3, atol=1e-5)


def test_a_residual_that_is_not_finite_refuses_the_turn_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = solving(*ONE)
    before, statistics = one.digests(), one.lifelong

    def broken(self: ResidualSteps, rows: Tensor, gradients: Tensor) -> None:
        self.residuals[rows] = torch.nan

    monkeypatch.setattr(ResidualSteps, "step", broken)
    with pytest.raises(TurnRefused, match="not finite"):
        one.apply(requests())
    assert (one.digests(), one.turns) == (before, 0)
    assert one.lifelong is statistics


@pytest.mark.thorough
def test_a_state_from_before_the_first_turn_goes_on_too(tmp_path: Path) -> None:
    whole, first, second = (solving(*ONE) for _ in range(3))
    for one in (whole, first):
        one.observe(prepared(one))
    save_state(first, tmp_path / "state")
    load_state(second, tmp_path / "state")
    for one in (whole, second):
        one.apply(requests())
    assert second.digests() == whole.digests()


def test_rows_that_are_only_observed_are_not_remembered() -> None:
    one = solving(*ONE)
    one.observe(prepared(one))
    assert one.lifelong.remembered == {}
    assert one.lifelong.preserved[ANSWERED].count > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject_targets": "guessed"}, "subject_targets: expected one of gradient, solved, found 'guessed'"),
        ({"subject_targets": "solved"}, "subject_targets: solved targets need subject_modules, found none; set it, or use gradient"),
        (
            {"subject_targets": "solved", "subject_modules": ("a",)},
            "subject_targets: solved targets need preserve, found off; set it, or use gradient",
        ),
        (
            {"subject_targets": "solved", "subject_modules": ("a",), "preserve": "auto"},
            "subject_targets: solved targets need preserve_text, found none; set it, or use gradient",
        ),
        ({"subject_steps": 0}, "subject_steps: expected a whole number of at least 1, found 0"),
        ({"subject_bound": 0.0}, "subject_bound: expected a finite number above 0, found 0.0"),
        ({"subject_margin": -1.0}, "subject_margin: expected a finite number of at least 0, found -1.0"),
        ({"subject_contexts": -1}, "subject_contexts: expected a whole number of at least 0, found -1"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        MethodOptions(**options)
    assert str(error.value) == message
