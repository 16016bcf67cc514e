"""Publishing a finished run without a command line: the options of a run, a push to a Hub, and what stops it."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_fixtures import TOKEN
from model_hub import ModelHub

import tinkertools
from tinkertools.config import TIMEOUT_SECONDS, ServerSettings
from tinkertools.errors import UploadError, UsageError
from tinkertools.publishing import Options, check_ready, options_of_run, publish
from tinkertools.reporting import Report, Voice
from tinkertools.runs.directory import RunDirectory

Tt = Callable[..., Any]
SERVER = ServerSettings(base_url=None, has_key=False)
ADAPTER = ["README.md", "adapter_config.json", "adapter_model.safetensors", "loss.svg"]


@pytest.fixture
def finished(tt: Tt, untied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A short run on a tiny model. After it nothing can be said but through the voice that is handed over."""
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--batch", 1, "--max-steps", 1, "--rank", 2]
    found = tt("train", "--base-model", untied, "--data", "data.jsonl", "--run-name", "r", *options)
    assert found.code == 0, found.err
    monkeypatch.delattr(tinkertools, "console")
    monkeypatch.setitem(sys.modules, "tinkertools.console", None)
    return RunDirectory(Path(found.out.strip()))


class Heard:
    """What was said, by how it was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warnings: list[str] = []
        self.waits: list[str] = []
        self.works: list[str] = []
        self.voice = Voice(self.said.append, self.warnings.append, self.waits.append, self._progress)

    @contextmanager
    def _progress(self, what: str, total: float | None, unit: str) -> Iterator[Report]:
        self.works.append(what)
        yield lambda done, note="": None


def published(options: Options, heard: Heard, *, private: bool = True, dry_run: bool = False) -> str:
    return publish(options, SERVER, TIMEOUT_SECONDS, heard.voice, private=private, dry_run=dry_run)


@pytest.mark.parametrize("private", [True, False])
def test_a_finished_run_is_published(
    hub: ModelHub, finished: RunDirectory, private: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of_run(finished, "me/it", merged=False)
    assert options.folder == Path("uploads/r_adapter")  # as `tt upload --run r` has it
    heard = Heard()
    address = published(options, heard, private=private)
    repository = hub.repositories["me/it"]
    assert address == f"{hub.url}/me/it/commit/{repository.head}"
    assert repository.commits == [ADAPTER]
    assert repository.private is private
    assert {name: file.content for name, file in repository.files.items()} == {
        name: (options.folder / name).read_bytes() for name in ADAPTER
    }
    assert b"| LoRA rank | 2 |" in repository.files["README.md"].content
    assert f"{options.folder}: 4 files" in heard.said[2]
    assert heard.said[-1] == f"made the {'private' if private else 'public'} repository {hub.url}/me/it"
    assert heard.warnings == heard.waits == heard.works == []
    assert capsys.readouterr().out == ""


def test_merged_weights_are_built_in_the_folder_that_is_named(
    hub: ModelHub, finished: RunDirectory, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    heard = Heard()
    published(options_of_run(finished, "me/it", merged=True, folder=folder), heard)
    sent = set(hub.repositories["me/it"].files)
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= sent
    assert "adapter_config.json" not in sent
    assert sent <= {path.name for path in folder.iterdir()}
    assert heard.works == ["merge"]


def test_nothing_is_sent_dry(hub: ModelHub, finished: RunDirectory) -> None:
    options, heard = options_of_run(finished, "me/it", merged=False), Heard()
    assert published(options, heard, dry_run=True) == str(options.folder)
    assert sorted(path.name for path in options.folder.iterdir()) == ADAPTER
    assert "nothing was sent" in heard.said[-1]
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo_id", "message", "hint"),
    [
        ("hf_MistypedTokenOfTheUser0123456789", "me/it", "does not accept the token", "export HF_TOKEN"),
        (TOKEN, "you/it", "the token of me may not make", "--hf-repo-id me/it"),
    ],
    ids=["401", "403"],
)
def test_a_refusal_is_explained_and_what_was_built_is_kept(
    token: str, repo_id: str, message: str, hint: str,
    hub: ModelHub, finished: RunDirectory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    options = options_of_run(finished, repo_id, merged=False)
    with pytest.raises(UploadError, match=message) as caught:
        published(options, Heard())
    assert caught.value.hint
    assert hint in caught.value.hint
    assert token not in caught.value.message + caught.value.hint
    assert hub.repositories == {}
    assert sorted(path.name for path in options.folder.iterdir()) == ADAPTER


def test_an_adapter_that_stayed_on_the_server_is_still_its_runs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r")
    run.final_weights.mkdir(parents=True)
    run.write_config({"config": {"base_model": "org/Base"}})
    run.log.write_text('{"version": 1, "steps": [], "evals": []}')
    path = "tinker://run/sampler_weights/final"
    (run.final_weights / "checkpoint.json").write_text(json.dumps({"paths": {"sampler": path}}))
    options = options_of_run(run, "me/it", merged=True)
    assert (options.weights.directory, options.weights.server_path) == (None, path)
    assert (options.run, options.base_model) == (run, "org/Base")
    assert options.folder == Path("uploads/r_merged")


# --- before anything that takes long


def test_a_name_and_a_token_are_all_that_is_needed(hub: ModelHub) -> None:
    check_ready("me/it")
    assert hub.requests == []


@pytest.mark.parametrize(("repo_id", "message"), [(None, "no --hf-repo-id"), ("", "no --hf-repo-id"), ("it", "'it'")])
def test_without_a_repository_nothing_begins(hub: ModelHub, repo_id: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_ready(repo_id)


def test_a_token_is_for_sending(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UploadError, match="no Hugging Face token"):
        check_ready("me/it")
    check_ready("me/it", send=False)
    check_ready(None, send=False)
    with pytest.raises(UsageError, match="'it'"):
        check_ready("it", send=False)
