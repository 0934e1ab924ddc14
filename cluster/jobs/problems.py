"""What Ray's client for jobs raises, in words with a remedy."""

from __future__ import annotations

_TOKEN_MISSING = ("Authentication required", "status code 401")
"""Marks of Ray's errors when a cluster asks for a token and got none."""
_TOKEN_WRONG = ("Authentication failed", "status code 403")
"""The same, when the token is not the cluster's."""
_REFUSALS = (*_TOKEN_MISSING, *_TOKEN_WRONG, "status code 404")


def connection_errors() -> tuple[type[Exception], ...]:
    """All that Ray's client raises where a connection or a request fails."""
    import aiohttp
    import requests
    from ray.exceptions import RayError

    return (RuntimeError, ValueError, OSError, RayError, requests.exceptions.RequestException, aiohttp.ClientError)


def is_refusal(text: str) -> bool:
    """Whether asking again would not help."""
    return any(mark in text for mark in _REFUSALS)


def explanation(address: str, text: str) -> str:
    """What is wrong with the cluster at an address, given what Ray's client said."""
    if any(mark in text for mark in _TOKEN_MISSING):
        return (
            f"the cluster at {address} asks for a token, and this command sent none: Ray sends one only where "
            "RAY_AUTH_MODE says so. Run `export RAY_AUTH_MODE=token`, and put the token of the head (its "
            "~/.ray/auth_token) into ~/.ray/auth_token here, or name its file in RAY_AUTH_TOKEN_PATH."
        )
    if any(mark in text for mark in _TOKEN_WRONG):
        return (
            f"the cluster at {address} asks for a token, and did not accept this command's: {first_line(text)}. Put "
            "the token of the head (its ~/.ray/auth_token) into ~/.ray/auth_token here, or name its file in "
            "RAY_AUTH_TOKEN_PATH; RAY_AUTH_TOKEN goes before both. RAY_AUTH_MODE=token must stay set."
        )
    if "status code 413" in text:
        return f"the cluster at {address} refuses the working directory as too large: {first_line(text)}."
    if "onnect" in text:
        return (
            f"the cluster at {address} does not answer: {first_line(text)}. Check the address and port of the head's "
            "dashboard, and that it listens there (`ray start --head --dashboard-host=0.0.0.0`)."
        )
    return f"the cluster at {address} refused the request: {first_line(text)}"


def first_line(text: str) -> str:
    """The first line of an error, without its full stop."""
    return text.strip().splitlines()[0].rstrip(".")[:500] if text.strip() else "no reason given"
