"""The OpenAPI document taken at its word: what schemathesis makes of it, right and wrong, against a real server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.server import DEADLINE_S, ServerProcess, event
from fuzz.conftest import Fuzz

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 30  # of each operation
METHODS = {"get", "put", "post", "delete"}
SUBSCRIPTION = "s"
# A subscription that is there; but whoever deletes one, or waits for events, finds none.
CONFIG = f"""
[[operations]]
include-path = ["/subscriptions/{{name}}/pull"]
[operations.parameters]
"path.name" = "nowhere"

[[operations]]
include-method = ["DELETE"]
[operations.parameters]
"path.name" = "nowhere"

[[operations]]
include-path-regex = "^/subscriptions/"
[operations.parameters]
"path.name" = "{SUBSCRIPTION}"
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    # schemathesis reads answers to their end, which a stream of /subscribe does not have otherwise.
    with ServerProcess(tmp_path / "store.db", faults="ending-streams") as process:
        process.http.publish([event("app/prod/api", f"{number}", payload={"n": number}) for number in range(50)])
        process.http.publish([event("app/prod/api", "1"), event("app/prod/api", "2", payload={"n": 2})])
        body = json.dumps({"topic": "**", "start": "earliest", "max_attempts": 1}).encode()
        process.http.request("PUT", f"/subscriptions/{SUBSCRIPTION}", body=body)
        taken = process.http.request("POST", f"/subscriptions/{SUBSCRIPTION}/pull", body=b'{"max": 5}').json()
        given_up = {"lease": taken["lease"], "seqs": [one["seq"] for one in taken["events"]]}
        process.http.request("POST", f"/subscriptions/{SUBSCRIPTION}/nack", body=json.dumps(given_up).encode())
        yield process
        assert process.terminate() == 0, process.log[-5:]


def test_every_answer_is_in_the_document(server: ServerProcess, fuzz: Fuzz, tmp_path: Path) -> None:
    """Everything schemathesis can check but that what fits the schemas is accepted: they cannot tell all the rules."""
    requests = 0
    paths = server.http.get_json("/openapi.json")["paths"]
    operations = sum(len(METHODS & set(path)) for path in paths.values())
    assert "/subscribe" in paths
    for seed in fuzz.seeds(share=0.25):
        report = tmp_path / "report.json"
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        command: list[object] = [SCHEMATHESIS, "run", f"{server.url}/openapi.json", "--no-color", "--seed", seed]
        command += ["--max-examples", EXAMPLES if fuzz.minutes is None else 20 * EXAMPLES]
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        command += ["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"]
        command += ["--request-timeout", DEADLINE_S, "--report", "json", "--report-json-path", report]
        run = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]
        found = json.loads(report.read_bytes())
        assert found["operations"]["tested"] == found["operations"]["total"] == operations
        assert found["test_cases"]["with_failures"] == found["test_cases"]["errored"] == 0
        requests += found["test_cases"]["generated"]
    assert requests > operations * EXAMPLES / 2
    assert server.http.stats()["unique_processed"] >= 50 and server.http.get("/healthz").status == 200
    fuzz.figures["openapi"] = {"requests": requests, "operations": operations}
