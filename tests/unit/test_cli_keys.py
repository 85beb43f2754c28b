"""``sekali keys``, as people and scripts use it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sekali.cli import app
from sekali.keyfile import KeyFile
from sekali.keys import Keyring


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.db"


def run(db_path: Path | None, *arguments: str) -> Result:
    location = [] if db_path is None else ["--db-path", str(db_path)]
    return CliRunner().invoke(app, ["keys", *arguments, *location], terminal_width=200)


def test_a_key_is_all_that_standard_output_shows(db_path: Path) -> None:
    made = run(
        db_path, "create", "--name", "shop", "--scope", "publish:shop/**", "--scope", "read:**", "--expires", "90d"
    )
    assert made.exit_code == 0
    text = made.stdout.strip()
    (key,) = KeyFile(db_path).read() or []
    assert Keyring([key]).grant(f"Bearer {text}".encode()) is not None and "\n" not in text
    assert key.scopes == ("publish:shop/**", "read:**") and key.name == "shop"
    assert key.expires_at == key.created_at + timedelta(days=90)
    assert abs(datetime.now(UTC) - key.created_at) < timedelta(minutes=10)
    assert key.id in made.stderr and "not shown again" in made.stderr and text not in made.stderr


def test_json_for_programs(db_path: Path) -> None:
    made = json.loads(run(db_path, "create", "--name", "shop", "--scope", "admin", "--json").stdout)
    (listed,) = json.loads(run(db_path, "list", "--json").stdout)
    assert made.pop("key").startswith(made["id"] + ".")
    assert listed == made == listed | {"name": "shop", "scopes": ["admin"], "expires_at": None, "live": True}
    assert json.loads(run(db_path, "revoke", made["id"], "--json").stdout) == made
    assert json.loads(run(db_path, "list", "--json").stdout) == []


def test_the_list_shows_no_secret_and_what_has_expired(db_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    _, text = KeyFile(db_path).create("old", ["read:a"], past, past + timedelta(days=1))
    key, _ = KeyFile(db_path).create("new", ["read:a", "publish:b"], datetime.now(UTC))
    listed = run(db_path, "list").stdout
    old_line, new_line = (next(line for line in listed.splitlines() if name in line) for name in ("old", "new"))
    assert "expired" in old_line and "live" in new_line and "never" in new_line and key.id in new_line
    assert "read:a, publish:b" in new_line and text.partition(".")[2] not in listed and key.sha256 not in listed


def test_rotation_and_revocation(db_path: Path) -> None:
    first = run(db_path, "create", "--name", "shop", "--scope", "read:**").stdout.strip()
    assert run(db_path, "create", "--name", "shop").exit_code == 0
    third = run(db_path, "create", "--name", "shop")
    assert third.exit_code == 1 and "2 live keys" in third.stderr and third.stdout == ""
    revoked = run(db_path, "revoke", first.partition(".")[0])
    assert revoked.exit_code == 0 and "shop" in revoked.stdout
    again = run(db_path, "revoke", first.partition(".")[0])
    assert again.exit_code == 1 and "sekali keys list" in again.stderr
    assert run(db_path, "create", "--name", "shop").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--name", "a b", "--scope", "read:**"], 1, "not a name"),
        (["--name", "shop", "--scope", "everything"], 1, "not a scope"),
        (["--name", "shop"], 1, "--scope"),
        (["--scope", "read:**"], 2, "--name"),
        (["--name", "shop", "--scope", "read:**", "--expires", "soon"], 2, "--expires"),
        (["--name", "shop", "--scope", "read:**", "--expires", "0d"], 2, "--expires"),
        (["--name", "shop", "--scope", "read:**", "--expires", "999999w"], 2, "--expires"),
        (["--name", "shop", "--scope", "read:**", "--expires", "-1d"], 2, "--expires"),
    ],
)
def test_mistakes_are_told_and_change_nothing(db_path: Path, arguments: list[str], code: int, says: str) -> None:
    result = run(db_path, "create", *arguments)
    assert result.exit_code == code and says in result.stderr
    assert KeyFile(db_path).read() is None


@pytest.mark.parametrize(("text", "time"), [("30m", {"minutes": 30}), ("12h", {"hours": 12}), ("52w", {"weeks": 52})])
def test_times(db_path: Path, text: str, time: dict[str, int]) -> None:
    assert run(db_path, "create", "--name", "shop", "--scope", "admin", "--expires", text).exit_code == 0
    (key,) = KeyFile(db_path).read() or []
    assert key.expires_at == key.created_at + timedelta(**time)


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "x"], ["create", "--name", "a", "--scope", "admin"]])
def test_a_damaged_file_is_a_sentence_and_exit_code_3(db_path: Path, arguments: list[str]) -> None:
    db_path.parent.mkdir()
    KeyFile(db_path).path.write_text("nonsense")
    result = run(db_path, *arguments)
    assert result.exit_code == 3 and "is damaged" in result.stderr and result.stdout == ""


def test_a_bootstrap_key_is_kept_nowhere(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db_path.parent.mkdir()
    monkeypatch.chdir(db_path.parent)
    first, second = (run(None, "bootstrap").stdout.strip() for _ in range(2))
    assert first != second and len(first.partition(".")[2]) == 43
    assert list(db_path.parent.iterdir()) == []


def test_the_store_is_that_of_the_environment(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PATH", str(db_path))
    assert run(None, "create", "--name", "shop", "--scope", "admin").exit_code == 0
    assert len(KeyFile(db_path).read() or []) == 1
