"""An input cut into windows: values that say how far it was read, at constant memory, with the last one known as such."""

from collections.abc import Iterable, Iterator

import pytest

from editing import EditRequest, InputError
from editing.datasets import BadRecord
from editing.turn import TokenizedEdit
from orchestrator.run.windows import Cursor, Window, in_windows
from orchestrator.tokenizing import RequestTokenizer
from tests.support.scripted_worker import Letters

Item = TokenizedEdit | BadRecord
TOKENIZER = RequestTokenizer(Letters(), 50)


def edit(record: int, prompt: str | None = None, target: str = "t") -> TokenizedEdit:
    return TOKENIZER.tokenize(EditRequest(prompt or f"p{record}", target), record)


def bad(record: int) -> BadRecord:
    return BadRecord(record, "why")


def windows(items: Iterable[Item], begin: Cursor | None = None, num_turns: int = 0) -> Iterator[Window]:
    return in_windows(items, begin or Cursor(), edits_per_turn=2, turns_per_window=2, num_turns=num_turns)


def summary(window: Window) -> tuple[int, int, list[int], list[list[int]], list[int], bool]:
    """Number, last record read, numbers of turns, records of their edits, bad records, whether it may be the last."""
    cursor = window.cursor
    turns = [[e.record for e in turn.in_request_order] for turn in window.turns]
    return cursor.window, cursor.record, [turn.before + 1 for turn in window.turns], turns, [b.number for b in window.bad], window.may_be_last


def test_each_window_has_the_cursor_after_it_and_what_was_left_out_on_the_way() -> None:
    items = [edit(1), bad(2), edit(3), edit(4), edit(5), bad(6), bad(7), edit(8), bad(9)]
    found = list(windows(items))
    assert [summary(window) for window in found] == [
        (1, 5, [1, 2], [[1, 3], [4, 5]], [2], False),
        (2, 9, [3], [[8]], [6, 7, 9], True),
        (2, 9, [], [], [], False),
    ]
    assert [(w.cursor.num_usable, w.cursor.input_done) for w in found] == [(4, False), (5, False), (5, True)]


def test_a_window_that_ends_with_the_input_is_known_as_the_last_one() -> None:
    found = [summary(window) for window in windows([*map(edit, range(1, 9)), bad(9)])]
    assert found == [
        (1, 4, [1, 2], [[1, 2], [3, 4]], [], False),
        (2, 8, [3, 4], [[5, 6], [7, 8]], [], True),
        (2, 9, [], [], [9], False),
    ]


def test_going_on_at_a_cursor_gives_the_windows_that_follow() -> None:
    items = [*map(edit, range(1, 8)), bad(8), *map(edit, range(9, 14))]
    whole = list(windows(items))
    for k, window in enumerate(whole[:-1], start=1):
        num_turns = sum(len(each.turns) for each in whole[:k])
        following = [item for item in items if (item.number if isinstance(item, BadRecord) else item.record) > window.cursor.record]
        assert list(windows(following, window.cursor, num_turns)) == whole[k:]


def test_a_window_is_made_of_no_more_than_one_edit_beyond_it() -> None:
    read: list[int] = []

    def items() -> Iterator[Item]:
        for k in range(1, 100):
            read.append(k)
            yield edit(k)

    making = windows(items())
    next(making)
    assert read == [1, 2, 3, 4, 5]
    next(making)
    assert read[-1] == 9


@pytest.mark.parametrize("num_before", [0, 4])
def test_any_number_of_bad_records_takes_constant_memory(num_before: int) -> None:
    """They go ahead of the window that they lie in. The cursor stays where a run can go on."""
    making = windows([*map(edit, range(1, 1 + num_before)), *map(bad, range(10, 1010)), edit(1010), edit(1011)])
    if num_before:
        assert summary(next(making)) == (1, 4, [1, 2], [[1, 2], [3, 4]], [], True)  # as far as anybody has looked
    begin = Cursor(window=1, record=4, num_usable=4) if num_before else Cursor()
    pieces = [next(making) for _ in range(10)]
    assert [b.number for piece in pieces for b in piece.bad] == list(range(10, 1010))
    assert all(piece.cursor == begin and not piece.turns and len(piece.bad) == 100 for piece in pieces)
    assert summary(next(making))[3:] == ([[1010, 1011]], [], True)


def test_an_error_of_the_input_comes_after_the_whole_window_before_it() -> None:
    def items() -> Iterator[Item]:
        yield from map(edit, range(1, 7))
        raise InputError("breaks off")

    making = windows(items())
    assert summary(next(making))[3] == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match="breaks off"):
        next(making)

    def at_the_border() -> Iterator[Item]:
        yield from map(edit, range(1, 5))
        raise InputError("breaks off")

    making = windows(at_the_border())
    assert summary(next(making))[3] == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match="breaks off"):
        next(making)


def test_superseded_edits_take_no_place_in_a_turn() -> None:
    (window, end) = windows([edit(1, "same", "a"), edit(2, "same", "b"), edit(3), edit(4)])
    assert summary(window)[3] == [[2, 3], [4]]
    assert [e.record for e in window.turns[0].superseded] == [1]
    assert end.cursor == Cursor(window=1, record=4, num_usable=4, input_done=True)
