"""Keys and tokens are found before files leave; a push to a loopback Hub, with all that can stop it; loading again."""

import json
import random
import shutil
import string
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from model_hub import Account, ModelHub

from tinkertools.adapters.hub import check_repo_id, find_secrets, push
from tinkertools.errors import FileError, TinkertoolsError, UploadError, UsageError
from tinkertools.shipped import STARTER_MODEL

TOKEN = "hf_PlantedTokenOfTheUser0123456789"  # not a real one
READ_ONLY = "hf_PlantedTokenThatMayRead0123456789"
# What a repository of the starter model holds.
FILES = sorted(p.name for p in STARTER_MODEL.iterdir())
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    """An empty Hub that this process's client goes to, as `me`; between attempts nobody waits."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with ModelHub({TOKEN: Account("me"), READ_ONLY: Account("me", writes=False)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The starter model with a second file of weights, and a file that is not to be sent."""
    folder = tmp_path / "it"
    shutil.copytree(STARTER_MODEL, folder)
    (folder / "second.safetensors").write_bytes(safetensors_of({}, b"\0" * 100_000))
    (folder / "training_data.jsonl").write_text("private\n")
    return folder


BOTH = sorted([*FILES, "second.safetensors"])


def safetensors_of(metadata: dict[str, str], weights: bytes) -> bytes:
    header = json.dumps(
        {"__metadata__": metadata, "w": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + weights


def pushed(folder: Path, files: list[str], repo_id: str = "me/it", private: bool = True) -> tuple[str, list[str]]:
    notes: list[str] = []
    url = push(folder, files, repo_id, private=private, notify=notes.append)
    return url, notes


def refused(folder: Path, *, repo_id: str = "me/it", private: bool = True) -> UploadError:
    """The error of a push; no token is in it, nor in what was said before."""
    notes: list[str] = []
    with pytest.raises(UploadError) as caught:
        push(folder, BOTH, repo_id, private=private, notify=notes.append)
    error = caught.value
    assert error.hint
    for text in (error.message, error.hint, *notes):
        assert TOKEN not in text and READ_ONLY not in text and "gives-access" not in text
    return error


# --- names


@pytest.mark.parametrize("text", ["me/it", "my-org/Model_1.5-x", "a/b", "_me/it_"])
def test_names_of_repositories(text: str) -> None:
    assert check_repo_id(text) == text


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("it", "your-name/it"), ("", "your-name/my-model"), ("me/it/x", "your-name/x"), ("me/ it", "my-model"),
        ("https://huggingface.co/me/it", "your-name/it"), ("me/", "your-name/me"), ("me/it--x", "my-model"),
        ("me/.it", "my-model"), ("-me/it", "my-model"), ("me/it.git", "my-model"), ("me/" + "x" * 95, "my-model"),
        ("me/it\n", "my-model"), ("mé/it", "your-name/it"),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_an_example(text: str, example: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_repo_id(text)
    assert caught.value.hint and example in caught.value.hint


@given(st.from_regex(r"[\w./-]{1,12}/[\w.-]{1,12}", fullmatch=True))
def test_every_name_that_is_taken_is_one_for_the_client(text: str) -> None:
    try:
        name = check_repo_id(text)
    except UsageError:
        return
    validate_repo_id(name)


# --- keys and tokens

_LETTERS = "".join(random.Random(0).choices(string.ascii_letters, k=60))
_MIXED = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=60))
SECRETS = {
    "hugging face": f"hf_{_LETTERS[:34]}",
    "hugging face, short": "hf_thisIsA5ecretOfTheUser",
    "tinker": f"tml-{_MIXED[:40]}",
    "tinker with dashes": "tml-planted-secret-0123456789",
    "openai": f"sk-proj-{_MIXED[:40]}",
    "anthropic": f"sk-ant-api03-{_MIXED[:40]}",
    "aws": "AKIA" + _MIXED[:16].upper(),
    "github": f"ghp_{_MIXED[:36]}",
    "github, new": f"github_pat_{_MIXED[:22]}_{_MIXED[:59]}",
    "gitlab": f"glpat-{_MIXED[:20]}",
    "slack": f"xoxb-123456789012-{_MIXED[:24]}",
    "google": f"AIza{_MIXED[:35]}",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "plain private key": "-----BEGIN PRIVATE KEY-----",
    "json web token": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{_MIXED[:30]}",
    "bearer": f"Authorization: Bearer {_MIXED[:40]}",
    "password in an address": "https://user:correct0horse@host.example/x",
    "named key": '"api_key": "0123456789abcdef0123"',
    "named key in JSON in JSON": r"{\"wandb_api_key\": \"0123456789abcdef0123\"}",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize(
    "around", ["{}", 'key = "{}"\n', "a\tb={},c", r'{{"text": "my key:\n{}\nthere"}}', r'"\u003a{}"'],
    ids=["alone", "quoted", "listed", "escaped", "escaped as a number"],
)  # fmt: skip
def test_planted_secrets_are_found_at_their_line(secret: str, around: str, tmp_path: Path) -> None:
    (tmp_path / "clean.md").write_text("nothing here\n")
    (tmp_path / "a.json").write_text("first line\nsecond\n" + around.format(secret) + "\nlast\n")
    assert find_secrets(tmp_path, ["clean.md", "a.json"]) == ["a.json:3"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_secrets_are_found_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(f"grün\nhf_{_LETTERS[:34]}\n", encoding=encoding)
    assert find_secrets(tmp_path, ["notes.txt"]) == ["notes.txt:2"]


def test_secrets_are_found_in_the_header_of_weights_and_not_among_weights(tmp_path: Path) -> None:
    secret = SECRETS["hugging face"]
    (tmp_path / "w.safetensors").write_bytes(safetensors_of({"argv": f"--token {secret}"}, b"1234"))
    (tmp_path / "chance.safetensors").write_bytes(safetensors_of({}, secret.encode()))
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 8 + secret.encode())
    found = find_secrets(tmp_path, ["w.safetensors", "chance.safetensors", "cut.safetensors"])
    assert found == ["w.safetensors:1", "cut.safetensors:1"]


@pytest.mark.parametrize("value", ["hunter2-hunter2", 'with"quote&0', "0123456789abcdef", "päss-wörter-1"])
@pytest.mark.parametrize("spelled", [str, json.dumps], ids=["plain", "json"])
def test_values_of_the_environment_are_found(
    value: str, spelled: type[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.json").write_text(f"\n\n[1, {spelled(value)}]\n")
    assert find_secrets(tmp_path, ["log.json"]) == []
    monkeypatch.setenv("WANDB_API_KEY", value)
    assert find_secrets(tmp_path, ["log.json"]) == ["log.json:3"]


def test_words_and_paths_in_the_environment_are_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "password")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SSH_KEY_FOLDER", str(tmp_path))
    (tmp_path / "vocab.txt").write_text(f"password\nfalse\n{tmp_path}\n")
    assert find_secrets(tmp_path, ["vocab.txt"]) == []


def test_ordinary_files_give_no_alarm(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlibrary_name: peft\nlicense: apache-2.0\n---\n"
        "```bash\nexport HF_TOKEN=hf_…\nhf auth login\nvllm serve --enable-lora --api-key token-abc123\n```\n"
        "`from huggingface_hub import hf_hub_download`; keys begin with tml-, sk-, hf_ or AKIA; see "
        "https://huggingface.co/docs:latest and http://localhost:8000/v1. html-webpack-plugin-options-0123456789, "
        "task-0123456789-0123456789-0123456789, `api_key=os.environ['KEY_1234567890']`, password: str, "
        "OpenAI(api_key='EMPTY'), tml-renderers==0.2, pip install tml-renderers\n"
    )
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "plot.png").write_bytes(random.Random(0).randbytes(500_000))
    assert find_secrets(tmp_path, ["README.md", "empty.txt", "plot.png"]) == []
    assert find_secrets(STARTER_MODEL, FILES) == []


@given(
    kind=st.sampled_from(sorted(SECRETS)), before=st.text(max_size=20), after=st.text(max_size=20),
    lines=st.integers(0, 3), named=st.booleans(), value=st.text(st.characters(codec="ascii"), min_size=12, max_size=30),
)  # fmt: skip
def test_no_place_repeats_a_secret(
    kind: str, before: str, after: str, lines: int, named: bool, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, secret = tmp_path_factory.mktemp("s"), SECRETS[kind]
    name = f"{secret.replace('/', '_')[:200]}.json" if named else "a.json"
    (folder / name).write_text("\n" * lines + f"{before} {secret} {after}", encoding="utf-8", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        if value.isprintable():
            patch.setenv("MY_SECRET", value)
        places = find_secrets(folder, [name])
    assert places
    for place in places:
        assert secret not in place
        if SECRETS[kind].startswith(("hf_", "tml-", "sk-", "AKIA", "ghp_")):
            assert secret[4:] not in place


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone\.json"):
        find_secrets(tmp_path, ["gone.json"])


def test_a_large_vocabulary_gives_no_alarm(tmp_path: Path) -> None:
    words = random.Random(0)
    vocabulary = {"".join(words.choices(string.ascii_letters + "_-:/ĠÃ", k=8)): n for n in range(100_000)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary, indent=2))
    assert find_secrets(tmp_path, ["tokenizer.json"]) == []


# --- pushing


@pytest.mark.parametrize("private", [True, False])
def test_a_push_sends_the_listed_files_in_one_commit(hub: ModelHub, folder: Path, private: bool) -> None:
    url, notes = pushed(folder, BOTH, private=private)
    repository = hub.repositories["me/it"]
    assert repository.private is private
    assert repository.commits == [BOTH]
    assert {n: f.content for n, f in repository.files.items()} == {n: (folder / n).read_bytes() for n in BOTH}
    assert url == f"{hub.url}/me/it/commit/{repository.head}"
    assert notes == [f"made the {'private' if private else 'public'} repository {hub.url}/me/it"]


def test_a_second_push_has_nothing_to_do(hub: ModelHub, folder: Path) -> None:
    first, _ = pushed(folder, BOTH)
    again, notes = pushed(folder, BOTH)
    assert again == first
    assert notes == [f"nothing to send: {hub.url}/me/it holds these files already"]
    assert hub.requests.count("commit") == 1
    assert hub.requests.count("create") == 1
    assert hub.puts == 2


@pytest.mark.parametrize("name", ["config.json", "second.safetensors"])
def test_only_what_changed_is_sent(name: str, hub: ModelHub, folder: Path) -> None:
    pushed(folder, BOTH)
    changed = safetensors_of({}, b"\1" * 1000) if name.endswith("safetensors") else b'{"model_type": "qwen3"}\n'
    (folder / name).write_bytes(changed)
    _, notes = pushed(folder, BOTH)
    repository = hub.repositories["me/it"]
    assert repository.commits == [BOTH, [name]]
    assert repository.files[name].content == changed
    assert hub.puts == 2 + name.endswith("safetensors")
    assert notes == []


def test_files_in_folders_keep_their_place(hub: ModelHub, folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/log.json").write_text("{}")
    pushed(folder, ["run/log.json"])
    assert list(hub.repositories["me/it"].files) == ["run/log.json"]


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_of_another_visibility_stays_as_it_is(hub: ModelHub, folder: Path, private: bool) -> None:
    pushed(folder, ["README.md"], private=not private)
    _, notes = pushed(folder, BOTH, private=private)
    assert hub.repositories["me/it"].private is not private
    now, wanted = ("public", "private") if private else ("private", "public")
    assert notes == [
        f"{hub.url}/me/it exists and is {now}: it stays so; "
        f"change it at {hub.url}/me/it/settings if you want it {wanted}"
    ]


def test_a_push_whose_connection_is_cut_goes_on_where_it_stopped(hub: ModelHub, folder: Path) -> None:
    hub.on_put = lambda number: number == 1
    error = refused(folder)
    assert "no connection" in error.message
    assert error.hint and "not sent again" in error.hint
    (first,) = hub.received
    assert hub.puts == 1 + 6  # the client tries six times
    assert hub.repositories["me/it"].commits == []
    hub.on_put = lambda number: True
    pushed(folder, BOTH)
    assert hub.received[0] == first
    assert len(hub.received) == len(set(hub.received)) == 2
    assert hub.repositories["me/it"].commits == [BOTH]


def test_a_push_that_is_killed_goes_on_where_it_stopped(
    hub: ModelHub, folder: Path, environment: dict[str, str]
) -> None:
    second, over = threading.Event(), threading.Event()

    def stall(number: int) -> bool:
        if number == 1:
            return True
        second.set()
        over.wait(60)
        return False

    hub.on_put = stall
    code = (
        "import sys; from pathlib import Path; from tinkertools.adapters.hub import push\n"
        "push(Path(sys.argv[1]), sys.argv[2:], 'me/it', private=True, notify=print)"
    )
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent / "home")}
    with subprocess.Popen([sys.executable, "-c", code, folder, *BOTH], env=environment | own) as process:
        assert second.wait(60)
        for _ in range(600):
            if hub.received:
                break
            over.wait(0.1)
        process.kill()
    over.set()
    assert len(hub.received) == 1
    hub.on_put = lambda number: True
    pushed(folder, BOTH)
    assert len(hub.received) == len(set(hub.received)) == 2
    assert hub.repositories["me/it"].commits == [BOTH]


def test_a_moment_of_trouble_is_waited_out_and_told(hub: ModelHub, folder: Path) -> None:
    hub.on_put = lambda number: number != 2
    _, notes = pushed(folder, BOTH)
    assert "the Hub does not answer as it should: trying again (1/5)" in notes
    assert hub.repositories["me/it"].commits == [BOTH]
    assert not any("gives-access" in note for note in notes)


# --- what stops a push


def test_no_token(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    error = refused(folder)
    assert error.message == "no Hugging Face token: HF_TOKEN is not set"
    assert error.hint and f"{hub.url}/settings/tokens" in error.hint and "export HF_TOKEN=hf_…" in error.hint
    assert hub.requests == []


def test_the_token_of_a_login_is_used(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (folder.parent / "no-token").write_text(TOKEN)
    pushed(folder, BOTH)
    assert hub.repositories["me/it"].commits == [BOTH]


def test_a_bad_token(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_MistypedTokenOfTheUser0123456789")
    error = refused(folder)
    assert error.message == f"{hub.url} does not accept the token: it is mistyped, expired or revoked"
    assert error.hint and "export HF_TOKEN" in error.hint
    assert "Mistyped" not in error.message + error.hint


def test_anothers_namespace(hub: ModelHub, folder: Path) -> None:
    error = refused(folder, repo_id="you/it")
    assert error.message.startswith(f"the token of me may not make {hub.url}/you/it")
    assert error.hint and "--hf-repo-id me/it" in error.hint
    assert hub.repositories == {}


def test_a_token_that_may_only_read(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    error = refused(folder)
    assert error.message.startswith(f"the token of me may not make {hub.url}/me/it")
    assert error.hint and error.hint.startswith("make a token with write permission")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pushed(folder, ["README.md"])
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    error = refused(folder)
    assert error.message.startswith(f"the token of me may not write to {hub.url}/me/it")
    assert "you must use a write token" in error.message
    assert hub.received == []


@pytest.mark.parametrize(
    ("step", "status", "said"),
    [
        ("create", 402, "Payment required"),
        ("batch", 403, "Private repository storage limit reached, please upgrade your plan"),
        ("commit", 413, ""),
        ("put", 507, "full"),
    ],
)
def test_no_room(step: str, status: int, said: str, hub: ModelHub, folder: Path) -> None:
    hub.faults[step] = status, said
    error = refused(folder)
    assert error.message == f"there is no room for me/it on the Hub: {said or f'HTTP {status}'}"
    assert error.hint and f"{hub.url}/settings/billing" in error.hint


def test_no_room_for_one_file(hub: ModelHub, folder: Path) -> None:
    hub.object_error = "Repository storage limit reached (Max: 1 GB)"
    error = refused(folder)
    assert "there is no room for me/it on the Hub" in error.message
    assert "storage limit reached (Max: 1 GB)" in error.message


def test_a_name_that_is_taken(hub: ModelHub, folder: Path) -> None:
    hub.faults["create"] = 409, "You already created this model repo"
    error = refused(folder)
    assert error.message.startswith("me/it is taken by something that this token may not see")
    assert error.hint and "--hf-repo-id me/it-2" in error.hint


def test_a_repository_that_was_renamed(hub: ModelHub, folder: Path) -> None:
    pushed(folder, ["README.md"], "me/new")
    hub.moved["me/it"] = "me/new"
    error = refused(folder)
    assert error.message == f"{hub.url}/me/it is now called me/new"
    assert error.hint == "--hf-repo-id me/new"


@pytest.mark.parametrize(
    ("step", "status", "words"),
    [
        ("create", 404, "there is no such place"),
        ("preupload", 404, "could not write to"),
        ("commit", 412, "somebody else writes to"),
        ("commit", 400, "could not write to"),
        ("info", 500, "answers with HTTP 500"),
        ("create", 502, "answers with HTTP 502"),
        ("preupload", 503, "answers with HTTP 503"),
        ("commit", 504, "answers with HTTP 504"),
        ("put", 503, "answers with HTTP 503"),
        ("put", 403, "the Hub's storage did not take a file"),
        ("batch", 429, "too many requests"),
    ],
)
def test_refusals_say_what_stopped_the_push(step: str, status: int, words: str, hub: ModelHub, folder: Path) -> None:
    hub.faults[step] = status, "so says the server"
    error = refused(folder)
    assert words in error.message
    assert "so says the server" in error.message
    assert hub.requests.count(step) <= 2 * 6


@pytest.mark.parametrize(
    ("status", "words", "hint"),
    [
        (404, "does not take large files by Xet", "export HF_HUB_DISABLE_XET=1"),
        (401, "does not accept the token", "export HF_TOKEN"),
        (403, "the token of me may not write to", "write permission"),
        (402, "there is no room for me/it", "settings/billing"),
    ],
)
def test_refusals_of_the_storage_named_xet(
    status: int, words: str, hint: str, hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    if status != 404:
        hub.faults["xet"] = status, "so says the server"
    error = refused(folder)
    assert hub.requests.count("xet") == 1
    assert words in error.message
    assert error.hint and hint in error.hint


def test_a_model_card_that_the_hub_does_not_take(hub: ModelHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nbroken: [\n---\n")
    error = refused(folder)
    assert "does not take the model card" in error.message and "bad indentation" in error.message
    assert hub.received == []


@pytest.mark.parametrize("step", ["info", "preupload", "commit"])
def test_a_server_that_is_no_hub(step: str, hub: ModelHub, folder: Path) -> None:
    hub.faults[step] = 200, "welcome"
    assert refused(folder).message == f"what answers at {hub.url} does not speak as a Hub does"


def test_a_file_that_may_not_be_read_is_named(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/storage/model.safetensors")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", no)
    with pytest.raises(FileError, match=r"no permission: /data/storage/model\.safetensors"):
        pushed(folder, BOTH)


def test_no_connection(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refused(folder)
    assert error.message.startswith("no connection to http://127.0.0.1:9")
    assert error.hint and "HF_ENDPOINT" in error.hint


def test_no_connection_when_offline_is_asked_for(hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refused(folder)
    assert error.hint == "unset HF_HUB_OFFLINE"


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x", "https://", "http://[", "me"])
def test_an_address_that_is_none(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert refused(folder).message == f"HF_ENDPOINT is not an address: {address}"


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "gone.json", "link", "", "run"])
def test_nothing_from_outside_of_the_folder_is_sent(name: str, hub: ModelHub, folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "run").mkdir()
    with pytest.raises(FileError):
        pushed(folder, ["README.md", name])
    assert hub.requests == []


def test_no_files(hub: ModelHub, folder: Path) -> None:
    with pytest.raises(TinkertoolsError, match="no files to send"):
        pushed(folder, [])
    assert hub.requests == []


# --- what was pushed can be loaded

# Run in a process of its own with an empty cache, so that nothing but the Hub has the files.
_LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, adapter_folder = sys.argv[1:]
text = [{"role": "user", "content": "Name a colour."}]

def logits(model_name, adapter, token):
    ids = AutoTokenizer.from_pretrained(model_name, token=token).apply_chat_template(text, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(model_name, token=token, dtype=torch.float32)
    with torch.no_grad():
        base = model(**ids).logits
        return ids["input_ids"], base, PeftModel.from_pretrained(model, adapter, token=token)(**ids).logits

here = logits(folder, adapter_folder, None)
assert not torch.equal(here[1], here[2])
for there in (logits("me/it", "me/adapter", None), logits("me/open", "me/open-adapter", False)):
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
print("equal")
AutoModelForCausalLM.from_pretrained("me/it", token=False, force_download=True)
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the starter model with weights that show."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(STARTER_MODEL, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.slow
def test_what_was_pushed_loads_with_the_same_logits(
    hub: ModelHub, adapter: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """By its owner where it is private, by anybody where it is public; nobody else loads the private one."""
    of_adapter = ["adapter_config.json", "adapter_model.safetensors"]
    pushed(STARTER_MODEL, FILES)
    pushed(adapter, of_adapter, "me/adapter")
    pushed(STARTER_MODEL, FILES, "me/open", private=False)
    pushed(adapter, of_adapter, "me/open-adapter", private=False)
    own = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.url}
    command = [sys.executable, "-c", _LOAD, str(STARTER_MODEL), str(adapter)]
    found = subprocess.run(
        command, env=environment | own | {"HF_TOKEN": TOKEN}, capture_output=True, text=True, check=False
    )
    assert found.stdout == "equal\n", found.stderr
    assert "RepositoryNotFoundError" in found.stderr or "not a valid model identifier" in found.stderr
