"""Asks a Hub, which is not trusted: answers are bounded in length and time, and held to what was listed.

Nothing is kept: no cache is written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from pyinfra_vllm import hub_endpoint
from pyinfra_vllm.checkpoint import File
from pyinfra_vllm.errors import CheckpointRefused, HubError
from pyinfra_vllm.on_host.state.values import shown

TIMEOUT_S = 30.0  # between two bytes; huggingface_hub's own default is 10
READ_DEADLINE_S = 120.0  # for one small file in all
LARGEST_READ_BYTES = 16 * 1024**2  # config.json is a few kB; the index of a 400 GB model about 10 MB
LARGEST_ANSWER_BYTES = 64 * 1024**2  # a listing has about 300 bytes a file
LARGEST_ERROR_BYTES = 1024**2
MOST_REDIRECTS = 5

T = TypeVar("T")


class HubApi:
    """The questions to one Hub. Raises HubError for each failure, with its remedy.

    + token: left out: from HF_TOKEN, or where `hf auth login` keeps it
    """

    def __init__(self, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint
        self._token = token

    def info(self, repo: str, revision: str) -> ModelInfo:
        """The commit and the files of a repository, as the Hub lists them."""
        return self._ask(repo, lambda: self._info(repo, revision))

    def json(self, repo: str, commit: str, file: File) -> Mapping[str, Any]:
        """The content of a small JSON file, held to the size and the hash that the listing stated."""
        if file.size > LARGEST_READ_BYTES:
            raise CheckpointRefused(f"{repo}: {file.path} has {file.size} bytes, too many for what it is")
        body = self._ask(repo, lambda: self._read(repo, commit, file))
        if not matches(body, file):
            raise HubError(f"{self.endpoint} sent {repo}/{file.path} with other content than it lists")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise CheckpointRefused(f"{repo}: {file.path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointRefused(f"{repo}: {file.path} is not a JSON object")
        return content

    def _info(self, repo: str, revision: str) -> ModelInfo:
        """The request of `HfApi.model_info` and its reading of the answer, whose length is bounded here."""
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        return ModelInfo(
            **json.loads(self._body(url, LARGEST_ANSWER_BYTES, f"about {repo} than it can have to say"))
        )

    def _read(self, repo: str, commit: str, file: File) -> bytes:
        url = hf_hub_url(repo, file.path, revision=commit, endpoint=self.endpoint)
        return self._body(url, file.size, f"of {repo}/{file.path} than it lists")

    def _body(self, url: str, limit: int, more: str) -> bytes:
        """The body of an answer of at most `limit` bytes: an endless or a slow one ends here.

        Raises HubError.
        """
        deadline = time.monotonic() + READ_DEADLINE_S
        for _ in range(MOST_REDIRECTS):
            answer = self._answer(url, limit, more, deadline)
            if not isinstance(answer, str):
                return answer
            url = answer
        raise HubError(f"{self.endpoint} redirects more than {MOST_REDIRECTS} times")

    def _answer(self, url: str, limit: int, more: str, deadline: float) -> bytes | str:
        """The body that one URL answers, or the URL that it redirects to. No byte of it is decompressed or
        read past a limit: the client by itself would do both with the body of a redirect or an error.
        """
        session = get_session()
        request = session.build_request("GET", url, headers=self._headers(url), timeout=TIMEOUT_S)
        response = session.send(request, stream=True, follow_redirects=False)
        try:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise HubError(
                    f"{self.endpoint} sends a compressed answer ({encoding[:40]!r}), which was not asked for"
                )
            if response.has_redirect_location:
                return self._redirected(response.url, response.headers["Location"])
            most = limit if response.is_success else LARGEST_ERROR_BYTES
            body = bytearray()
            for chunk in response.iter_raw(64 * 1024):
                body += chunk
                if len(body) > most:
                    raise HubError(f"{self.endpoint} sends more {more}")
                if time.monotonic() > deadline:
                    raise HubError(f"{self.endpoint} took over {READ_DEADLINE_S:.0f} s for {url}")
        finally:
            response.close()
        whole = type(response)(
            response.status_code, headers=response.headers, content=bytes(body), request=request
        )
        hf_raise_for_status(whole)
        return bytes(body)

    def _headers(self, url: str) -> dict[str, str]:
        """The headers for a URL: the token goes to the Hub's own host alone."""
        own = _origin(url) == _origin(self.endpoint)
        token = (self._token or hub_endpoint.token(self.endpoint) or False) if own else False
        return {**build_hf_headers(token=token), "Accept-Encoding": "identity"}

    def _redirected(self, url: Any, location: str) -> str:
        target = str(url.join(location))
        if not target.startswith(
            ("https://", "http://" if self.endpoint.startswith("http://") else "https://")
        ):
            raise HubError(f"{self.endpoint} redirects to {shown(target)}, which is not encrypted")
        return target

    def _ask(self, repo: str, question: Callable[[], T]) -> T:
        """One question to the Hub; every failure becomes a HubError with its remedy."""
        untouched = "The lock file is as it was."
        try:
            return question()
        except HubError as error:
            raise HubError(f"{error}. {untouched}") from error
        except GatedRepoError as error:
            raise HubError(
                f"{repo} on {self.endpoint} is gated: accept its terms there and set HF_TOKEN. {untouched}"
            ) from error
        except RevisionNotFoundError as error:
            raise HubError(f"{repo} on {self.endpoint} has no such revision. {untouched}") from error
        except RepositoryNotFoundError as error:
            raise HubError(
                f"{repo} is not on {self.endpoint}, or is private: check the name, or set HF_TOKEN."
                f" {untouched}"
            ) from error
        except Exception as error:  # the client raises anything over the answer of an untrusted server
            raise HubError(
                f"{self.endpoint} could not be asked about {repo}: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}. {untouched}"
            ) from error


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def matches(body: bytes, file: File) -> bool:
    """Whether `body` is the content that the listing stated."""
    if file.sha256 is not None:
        return hashlib.sha256(body).hexdigest() == file.sha256
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest() == file.blob_sha1
