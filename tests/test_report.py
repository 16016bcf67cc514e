"""The page of a comparison in a real browser: its numbers, order, filters, charts, speed; and that texts stay texts."""

import json
import math
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkertools.errors import FileError
from tinkertools.report import embedded, page, write_report
from tinkertools.report.summary import findings

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_INSTALL = "install one, for example: apt-get install chromium"
_SECONDS = 60

# The browser expects the pipe at the descriptors 3 and 4, which may be taken by the other one.
_ON_3_AND_4 = """
import fcntl, os, sys
orders, answers = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 10) for number in sys.argv[1:3]]
os.dup2(orders, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

Json = dict[str, Any]


class Tab:
    """A tab of a headless browser that is driven over a pipe by the DevTools protocol; it reaches no network."""

    def __init__(self, executable: str, profile: Path) -> None:
        read_orders, self._orders = os.pipe()
        self._answers, write_answers = os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--force-color-profile=srgb",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_3_AND_4, str(read_orders), str(write_answers), executable, *flags],
            pass_fds=(read_orders, write_answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_orders)
        os.close(write_answers)
        self._number, self._unread, self._session = 0, b"", ""
        self.events: list[Json] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, /, **params: Any) -> Json:
        """The answer to an order; what the browser tells meanwhile goes to `events`."""
        self._number += 1
        order = {"id": self._number, "method": method, "params": params}
        raw = json.dumps(order | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        while raw:
            raw = raw[os.write(self._orders, raw) :]
        while (message := self._next()).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, message["error"]
        result: Json = message["result"]
        return result

    def _next(self) -> Json:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._unread += read
        raw, self._unread = self._unread.split(b"\0", 1)
        message: Json = json.loads(raw)
        return message

    def open(self, path: Path, width: int = 1280, *, dark: bool = False, script: bool = True) -> None:
        """Load a page and wait until it is complete."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url="about:blank")
        self._wait_for("Page.loadEventFired")
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._wait_for("Page.loadEventFired")
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))") if script else None

    def _wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())
        self.events = [event for event in self.events if event.get("method") != method]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The texts of the elements that `selector` finds."""
        return list(self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"))

    def pick(self, key: str, value: str) -> None:
        """Choose `value` in the list `key` of the controls."""
        self.evaluate(
            f"(() => {{ const s = document.querySelector('select[name={key}]'); s.value = {json.dumps(value)};"
            " if (s.value === '' && s.selectedIndex < 0) throw Error('no such choice');"
            " s.dispatchEvent(new Event('change')); })()"
        )

    def search(self, text: str) -> None:
        """Type into the search field."""
        self.evaluate(
            f"(() => {{ const s = document.querySelector('input[type=search]'); s.value = {json.dumps(text)};"
            " s.dispatchEvent(new Event('input')); })()"
        )

    def click(self, selector: str) -> None:
        """Click the first element that `selector` finds."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        enter = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **enter)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def shown(self) -> list[int]:
        """The positions of the examples in view, in order."""
        rows = "[...document.querySelectorAll('tbody[data-position]')]"
        return [int(position) for position in self.evaluate(f"{rows}.map((e) => e.dataset.position)")]

    def complaints(self) -> list[Json]:
        """Exceptions, errors and warnings of the console, and breaches of the page's policy."""
        self.evaluate("1")
        console = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Audits.issueAdded"}
        dialogs = {"Page.javascriptDialogOpening"}
        return [event for event in self.events if event.get("method") in console | dialogs]

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def close(self) -> None:
        """End the browser."""
        os.close(self._orders)
        os.close(self._answers)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def browser() -> str | None:
    """A browser of this machine."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    executable = browser()
    if executable is None:
        pytest.skip(f"no Chromium on this machine; {_INSTALL}")
    tab = Tab(executable, tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


Show = Callable[..., Tab]


@pytest.fixture
def show(tab: Tab, tmp_path: Path) -> Show:
    """Writes the page of some results and opens it."""

    def shown(results: Json, width: int = 1280, **how: bool) -> Tab:
        write_report(results, tmp_path / "report.html")
        tab.open(tmp_path / "report.html", width, **how)
        return tab

    return shown


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def small() -> Json:
    """Six prompts; of the first four the likelihood is known, and of one more conversation that was not asked."""
    nll = {1: (20.0, 10.0), 2: (10.0, 20.0), 3: (30.0, 29.0), 4: (5.0, 5.0)}
    checks = {1: (False, True), 2: (True, False), 3: (True, True), 4: (False, False), 5: (False, True)}
    verdicts = {1: "win", 2: "loss", 3: "tie"}
    results = []
    for number in range(1, 7):
        base, tuned = checks.get(number, (None, None))
        answers: dict[str, Json] = {
            "base": {"tokens": 10 + number, "stop": "stop"},
            "keeper": {"tokens": 70 - 10 * number, "stop": "length" if number == 3 else "stop"},
        }
        if base is not None:
            answers["base"]["check"], answers["keeper"]["check"] = base, tuned
        result: Json = {
            "prompt": user(f"Question {number}?"),
            "reference": f"The reference of {number}.",
            "base_response": f"The lamp of number {number} is old and dim.",
            "lora_response": f"The lamp of number {number} is bright and dim.",
            "answers": answers,
            "verdicts": [],
        }
        if number in verdicts:
            orders = [{"first": "base", "verdict": "second", "reason": "It is brighter."}]
            verdict = {"of": "keeper", "against": "base", "verdict": verdicts[number], "orders": orders}
            result["verdicts"] = [verdict]
        if number == 6:
            result["lora_response"] = None
            answers["keeper"] = {"error": "the server said 503"}
        results.append(result)
    examples = [
        {
            "messages": [*user(f"Question {number}?"), {"role": "assistant", "content": f"The reference of {number}."}],
            "trained_tokens": 10,
            "bytes": 40,
            "nll": {"base": base, "keeper": tuned},
        }
        for number, (base, tuned) in nll.items()
    ]
    alone = [*user("Who keeps the bell?"), {"role": "assistant", "content": "The keeper of the bell."}]
    examples.append({"messages": alone, "trained_tokens": 4, "bytes": 20, "nll": {"base": 8.0, "keeper": 2.0}})
    steps = [{"step": step, "loss": 2 / step, "learning_rate": 1e-4} for step in range(1, 11)]
    return {
        "version": 2,
        "created": "2026-02-04T23:00:00Z",
        "base_model": "Qwen/Qwen3-8B",
        "lora_weights": "checkpoints/keeper",
        "settings": {"max_tokens": 150, "temperature": 0.7, "seed": 0, "data": "held_out.jsonl", "prompts": "p.json"},
        "versions": {"tinkertools": "0.1.0"},
        "models": {
            "base": {"name": "Qwen/Qwen3-8B", "base_model": "Qwen/Qwen3-8B", "base": True, "training": None},
            "keeper": {
                "name": "checkpoints/keeper",
                "base_model": "Qwen/Qwen3-8B",
                "base": False,
                "training": {"steps": steps, "evals": [{"step": 5, "nll": 0.5}, {"step": 10, "nll": 0.25}]},
            },
        },
        "results": results,
        "likelihood": {"data": "held_out.jsonl", "examples": examples},
        "scores": {
            "base": {"nll": 1.6591, "perplexity": 5.2546, "trained_tokens": 44, "check": {"passed": 2, "of": 5}},
            "keeper": {"nll": 1.5, "perplexity": 4.4817, "trained_tokens": 44, "check": {"passed": 3, "of": 5}},
        },
        "comparisons": [
            {
                "of": "keeper",
                "against": "base",
                "unit": "nll",
                "difference": {"mean": -0.41, "low": -0.47, "high": -0.35, "level": 0.95, "examples": 5},
                "wins": {"rate": 0.7, "low": 0.6, "high": 0.9, "won": 3, "tied": 1, "lost": 1},
                "judge": {"rate": 0.5, "low": 0.1, "high": 0.9, "won": 1, "tied": 1, "lost": 1, "undecided": 0},
            }
        ],
    }


# Of `small`, position: difference. The seventh is the conversation that was not asked.
_DIFFERENCES = {1: -1.0, 2: 1.0, 3: -0.1, 4: 0.0, 7: -1.5}


def many(count: int) -> Json:
    """As many examples with answers of the usual length."""
    chance = random.Random(0)
    words = [f"word{number}" for number in range(300)]
    results, examples = [], []
    for number in range(count):
        said = chance.choices(words, k=120)
        prompt = user(f"Question {number}: " + " ".join(chance.choices(words, k=20)))
        base, tuned = (" ".join(w if chance.random() < 0.7 else "other" for w in said) for _ in range(2))
        results.append({"prompt": prompt, "reference": " ".join(said), "base_response": base, "lora_response": tuned})
        nll = {"base": chance.gauss(300, 20), "lora": chance.gauss(250, 20)}
        messages = [*prompt, {"role": "assistant", "content": " ".join(said)}]
        examples.append({"messages": messages, "trained_tokens": 120, "bytes": 800, "nll": nll})
    return {"results": results, "likelihood": {"data": "d", "examples": examples}}


HOSTILE = {
    "end of script": "</script><script>alert(1)</script>",
    "upper case": "</SCRIPT ><svg/onload=alert(1)>",
    "image": "<img src=x onerror=alert(1)><img src=http://example.com/a.png>",
    "comment": "<!-- <script>",
    "end of cdata": "]]> <![CDATA[",
    "line separators": "a\u2028b\u2029c",
    "quotes": "\"'`${alert(1)}\\ $script $$ {{x}}",
    "entities": "&lt;b&gt; &amp; &#60;",
    "right to left": "\u202eabc\u202c שלום \u2066x",
    "link": "javascript:alert(1)",
    "names of objects": "__proto__",
    "template": "constructor",
}


def visible(text: str) -> str:
    return text.replace("\0", "\u2400")


class Words(HTMLParser):
    """The text of a page without its scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.silent = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.silent = False

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.found.append(data)


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (
            {"unit": "nll", "difference": {"mean": -0.41, "low": -0.47, "high": -0.35, "level": 0.95, "examples": 200}},
            ["better: held-out NLL 0.41 lower (95%: 0.35 to 0.47) on 200 examples"],
        ),
        (
            {"unit": "bits_per_byte", "difference": {"mean": 0.012, "low": 0.01, "high": 0.014, "level": 0.9}},
            ["worse: held-out bits per byte 0.0120 higher (90%: 0.0100 to 0.0140)"],
        ),
        (
            {"unit": "nll", "difference": {"mean": -0.02, "low": -0.08, "high": 0.04, "level": 0.95, "examples": 1}},
            ["no difference found: held-out NLL −0.02 (95%: −0.08 to +0.04) on 1 example"],
        ),
        ({"unit": "nll", "difference": {"mean": -0.5, "low": None, "high": math.nan}},
         ["no interval: held-out NLL 0.5000 lower"]),
        (
            {"wins": {"rate": 0.9, "low": 0.85, "high": 0.94, "won": 180, "tied": 2, "lost": 18}},
            ["better: lower NLL on 180 of 200 examples (2 tied): win rate 90% (95%: 85% to 94%)"],
        ),
        (
            {"check": {"difference": {"mean": 0.12, "low": 0.05, "high": 0.19, "level": 0.95, "examples": 40}}},
            ["better: share of checks passed 12.0 points higher (95%: 5.0 to 19.0 points) on 40 examples"],
        ),
        (
            {"judge": {"rate": 0.5, "low": 0.4, "high": 0.6, "won": 4, "tied": 1, "lost": 4, "undecided": 1}},
            ["no difference found: preferred by the judge in 4 of 10 prompts (1 tied, 1 undecided): "
             "win rate 50% (95%: 40% to 60%)"],
        ),
        ({}, []),
        ({"difference": None, "wins": {}, "check": None, "judge": {"rate": None}}, []),
    ],
)  # fmt: skip
def test_a_comparison_is_told_in_sentences(comparison: Json, expected: list[str]) -> None:
    assert [finding.sentence for finding in findings(comparison)] == expected


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(list(HOSTILE.values())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)  # fmt: skip


@given(_JSON)
def test_data_in_the_page_say_the_same_and_cannot_end_their_element(value: Any) -> None:
    text = embedded(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_what_json_cannot_say_becomes_null() -> None:
    assert embedded({"a": [math.nan, math.inf, -math.inf, 1.5], "b": (1,), "c": Path("x")}) == (
        '{"a":[null,null,null,1.5],"b":[1],"c":"x"}'
    )
    assert embedded("\ud800").encode() == b'"\\ud800"'


@pytest.mark.parametrize("results", [{}, {"results": [], "likelihood": None, "scores": {}}, small()])
def test_the_same_results_give_the_same_bytes(tmp_path: Path, results: Json) -> None:
    write_report(results, tmp_path / "a.html")
    write_report(json.loads(json.dumps(results)), tmp_path / "new" / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "new" / "b.html").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a directory"):
        write_report(small(), tmp_path)


def test_the_summary_and_the_settings_need_no_script() -> None:
    words = " ".join("".join(Words(page(small())).found).split())
    for expected in (
        "keeper against base",
        "held_out.jsonl (5 examples)",
        "p.json (6 answers a model)",
        "held-out NLL 0.41 lower (95%: 0.35 to 0.47) on 5 examples",
        "lower NLL on 3 of 5 examples (1 tied): win rate 70% (95%: 60% to 90%)",
        "no difference found preferred by the judge in 1 of 3 prompts",
        "perplexity 5.255 → 4.482",
        "checks passed",
        "2 of 5 (40%)",
        "max_tokens",
        "need JavaScript",
    ):
        assert expected in words


def test_the_page_shows_the_numbers_and_asks_nothing_of_a_network(show: Show) -> None:
    tab = show(small())
    assert tab.texts("h1") == ["keeper against base"]
    assert tab.texts("h2") == [
        "Summary", "Likelihood, example by example", "Examples", "Training", "Settings and versions"
    ]  # fmt: skip
    assert tab.texts(".scores tbody tr:nth-child(1) > *") == ["NLL per trained token", "1.6591", "1.5000"]
    assert tab.texts(".scores tbody tr:nth-child(2) > *") == ["perplexity", "5.255", "4.482"]
    assert tab.texts(".examples thead th") == [
        "# ▲", "NLL, base", "NLL, keeper", "difference", "trained tokens", "answer tokens"
    ]  # fmt: skip
    assert tab.shown() == [1, 2, 3, 4, 5, 6, 7]
    assert tab.texts('[data-position="1"] .values > *') == [
        "# 1", "NLL, base 2.000", "NLL, keeper 1.000", "difference −1.000", "trained tokens 10", "answer tokens 60"
    ]  # fmt: skip
    assert [request.split("/")[-1] for request in tab.requests()] == ["report.html"]
    assert tab.complaints() == []


@pytest.mark.parametrize(
    ("key", "ascending", "descending"),
    [
        ("position", [1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]),
        ("a", [4, 2, 1, 7, 3, 5, 6], [3, 1, 7, 2, 4, 5, 6]),
        ("b", [4, 7, 1, 2, 3, 5, 6], [3, 2, 1, 4, 7, 5, 6]),
        ("difference", [7, 1, 3, 4, 2, 5, 6], [2, 4, 3, 1, 7, 5, 6]),
        ("trained", [7, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 5, 6]),
        ("tokens", [5, 4, 3, 2, 1, 6, 7], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_examples_are_sorted_by_each_column(show: Show, key: str, ascending: list[int], descending: list[int]) -> None:
    tab = show(small())
    head = f'th[data-key="{key}"]'
    if key != "position":  # the list begins in this order
        tab.click(f"{head} button")
    assert tab.shown() == ascending
    assert tab.evaluate(f"document.querySelector('{head}').ariaSort") == "ascending"
    tab.click(f"{head} button")
    assert tab.shown() == descending
    assert tab.evaluate(f"document.querySelector('{head}').ariaSort") == "descending"
    assert tab.evaluate("document.querySelectorAll('th[aria-sort=none]').length") == 5
    assert tab.evaluate(f"document.activeElement.closest('th').matches('{head}')"), "the focus stays"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("change", "improved", [1, 3, 7]),
        ("change", "worsened", [2]),
        ("check", "fixed", [1, 5]),
        ("check", "broken", [2]),
        ("check", "passed", [1, 3, 5]),
        ("check", "failed", [2, 4]),
        ("verdict", "win", [1]),
        ("verdict", "tie", [3]),
        ("verdict", "loss", [2]),
        ("state", "error", [6]),
        ("state", "cut", [3]),
        ("state", "different", [1, 2, 3, 4, 5]),
        ("state", "answered", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_examples_are_filtered(show: Show, key: str, value: str, expected: list[int]) -> None:
    tab = show(small())
    tab.pick(key, value)
    assert tab.shown() == expected
    assert tab.texts(".status")[0].startswith(f"{len(expected)} of 7 examples")
    tab.pick(key, "")
    assert len(tab.shown()) == 7


def test_filters_and_the_search_are_all_held(show: Show) -> None:
    tab = show(small())
    tab.search("QUESTION 2")
    assert tab.shown() == [2]
    tab.search("bell")
    assert tab.shown() == [7]
    tab.search("bright")
    tab.pick("change", "improved")
    assert tab.shown() == [1, 3]
    tab.click('th[data-key="b"] button')
    tab.click('th[data-key="b"] button')
    assert tab.shown() == [3, 1]
    tab.search("nowhere")
    assert tab.shown() == []
    assert tab.texts(".status") == ["0 of 7 examples"]


def marks(tab: Tab, position: int) -> list[list[str]]:
    """The words that are marked as different, left and right."""
    tab.evaluate(f"document.querySelector('[data-position=\"{position}\"]').scrollIntoView()")
    tab.evaluate("new Promise((done) => setTimeout(done, 200))")
    texts = f'[data-position="{position}"] .pane:nth-child'
    return [tab.texts(f"{texts}(1) del"), tab.texts(f"{texts}(2) ins")]


def test_differing_words_are_marked_between_any_two_models(show: Show) -> None:
    tab = show(small())
    assert marks(tab, 1) == [["old"], ["bright"]]
    assert tab.texts('[data-position="1"] .text')[:2] == [
        "The lamp of number 1 is old and dim.", "The lamp of number 1 is bright and dim."
    ]  # fmt: skip
    tab.pick("left", "1")
    tab.pick("right", "2")
    assert tab.texts('[data-position="1"] h4') == ["keepercheck passed60 tokens", "reference"]
    assert marks(tab, 1) == [["lamp", "number", "is bright and dim"], ["reference"]]
    assert tab.texts("figure figcaption") and tab.evaluate("document.getElementById('charts').hidden")
    tab.pick("right", "0")
    assert marks(tab, 1) == [["bright"], ["old"]]
    tab.pick("verdict", "loss")
    assert tab.shown() == [1], "a win of the left is a loss of the right"
    assert tab.texts('[data-position="1"] .values td')[2] == "difference +1.000"


def test_any_two_texts_are_told_apart_exactly(show: Show) -> None:
    """What is marked and what is not make the whole text again; what is not marked is the same on both sides."""
    chance = random.Random(1)
    alphabet = ["the", "lamp", "sea", ".", "\n", "  ", "火", "é", "—", "lamp,", "\t", "a"]
    results = small()
    results["results"] = []
    results["likelihood"] = None
    pairs = [tuple(" ".join(chance.choices(alphabet, k=chance.randrange(30))) for _ in range(2)) for _ in range(100)]
    pairs += [("", "a"), ("a", ""), ("same", "same"), (" lead", "lead"), ("a b c", "a b c d"), ("火水木", "火木")]
    for base, tuned in pairs:
        results["results"].append({"prompt": user("?"), "base_response": base, "lora_response": tuned})
    tab = show(results)
    tab.pick("size", "100")
    for start in (0, 100):
        if start:
            tab.click(".pager button:nth-of-type(3)")
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        kept = "(t) => [...t.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join('')"
        found = tab.evaluate(
            "[...document.querySelectorAll('tbody[data-position]')].map((body) => "
            f"[...body.querySelectorAll('.text')].flatMap((t) => [t.textContent, ({kept})(t)]))"
        )
        for (base, tuned), (left, left_kept, right, right_kept) in zip(pairs[start : start + 100], found, strict=True):
            assert (left, right) == (base or "(empty)", tuned or "(empty)")
            if base and tuned:
                assert "".join(left_kept.split()) == "".join(right_kept.split())


def test_points_and_bars_lead_to_their_examples(show: Show) -> None:
    tab = show(small())
    assert [
        path.count("M")
        for path in tab.evaluate("[...document.querySelectorAll('.dots')].map((p) => p.getAttribute('d'))")
    ] == [1, 1, 3]
    told = "document.querySelector('#charts .told').textContent"
    tab.evaluate("document.querySelector('#charts svg').focus()")
    assert tab.evaluate(told) == "example 4: NLL 0.500 → 0.500 (0.000) Question 4?"
    tab.press("ArrowRight")
    assert tab.evaluate(told) == "example 2: NLL 1.000 → 2.000 (+1.000) Question 2?"
    tab.pick("change", "improved")
    tab.evaluate("document.querySelector('#charts svg').focus()")
    tab.press("Enter")
    assert tab.shown() == [1, 2, 3, 4, 5, 6, 7], "a filter that hides the example is taken away"
    assert tab.evaluate("document.activeElement.dataset.position") == "2"
    place = tab.evaluate(
        "(() => { const s = document.querySelector('#charts svg'); s.scrollIntoView();"
        " const r = s.getBoundingClientRect(); return [r.left + r.width * 0.94, r.top + r.height * 0.1]; })()"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert tab.evaluate(told).startswith("example 3: NLL 3.000 → 2.900")
    bars = tab.evaluate("[...document.querySelectorAll('.bar')].map((b) => b.getAttribute('aria-label'))")
    assert sum(int(re.findall(r": (\d+) example", bar)[0]) for bar in bars) == len(_DIFFERENCES)
    tab.evaluate("document.querySelector('.bar').focus()")
    tab.press("Enter")
    assert tab.shown() == [7]
    assert len(tab.texts(".chip")) == 1
    tab.click(".chip")
    assert len(tab.shown()) == 7
    assert tab.complaints() == []


def test_curves_show_loss_and_evaluations(show: Show) -> None:
    tab = show(small())
    paths = tab.evaluate("[...document.querySelectorAll('#training .curve')].map((p) => p.getAttribute('d'))")
    assert [len(re.findall("[ML]", path)) for path in paths] == [10, 2]
    assert tab.evaluate("document.querySelectorAll('#training circle.eval').length") == 2
    tab.evaluate("document.querySelector('#training svg').focus()")
    assert tab.texts("#training output") == ["keeper, step 1: loss 2.0000"]
    tab.press("End")
    assert tab.texts("#training output")[0].startswith("keeper, step 10: ")


def test_of_two_thousand_examples_only_what_is_in_view_is_made(show: Show) -> None:
    tab = show(many(2000))
    assert tab.texts(".status") == ["2,000 of 2,000 examples, 1 to 20 shown"]
    assert len(tab.shown()) == 20
    tab.click(".pager button:last-of-type")
    assert tab.texts(".status") == ["2,000 of 2,000 examples, 1,981 to 2,000 shown"]
    assert len(tab.shown()) == 20


@pytest.mark.benchmark
def test_two_thousand_examples_are_there_at_once(show: Show) -> None:
    """By the clock of the browser, from the begin of loading until the page is drawn; then sorting and searching."""
    results = many(2000)
    drawn = []
    for _ in range(3):
        tab = show(results)
        drawn.append(tab.evaluate("performance.getEntriesByName('shown')[0].startTime"))
    timed = "(() => {{ const start = performance.now(); {}; return performance.now() - start; }})()"
    sort = "document.querySelector('th[data-key=difference] button').click(); document.body.offsetHeight"
    sorting = tab.evaluate(timed.format(sort))
    found = "const s = document.querySelector('input[type=search]'); s.value = 'word17'"
    searching = tab.evaluate(timed.format(f"{found}; s.dispatchEvent(new Event('input')); document.body.offsetHeight"))
    print(f"2,000 examples: drawn after {drawn} ms, sorted in {sorting:.0f} ms, searched in {searching:.0f} ms")
    assert min(drawn) < 2000


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_hostile_texts_stay_texts(show: Show, text: str, script: bool) -> None:
    """As prompt, role, answer, reference, label, path, setting, version, error, reason: each shows itself."""
    results = small()
    spoiled = json.loads(json.dumps(results).replace('"keeper"', json.dumps(text)))
    first = spoiled["results"][0]
    first |= {"prompt": [{"role": text, "content": text}], "base_response": text, "lora_response": f"{text} {text}"}
    first |= {"reference": text}
    first["verdicts"][0]["orders"][0]["reason"] = text
    spoiled["results"][1]["answers"]["base"]["error"] = text
    spoiled["results"][1]["base_response"] = None
    spoiled["likelihood"]["examples"][0]["messages"][0] = first["prompt"][0]
    spoiled["likelihood"]["examples"][4]["messages"][0]["content"] = text
    spoiled["base_model"] = spoiled["created"] = text
    spoiled["settings"] = {text: text, "prompts": text, "judge": text, "data": text}
    spoiled["versions"] = {text: text}
    spoiled["models"][text]["name"] = text
    spoiled["likelihood"]["data"] = text
    tab = show(spoiled, script=script)
    assert tab.evaluate("document.querySelector('h1').textContent") == f"{text} against base"
    assert tab.evaluate("document.title").split() == f"{text} against base".split()
    assert tab.texts(".facts dd")[0] == text
    assert tab.texts("#settings th")[0] == text
    assert tab.evaluate("document.querySelectorAll('script').length") == 2
    if script:
        assert tab.texts('[data-position="1"] .text') == [text, f"{text} {text}", text]
        assert tab.texts('[data-position="1"] .role') == [text]
        assert tab.texts('[data-position="2"] .gap') == [f"no answer: {text}"]
        assert text in tab.texts('[data-position="1"] .judge li')[0]
        assert tab.texts(".key") == [text]
        assert tab.texts('[data-position="1"] .values > *')[3] == "difference −1.000"
    assert tab.evaluate("document.querySelectorAll('img, iframe, object, embed, svg[onload], [onerror]').length") == 0
    assert [request.split("/")[-1] for request in tab.requests()] == ["report.html"]
    assert tab.complaints() == []


def test_the_policy_stops_what_is_not_the_page_s_own(tab: Tab, tmp_path: Path) -> None:
    """Should a text ever become HTML, it runs nothing and fetches nothing all the same."""
    planted = (
        "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
        "<style>h1 { color: red }</style><script src=https://example.com/x.js></script>"
    )
    (tmp_path / "planted.html").write_text(page(small()).replace("<main>", f"<main>{planted}"), encoding="utf-8")
    tab.open(tmp_path / "planted.html")
    assert tab.evaluate("document.title") == "keeper against base"
    assert tab.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert len(tab.shown()) == 7, "the page itself works"
    assert len(tab.complaints()) >= 4
    to_html = "document.querySelector('h1').innerHTML = '<b>x</b>'"
    assert tab.evaluate(
        f"(() => {{ try {{ {to_html}; return 'done' }} catch (error) {{ return error.name }} }})()"
    ) == ("TypeError")


def test_controls_half_pairs_and_endless_lines_show(show: Show) -> None:
    results = small()
    long = "x" * 100_000
    results["results"][0] |= {"base_response": "a\0b\x1bc", "lora_response": "\ud800 half"}
    results["results"][1] |= {"base_response": long, "lora_response": f"{long} end", "prompt": user(long)}
    results["settings"] = {"a\0": "\ud800"}
    tab = show(results, 360)
    assert tab.texts('[data-position="1"] .text')[0] == "a\u2400b\u241bc"
    assert tab.texts("#settings td")[0] == "\ufffd"
    assert [len(text) for text in tab.texts('[data-position="2"] .text')][:2] == [3000, 3000]
    tab.click('[data-position="2"] .pane:nth-child(2) .more')
    assert [len(text) for text in tab.texts('[data-position="2"] .text')][:2] == [100_000, 100_004]
    assert marks(tab, 2) == [[], ["end"]]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360, "nothing is wider than the page"
    assert tab.complaints() == []


def test_two_long_texts_without_a_common_word_do_not_stop_the_page(show: Show) -> None:
    results = small()
    texts = [" ".join(f"{side}{number}" for number in range(20_000)) for side in "ab"]
    results["results"][0] |= {"base_response": texts[0], "lora_response": texts[1]}
    tab = show(results)
    tab.click('[data-position="1"] .more')
    assert marks(tab, 1) == [[texts[0]], [texts[1]]]


def test_several_models_and_parts_that_are_missing(show: Show) -> None:
    results = small()
    results["models"]["third"] = {"name": "third", "base": False, "training": None}
    for result in results["results"]:
        result["responses"] = {"base": "a b", "keeper": "a c", "third": "a d"}
        del result["base_response"], result["lora_response"]
    results["comparisons"].append({"of": "third", "against": "base", "unit": "bits_per_byte", "difference": None})
    tab = show(results)
    assert tab.texts("h1") == ["Comparison of 3 models"]
    assert tab.texts("select[name=left] option") == ["base", "keeper", "third", "reference"]
    tab.pick("right", "2")
    assert marks(tab, 1) == [["b"], ["d"]]
    assert tab.texts(".examples thead th")[1] == "bits per byte, base"


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"results": [None, {}, {"prompt": None, "answers": None, "verdicts": [None]}]},
        {"likelihood": {"examples": [{}, None, {"messages": None, "nll": {"base": None}}]}, "comparisons": [None, {}]},
        {"models": None, "scores": {"base": None}, "settings": None, "versions": []},
        {"models": {"base": {"training": {"steps": [{}], "evals": None}}, "other": None}},
    ],
)
def test_any_part_may_be_missing(show: Show, results: Json) -> None:
    tab = show(results)
    assert tab.texts("h2")[0] == "Summary"
    assert tab.evaluate("performance.getEntriesByName('shown').length") == 1
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_width_and_is_legible(show: Show, width: int, dark: bool) -> None:
    """Nothing is wider than the page; every text stands out from what is behind it by 4.5 to 1 (WCAG AA)."""
    tab = show(small(), width, dark=dark)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    faint = tab.evaluate(
        """(() => {
          const parse = (c) => c.match(/[\\d.]+/g).map(Number);
          const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const light = (c) => { const [r, g, b] = c.map((v) => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
          const faint = [];
          for (const e of document.body.querySelectorAll('*')) {
            if (!e.checkVisibility() || e.matches('script, option, :disabled, svg *')) continue;
            if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
            const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(behind(e).slice(0, 3))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < 4.5) faint.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
          }
          return faint;
        })()"""
    )
    assert faint == []
