"""Positions of rows and tokens, and their owners, follow the sequences laid end to end."""

from editing.model.row_positions import row_owners, row_positions, token_positions
from editing.model.tokenization import AnswerSequence

SEQUENCES = [AnswerSequence(tuple(range(length)), tuple(range(answer)), subject) for length, answer, subject in ((4, 2, 1), (3, 1, None), (5, 3, 0))]


def test_positions_of_chosen_sequences() -> None:
    found = row_positions([2, 0], SEQUENCES)
    assert found["answer"].tolist() == [3, 4, 5, 0, 1]
    assert found["subject"].tolist() == [1, 0]
    assert token_positions([2, 0], SEQUENCES).tolist() == [7, 8, 9, 10, 11, 0, 1, 2, 3]


def test_nothing_chosen_has_no_positions() -> None:
    assert row_positions([], SEQUENCES)["answer"].tolist() == token_positions([], SEQUENCES).tolist() == []


def test_each_row_has_its_sequence_as_owner() -> None:
    owners = row_owners(SEQUENCES)
    assert owners["answer"].tolist() == [0, 0, 1, 2, 2, 2]
    assert owners["subject"].tolist() == [0, 2]
