"""The clock watch on a simulated computer: saved, paused, set by others, its chip off."""

from __future__ import annotations

import pytest

from officegrid.guest.clock import ClockWatch, Move, Reading

BOOT_S = 1_800_000_000.0
HOUR_S = 3600.0


class Computer:
    """A guest with its clocks; `zone_s`: what its chip is off (local time)."""

    def __init__(self, *, zone_s: float = 0.0, trust_wall: bool = False, chip: bool = True) -> None:
        self.wall_s, self.monotonic_s, self.host_s = BOOT_S + 0.3, 100.0, BOOT_S + 0.3
        self.zone_s, self.chip = zone_s, chip
        self.watch = ClockWatch(earliest_s=BOOT_S - HOUR_S, trust_wall=trust_wall)
        self.moves: list[Move] = []
        self.kept = False
        self.chip_drift = 0.0

    def run_long(self, seconds: float, every_s: float = 5.0) -> float:
        """The same with fewer looks, and a host's clock that is too fast by `chip_drift`."""
        stepped_s = 0.0
        for _ in range(int(seconds / every_s)):
            self.wall_s, self.monotonic_s = self.wall_s + every_s, self.monotonic_s + every_s
            self.host_s += every_s * (1 + self.chip_drift)
            stepped_s += self.look().step_s
        return stepped_s

    def run(self, seconds: float = 10.0) -> float:
        """Looks twice a second; the sum of all steps."""
        stepped_s = 0.0
        for _ in range(int(seconds * 2)):
            self.wall_s, self.monotonic_s = self.wall_s + 0.5, self.monotonic_s + 0.5
            self.host_s += 0.5
            stepped_s += self.look().step_s
        return stepped_s

    def look(self) -> Move:
        chip_s = float(int(self.host_s + self.zone_s)) if self.chip else None
        move = self.watch.look(Reading(self.wall_s, self.monotonic_s, chip_s, self.kept))
        self.wall_s += move.step_s
        self.moves.append(move)
        return move

    def away(self, seconds: float) -> None:
        self.host_s += seconds

    def late_s(self) -> float:
        return self.host_s - self.wall_s


def test_a_guest_that_runs_is_left_alone() -> None:
    computer = Computer()
    assert computer.run(3600) == 0
    assert not any(move.away_s for move in computer.moves)


@pytest.mark.parametrize("away_s", [4.0, 60.0, 2 * HOUR_S, 30 * 24 * HOUR_S])
def test_a_saved_guest_is_put_right_at_the_first_look(away_s: float) -> None:
    computer = Computer()
    computer.run()
    computer.away(away_s)
    move = computer.look()
    assert move.away_s == pytest.approx(away_s, abs=1.1)
    assert abs(computer.late_s()) < 1
    assert computer.run() == 0


def test_short_pauses_add_up_to_no_error() -> None:
    computer = Computer()
    computer.run()
    for _ in range(50):
        computer.away(1.5)
        computer.run(3)
        assert abs(computer.late_s()) < 4
    assert any(move.step_s for move in computer.moves)


def test_a_chip_in_local_time_is_believed_in_its_jumps_only_once_chrony_has_spoken() -> None:
    computer = Computer(zone_s=2 * HOUR_S)
    assert computer.run(1) == pytest.approx(2 * HOUR_S, abs=1), "who else would know?"
    # chrony knows the time, and sets it.
    computer.wall_s -= 2 * HOUR_S
    assert computer.run() == 0
    assert computer.moves[2].others_s == pytest.approx(-2 * HOUR_S, abs=1)
    computer.away(HOUR_S)
    assert computer.look().step_s == pytest.approx(HOUR_S, abs=1.1)
    assert abs(computer.late_s()) < 1.1


def test_after_a_restart_of_the_program_the_wall_clock_is_trusted() -> None:
    computer = Computer(zone_s=2 * HOUR_S, trust_wall=True)
    assert computer.run() == 0
    computer.away(HOUR_S)
    assert computer.look().step_s == pytest.approx(HOUR_S, abs=1.1)


def test_somebody_else_was_quicker() -> None:
    """The hypervisor's own driver puts the time right before we look."""
    computer = Computer()
    computer.run()
    computer.away(HOUR_S)
    computer.wall_s += HOUR_S
    move = computer.look()
    assert move.step_s == 0
    assert move.away_s == pytest.approx(HOUR_S, abs=0.1), "connections are dead all the same"
    assert computer.run() == 0
    computer.away(60)
    assert computer.look().step_s == pytest.approx(60, abs=1.1)


def test_the_clock_is_set_by_hand_and_stays_so() -> None:
    computer = Computer()
    computer.run()
    computer.wall_s += 100
    assert computer.run() == 0
    assert computer.moves[20].others_s == pytest.approx(100, abs=0.1)


def test_our_own_step_for_another_reason_is_no_news() -> None:
    computer = Computer()
    computer.run()
    computer.wall_s += 500
    computer.watch.moved(500)
    assert computer.run() == 0
    assert not any(move.away_s for move in computer.moves)


def test_a_chip_without_a_battery_is_not_believed() -> None:
    computer = Computer(zone_s=-BOOT_S + 1000)
    assert computer.run() == 0
    computer = Computer(chip=False)
    assert computer.run() == 0
    computer.wall_s += 60
    assert computer.look().away_s == pytest.approx(60, abs=0.1)


def test_the_host_sets_its_clock_back() -> None:
    computer = Computer()
    computer.run()
    computer.away(-30)
    assert computer.look().step_s == pytest.approx(-30, abs=1.1)


WEEK_S = 7 * 24 * HOUR_S


@pytest.mark.parametrize("drift_ppm", [30, -30, 400])
def test_chrony_is_right_and_the_chip_drifts_for_a_week(drift_ppm: float) -> None:
    computer = Computer()
    computer.run()
    computer.kept, computer.chip_drift = True, drift_ppm / 1e6
    assert computer.run_long(WEEK_S) == 0
    assert not any(move.away_s for move in computer.moves), "its connections would be ended"
    right_s = -computer.late_s()
    assert abs(right_s) > 10, "the host is wrong by now"
    computer.away(4)
    assert computer.look().away_s == pytest.approx(4, abs=1.2), "a real absence is still seen"
    computer.run()
    computer.away(HOUR_S)
    assert computer.look().step_s == pytest.approx(HOUR_S, abs=1.2)
    assert -computer.late_s() == pytest.approx(right_s, abs=2.5), "what chrony knew is kept"


def test_without_chrony_the_chip_is_followed_and_nothing_is_dropped() -> None:
    computer = Computer()
    computer.chip_drift = 30e-6
    computer.run_long(WEEK_S)
    assert abs(computer.late_s()) < 3
    assert not any(move.away_s for move in computer.moves)
    assert any(move.drift and move.step_s for move in computer.moves)


def test_an_absence_while_the_chip_could_not_be_read() -> None:
    computer = Computer()
    computer.run()
    computer.chip = False
    computer.away(HOUR_S)
    computer.run()
    computer.wall_s += 50  # set by hand meanwhile
    computer.run()
    computer.chip = True
    assert computer.look().away_s == pytest.approx(HOUR_S - 50, abs=1.2)
    computer.chip = False
    computer.wall_s += 50
    computer.run()
    computer.chip = True
    assert computer.run() == 0, "it was set by hand, and the chip has not jumped"


def test_a_step_of_chrony_is_not_undone() -> None:
    computer = Computer()
    computer.run()
    computer.kept = True
    computer.wall_s += 1.5
    assert computer.run(300) == 0
    computer.away(60)
    assert computer.look().step_s == pytest.approx(60, abs=1.5)
