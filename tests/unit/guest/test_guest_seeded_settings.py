"""Settings of a guest: what the image says, what the seed says, what is ignored."""

from __future__ import annotations

import pytest

from officegrid.guest.settings import Settings, Target, merge, peers, targets


def test_defaults_then_image_then_seed() -> None:
    assert merge({}, {}) == (Settings(), [])
    baked = {"start": "cron", "every_minutes": 10, "user": "root", "init": "small", "slots": 2}
    settings, complaints = merge(baked, {"start": "service", "proxy": "http://proxy.firm:3128"})
    assert complaints == []
    assert settings == Settings(
        "service", 10, "root", 2, "small", proxy="http://proxy.firm:3128"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("start", "sometimes"), ("every_minutes", 0), ("every_minutes", 60), ("every_minutes", "5"),
     ("slots", True), ("slots", 257), ("proxy", "http://user:secret@proxy:3128"),
     ("proxy", "https://proxy:3128"), ("proxy", "http://proxy"), ("proxy", "http://a b:1"),
     ("ntp", "time.firm"), ("ntp", ["time.firm\nport 123"]), ("ntp", ["-x"]),
     ("allow", ["db.firm"]), ("allow", ["$(reboot):1"]), ("allow", ["a:1"] * 65),
     ("peers_port", 0), ("peers_port", 65536), ("peers_port", "8444"),
     ("user", "root"), ("init", "small"), ("colour", "red")],
)  # fmt: skip
def test_wrong_values_on_the_seed_are_told_and_ignored(key: str, value: object) -> None:
    settings, complaints = merge({}, {key: value})
    assert settings == Settings()
    assert len(complaints) == 1
    assert key in complaints[0]
    assert "secret" not in complaints[0]


@pytest.mark.parametrize(("key", "value"), [("user", "a b"), ("user", ""), ("init", "x")])
def test_wrong_values_in_the_image_are_told(key: str, value: object) -> None:
    settings, complaints = merge({key: value}, {})
    assert settings == Settings()
    assert complaints


def test_what_the_image_notes_for_others_is_no_mistake() -> None:
    assert merge({"name": "grid-1.2", "built_at": 1}, {}) == (Settings(), [])


def test_whom_the_guest_may_talk_to() -> None:
    allow = ("db.firm:3306", "10.1.0.0/16:3306", "[2001:db8::/32]:443")
    settings = Settings(allow=allow)
    others = [Target("db.firm", 3306), Target("10.1.0.0/16", 3306), Target("2001:db8::/32", 443)]
    assert targets(settings, "https://grid.firm:8443") == [*others, Target("grid.firm", 8443)]
    assert targets(settings, "https://[2001:db8::1]:9000")[-1] == Target("2001:db8::1", 9000)
    assert targets(settings, "https://grid.firm")[-1] == Target("grid.firm", 8443)
    assert targets(settings, "") == others


def test_behind_a_proxy_only_the_proxy_is_open() -> None:
    settings = Settings(proxy="http://proxy.firm:3128/")
    assert targets(settings, "https://grid.firm:8443") == [Target("proxy.firm", 3128)]


def test_impossible_ports_are_left_out() -> None:
    assert targets(Settings(allow=("a.firm:0", "a.firm:65536")), "") == []


def test_peers_are_off_unless_they_have_a_port() -> None:
    assert peers(Settings()) == []
    settings, complaints = merge({}, {"peers_port": 8444})
    assert complaints == []
    assert Target("192.168.0.0/16", 8444) in peers(settings)
    assert {port for _, port in peers(settings)} == {8444}
