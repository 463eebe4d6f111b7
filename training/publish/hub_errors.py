"""What the Hub answers when it refuses, in one line with what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import ClusterError, ConfigError

TOKENS = "https://huggingface.co/settings/tokens"
HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "hf_xet")
NETWORK = (ConnectionError, TimeoutError)
AGAIN = "run the same command again: what has arrived is not sent twice"


class HubUnavailableError(Exception):
    """The Hub cannot be reached or has no time: the same command may succeed later."""


@contextmanager
def hub_errors(endpoint: str, repo: str) -> Iterator[None]:
    """Turn what the library raises into one line.

    Raises ConfigError or ClusterError for what a person must change, HubUnavailableError for what time may change.
    """
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (ConfigError, ClusterError):
        raise
    except HFValidationError as error:
        raise ConfigError(f"{repo}: the Hub accepts no such name: {first_line(error)}") from None
    except LocalTokenNotFoundError:
        raise ConfigError(no_token()) from None
    except OfflineModeIsEnabled:
        raise ConfigError(f"{endpoint}: HF_HUB_OFFLINE is set; unset it to publish") from None
    except Exception as error:  # the HTTP library's own, and another library in each version
        refused = refusal(error, endpoint, repo)
        if refused is None:
            raise
        raise refused from None


def no_token() -> str:
    return f"no token for the Hub: make one with write access at {TOKENS}, then set HF_TOKEN or run `hf auth login`"


def refusal(error: BaseException, endpoint: str, repo: str) -> Exception | None:
    """Return what an error of the library means; None if it is none of the Hub or the network."""
    for cause in causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None and "metadata in README.md" not in str(error):
            said = getattr(cause, "server_message", None) or first_line(cause)
            return refused_with(int(status), said, endpoint, repo)
    for cause in causes(error):
        if type(cause).__module__.partition(".")[0] in HTTP_LIBRARIES or isinstance(cause, NETWORK):
            if "404" in str(cause) and "xet" in str(cause):
                return ConfigError(f"{endpoint}: this Hub has no Xet storage; set HF_HUB_DISABLE_XET=1, and push again")
            return HubUnavailableError(f"{endpoint} cannot be reached ({first_line(cause)}); {AGAIN}")
    if missing := next((one for one in causes(error) if isinstance(one, FileNotFoundError)), None):
        return ConfigError(f"{missing.filename}: was removed while it was uploaded; run the same command again")
    if isinstance(error, RuntimeError):  # what the library for large files raises
        return HubUnavailableError(f"{endpoint}: the upload failed ({first_line(error)}); {AGAIN}")
    if isinstance(error, ValueError):
        said = " ".join(str(error).split())
        return ClusterError(f"{endpoint}: {said}; see --card and --license for README.md, HF_ENDPOINT for another Hub")
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def refused_with(status: int, said: str, endpoint: str, repo: str) -> Exception:
    """Return the error for an HTTP status."""
    owner = repo.partition("/")[0]
    fixable = {
        400: f"the Hub refuses the request ({said})",
        401: f"the Hub does not accept the token (401); make one with write access at {TOKENS}, then set HF_TOKEN or"
        " run `hf auth login`",
        402: f"the Hub asks for a subscription or credits (402): {said}; Spaces that run code need them",
        403: f"the token may not write to {owner}'s repositories (403); use one with write access at {TOKENS}, or"
        " another owner's name",
        404: f"{endpoint} has no repository {repo}, or the token may not see it (404)",
        409: f"{repo} was changed by somebody else meanwhile (409); run the same command again to see the difference",
        412: f"{repo} was changed by somebody else meanwhile (412); run the same command again to see the difference",
        413: f"a file is too large for the Hub (413): {said}; lower export.shard_bytes and export again",
    }
    if status in fixable:
        return ConfigError(fixable[status])
    if status == 429:
        return HubUnavailableError(f"{endpoint} asks to wait, after too many requests (429); {AGAIN} in some minutes")
    if status >= 500:
        return HubUnavailableError(f"{endpoint} has a problem of its own ({status}); {AGAIN} in some minutes")
    return ClusterError(f"{endpoint} refuses with status {status}: {said}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Request ID" not in line]
    return lines[0].rstrip(".") if lines else type(error).__name__
