"""What push decides without I/O: signatures, answers, waits, when an endpoint is down, and where nothing is sent to."""

import base64
import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from receiver import SECRET
from sekali.delivery import PUSH_LEASE_S_MAX, Definition, Delivery, definition_fault
from sekali.push import health
from sekali.push.addresses import refusal
from sekali.push.health import Health
from sekali.push.outcome import RETRY_AFTER_S_MAX, Failure, judge, retry_delay_s
from sekali.push.signing import signed_headers, webhook_id
from sekali.settings import networks

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
S = 10**9
NOT_THERE = Failure("no connection")
REFUSED = Failure("answered 500", is_of_event=True)


def now_s() -> int:
    return int(datetime.now(UTC).timestamp())


class TestSigning:
    @pytest.mark.parametrize("size", [24, 32, 64])
    def test_the_library_of_standard_webhooks_takes_it(self, size: int) -> None:
        secret = "whsec_" + base64.b64encode(bytes(range(size))).decode()
        body = '{"payload":"é \\u0000 \U0001f600"}'.encode()
        headers = signed_headers(secret, webhook_id("t/a", "é"), now_s(), body)
        assert Webhook(secret).verify(body, headers) == {"payload": "é \x00 \U0001f600"}

    @pytest.mark.parametrize("changed", ["body", "webhook-id", "webhook-timestamp", "secret"])
    def test_and_nothing_else(self, changed: str) -> None:
        body, secret = b"{}", SECRET
        headers = signed_headers(secret, "evt_1", now_s(), body)
        if changed == "body":
            body = b"{ }"
        elif changed == "secret":
            secret = "whsec_" + base64.b64encode(bytes(32)).decode()
        else:
            headers[changed] = "evt_2" if changed == "webhook-id" else str(int(headers[changed]) - 1)
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)

    def test_the_id_is_made_of_the_identity_alone(self) -> None:
        """The very text: it has to be the same in every version, or receivers take an event for another."""
        assert webhook_id("t/a", "1") == "evt_793cc34f1910bbefd5d22815d8b9917e0338c5f2a5a0c5cef7a3e3ea6554ed5b"
        others = [("t/a", "1"), ("t", "/a1"), ("t/a1", ""), ("t/a", "2"), ("t/b", "1"), ("t/a", "é")]
        assert len({webhook_id(*one) for one in others}) == len(others)


class TestAnswers:
    @pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
    def test_any_2xx_acknowledges(self, status: int) -> None:
        assert judge(status, "10", NOW) is None

    @pytest.mark.parametrize(
        ("status", "error", "is_of_event"),
        [
            (101, "answered 101 Switching Protocols", True),
            (302, "answered 302 Found: redirects are not followed", True),
            (304, "answered 304 Not Modified: redirects are not followed", True),
            (400, "answered 400 Bad Request", True),
            (404, "answered 404 Not Found", True),
            (408, "answered 408 Request Timeout", False),
            (410, "answered 410 Gone", True),
            (429, "answered 429 Too Many Requests", False),
            (500, "answered 500 Internal Server Error", True),
            (502, "answered 502 Bad Gateway", False),
            (503, "answered 503 Service Unavailable", False),
            (504, "answered 504 Gateway Timeout", False),
            (799, "answered 799", True),
        ],
    )
    def test_all_others_fail_and_say_what_came(self, status: int, error: str, is_of_event: bool) -> None:
        failure = judge(status, None, NOW)
        assert failure is not None
        assert (failure.error, failure.is_of_event, failure.retry_after_s) == (error, is_of_event, 0)
        assert failure.is_gone == (status == 410) and failure.holds_all == (status in {429, 503})

    @pytest.mark.parametrize(
        ("text", "expected_s"),
        [
            ("17", 17),
            ((NOW + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 90),
            ((NOW - timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 0),
            ("86400", RETRY_AFTER_S_MAX),
            ("9" * 5000, RETRY_AFTER_S_MAX),
            ("Fri, 27 Nov 9999 12:00:00 GMT", RETRY_AFTER_S_MAX),
            ("Fri, 27 Nov 2026 12:00:00 +9999999999", 0),
            ("Fri, 27 Nov 99999999999 12:00:00 GMT", 0),
            ("soon", 0),
            ("-5", 0),
            ("1e9", 0),
            ("²", 0),
            ("", 0),
        ],
    )
    def test_retry_after_is_honoured_within_a_bound_and_never_a_defect(self, text: str, expected_s: float) -> None:
        failure = judge(503, text, NOW)
        assert failure is not None and failure.retry_after_s == expected_s

    def test_waits_double_with_full_jitter_up_to_a_bound_behind_what_was_asked_for(self) -> None:
        assert [retry_delay_s(failed, REFUSED, 0.999) for failed in (1, 2, 3, 9, 100)] == pytest.approx(
            [0.4995, 0.999, 1.998, 127.872, 3596.4]
        )
        assert retry_delay_s(9, REFUSED, 0.0) == 0, "full jitter begins at nothing"
        asked = Failure("", retry_after_s=100)
        assert (retry_delay_s(1, asked, 0.0), retry_delay_s(1, asked, 0.5)) == (100, 100.25)
        assert retry_delay_s(1, Failure("", retry_after_s=100, holds_all=True), 0.5) == 0.25, "its endpoint waits"


class TestHealth:
    def test_the_window_grows_by_one_and_shrinks_by_half(self) -> None:
        one = Health()
        assert one.window == 1, "nobody knows yet what it can take"
        for expected in (2, 3, 4, 5, 6, 7, 8, 8):
            one.succeeded(0)
            assert one.window == expected
        for expected in (4, 2, 1, 1):
            one.failed(REFUSED, 0, 0.5)
            assert one.window == expected

    def test_one_that_works_again_and_again_is_never_down(self) -> None:
        one = Health()
        for number in range(100):
            for _ in range(health.DOWN_AFTER - 1):
                assert one.failed(NOT_THERE, number, 0.5), "while it is not down every failure counts"
            assert not one.is_down and one.wait_s(number) == 0
            one.succeeded(number)

    def test_one_that_fails_in_a_row_is_probed_ever_less_often_and_its_events_are_spared(self) -> None:
        one, now_ns = Health(window=8), 1000 * S
        for _ in range(health.DOWN_AFTER - 1):
            assert one.failed(NOT_THERE, now_ns, 0.999)
        down_at_ns = now_ns
        waits = []
        for _ in range(12):
            assert not one.failed(NOT_THERE, now_ns, 0.999), "an innocent event"
            assert one.is_down and one.window == 1
            waits.append(one.wait_s(now_ns))
            now_ns += round(waits[-1] * S)
            assert one.wait_s(now_ns) == 0 and one.wait_s(now_ns - 1) > 0
        assert waits == pytest.approx([0.999 * min(2.0**number, 300) for number in range(12)])
        assert one.down_since_ns == down_at_ns and one.last_error == "no connection"
        assert one.failed(REFUSED, now_ns, 0.5), "what it says about an event counts"
        one.succeeded(now_ns)
        assert not one.is_down and one.failures == 0 and one.last_success_at_ns == now_ns
        assert one.failed(NOT_THERE, now_ns, 0.5)

    def test_what_is_asked_for_all_holds_all(self) -> None:
        one = Health()
        one.failed(Failure("429", retry_after_s=30, holds_all=True), 0, 0.5)
        one.succeeded(1)
        one.failed(Failure("500", is_of_event=True, retry_after_s=900), 2, 0.5)
        one.failed(Failure("429", retry_after_s=5, holds_all=True), 3, 0.5)
        assert one.wait_s(0) == 30, "neither a success of before, nor an event's own, nor a shorter one changes it"

    def test_it_is_paused_once_it_was_down_for_so_long(self) -> None:
        one = Health()
        for _ in range(health.DOWN_AFTER):
            assert one.reason_to_pause(NOT_THERE, 1000 * S, 60) is None
            one.failed(NOT_THERE, 0, 0.5)
        assert one.reason_to_pause(NOT_THERE, 60 * S - 1, 60) is None
        reason = "the endpoint has been down for 60 s; the last error: no connection"
        assert one.reason_to_pause(NOT_THERE, 60 * S, 60) == reason
        one.succeeded(0)
        assert one.reason_to_pause(NOT_THERE, 60 * S, 60) is None

    def test_one_that_is_gone_is_paused_at_once_and_costs_no_attempt(self) -> None:
        one, gone = Health(), judge(410, None, NOW)
        assert gone is not None and not one.failed(gone, 0, 0.5)
        assert one.reason_to_pause(gone, 0, 60) == "the endpoint answered 410 Gone: it wants no events any more"


REFUSED_ADDRESSES = {
    "unspecified": "0.0.0.0 0.1.2.3 ::",
    "loopback": "127.0.0.1 127.255.255.254 ::1",
    "private": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fd00:ec2::254 fd20:ce::254",
    "link-local": "169.254.169.254 169.254.170.2 fe80::1 fe80::1%1",
    "shared by a carrier or cloud": "100.64.0.1 100.100.100.200 100.127.255.255",
    "a cloud's own service": "168.63.129.16",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff0e::1",
    "reserved": "192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 240.0.0.1 "
    "255.255.255.255 2001::1 2001:db8::1 3fff::1 fec0::1 100::1 5f00::1 64:ff9b:1::7f00:1 ::127.0.0.1 4000::1",
}
# Addresses that stand for an IPv4 address.
EMBEDDED = {
    "loopback": "::ffff:127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1::1",
    "link-local": "::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::",
    "private": "::ffff:10.0.0.1 64:ff9b::192.168.0.1 2002:ac10:1::",
}
PUBLIC = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 168.63.129.15 "
    "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 223.255.255.255 "
    "2606:4700::1111 2001:4860:4860::8888 2a00::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1"
)


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "kind"),
        [
            (one, kind)
            for table in (REFUSED_ADDRESSES, EMBEDDED)
            for kind, text in table.items()
            for one in text.split()
        ],
    )
    def test_what_is_not_public_is_refused(self, address: str, kind: str) -> None:
        assert refusal(address, ()) == kind

    @pytest.mark.parametrize("address", PUBLIC.split())
    def test_what_is_public_is_not(self, address: str) -> None:
        assert refusal(address, ()) is None

    def test_what_a_setting_allows_is_not_either_in_whatever_form(self) -> None:
        allowed = networks("10.1.0.0/16, ::1, fd00:1::/32")
        for address in ("10.1.2.3", "::1", "fd00:1::5", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3"):
            assert refusal(address, allowed) is None, address
        for address in ("10.2.0.1", "127.0.0.1", "fd00:2::5", "::ffff:10.2.0.1", "::ffff:127.0.0.1"):
            assert refusal(address, allowed) is not None, address

    def test_every_ipv4_network_is_refused_from_its_first_to_its_last_address(self) -> None:
        for text in ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4"]:
            network = ipaddress.ip_network(text)
            for address in (network[0], network[-1]):
                assert refusal(str(address), ()) is not None, address
            assert refusal(str(network[0] - 1), ()) is None, network


class TestDefinitions:
    def test_a_receiver_cannot_be_given_longer_than_a_request_may_last(self) -> None:
        good = Definition("t", delivery=Delivery.PUSH, url="https://example.com/", secret=SECRET, lease_seconds=60)
        assert definition_fault(good) is None and good.lease_seconds == PUSH_LEASE_S_MAX
        longer = Definition("t", delivery=Delivery.PUSH, url="https://example.com/", secret=SECRET, lease_seconds=60.1)
        assert definition_fault(longer) == (
            "lease_seconds",
            "at most 60 for delivery by push: the time that url has to answer",
        )
        assert definition_fault(Definition("t", lease_seconds=61)) is None
