"""What is on disk from one version to the next: the hash of an identity, and the bytes of a run.

Where one of these has to change, the magic of a run changes with it: an index of the older version is then made anew.
Otherwise its runs would be searched for hashes that they do not hold, and duplicates be taken for new events.
"""

import hashlib

import numpy as np

from sekali.stores.identity import hash_identities
from sekali.stores.index_merge import write_sorted
from sekali.stores.index_run import RunId
from sekali.testing import FaultyDisk


def test_the_hash_of_an_identity() -> None:
    assert hash_identities(["a", "a/b", "a"], ["1", "1", "é"], 7).tolist() == [
        7441639060627380235,
        15741972554889949475,
        9349370169191574560,
    ]
    assert hash_identities(["a"], ["1"], 8).tolist() == [3404629792839319465]
    assert hash_identities([], [], 7).tolist() == []


def test_topic_and_id_do_not_run_into_each_other() -> None:
    topics, event_ids = ["a", "ab", "a/b", "a", "a"], ["bc", "c", "c", "/bc", "b/c"]
    assert len(set(hash_identities(topics, event_ids, 7).tolist())) == len(topics)


def test_the_bytes_of_a_run() -> None:
    files = FaultyDisk()
    hashes = np.arange(300, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # all over the place
    run_id = RunId(b"0123456789abcdef0123456789abcdef", 3, 1, 300, 99)
    write_sorted(files, "a.run", run_id, hashes, np.arange(1, 301))
    data = files.contents()["a.run"]
    assert data[-96:-88] == b"SEKARUN1"
    assert hashlib.sha256(data).hexdigest() == "bba1841f03860595586db3e7128d37705a2f3e2c980ea842f2eefa5039d2c052"
