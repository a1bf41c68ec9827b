"""The record of strikes and suspicions: bounded, and not to be washed out by what is cheap."""

from __future__ import annotations

from maskd.front.quarantine import Key, Quarantine


def key(name: object) -> Key:
    return b"vocabulary", str(name).encode()


def quarantine(record: Quarantine, name: object, *, of_worker: bool) -> None:
    for _ in range(2):
        record.strike(key(name), of_worker=of_worker)


def test_strike_when_it_is_the_second_then_the_grammar_is_held() -> None:
    record = Quarantine(4)
    assert record.strike(key("a"), of_worker=False) == 1
    assert not record.holds(key("a"))
    assert record.strike(key("a"), of_worker=True) == 2, "strikes of both kinds add up"
    assert record.holds(key("a")) and not record.holds(key("b"))


def test_record_when_ever_new_grammars_come_then_it_is_bounded() -> None:
    record = Quarantine(8)
    for number in range(1000):
        record.strike(key(number), of_worker=number % 2 == 0)
        record.suspect([key(number), key(-number)])
    assert len(record) == 3 * 8


def test_quarantine_when_children_are_crashed_by_the_thousand_then_what_killed_a_worker_stays() -> None:
    """Also one strike of a worker, and one that a child's crash made two."""
    record = Quarantine(8)
    quarantine(record, "twice", of_worker=True)
    record.strike(key("once"), of_worker=True)
    record.strike(key("mixed"), of_worker=False)
    record.strike(key("mixed"), of_worker=True)
    for number in range(1000):
        quarantine(record, number, of_worker=False)
        record.suspect([key(number)])
    assert record.holds(key("twice")) and record.holds(key("mixed"))
    assert record.strike(key("once"), of_worker=False) == 2
    for number in range(8):
        quarantine(record, f"worker {number}", of_worker=True)
    assert not record.holds(key("twice")), "as many worker deaths as the record holds, and it is forgotten"


def test_quarantine_when_somebody_asks_for_it_again_and_again_then_it_is_not_the_one_to_go() -> None:
    record = Quarantine(4)
    quarantine(record, "asked for", of_worker=False)
    for number in range(100):
        assert record.holds(key("asked for"))
        quarantine(record, number, of_worker=False)
    assert record.holds(key("asked for"))


def test_suspects_when_many_come_then_those_in_use_stay() -> None:
    record = Quarantine(4)
    record.suspect([key("used"), key("idle")])
    for number in range(100):
        assert record.is_suspect(key("used"))
        record.suspect([key(number)])
    assert record.is_suspect(key("used")) and not record.is_suspect(key("idle"))
    assert not record.holds(key("used")), "suspicion is no strike"


def test_suspects_when_one_is_suspected_again_then_it_stays_longer() -> None:
    record = Quarantine(2)
    record.suspect([key("first"), key("second")])
    record.suspect([key("first")])
    record.suspect([key("third")])
    assert record.is_suspect(key("first")) and not record.is_suspect(key("second"))


def test_quarantine_when_a_child_dies_of_what_killed_a_worker_then_it_is_still_not_pushed_out_by_children() -> None:
    record = Quarantine(4)
    record.strike(key("a"), of_worker=True)
    record.strike(key("a"), of_worker=False)
    for number in range(100):
        quarantine(record, number, of_worker=False)
    assert record.holds(key("a"))
