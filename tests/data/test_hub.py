"""Tests of the hub path of k1.data.hub; the hub is tests/data/hub.py, a server on the loopback address.

A process of its own loads for all of them: the hub's address is read when the libraries are imported.
"""

import inspect

import huggingface_hub
import pytest

from k1.data import hub
from tests.data.hub import CODE, FAULTS, SPLITS, hub_server, run_child, token

NAMES = ("wikitext", "code", "science", "stories")  # Parquet, compressed JSON, CSV, and streamed Parquet
TEXT = {
    "wikitext": ["First = one .\nSecond .\nThird .", "Fourth .\nwikitext-2-raw-v1 train"],
    "code": CODE,
    "science": ["On A\n\nThe problem", "On B\n\nWe"],
    "stories": ["Once", "upon", "a", "time"],
}
NEW_TEXT = {
    "wikitext": [*TEXT["wikitext"][:1], TEXT["wikitext"][1] + " again"],
    "code": [line.replace("pass", " again") for line in CODE],
    "science": ["On A\n\nThe problem", "On B\n\nWe again"],
    "stories": ["Once", "upon", "a", "time again"],
}
REASONS = {
    "401": "401 Unauthorized, at http://",
    "403": "403 Forbidden, at http://",
    "404": "404 Client Error. Entry Not Found for url: http://",
    "429": "429 Too Many Requests, at http://",
    "500": "500 Internal Server Error, at http://",
    "hang": "timed out, at http://",
    "stall": "the data breaks off, at http://",
    "cut": ("the data breaks off, at http://", "peer closed connection without sending complete"),
    "loop": "the data breaks off, at http://",
    "trickle": "the data trickles, at http://",
    "headers": "timed out, at http://",
    "checksum": "wrong checksum of hf://",
    "column": "Column name",
    "size": "Consistency check failed: file should be of size",
}
# A block of a streamed file is read by one request, so that its failure has another name.
STREAMED_REASONS = {
    "stall": "timed out, at http://",
    "cut": "peer closed connection without sending complete message body",
    "loop": "peer closed connection without sending complete message body",
    "checksum": "Couldn't deserialize thrift",
    "size": "Parquet magic bytes not found",
}
ELSEWHERE = {
    ("401", "all"): "401 Unauthorized",
    ("404", "all"): "has no public dataset",
    ("500", "all"): "500 Internal Server Error",
    ("hang", "all"): "no answer from http://",
    ("401", "later"): "401 Unauthorized",
    ("404", "later"): "doesn't exist on the Hub or cannot be accessed",
    ("500", "later"): "500 Internal Server Error",
    ("hang", "later"): "timed out",
}
LIMITS = {"ANSWER_SECONDS": 2, "SILENCE_SECONDS": 4, "SLOWEST_BYTES": 4}  # in place of 10, 40 and 10,000


WIKITEXT = {name: [TEXT["wikitext"][0], TEXT["wikitext"][1].replace("train", name)] for name in SPLITS}


def case(*loads, token=token(), home="", copy=""):
    return {"token": token, "home": home, "copy": copy, "loads": loads}


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def outcomes(hub_home):
    """All results by what they are for, {(kind, fault, ...): result}, as one process loads for all tests."""
    healthy = {("healthy", name): case((name, "hub"), home=f"full-{name}") for name in NAMES}
    healthy["layouts",] = case(
        ("wikitext", "hub"), ("code", "auto", 2), ("science",), ("stories", "auto", 3), ("math",),
        ("codeparrot/codeparrot-clean-valid",), ("Salesforce/wikitext:wikitext-2-raw-v1", "hub", 1),
        ("Salesforce/wikitext",), ("owner/name",),
    )  # fmt: skip
    faulty, again = {}, {}
    for number, fault in enumerate(FAULTS):
        for name in NAMES:
            faulty["hub", fault, name] = case((name, "hub"), token=token(fault), home=f"{fault}-{name}")
        for name in NAMES[:3]:
            faulty["auto", fault, name] = case((name,), token=token(fault), home=f"auto-{fault}-{name}")
        name = NAMES[number % 3]
        new = {"token": token(fault, version="b"), "home": f"old-{fault}", "copy": f"full-{name}"}
        faulty["cached", fault, name] = case((name,), **new)
        again["again", fault, name] = case((name, "hub"), home=f"{fault}-{name}")
        again["new", fault, name] = case((name, "hub"), token=token(version="b"), home=f"old-{fault}")
    for fault, place in ELSEWHERE:
        for name in ("code", "stories"):
            home = f"{place}-{fault}-{name}"
            faulty["elsewhere", fault, place, name] = case((name, "hub"), token=token(fault, place), home=home)
    for fault in FAULTS:
        faulty["midway", fault] = case(("stories",), token=token(fault, "second"), home=f"midway-{fault}")
    for name in ("code", "stories"):
        faulty["readme", name] = case((name, "hub"), token=token("checksum", "later"), home=f"readme-{name}")
        again["again readme", name] = case((name, "hub"), home=f"readme-{name}")
    for fault in ("once", "slow"):
        for name in ("science", "stories"):
            faulty["passing", fault, name] = case((name, "hub"), token=token(fault), home=f"{fault}-{name}")
    loads = [("wikitext",), ("wikitext", "hub"), ("stories",)]
    for place in ("all", "files"):
        faulty["several", place] = case(*loads, token=token("hang", place), home=f"several-{place}")
    closed = {
        ("closed",): case(*loads, ("wikitext",), ("owner/name",), home="closed"),
        ("closed", "cached"): case(("wikitext",), ("code", "hub"), ("stories",)),
    }
    phases = [healthy, faulty, again, closed]
    with hub_server() as endpoint:
        lists = [list(phase.values()) for phase in phases]
        results = run_child(hub_home, endpoint, [*lists[:3], "close", lists[3]], LIMITS)
    found = {key: result for phase, group in zip(phases, results) for key, result in zip(phase, group)}
    # A single load needs no list.
    for key, result in found.items():
        found[key] = {**result["loads"][0], "printed": result["printed"]} if len(result["loads"]) == 1 else result
    return {**found, "endpoint": endpoint}


@pytest.mark.parametrize("hangs", [False, True])
def test_no_network(outcomes, hangs):
    endpoint, result = outcomes["endpoint"], outcomes["several", "all"] if hangs else outcomes["closed",]
    auto, hub, stories, *more = result["loads"]
    warnings = result["printed"].splitlines()
    reason = f"no answer from {endpoint} within" if hangs else f"no connection to {endpoint}"
    assert (auto["source"], auto["train"]) == ("bundled", ["stand-in wikitext"])
    assert len(warnings) == 1 and warnings[0].startswith("warning: wikitext: ") and reason in warnings[0]
    for failed, name in ((hub, "wikitext"), (stories, "stories")):
        assert failed["error"].startswith(f"{name} cannot be loaded from the hub: {reason}")
    assert max(auto["seconds"], hub["seconds"], stories["seconds"]) < (8 if hangs else 3)
    if more:
        assert more[0]["source"] == "bundled" and reason in more[1]["error"]


def test_silence_is_waited_for_once(outcomes):
    """A hub that hangs while it sends the first dataset is not asked for the next one."""
    auto, hub, stories = outcomes["several", "files"]["loads"]
    assert auto["seconds"] > LIMITS["SILENCE_SECONDS"] > max(hub["seconds"], stories["seconds"])
    assert auto["source"] == "bundled" and "timed out" in hub["error"] and "timed out" in stories["error"]
    assert outcomes["several", "files"]["printed"].count("\n") == 1


def test_layouts(outcomes):
    results, endpoint = outcomes["layouts",]["loads"], outcomes["endpoint"]
    results = [{key: value for key, value in result.items() if key != "seconds"} for result in results]
    assert results[0] == {"source": "hub", **WIKITEXT}
    assert results[1] == {"source": "hub", "train": CODE[:2]}
    assert results[2] == {"source": "hub", "train": ["On A\n\nThe problem", "On B\n\nWe"]}
    assert results[3] == {"source": "hub", "train": ["Once", "upon", "a"]}
    assert results[4]["error"].startswith("math cannot be loaded from the hub: ") and "text" in results[4]["error"]
    assert results[5] == {"source": "hub", "train": CODE}
    assert results[6]["train"] == [" = Alpha = \n"] and len(results[6]["test"]) == 11
    assert "wikitext-103-raw-v1" in results[7]["error"]
    assert f"{endpoint} has no public dataset owner/name" in results[8]["error"]
    assert outcomes["layouts",]["printed"] == ""


@pytest.mark.parametrize("is_offline", [False, True])
def test_cached_copy_without_hub(outcomes, hub_home, is_offline):
    """The server is gone: the cached copy takes its place, and no stand-in."""
    result = outcomes["closed", "cached"]
    if is_offline:
        loads = case(("wikitext",), ("code", "hub"), ("stories",))
        [[result]] = run_child(hub_home, outcomes["endpoint"], [[loads]], HF_HUB_OFFLINE="1")
    cached, code, stories = result["loads"]
    assert {name: cached[name] for name in ("source", *WIKITEXT)} == {"source": "hub", **WIKITEXT}
    assert code["train"] == CODE and result["printed"] == ""
    assert ("HF_HUB_OFFLINE" if is_offline else "no connection") in stories["error"]


def seconds_of(outcomes, kind, fault):
    """The longest time of these loads; also printed, for `pytest -s`."""
    seconds = max(result["seconds"] for key, result in outcomes.items() if key[:2] == (kind, fault))
    print(f"{kind} {fault}: {seconds:.1f} s")
    return seconds


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(outcomes, fault):
    """A damaged file is noticed by the checksum that the hub states, or, where it is streamed, by its format:
    there a change within a text passes, as the hub has checksums of whole files only.
    """
    for name in NAMES:
        reason = STREAMED_REASONS.get(fault, REASONS[fault]) if name == "stories" else REASONS[fault]
        hub = outcomes["hub", fault, name]
        start = f"{name} cannot be loaded from the hub: "
        advice = "use a local path" if name == "stories" else "use --data_source bundled"
        assert hub["error"].startswith(start) and "\n" not in hub["error"], hub
        assert hub["error"].removeprefix(start).startswith(reason), hub
        assert hub["error"].endswith(f", and there is no cached copy; mend this or {advice}")
        assert hub["printed"] == ""
        if name != "stories":
            auto = outcomes["auto", fault, name]
            assert (auto["source"], auto["train"]) == ("bundled", [f"stand-in {name}"])
            start = f"warning: {name}: using the bundled stand-in text, as the hub failed: "
            assert auto["printed"].startswith(start) and auto["printed"].count("\n") == 1
            assert auto["printed"].removeprefix(start).startswith(reason)
    # 4 s of silence, the pause before the try that is refused, and the work.
    assert seconds_of(outcomes, "hub", fault) < 20
    assert seconds_of(outcomes, "auto", fault) < 20


@pytest.mark.parametrize("fault", FAULTS)
def test_streamed_text_that_ends_midway(outcomes, fault):
    """The first file has been read when the second one fails: an error, not fewer documents."""
    result = outcomes["midway", fault]
    reason = "" if fault in ("column", "size") else STREAMED_REASONS.get(fault, REASONS[fault])
    assert result["error"].startswith(f"stories cannot be loaded from the hub: {reason}"), result
    assert result["printed"] == "" and result["seconds"] < 20


@pytest.mark.parametrize("fault, place", ELSEWHERE)
def test_fault_before_the_files(outcomes, fault, place):
    for name in ("code", "stories"):
        result = outcomes["elsewhere", fault, place, name]
        assert result["error"].startswith(f"{name} cannot be loaded from the hub: ")
        assert ELSEWHERE[fault, place] in result["error"] and result["printed"] == ""
        assert result["seconds"] < 20


@pytest.mark.parametrize("fault", FAULTS)
def test_cached_copy_in_place_of_a_version_that_fails(outcomes, fault):
    [(name, result)] = [(key[2], result) for key, result in outcomes.items() if key[:2] == ("cached", fault)]
    assert (result.get("source"), result.get("train"), result["printed"]) == ("hub", TEXT[name], "")


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_leaves_nothing_behind(outcomes, fault):
    """The same cache folder gives the right text, and the new version, once the hub is well."""
    found = {
        key[0]: (key[2], result) for key, result in outcomes.items() if key[0] in ("again", "new") and key[1] == fault
    }
    for kind, text in (("again", TEXT), ("new", NEW_TEXT)):
        name, result = found[kind]
        assert (result.get("source"), result.get("train"), result["printed"]) == ("hub", text[name], ""), result


@pytest.mark.parametrize("name", ["code", "stories"])
def test_damaged_readme(outcomes, name):
    """It says what the files are, those that are downloaded and those that are streamed."""
    failed, again = outcomes["readme", name], outcomes["again readme", name]
    start = f"{name} cannot be loaded from the hub: wrong checksum of README.md, so it was damaged on its way"
    assert failed["error"].startswith(start) and failed["printed"] == ""
    assert (again["train"], again["printed"]) == (TEXT[name], "")


@pytest.mark.parametrize("name", NAMES)
def test_healthy(outcomes, name):
    assert outcomes["healthy", name]["train"] == TEXT[name]


@pytest.mark.parametrize("name", ["science", "stories"])
def test_fault_that_passes(outcomes, name):
    """A file that comes slowly, for longer than the longest silence, or in two parts is complete."""
    for fault in ("once", "slow"):
        result = outcomes["passing", fault, name]
        assert (result["train"], result["printed"]) == (TEXT[name], ""), fault
    assert outcomes["passing", "slow", name]["seconds"] > LIMITS["SILENCE_SECONDS"]


def test_the_reason_is_what_ended_the_load(monkeypatch):
    """Where the README is damaged, the library asks elsewhere before it gives up."""

    def fail(*_):
        hub.HubClient.problem = "no answer from elsewhere"
        raise hub.HubError("wrong checksum of README.md")

    monkeypatch.setattr(hub.HubClient, "problem", None)
    monkeypatch.setattr(hub, "probe_hub", lambda name: None)
    monkeypatch.setattr(hub, "read_hub", fail)
    with pytest.raises(hub.HubError, match=r"^wrong checksum of README\.md, and there is no cached copy"):
        hub.hub_splits(hub.HubSource("owner/name"), None)


def test_longest_wait():
    """The longest time without data: until it is noticed, all tries, and the pause before the one that is refused."""
    pause = inspect.signature(huggingface_hub.utils.http_backoff).parameters["max_wait_time"].default
    assert max(hub.PROBE_SECONDS, hub.ANSWER_SECONDS) + hub.SILENCE_SECONDS + pause < 60
