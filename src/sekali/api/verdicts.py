"""Answers to publishers: a verdict for every item, or a problem document with the same counts inside."""

from typing import Any

from sekali.api.negotiation import Preferences
from sekali.api.problems import Answer, Kind, Problem, json_answer
from sekali.decode import Decoded
from sekali.event import Outcome, Verdict, count_outcomes

ERRORS_LISTED_MAX = 100


def refusal(decoded: Decoded, preferences: Preferences) -> Problem:
    """Nothing is stored: no item is valid, or one is not and the publisher asked to be strict."""
    invalid = [Verdict(Outcome.INVALID, error=decoded.faults[position]) for position in sorted(decoded.faults)]
    extra = _counts([], len(invalid))
    if not decoded.batch and not preferences.minimal:
        extra["results"] = invalid
    count = f"{len(invalid)} of {decoded.item_count} items are not valid" if not decoded.single else invalid[0].error
    kind, detail = Kind.INVALID_EVENT, f"{count}; nothing was stored"
    if decoded.forbidden:
        scopes = [f"publish:{topic}" for topic in sorted(decoded.forbidden)]
        kind = Kind.FORBIDDEN
        detail = f"the key needs the scope {scopes[0]}; nothing was stored"
        if len(scopes) > 1:
            detail = f"the key needs {len(scopes)} more scopes, such as {scopes[0]}; nothing was stored"
        extra["missing_scopes"] = scopes[:ERRORS_LISTED_MAX]
    return Problem(
        kind,
        detail,
        errors=_places(decoded.faults, single=decoded.single),
        extra=extra,
        headers=preferences.applied,
    )


def verdict_answer(decoded: Decoded, verdicts: list[Verdict], preferences: Preferences) -> Answer:
    results = verdicts
    if decoded.faults:
        valid = iter(verdicts)
        results = [
            Verdict(Outcome.INVALID, error=decoded.faults[position]) if position in decoded.faults else next(valid)
            for position in range(decoded.item_count)
        ]
    document = _counts(verdicts, len(decoded.faults))
    if not preferences.minimal:
        document["results"] = results
    if results and document["invalid"] == len(results):
        refused_late = {position: verdict.error or "" for position, verdict in enumerate(results)}
        raise Problem(
            Kind.INVALID_EVENT,
            "no item is valid; nothing was stored",
            errors=_places(refused_late, single=decoded.single),
            extra=document,
            headers=preferences.applied,
        )
    if decoded.single and verdicts[0].outcome is Outcome.CONFLICT:
        raise Problem(
            Kind.CONFLICT,
            f"the event with seq {verdicts[0].seq} has this topic and event_id and another payload or source; "
            "it stays, and this variant is kept in /conflicts",
            extra=document,
            headers=preferences.applied,
        )
    return json_answer(200, document, headers=preferences.applied)


def _counts(verdicts: list[Verdict], invalid: int) -> dict[str, Any]:
    counts = count_outcomes(verdicts)
    stored, duplicate, conflict = counts[Outcome.STORED], counts[Outcome.DUPLICATE], counts[Outcome.CONFLICT]
    return {
        "received": stored + duplicate + conflict,
        "stored": stored,
        "duplicate": duplicate,
        "conflict": conflict,
        "invalid": invalid + counts[Outcome.INVALID],
    }


def _places(faults: dict[int, str], *, single: bool) -> list[dict[str, str]]:
    """Name the place of each fault as a JSON pointer into the request, for the first hundred."""
    places = []
    for position in sorted(faults)[:ERRORS_LISTED_MAX]:
        name, _, detail = faults[position].partition(": ")
        pointer = "" if name in {"event", "line"} else "/" + name.replace("~", "~0").replace("/", "~1")
        places.append({"pointer": f"#{pointer}" if single else f"#/{position}{pointer}", "detail": detail})
    return places
