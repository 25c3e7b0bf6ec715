"""Workers that fetch from one another, over real TLS; and all that can be wrong with a peer."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from peer_office import HERE, Office, wait_for

from officegrid.coordinator.config import PeersConfig
from officegrid.coordinator.peers import FORGOTTEN_AFTER_S, REVOKED_S
from officegrid.coordinator.peers import Peers as Book
from officegrid.wire.archives import Piece
from officegrid.wire.peers import PeerAsk, PeerPlace
from officegrid.worker.link import GaveUp
from officegrid.worker.peers import client, exchange, server, standing
from officegrid.worker.peers import shelf as shelf_module
from officegrid.worker.peers.client import Trouble, fetch
from officegrid.worker.peers.exchange import Peers
from officegrid.worker.peers.identity import make_identity
from officegrid.worker.peers.standing import SLOW_S


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setattr(standing, "TELL_PAUSE_S", 0.1)
    monkeypatch.setattr(server, "LOOK_EVERY_S", 0.05)
    made = Office(tmp_path)
    yield made
    made.close()


def place_of(worker: Peers, machine: str, holds: str) -> PeerPlace:
    listening = worker._standing._server
    assert listening is not None
    return PeerPlace(id=machine, address=HERE, port=listening.port, has=[holds])


def client_of(worker: Peers) -> ssl.SSLContext:
    identity = worker._standing.identity
    assert identity is not None
    return identity.client


@dataclass(frozen=True)
class Pair:
    """One that has a piece, at `place`, and another one that may ask for it."""

    giver: Peers
    other: Peers
    piece: Piece
    place: PeerPlace

    def fetch(self, most_bytes: int = 300_000) -> bytes | Trouble:
        return fetch(self.place, self.piece.sha256, most_bytes, client_of(self.other))


def pair_in(office: Office) -> Pair:
    giver, other = office.worker("giver"), office.worker("other")
    (piece,) = office.pieces(1)
    office.fetch(giver, [piece])
    return Pair(giver, other, piece, place_of(giver, "giver", piece.sha256))


def together(calls: Sequence[Callable[[], object]]) -> None:
    """All at once; what one raises is raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for running in [pool.submit(call) for call in calls]:
            running.result()


def test_what_one_has_fetched_the_other_gets_from_it(office: Office) -> None:
    one, other = office.worker("one"), office.worker("other")
    pieces = office.pieces(5)
    office.fetch(one, pieces)
    assert sorted(office.fetched) == sorted(piece.sha256 for piece in pieces)
    wait_for(lambda: office.listed("one", 5))
    office.fetched.clear()
    office.fetch(other, pieces)
    assert office.fetched == []
    wait_for(lambda: office.book.got_objects == 5)
    assert office.book.got_bytes == 5 * 300_000
    office.fetch(other, pieces)  # from its own shelf
    assert office.fetched == []


def test_workers_that_begin_at_once_share_the_work(office: Office) -> None:
    workers = [office.worker(f"w{n}") for n in range(4)]
    pieces = office.pieces(24)
    together([lambda one=one: office.fetch(one, pieces) for one in workers])
    assert set(office.fetched) == {piece.sha256 for piece in pieces}
    wait_for(lambda: office.book.got_objects == 96 - len(office.fetched))


def test_little_data_and_grids_without_peers_ask_the_coordinator_alone(office: Office) -> None:
    worker = office.worker("one")
    office.fetch(worker, office.pieces(2, size=1000))
    assert len(office.fetched) == 2
    assert worker._shelf.names() == []
    office.book = Book(PeersConfig(), time.time)
    without = office.worker("two")
    assert without._standing.identity is None
    office.fetch(without, office.pieces(2))
    assert len(office.fetched) == 4
    assert without._shelf.names() == []
    assert without._standing._server is None


def test_a_worker_that_others_cannot_reach_only_fetches(office: Office) -> None:
    office.book = Book(PeersConfig(allow=True, networks=["0.0.0.0/0"]), time.time)
    inside = office.worker("inside", came_from="10.9.9.9")  # no address of this computer
    assert inside._standing._server is None
    assert inside._standing.identity is not None
    giver = office.worker("giver")
    pieces = office.pieces(2)
    office.fetch(giver, pieces)
    wait_for(lambda: office.listed("giver", 2))
    office.fetched.clear()
    office.fetch(inside, pieces)
    assert office.fetched == []
    assert not office.listed("inside")


def test_nobody_is_sent_to_another_network(office: Office) -> None:
    giver, far = office.worker("giver"), office.worker("far", came_from="127.9.0.1")
    pieces = office.pieces(1)
    office.fetch(giver, pieces)
    wait_for(lambda: office.listed("giver"))
    office.fetch(far, pieces)
    assert len(office.fetched) == 2


def test_strangers_get_nothing(office: Office) -> None:
    pair = pair_in(office)
    place, sha256, size = pair.place, pair.piece.sha256, pair.piece.stored_bytes
    assert pair.fetch() == office.objects[sha256]

    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    assert fetch(place, sha256, size, bare) is Trouble.FAILED
    strange = Book(PeersConfig(allow=True), time.time)
    other_grid = make_identity(strange.signer.certificate("other"), office.folder).client
    other_grid.check_hostname, other_grid.verify_mode = False, ssl.CERT_NONE
    assert fetch(place, sha256, size, other_grid) is Trouble.FAILED


def test_another_machine_at_a_peers_address_is_not_asked(office: Office) -> None:
    pair = pair_in(office)
    place = place_of(pair.giver, "somebody-else", pair.piece.sha256)
    assert replace(pair, place=place).fetch() is Trouble.STRANGER


def test_wrong_bytes_never_get_through_and_the_liar_is_asked_no_more(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar, other = office.worker("liar"), office.worker("other")
    pieces = office.pieces(3)
    office.fetch(liar, pieces)
    wait_for(lambda: office.listed("liar", 3))
    monkeypatch.setattr(liar._shelf, "get", lambda _: b"x" * 300_000)
    place = place_of(liar, "liar", pieces[0].sha256)
    assert fetch(place, pieces[0].sha256, 300_000, client_of(other)) is Trouble.WRONG
    assert fetch(place, pieces[0].sha256, 200_000, client_of(other)) is Trouble.WRONG
    office.fetched.clear()
    office.fetch(other, pieces)
    assert len(office.fetched) == 3
    assert other._standing.shuns("liar")


def test_a_peer_that_is_gone_costs_each_one_try_and_is_named_no_more_when_two_say_so(
    office: Office,
) -> None:
    gone, *others = (office.worker(name) for name in ("gone", "other", "third"))
    pieces = office.pieces(3)
    office.fetch(gone, pieces)
    wait_for(lambda: office.listed("gone", 3))
    listening = gone._standing._server
    assert listening is not None
    listening.close()  # as when its VM is saved: nobody tells the coordinator
    for number, other in enumerate(others):
        assert office.listed("gone")
        office.fetched.clear()
        office.fetch(other, pieces)
        assert len(office.fetched) == (0 if number else 3)  # the third gets them from the other
        wait_for(lambda: office.listed("other", 3))
        if number:  # it may never have asked the one that is gone
            other._standing.shun("gone", report=True)
            other._standing.ask(())
    wait_for(lambda: not office.listed("gone"))


def test_one_that_is_busy_is_asked_again_later(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_UPLOADS", 1)
    pair = pair_in(office)
    listening = pair.giver._standing._server
    assert listening is not None
    with listening._server.uploads:
        assert pair.fetch() is Trouble.BUSY
        office.fetched.clear()
        office.fetch(pair.other, [pair.piece])
        assert len(office.fetched) == 1
        assert not pair.other._standing.shuns("giver")
    assert isinstance(pair.fetch(), bytes)


def test_silent_strangers_do_not_keep_others_out(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server, "SILENCE_S", 0.5)
    pair = pair_in(office)
    silent = [socket.create_connection((HERE, pair.place.port)) for _ in range(4)]
    try:
        wait_for(lambda: isinstance(pair.fetch(), bytes))
    finally:
        for one in silent:
            one.close()


def test_a_coordinator_that_began_anew_is_told_all_again(office: Office) -> None:
    giver, other = office.worker("giver"), office.worker("other")
    pieces = office.pieces(2)
    office.fetch(giver, pieces)
    office.book = Book(PeersConfig(allow=True), time.time)  # with another authority
    giver._standing.tell_soon()
    wait_for(lambda: office.listed("giver", 2))
    office.fetched.clear()
    office.fetch(other, pieces)
    assert office.fetched == []


def test_peers_go_on_without_their_coordinator_as_far_as_it_has_told(office: Office) -> None:
    worker = office.worker("one")
    office.away = True
    office.fetch(worker, office.pieces(2))
    assert len(office.fetched) == 2


def test_a_port_in_use_is_told_and_costs_only_the_sharing(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = office.worker("one", port=port)
        assert worker._standing._server is None
        office.fetch(worker, office.pieces(2))
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err
    worker._standing.tell_soon()
    wait_for(lambda: office.listed("one", 2))


def test_more_data_than_the_shelf_takes_is_shared_in_parts(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "ASK_EVERY_S", 0.05)
    workers = [office.worker(f"w{n}", room=7_500_000) for n in range(3)]
    pieces = office.pieces(30)
    office.direct_pause_s = 0.1
    together([lambda one=one: office.fetch(one, pieces) for one in workers])
    assert 30 <= len(office.fetched) < 75
    assert all(len(one._shelf.names()) == 25 for one in workers)


def test_data_needs_its_space_more_than_the_shelf_does(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = office.worker("one")
    office.fetch(worker, office.pieces(3))
    assert len(worker._shelf.names()) == 3
    free = shutil.disk_usage(office.folder)._replace(free=2 * 900_000 + exchange.MARGIN_BYTES)
    monkeypatch.setattr(shelf_module.shutil, "disk_usage", lambda _: free)
    office.fetch(worker, office.pieces(3))
    assert worker._shelf.names() == []
    assert len(office.fetched) == 6


def test_a_slow_coordinator_is_not_asked_about_peers(office: Office) -> None:
    worker = office.worker("one")
    pieces = office.pieces(8)
    office.slow_s = SLOW_S + 0.1
    office.asks.clear()
    office.fetch(worker, pieces)
    assert len([ask for ask in office.asks if ask.wants]) == 1


def test_stopping_and_lost_units_do_not_wait_for_questions(office: Office) -> None:
    worker = office.worker("one")
    office.slow_s = 1.2
    lost = threading.Event()
    pieces = office.pieces(20)

    def direct(piece: Piece) -> bytes:
        lost.set()
        return office.direct(piece)

    get = worker.getter(pieces, direct, lambda: not lost.is_set())
    with pytest.raises(GaveUp):
        get(pieces[0])
    assert len(office.fetched) == 1
    worker.close()
    assert worker._standing.ask(["0" * 64]) is None


def test_a_worker_that_starts_again_listens_on_its_port_at_once(office: Office) -> None:
    pair = pair_in(office)
    assert isinstance(pair.fetch(), bytes)
    pair.giver.close()  # this side closed the connection: the system keeps its end for a minute
    again = office.worker("giver", port=pair.place.port)
    assert place_of(again, "giver", pair.piece.sha256) == pair.place


def test_a_crowd_at_one_peer_finds_it_busy_and_nothing_worse(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    pair = pair_in(office)
    found: list[bytes | Trouble] = []
    together([lambda: found.append(pair.fetch())] * 12)
    assert any(isinstance(one, bytes) for one in found)
    assert {one for one in found if isinstance(one, Trouble)} <= {Trouble.BUSY}


def test_a_peer_that_answers_for_ever_is_left(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.3)
    pair = pair_in(office)

    def early_hints(handler: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                time.sleep(0.02)

    monkeypatch.setattr(server._Handler, "do_GET", early_hints)
    assert pair.fetch(300) is Trouble.FAILED


def test_a_unit_that_is_lost_ends_the_fetching(office: Office) -> None:
    pieces = office.pieces(2)
    get = office.worker("one").getter(pieces, office.direct, lambda: False)
    with pytest.raises(GaveUp):
        get(pieces[0])


def test_a_damaged_answer_of_the_coordinator_is_not_passed_on(office: Office) -> None:
    worker = office.worker("one")
    pieces = office.pieces(2)
    get = worker.getter(pieces, lambda piece: b"x" * piece.stored_bytes, lambda: True)
    assert get(pieces[0]) == b"x" * 300_000  # who joins the pieces sees it
    assert worker._shelf.names() == []


ONE = PeerAsk(port=4, holds=["a" * 64])
WANTS = PeerAsk(wants=["a" * 64])


def named(book: Book, came_from: str = "10.0.0.2") -> list[str]:
    return [one.id for one in book.answer("two", came_from, WANTS, None).peers]


def test_the_coordinator_forgets_who_is_silent_or_revoked() -> None:
    now = [1000.0]
    book = Book(PeersConfig(allow=True), lambda: now[0])
    book.answer("one", "10.0.0.1", ONE, None)
    assert named(book) == ["one"]
    assert named(book, "10.0.1.2") == []
    assert book.sharing == 1
    book.forget(["one"])
    assert book.sharing == 0
    book.answer("one", "10.0.0.1", ONE, None)  # a request that was under way
    assert named(book) == []
    now[0] += REVOKED_S
    book.answer("one", "10.0.0.1", ONE, None)
    assert named(book) == ["one"]
    now[0] += FORGOTTEN_AFTER_S
    assert book.sharing == 0
    assert named(book) == []
    book.answer("one", "10.0.0.1", ONE, None)
    now[0] -= 3600  # a clock that was set back
    assert book.sharing == 0
    assert named(book) == []


def test_one_that_finds_nobody_takes_nobody_off_the_list() -> None:
    book = Book(PeersConfig(allow=True), time.time)
    book.answer("one", "10.0.0.1", ONE, None)
    accuses = PeerAsk(failed=["one", "nobody"])
    for _ in range(3):
        book.answer("broken", "10.0.0.9", accuses, None)
    assert named(book) == ["one"]
    book.answer("other", "10.0.0.8", accuses, None)
    assert named(book) == []
    assert book.answer("one", "10.0.0.1", PeerAsk(port=4), None).tell_all


def test_what_is_new_is_added_and_a_move_takes_all_away() -> None:
    book = Book(PeersConfig(allow=True), time.time)
    assert book.answer("one", "10.0.0.1", PeerAsk(port=4, adds=["a" * 64]), None).tell_all
    book.answer("one", "10.0.0.1", PeerAsk(port=4, holds=["b" * 64]), None)
    assert named(book) == []
    assert not book.answer("one", "10.0.0.1", PeerAsk(port=4, adds=["a" * 64]), None).tell_all
    assert named(book) == ["one"]
    assert book.answer("one", "10.0.0.7", PeerAsk(port=4), None).tell_all
    assert named(book) == []
