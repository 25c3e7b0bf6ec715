"""Workers that fetch from one another, over real TLS; and all that can be wrong with a peer."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer_office import HERE, Office, wait_for

from officegrid.coordinator.config import PeersConfig
from officegrid.coordinator.peers import FORGOTTEN_AFTER_S
from officegrid.coordinator.peers import Peers as Book
from officegrid.wire.peers import PeerAsk, PeerPlace
from officegrid.worker.link import GaveUp
from officegrid.worker.peers import server
from officegrid.worker.peers.client import Trouble, fetch
from officegrid.worker.peers.exchange import Peers
from officegrid.worker.peers.identity import make_identity


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
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
    errors: list[BaseException] = []

    def run(worker: Peers) -> None:
        try:
            office.fetch(worker, pieces)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[one]) for one in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
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


@pytest.mark.parametrize("came_from", ["10.9.9.9", "127.0.1.1"])
def test_a_worker_that_others_cannot_reach_only_fetches(office: Office, came_from: str) -> None:
    office.book = Book(PeersConfig(allow=True, networks=["0.0.0.0/0"]), time.time)
    inside = office.worker("inside", came_from=came_from)
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
    giver, friend = office.worker("giver"), office.worker("friend")
    pieces = office.pieces(1)
    office.fetch(giver, pieces)
    sha256, size = pieces[0].sha256, pieces[0].stored_bytes
    place = place_of(giver, "giver", sha256)
    assert fetch(place, sha256, size, client_of(friend)) == office.objects[sha256]

    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    assert fetch(place, sha256, size, bare) is Trouble.FAILED
    strange = Book(PeersConfig(allow=True), time.time)
    reply = strange.answer("friend", HERE, PeerAsk(certificate=True))
    assert reply.certificate is not None
    other_grid = make_identity(reply.authority, reply.certificate, office.folder).client
    other_grid.check_hostname, other_grid.verify_mode = False, ssl.CERT_NONE
    assert fetch(place, sha256, size, other_grid) is Trouble.FAILED


def test_another_machine_at_a_peers_address_is_not_asked(office: Office) -> None:
    giver, friend = office.worker("giver"), office.worker("friend")
    pieces = office.pieces(1)
    office.fetch(giver, pieces)
    sha256, size = pieces[0].sha256, pieces[0].stored_bytes
    place = place_of(giver, "somebody-else", sha256)
    assert fetch(place, sha256, size, client_of(friend)) is Trouble.FAILED


def test_wrong_bytes_never_get_through_and_the_liar_is_named_no_more(
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
    wait_for(lambda: any("liar" in ask.failed for ask in office.asks))


def test_a_peer_that_is_gone_costs_one_try(office: Office) -> None:
    gone, other = office.worker("gone"), office.worker("other")
    pieces = office.pieces(3)
    office.fetch(gone, pieces)
    wait_for(lambda: office.listed("gone", 3))
    listening = gone._standing._server
    assert listening is not None
    listening.close()  # as when its VM is saved: nobody tells the coordinator
    office.fetched.clear()
    office.fetch(other, pieces)
    assert len(office.fetched) == 3
    wait_for(lambda: not office.listed("gone"))


def test_one_that_is_busy_is_asked_again_later(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_UPLOADS", 1)
    giver, other = office.worker("giver"), office.worker("other")
    pieces = office.pieces(1)
    office.fetch(giver, pieces)
    listening = giver._standing._server
    assert listening is not None
    place = place_of(giver, "giver", pieces[0].sha256)
    arguments = (place, pieces[0].sha256, 300_000, client_of(other))
    with listening._server.uploads:
        assert fetch(*arguments) is Trouble.BUSY
        office.fetched.clear()
        office.fetch(other, pieces)
        assert len(office.fetched) == 1
        assert not other._standing.shuns("giver")
    assert isinstance(fetch(*arguments), bytes)


def test_silent_strangers_do_not_keep_others_out(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server, "SILENCE_S", 0.5)
    giver, other = office.worker("giver"), office.worker("other")
    pieces = office.pieces(1)
    office.fetch(giver, pieces)
    place = place_of(giver, "giver", pieces[0].sha256)
    silent = [socket.create_connection((HERE, place.port)) for _ in range(4)]
    try:
        context = client_of(other)
        wait_for(lambda: isinstance(fetch(place, pieces[0].sha256, 300_000, context), bytes))
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


def test_more_data_than_the_shelf_takes_is_fetched_all_the_same(office: Office) -> None:
    small, other = office.worker("small", room=700_000), office.worker("other", room=700_000)
    pieces = office.pieces(4)
    office.fetch(small, pieces)
    assert len(office.fetched) == 4
    assert len(small._shelf.names()) == 2
    wait_for(lambda: office.listed("small", 2))
    office.fetch(other, pieces)
    assert 4 < len(office.fetched) < 8


def test_a_unit_that_is_lost_ends_the_fetching(office: Office) -> None:
    with pytest.raises(GaveUp):
        office.worker("one").getter(office.pieces(2), office.direct, lambda: False)


def test_a_damaged_answer_of_the_coordinator_is_not_passed_on(office: Office) -> None:
    worker = office.worker("one")
    pieces = office.pieces(2)
    get = worker.getter(pieces, lambda piece: b"x" * piece.stored_bytes, lambda: True)
    assert get(pieces[0]) == b"x" * 300_000  # who joins the pieces sees it
    assert worker._shelf.names() == []


def test_the_coordinator_forgets_who_is_silent_or_revoked() -> None:
    now = [1000.0]
    book = Book(PeersConfig(allow=True), lambda: now[0])
    ask = PeerAsk(address="10.0.0.1", port=4, holds=["a" * 64])
    book.answer("one", "10.0.0.1", ask)
    wants = PeerAsk(wants=["a" * 64])
    assert [one.id for one in book.answer("two", "10.0.0.2", wants).peers] == ["one"]
    assert book.answer("two", "10.0.1.2", wants).peers == []
    assert book.sharing == 1
    book.forget("one")
    assert book.sharing == 0
    assert book.answer("two", "10.0.0.2", wants).peers == []
    book.answer("one", "10.0.0.1", ask)
    now[0] += FORGOTTEN_AFTER_S
    assert book.sharing == 0
    assert book.answer("two", "10.0.0.2", wants).peers == []
    book.answer("one", "10.0.0.1", ask)
    now[0] -= 3600  # a clock that was set back
    assert book.sharing == 0
    assert book.answer("two", "10.0.0.2", wants).peers == []
