"""Average lengths and their intervals, against a bootstrap of states written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from la_reconvla.analysis.sequences import average_length, difference
from la_reconvla.episodes import Label, SequenceRecord, append_sequences, read_sequences
from la_reconvla.errors import UserError


def record(index: int, state: int, completed: int, seed: int = 0) -> SequenceRecord:
    return SequenceRecord(Label("C4", seed), index, state, ("open_drawer",) * 5, completed, (3,) * 5, 1.0)


def drawn(rng: np.random.Generator, states: int = 60, each: int = 5, seed: int = 0) -> list[SequenceRecord]:
    """Sequences whose states matter: of some, all do well."""
    made = []
    for state in range(states):
        skill = rng.uniform(0, 5)
        for nth in range(each + (state % 3 == 0)):
            completed = int(np.clip(round(skill + rng.normal(0, 0.3)), 0, 5))
            made.append(record(state * 10 + nth, state, completed, seed))
    return made


def bootstrapped(records: list[SequenceRecord], rng: np.random.Generator) -> np.ndarray:
    """Means of samples that draw states with all their sequences."""
    of_state: dict[int, list[int]] = {}
    for one in records:
        of_state.setdefault(one.state, []).append(one.completed)
    groups = list(of_state.values())
    means = []
    for _ in range(2000):
        chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        means.append(np.mean(np.concatenate(chosen)))
    return np.quantile(means, [0.025, 0.975])


def test_an_interval_draws_states_not_sequences() -> None:
    rng = np.random.default_rng(0)
    records = drawn(rng)
    found = average_length([records])
    low, high = bootstrapped(records, rng)
    completed = np.array([one.completed for one in records])
    assert found.mean == pytest.approx(completed.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))
    of_sequences = 2 * 1.96 * completed.std() / np.sqrt(len(completed))
    assert found.high - found.low > 1.8 * of_sequences  # five alike are hardly more than one
    assert (found.sequences, found.states, found.seeds) == (len(records), 60, 1)
    np.testing.assert_allclose(found.in_a_row, [(completed >= n).mean() for n in range(1, 6)])
    assert found.mean == pytest.approx(sum(found.in_a_row))


def test_seeds_widen_an_interval_to_students_t() -> None:
    runs = [[record(n, n, value, seed) for n in range(40)] for seed, value in enumerate((2, 2, 3))]
    found = average_length(runs)
    reach = t.ppf(0.975, 2) * np.std([2, 2, 3], ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(7 / 3 - reach), pytest.approx(7 / 3 + reach))


def test_an_interval_ends_where_lengths_do() -> None:
    low, high = ([[record(n, n, value, seed) for n in range(9)] for seed, value in enumerate((v, 4))] for v in (0, 1))
    assert (average_length(low).low, average_length(low).high) == (0, 5)
    found = difference(high, [high[1], high[0]])
    assert (found.low, found.high) == (-5, 5)


def test_one_state_says_little_however_often_it_is_met() -> None:
    found = average_length([[record(0, 7, 5), record(1, 7, 0)]])
    assert (found.mean, found.states) == (2.5, 1)
    assert found.low < 1
    assert found.high > 4


def test_a_sequence_counts_once() -> None:
    with pytest.raises(UserError, match="recorded twice"):
        average_length([[record(0, 0, 5), record(0, 0, 5), record(1, 1, 0)]])


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(1)
    better = drawn(rng)
    worse = [record(one.index, one.state, max(one.completed - 1, 0)) for one in better]
    found = difference([better], [worse])
    assert found.mean == pytest.approx(np.mean([a.completed - b.completed for a, b in zip(better, worse, strict=True)]))
    assert found.p < 0.05
    mixed = [record(n, n, 2 + (n % 2)) for n in range(40)]
    assert difference([mixed], [[record(n, n, 2 + (n // 2 % 2)) for n in range(40)]]).p > 0.5
    assert difference([[record(n, n, 3) for n in range(3)]], [[record(n, n, 1) for n in range(3)]]).p >= 2.0**-2
    alone = average_length([better])
    assert not hasattr(alone, "p")
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    assert difference([worse], [better]).mean == pytest.approx(-found.mean)
    with pytest.raises(UserError, match="the same sequences"):
        difference([better], [worse[1:]])
    with pytest.raises(UserError, match="the same sequences under every seed"):
        average_length([better, worse[1:]])
    with pytest.raises(UserError, match="at least one"):
        average_length([[]])


@pytest.mark.parametrize(("value", "low", "high"), [(0, 0, 5), (5, 0, 5)])
def test_equal_values_have_an_interval_all_the_same(value: int, low: int, high: int) -> None:
    few, many = (average_length([[record(n, n, value) for n in range(count)]]) for count in (3, 100))
    for found in (few, many):
        assert low <= found.low <= value <= found.high <= high
    assert few.high - few.low > 2 > 0.5 > many.high - many.low > 0
    same = difference([[record(n, n, value) for n in range(20)]], [[record(n, n, value) for n in range(20)]])
    assert -5 < same.low < 0 < same.high < 5


def test_records_come_back(tmp_path) -> None:
    records = [record(3, 1, 2), record(4, 1, 5)]
    append_sequences(tmp_path, records[:1])
    append_sequences(tmp_path, records[1:])
    assert read_sequences(tmp_path) == records
    (tmp_path / "sequences.jsonl").write_text('{"schema": 2, "index": "x"}\n')
    with pytest.raises(UserError, match="line 1"):
        read_sequences(tmp_path)
