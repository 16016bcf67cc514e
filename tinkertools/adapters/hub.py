"""A folder's files go to a repository on the Hugging Face Hub, after a look for keys and tokens in them."""

import json
import logging
import mmap
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from tinkertools.errors import SECRET_NAME, FileError, TinkertoolsError, UploadError, UsageError, without_secrets
from tinkertools.files import explain_os_errors, file_error
from tinkertools.reporting import Notify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What the Hub takes as a name.
_REPO_ID = re.compile(r"(?P<user>[\w.-]+)/(?P<name>[\w.-]+)", re.ASCII)
_BAD_NAME = re.compile(r"^[.-]|[.-]$|--|\.\.|\.git$")
_LONGEST_NAME = 96
# The first answer shows whether a Hub is there at all.
_FIRST_ANSWER_SECONDS = 30.0
# How servers say that there is no room.
_NO_ROOM = re.compile(r"storage|quota|limit (?:was )?(?:reached|exceeded)|payment|billing|too large", re.IGNORECASE)
_NO_ROOM_CODES = (402, 413, 507)
_MALFORMED = re.compile(r"improperly formatted|malformed response", re.IGNORECASE)
_RETRY = re.compile(r"\[Retry (\d+/\d+)\]")
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
_AGAIN = "run the same command again: files that are there already are not sent again"


def check_repo_id(text: str) -> str:
    """The name of a repository: USER/NAME.

    Raises:
        UsageError: it is none.
    """
    found = _REPO_ID.fullmatch(text)
    if found is None:
        name = text.rstrip("/").rpartition("/")[2] or "my-model"
        example = name if re.fullmatch(r"\w[\w.-]*", name, re.ASCII) else "my-model"
        raise UsageError(
            f"{text!r} is not the name of a repository", hint=f"USER/NAME, for example --hf-repo-id your-name/{example}"
        )
    if len(text) > _LONGEST_NAME or any(_BAD_NAME.search(part) for part in found.groups()):
        raise UsageError(
            f"{text!r} is not a name that the Hub takes: at most {_LONGEST_NAME} characters; "
            'no "--" or ".."; no "-" or "." at an end; not ending in .git',
            hint="for example --hf-repo-id your-name/my-model",
        )
    return text


# --- keys and tokens in files


@dataclass(frozen=True)
class _Kind:
    """A kind of secret. The pattern begins with fixed letters, which makes the search in large files quick."""

    pattern: re.Pattern[bytes]
    # Whether it may stand in the middle of a word.
    anywhere: bool = False


_DIGIT = rb"(?=[A-Za-z_-]*[0-9])"
_KINDS = (
    _Kind(re.compile(rb"hf_(?:[A-Za-z0-9]{30,}|(?=[A-Za-z]*[0-9])[A-Za-z0-9]{16,})")),
    _Kind(re.compile(rb"api_org_[A-Za-z0-9]{30,}")),
    _Kind(re.compile(rb"tml-[\w-]{16,}")),
    _Kind(re.compile(rb"sk-" + _DIGIT + rb"[\w-]{20,}")),
    _Kind(re.compile(rb"A(?:KIA|SIA|GPA|ROA|IDA)[A-Z0-9]{16}(?![A-Za-z0-9])")),
    _Kind(re.compile(rb"gh[pousr]_[A-Za-z0-9]{36,}")),
    _Kind(re.compile(rb"github_pat_\w{40,}")),
    _Kind(re.compile(rb"glpat-[\w-]{20,}")),
    _Kind(re.compile(rb"xox[abeprs]-" + _DIGIT + rb"[\w-]{16,}")),
    _Kind(re.compile(rb"AIza[\w-]{35}")),
    _Kind(re.compile(rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+")),
    _Kind(re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"), anywhere=True),
    _Kind(re.compile(rb"Bearer +" + _DIGIT + rb"[\w.~+/-]{20,}")),
    # An address with a password in it, and keys that are named as such.
    _Kind(re.compile(rb"://[^/\s:@\"'<>{}$]+:[^/\s:@\"'<>{}$]{8,}@"), anywhere=True),
    _Kind(
        re.compile(
            rb"(?:api_?key|secret|passw(?:or)?d|(?:access|auth)_?token|aws_secret_access_key)"
            rb"\\?[\"']? ?[:=] ?\\?[\"'](?=[^\"'\s]*[0-9])[^\"'\s$<>{}()]{12,}[\"'\\]",
            re.IGNORECASE,
        ),
        anywhere=True,
    ),
)
# Before a secret stands no letter or digit, unless as the end of an escape in JSON: \n, \u003a.
_ESCAPE = re.compile(rb"\\(?:[bfnrt]|u[0-9A-Fa-f]{4})\Z")
_WORD = re.compile(rb"[A-Za-z0-9]\Z")


def find_secrets(folder: Path, files: Sequence[str]) -> list[str]:
    """The places, as FILE:LINE, that hold what looks like a key or a token, or a secret of the environment.

    Of weights in safetensors' format the header is read, of all others everything. No place repeats a secret.

    Raises:
        FileError: a file cannot be read.
    """
    values = _values_of_environment()
    places: list[str] = []
    for name in files:
        shown, hidden = name.encode(errors="replace"), name
        for start, end in sorted(_secrets_in(shown, values), reverse=True):
            shown = shown[:start] + b"(secret)" + shown[end:]
        if shown != name.encode(errors="replace"):
            hidden = shown.decode(errors="replace")
            places.append(f"{without_secrets(hidden)} (its name)")
        with explain_os_errors(folder / name):
            lines = {line for content in _contents(folder / name) for line in _lines_with_secrets(content, values)}
        places += [f"{without_secrets(hidden)}:{line}" for line in sorted(lines)]
    return places


def _values_of_environment() -> list[bytes]:
    """The secrets among this process's variables, as they may be spelled in a file."""
    spellings: set[str] = set()
    for name, value in os.environ.items():
        # A short value, a plain word or a path (the tokens of TOKENIZERS_… are none) may stand in any text.
        plain = len(value) < 8 or (value.isalpha() and len(value) < 20)
        if SECRET_NAME.search(name) and not plain and not _is_path(value):
            spellings |= {value, json.dumps(value)[1:-1], quote(value, safe="")}
    return [spelling.encode(errors="surrogateescape") for spelling in sorted(spellings)]


def _is_path(value: str) -> bool:
    with suppress(OSError, ValueError):
        return Path(value).exists()
    return False


@contextmanager
def _mapped(path: Path) -> Iterator["mmap.mmap | bytes"]:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _contents(path: Path) -> "Iterator[mmap.mmap | bytes]":
    """What is to be looked through: a file, or the header of weights."""
    with _mapped(path) as content:
        if path.suffix == ".safetensors" and len(content) >= 8:
            (length,) = struct.unpack("<Q", content[:8])
            if length <= len(content) - 8:
                yield content[8 : 8 + length]
                return
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            yield content[:].decode("utf-16", errors="replace").encode()
            return
        yield content


def _lines_with_secrets(content: "mmap.mmap | bytes", values: Sequence[bytes]) -> Iterator[int]:
    line, counted = 1, 0
    for start, _ in sorted(_secrets_in(content, values)):
        line += content[counted:start].count(b"\n")
        counted = start
        yield line


def _secrets_in(content: "mmap.mmap | bytes", values: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Where secrets begin and end."""
    for value in values:
        yield from (found.span() for found in re.finditer(re.escape(value), content))
    for kind in _KINDS:
        for found in kind.pattern.finditer(content):
            before = content[max(0, found.start() - 6) : found.start()]
            if kind.anywhere or not _WORD.search(before) or _ESCAPE.search(before):
                yield found.span()


# --- to the Hub


@dataclass(frozen=True)
class _Target:
    """Where to, for messages as well."""

    api: "HfApi"
    endpoint: str
    repo_id: str

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{self.repo_id}"


def check_token() -> None:
    """Refuse at once what could not be sent later.

    Raises:
        UploadError: there is no token.
    """
    _token(_endpoint())


def push(folder: Path, files: Sequence[str], repo_id: str, *, private: bool, notify: Notify) -> str:
    """Put files of a folder into a repository, in one commit; the commit's address.

    The repository is made where there is none, `private` or not; one that exists keeps its visibility. Files that
    are there already are not sent again, neither in a second push nor after an interrupted one.

    Raises:
        UsageError: `repo_id` is not a repository's name.
        FileError: a file cannot be read.
        UploadError: no token, no right, no room, no connection, or another refusal of the Hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repo_id(repo_id)
    paths = {name: _file_of(folder, name) for name in files}
    if not paths:
        raise UploadError(f"there are no files to send in {folder}")
    endpoint = _endpoint()
    target = _Target(HfApi(endpoint=endpoint, token=_token(endpoint)), endpoint, repo_id)
    with _client_heard(notify):
        with _explained(target, "look for"):
            head = _find(target, private, notify)
        if head is None:
            with _explained(target, "make"):
                target.api.create_repo(repo_id, private=private)
            notify(f"made the {_visibility(private)} repository {target.url}")
        with _explained(target, "write to"):
            additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()]
            commit = target.api.create_commit(repo_id, additions, commit_message="Upload with tinkertools")
    if commit.oid == head:
        notify(f"nothing to send: {target.url} holds these files already")
    return str(commit.commit_url)


def _find(target: _Target, private: bool, notify: Notify) -> str | None:
    """The newest commit of the repository; None where there is no repository."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = target.api.model_info(target.repo_id, timeout=_FIRST_ANSWER_SECONDS)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise
    if info.id != target.repo_id:
        raise UploadError(f"{target.url} is now called {info.id}", hint=f"--hf-repo-id {info.id}")
    if info.private is not None and info.private != private:
        notify(
            f"{target.url} exists and is {_visibility(info.private)}: it stays so; "
            f"change it at {target.url}/settings if you want it {_visibility(private)}"
        )
    return info.sha or ""


def _visibility(private: bool) -> str:
    return "private" if private else "public"


def _file_of(folder: Path, name: str) -> Path:
    """A file of the folder, and of nowhere else.

    Raises:
        FileError: there is none of this name.
    """
    parts = PurePosixPath(name).parts
    path = folder / name
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise FileError(f"{name!r} is not the name of a file in {folder}")
    with explain_os_errors(path):
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise FileError(f"{path} is a link to what lies outside of {folder}", hint="put the file itself there")
        if not path.is_file():
            raise FileError(f"{path} is not a file")
    return path


def _endpoint() -> str:
    from huggingface_hub import constants

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    with suppress(ValueError):
        address = urlsplit(endpoint)
        if address.scheme in ("http", "https") and address.hostname:
            return endpoint.rstrip("/")
    raise UploadError(f"HF_ENDPOINT is not an address: {endpoint}", hint="unset it, or: export HF_ENDPOINT=https://…")


def _token(endpoint: str) -> str:
    from huggingface_hub import get_token

    hint = f"{_new_token(endpoint)}, or: hf auth login"
    try:
        token = get_token()
    except (OSError, RuntimeError, ValueError, _http_error()) as error:
        raise UploadError(f"the Hugging Face token cannot be had: {_first_line(str(error))}", hint=hint) from error
    if not token:
        raise UploadError("no Hugging Face token: HF_TOKEN is not set", hint=hint)
    if not (token.isascii() and token.isprintable()):
        raise UploadError("HF_TOKEN holds characters that no token has", hint=hint)
    return token


def _new_token(endpoint: str) -> str:
    return f"make a token with write permission at {endpoint}/settings/tokens, then: export HF_TOKEN=hf_…"


class _ClientLog(logging.Handler):
    """Turns the client's warnings into words: a wait before the next attempt, or what the Hub wants to be known."""

    def __init__(self, notify: Notify) -> None:
        super().__init__(logging.WARNING)
        self._notify = notify

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning. Those before a wait name addresses that give access, those of empty commits we say."""
        text = record.getMessage()
        if retry := _RETRY.search(text):
            self._notify(f"the Hub does not answer as it should: trying again ({retry[1]})")
        elif "thrown while requesting" not in text and "No files have been modified" not in text:
            self._notify(without_secrets(_first_line(text)))


@contextmanager
def _client_heard(notify: Notify) -> Iterator[None]:
    """What the client says on the way goes to `notify`; its bars are for terminals only."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_ClientLog(notify)], False
    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if quiet:
            enable_progress_bars()
    for text in {str(warning.message) for warning in caught if warning.category is UserWarning}:
        notify(without_secrets(" ".join(text.split())))


# --- what went wrong


def _http_error() -> type[Exception]:
    """The base of all errors of the HTTP library beneath the client, which is not the same in all its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")


@contextmanager
def _explained(target: _Target, doing: str) -> Iterator[None]:
    """Turn what the client says into an `UploadError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, _http_error()) as error:
        raise _explain(error, target, doing) from error


def _explain(error: BaseException, target: _Target, doing: str) -> TinkertoolsError:
    """The plain words for an error of the client; the error that says most may stand behind others."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain, said = list(_causes(error)), str(error)
    if "Invalid metadata in README.md" in said:
        return UploadError(f"the Hub does not take the model card: {' '.join(said.split())}", hint="mend README.md")
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return UploadError("HF_HUB_OFFLINE is set, so nothing is sent", hint="unset HF_HUB_OFFLINE")
        if isinstance(cause, HfHubHTTPError):
            refused_by = urlsplit(str(cause.response.url)).netloc
            return _explain_answer(
                cause.response.status_code,
                " ".join((cause.server_message or "").split()),
                target,
                doing,
                storage=refused_by != urlsplit(target.endpoint).netloc,
            )
    # The storage named Xet has a client of its own, whose errors are words.
    if (status := _XET_STATUS.search(said)) and "xet" in said:
        if status[1] == "404":
            return UploadError(
                f"{target.endpoint} does not take large files by Xet",
                hint=f"export HF_HUB_DISABLE_XET=1, then {_AGAIN}",
            )
        return _explain_answer(int(status[1]), "", target, doing)
    for cause in chain:
        if isinstance(cause, _http_error()) and not isinstance(cause, HfHubHTTPError):
            return UploadError(
                f"no connection to {target.endpoint}: {_first_line(str(cause)) or type(cause).__name__}",
                hint=f"check the network (and HF_ENDPOINT, if it is set), then {_AGAIN}",
            )
    if isinstance(error, OSError) and error.filename:
        return file_error(error)
    if _NO_ROOM.search(said):
        return _no_room(target, said.splitlines()[-1])
    if isinstance(error, json.JSONDecodeError | KeyError | TypeError) or _MALFORMED.search(said):
        return UploadError(
            f"what answers at {target.endpoint} does not speak as a Hub does", hint="check HF_ENDPOINT, or unset it"
        )
    return UploadError(f"could not {doing} {target.url}: {_first_line(said) or type(error).__name__}", hint=_AGAIN)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _explain_answer(code: int, said: str, target: _Target, doing: str, *, storage: bool = False) -> UploadError:
    """The plain words for a refusal: by the Hub, or by the storage of large files, which is at another address."""
    words = f" (it says: {said})" if said else ""
    if code in _NO_ROOM_CODES or (400 <= code < 500 and _NO_ROOM.search(said)):
        return _no_room(target, said or f"HTTP {code}")
    if code in (401, 403) and storage:
        return UploadError(f"the Hub's storage did not take a file: HTTP {code}{words}", hint=_AGAIN)
    if code == 401:
        return UploadError(
            f"{target.endpoint} does not accept the token: it is mistyped, expired or revoked",
            hint=_new_token(target.endpoint),
        )
    if code == 403:
        return _no_right(target, doing, words)
    if code == 404:
        return UploadError(
            f"could not {doing} {target.url}: there is no such place, or this token may not see it{words}",
            hint="check the user or organisation in --hf-repo-id (and HF_ENDPOINT, if it is set)",
        )
    if code == 409 and doing == "make":
        name = target.repo_id.partition("/")[2]
        return UploadError(
            f"{target.repo_id} is taken by something that this token may not see{words}",
            hint=f"another name, for example --hf-repo-id {target.repo_id.partition('/')[0]}/{name}-2, "
            f"or a token that may read it: {target.endpoint}/settings/tokens",
        )
    if code in (409, 412):
        return UploadError(f"somebody else writes to {target.url} at the same time{words}", hint=_AGAIN)
    if code == 429:
        return UploadError(f"{target.endpoint} has had too many requests{words}", hint=f"wait a while, then {_AGAIN}")
    if code >= 500:
        return UploadError(
            f"{target.endpoint} is in trouble: it answers with HTTP {code}{words}", hint=f"wait a while, then {_AGAIN}"
        )
    return UploadError(f"could not {doing} {target.url}: HTTP {code}{words}", hint="check --hf-repo-id and the files")


def _no_room(target: _Target, said: str) -> UploadError:
    return UploadError(
        f"there is no room for {target.repo_id} on the Hub: {said}",
        hint=f"delete what you no longer need there, or see {target.endpoint}/settings/billing; then {_AGAIN}",
    )


def _no_right(target: _Target, doing: str, words: str) -> UploadError:
    """A token that may not write: another's namespace, or a token that may only read."""
    user, _, name = target.repo_id.partition("/")
    owner = _owner(target)
    hint = _new_token(target.endpoint)
    if owner and owner != user:
        hint = f"--hf-repo-id {owner}/{name}, or a token with write permission for {user}: {hint.partition(' at ')[2]}"
    who = f"the token of {owner}" if owner else "the token"
    return UploadError(f"{who} may not {doing} {target.url}{words}", hint=hint)


def _owner(target: _Target) -> str | None:
    """Whose token it is, if the Hub says so."""
    with suppress(OSError, RuntimeError, ValueError, KeyError, TypeError, _http_error()):
        return str(target.api.whoami()["name"])
    return None


def _first_line(text: str) -> str:
    return text.strip().split("\n", maxsplit=1)[0]
