"""How many items are taken in: a bound that is set, and one that is learnt from how long they take."""

import pytest

from client import admission
from client.admission import MARGIN, Admission
from client.errors import Overloaded

MOST, SECONDS, BUSY = 1000, 60.0, 128


@pytest.fixture
def served(monkeypatch):
    """Let so many items be taken in at once, and answered after so many seconds."""
    now = [0.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now[0])
    here = Admission(MOST, SECONDS, BUSY)

    def served(count: int, seconds: float) -> Admission:
        with here.admitted(count):
            now[0] += seconds
        return here

    return served


def room(admission: Admission) -> int:
    """At how many items it is full."""
    try:
        while not admission.full:
            admission.pending += 1
        return admission.pending
    finally:
        admission.pending = 0


def test_no_more_than_are_served_before_their_deadline(served):
    here = served(200, 20.0)  # ten a second
    assert here.pending == 0
    assert room(here) == MARGIN * SECONDS * 10


def test_a_fast_model_has_the_set_bound_and_a_slow_one_keeps_enough_to_be_judged_by(served):
    assert room(served(200, 0.1)) == MOST
    assert room(served(200, 200.0)) == 2 * BUSY
    assert room(served(200, 0.1)) == MOST  # it has become fast again


def test_a_few_items_say_nothing_of_the_pace(served):
    assert room(served(BUSY - 1, 1000.0)) == MOST


def test_a_list_fits_wholly_or_is_refused(served):
    here = served(1, 0.1)
    here.pending = MOST - 5
    with pytest.raises(Overloaded), here.admitted(6):
        pass
    with here.admitted(5):
        assert here.full
    assert here.pending == MOST - 5


def test_what_fails_teaches_nothing_and_leaves(served):
    here = served(1, 0.1)
    with pytest.raises(ValueError, match="failed"), here.admitted(200):
        raise ValueError("failed")
    assert (here.pending, room(here)) == (0, MOST)
