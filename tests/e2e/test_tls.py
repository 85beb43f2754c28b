"""TLS, with certificates made here: who is let in, who is told what is wrong, and that nobody holds a line open."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from e2e.conftest import Launch
from e2e.server import DEADLINE_S, Client, ServerProcess, event, run_sekali
from sekali.errors import StartupError
from sekali.tls import server_context

BOOTSTRAP = "boot." + "b" * 43


@dataclass(frozen=True)
class Files:
    """A certificate for 127.0.0.1 and localhost, its key, and the CA that signed it."""

    cert: Path
    key: Path
    ca: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"TLS_CERT_FILE": self.cert, "TLS_KEY_FILE": self.key}


def make_files(folder: Path, *names: str) -> Files:
    authority = trustme.CA()
    made = authority.issue_cert(*names)
    files = Files(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    made.private_key_pem.write_to_path(str(files.key))
    for number, part in enumerate(made.cert_chain_pems):
        part.write_to_path(str(files.cert), append=number > 0)
    authority.cert_pem.write_to_path(str(files.ca))
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("tls"), "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[ServerProcess]:
    db_path = tmp_path_factory.mktemp("store") / "store.db"
    with ServerProcess(db_path, BOOTSTRAP_KEY=BOOTSTRAP, HEADER_TIMEOUT_S=0.5, **files.settings) as process:
        yield process
        assert process.running, process.log[-20:]


def client(server: ServerProcess, files: Files) -> Client:
    return Client(server.url, key=BOOTSTRAP, ca_certs=str(files.ca))


def test_everything_works_over_tls(server: ServerProcess, files: Files) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    http = client(server, files)
    large = [event("tls", f"{number}", payload="x" * 1000) for number in range(3000)]
    assert http.publish(large).json()["stored"] == 3000
    assert http.publish(event("tls", "0", payload="x" * 1000)).outcomes == ["duplicate"]
    assert http.export(topic="tls").count(b"\n") == 3000
    assert http.get("/healthz").status == 200
    for path in ("/publish", "/events"):
        assert Client(server.url, ca_certs=str(files.ca)).get(path).status == 401


def context(files: Files) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files.ca))


def test_old_versions_are_refused(server: ServerProcess, files: Files) -> None:
    assert server_context(files.cert, files.key).minimum_version is ssl.TLSVersion.TLSv1_2
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        modern = context(files)
        modern.minimum_version = modern.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as plain,
            modern.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            assert secure.version() == version.name.replace("_", ".")
    old = context(files)
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    "sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"GET /events HTTP/1.1\r\n", b"\x00" * 100], ids=repr
)
def test_a_client_that_does_not_shake_hands_is_closed(server: ServerProcess, sent: bytes) -> None:
    """Its deadline is that of the headers, which come after."""
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as idle:
        idle.sendall(sent)
        received = b""
        try:
            while chunk := idle.recv(4096):
                received += chunk
        except ConnectionResetError:
            pass
        assert b"HTTP/1.1 200" not in received


def test_a_client_that_shakes_hands_and_says_nothing_is_closed(server: ServerProcess, files: Files) -> None:
    for sent in (b"", b"POST /publish HTTP/1.1\r\nHost"):
        with (
            socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as plain,
            context(files).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(sent)
            received = b""
            while chunk := secure.recv(4096):
                received += chunk
            assert received.startswith(b"HTTP/1.1 408 ")


def test_strangers_to_tls_write_no_lines_into_the_log(server: ServerProcess) -> None:
    """Each scan of the port would be a line, or a traceback."""
    before = len(server.log)
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 100):
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as stranger:
            stranger.sendall(sent)
            try:
                while stranger.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert server.log[before:] == []


# The client.


def sekali(server: ServerProcess, *arguments: object, **settings: Any) -> tuple[int, str]:
    done = run_sekali(*arguments, AGGREGATOR_URL=server.url, **settings)
    return done.returncode, done.stdout + done.stderr


def test_the_client_trusts_a_ca_of_ones_own(server: ServerProcess, files: Files, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(BOOTSTRAP + "\n")
    code, text = sekali(
        server, "publish", "--count", 50, "--dup-ratio", 0, "--json", "--ca-file", files.ca, "--api-key-file", key_file
    )
    assert code == 0 and '"stored": 50' in text, text
    for command in (["events", "--limit", 1], ["stats"], ["events", "--all"]):
        code, text = sekali(server, *command, CA_FILE=files.ca, API_KEY=BOOTSTRAP)
        assert code == 0, text


def test_the_client_refuses_a_server_that_it_cannot_know(
    server: ServerProcess, files: Files, tmp_path: Path, launch: Launch
) -> None:
    code, text = sekali(server, "stats", API_KEY=BOOTSTRAP)
    assert code == 3 and "no secure connection" in text and "SEKALI_CA_FILE" in text and "Traceback" not in text
    other = make_files(tmp_path, "elsewhere.example")
    code, text = sekali(server, "stats", API_KEY=BOOTSTRAP, CA_FILE=other.ca)
    assert code == 3 and "no secure connection" in text
    elsewhere = launch(BOOTSTRAP_KEY=BOOTSTRAP, **other.settings)
    code, text = sekali(elsewhere, "stats", API_KEY=BOOTSTRAP, CA_FILE=other.ca)
    assert code == 3 and "no secure connection" in text, "the name in the certificate is another"


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_bad_file_of_certificates_is_a_sentence(server: ServerProcess, tmp_path: Path, content: bytes | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_bytes(content)
    code, text = sekali(server, "stats", API_KEY=BOOTSTRAP, CA_FILE=ca_file)
    assert code == 2 and "of certificates" in text and "Traceback" not in text, text


# Starting.


def refusal(cert: Path, key: Path) -> str:
    with pytest.raises(StartupError) as refused:
        server_context(cert, key)
    return str(refused.value)


def test_files_that_cannot_work_are_told_at_the_start(files: Files, tmp_path: Path) -> None:
    other = make_files(tmp_path, "127.0.0.1")
    missing, nonsense = tmp_path / "missing.pem", tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    assert f"TLS_CERT_FILE {missing} cannot be read: No such file" in refusal(missing, files.key)
    assert f"TLS_KEY_FILE {missing} cannot be read: No such file" in refusal(files.cert, missing)
    assert "is not the key of" in refusal(files.cert, other.key)
    assert "not a certificate and its key" in refusal(nonsense, files.key)
    assert "not a certificate and its key" in refusal(files.cert, nonsense)


def test_a_key_with_a_password_does_not_wait_for_somebody_to_type_it(files: Files, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    cipher = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher))
    assert "has a password" in refusal(files.cert, locked)


def test_a_server_that_cannot_speak_tls_says_so(launch: Launch, files: Files, tmp_path: Path) -> None:
    for settings, said in (
        ({"TLS_CERT_FILE": files.cert}, "TLS_CERT_FILE and TLS_KEY_FILE belong together"),
        (make_files(tmp_path, "a.example").settings | {"TLS_KEY_FILE": files.key}, "is not the key of"),
    ):
        server = launch(start=False, COLUMNS=200, **settings)
        server.launch()
        assert server.wait() in {2, 3}
        text = " ".join(str(server.log).split())
        assert said in text and "Traceback" not in text, text
