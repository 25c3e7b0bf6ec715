"""coordinator.toml: what it takes, and how it says what is wrong without telling passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from officegrid.coordinator.config import load_config
from officegrid.core.errors import UsageError

GOOD = """
[sources.crm]
url = "postgresql://grid:secret-word@db/crm"
[data.postcodes]
path = "/srv/postcodes.sqlite"
[data.rates]
source = "crm"
sql = "select * from rates"
schedule = "0 5 * * *"
[git]
allow = ["https://git.example.com/"]
every = "10m"
[keep]
versions = 3
objects = "2h"
jobs = "90d"
"""


def test_a_missing_file_means_defaults(tmp_path: Path) -> None:
    config = load_config(tmp_path / "coordinator.toml")
    assert (config.sources, config.data, config.git.allow) == ({}, {}, [])
    assert (config.keep.versions, config.keep.days, config.keep.objects) == (10, 30.0, 86400.0)
    assert config.keep.jobs is None


def test_everything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(GOOD)
    config = load_config(path)
    assert config.data["rates"].schedule == "0 5 * * *"
    assert config.git.every == 600.0
    assert (config.keep.objects, config.keep.jobs) == (7200.0, 90 * 86400.0)
    assert "secret-word" not in repr(config)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[git]", "[gitt]", "gitt"),
        ("versions = 3", "versions = 0", "keep.versions"),
        ('schedule = "0 5 * * *"', 'schedule = "0 25 * * *"', "cron line"),
        ('every = "10m"', 'every = "soon"', "duration"),
        ('path = "/srv/postcodes.sqlite"', "", "exactly one of"),
        ('source = "crm"', 'source = "erp"', "'erp', which is not there"),
        ('sql = "select * from rates"', "", "go together"),
        ("[sources.crm]", '[sources."c r m"]', "sources"),
        ("[keep]", "[keep", "not TOML"),
        ('objects = "2h"', 'objects = "5s"', "keep.objects"),
        ('jobs = "90d"', 'jobs = "1h"', "keep.jobs"),
        ('every = "10m"', "every = 0", "git.every"),
        ('crm"', "crm", "not TOML"),
    ],
)
def test_mistakes_are_named_and_passwords_are_not(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    path = tmp_path / "coordinator.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert words in str(caught.value)
    assert "secret-word" not in str(caught.value)
