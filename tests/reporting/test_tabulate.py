"""What the tabulate stage refuses, and what it leaves out."""

import pytest
from measurements import HISTORY, MEASURED, changed

from stages import tabulate
from tripletkd.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data_sha256": "e" * 64}, "measured with images of sha256 eee"), ({"teacher_sha256": "b" * 64}, "a teacher of")],
)
def test_a_table_of_strangers_is_refused(changes: dict[str, str], message: str) -> None:
    student = MEASURED["kd"]
    tabulate.refuse_strangers(MEASURED["teacher"], [student])
    with pytest.raises(UserError, match=message):
        tabulate.refuse_strangers(MEASURED["teacher"], [student, changed(student, **changes)])


def test_a_seed_that_failed_is_in_no_curve() -> None:
    assert tabulate.without_failed([*HISTORY, {**HISTORY[0], "seed": 4}], MEASURED["triplet"]) == HISTORY
