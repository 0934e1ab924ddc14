"""What Ray's client raises, in words with a remedy."""

from __future__ import annotations

import pytest

from cluster.jobs.problems import explanation, is_refusal


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "Request failed with status code 401: Unauthorized",
            ["sent none", "export RAY_AUTH_MODE=token", "auth_token"],
        ),
        ("Authentication required: no token\n\nmore", ["sent none", "export RAY_AUTH_MODE=token", "auth_token"]),
        ("Authentication failed: wrong token\n\nmore", ["did not accept this command's", "RAY_AUTH_MODE=token"]),
        ("Failed to connect to Ray at address", ["does not answer", "--dashboard-host=0.0.0.0"]),
        ("Failed to connect to Ray at address http://head:8401", ["does not answer"]),
        ("Request failed with status code 413: too large", ["refuses the working directory as too large"]),
        ("Request failed with status code 500: no\nmore", ["refused the request: Request failed with status code 500"]),
    ],
)
def test_error_names_the_remedy(text: str, parts: list[str]) -> None:
    said = explanation("http://head:8265", text)
    assert [part for part in ["the cluster at http://head:8265", *parts] if part not in said] == []


def test_asking_again_does_not_help_when_the_token_is_refused_or_the_job_unknown() -> None:
    assert is_refusal("Authentication failed: wrong")
    assert is_refusal("Request failed with status code 404: no such job")
    assert not is_refusal("Request failed with status code 500: no agent")
