"""How many items are taken in: a bound that is set, and one that is learnt from how long they take."""

from contextlib import contextmanager
from typing import Any

import pytest

from client.errors import Overloaded, error_response
from client.triton import admission
from client.triton.admission import MARGIN, Admission

MOST, SECONDS, BUSY = 1000, 60.0, 128


class Line:
    """Requests that are answered or given up one by one, in the order in which they came, at times of our choosing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admission = Admission(MOST, lambda: SECONDS, BUSY)
        self._waiting: list[Any] = []

    def come(self, count: int, items: int = 1, seconds: float = SECONDS) -> None:
        for _ in range(count):
            one = self.admission.admitted(items, seconds)
            one.__enter__()
            self._waiting.append(one)

    def answer(self, count: int, a_second: float) -> None:
        for _ in range(count):
            self.now += 1 / a_second
            self._waiting.pop(0).__exit__(None, None, None)

    def give_up(self, count: int, after: float) -> None:
        self.now += after
        for _ in range(count):
            with pytest.raises(TimeoutError), left(self._waiting.pop(0)):
                raise TimeoutError


@contextmanager
def left(one):
    try:
        yield
    except TimeoutError as error:
        if not one.__exit__(type(error), error, None):
            raise


@pytest.fixture
def line(monkeypatch):
    line = Line()
    monkeypatch.setattr(admission.time, "monotonic", lambda: line.now)
    return line


def test_no_more_than_are_served_in_time(line):
    assert line.admission.room == MOST
    line.come(300)
    line.answer(300, a_second=10)
    assert line.admission.room == pytest.approx(MARGIN * SECONDS * 10, rel=0.02)
    line.come(line.admission.room)
    assert line.admission.full
    with pytest.raises(Overloaded):
        line.come(1)


def test_who_waits_for_less_time_is_refused_earlier(line):
    line.come(300)
    line.answer(300, a_second=10)
    line.come(150, seconds=20)
    with pytest.raises(Overloaded):
        line.come(20, seconds=20)
    line.come(1)


def test_a_model_that_answers_nobody_in_time_is_asked_less_and_found_again_when_it_is_faster(line):
    line.come(MOST)
    line.answer(60, a_second=1)
    line.give_up(MOST - 60, after=1)
    assert line.admission.room <= MARGIN * SECONDS * 1.1
    for _ in range(3):  # it hangs
        line.come(line.admission.room)
        line.give_up(line.admission.pending, after=SECONDS)
    assert line.admission.room == 1
    line.come(1)
    line.answer(1, a_second=1000)
    assert line.admission.room == MOST


def test_a_few_items_say_nothing_against_the_pace(line):
    line.come(BUSY - 1)
    line.answer(BUSY - 1, a_second=0.1 * BUSY)
    line.come(5, seconds=1)
    line.give_up(5, after=1)
    assert line.admission.room == MOST


def test_who_shared_an_items_computation_says_nothing_for_it(line):
    line.come(300)
    line.answer(300, a_second=10)
    room = line.admission.room
    line.come(200)
    with line.admission.admitted(1, SECONDS):
        line.answer(5, a_second=10)
    assert line.admission.room == pytest.approx(room, rel=0.05)


def test_a_list_fits_wholly_or_is_refused_and_the_only_one_always_fits(line):
    line.come(1, items=MOST - 5)
    with pytest.raises(Overloaded):
        line.come(1, items=6)
    line.come(1, items=5)
    assert line.admission.full
    line.give_up(2, after=SECONDS)
    assert (line.admission.pending, line.admission.room) == (0, 1)
    line.come(1, items=MOST)


def test_who_is_overtaken_says_nothing_of_the_pace(line):
    """Large images: a list of them takes a minute, while texts beside it are answered at once."""
    room = line.admission.room
    with line.admission.admitted(MOST - 1, SECONDS, teaches=False):
        line.come(1)
        line.answer(1, a_second=1000)
        line.now += SECONDS
    assert line.admission.room == room


def test_a_refusal_says_what_there_is_too_much_of_and_when_to_come_back():
    pixels = Admission(MOST, lambda: SECONDS, BUSY, "pixels")
    refusal = pytest.raises(Overloaded, match="Too many pixels")
    with pixels.admitted(1, SECONDS), refusal as refused, pixels.admitted(MOST, 1, after=30):
        pass
    assert error_response(refused.value).headers["retry-after"] == "30"
