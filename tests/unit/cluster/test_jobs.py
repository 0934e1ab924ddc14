"""Jobs: results, errors with their remedies, and logs that are written once."""

from __future__ import annotations

import pytest

from cluster.jobs import Job, _explanation, _Output, _WriteError


def job(status: str, exit_code: int | None = None) -> Job:
    return Job(
        id="j",
        status=status,
        entrypoint="",
        message="",
        exit_code=exit_code,
        start_unix_seconds=None,
        end_unix_seconds=None,
        metadata={},
    )


@pytest.mark.parametrize(
    ("ended", "result"),
    [
        (job("SUCCEEDED", 0), 0),
        (job("STOPPED"), 130),
        (job("FAILED", 2), 2),
        (job("FAILED", -9), 1),
        (job("FAILED"), 1),
    ],
)
def test_result_is_what_the_training_ended_with(ended: Job, result: int) -> None:
    assert ended.result == result


def test_log_is_written_once_when_it_is_sent_again_from_its_beginning() -> None:
    written: list[str] = []
    output = _Output(written.append)
    output.take("one ", 0)
    output.take("two ", 4)
    output.take("one two th", 0)  # after a cut
    output.take("ree", 10)
    output.take("one ", 0)  # after another, shorter than what is known
    output.take("two three four", 4)
    assert "".join(written) == "one two three four"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Request failed with status code 401: Unauthorized", "RAY_AUTH_MODE=token"),
        ("Authentication required: no token\n\nmore", "RAY_AUTH_MODE=token"),
        ("Authentication failed: wrong token\n\nmore", "RAY_AUTH_MODE=token"),
        ("Failed to connect to Ray at address", "--dashboard-host=0.0.0.0"),
        ("Request failed with status code 413: too large", "refuses the working directory as too large"),
        ("Request failed with status code 500: no\nmore", "refused the request: Request failed with status code 500"),
        ("Failed to connect to Ray at address http://head:8401", "does not answer"),
    ],
)
def test_error_names_the_remedy(text: str, remedy: str) -> None:
    assert remedy in _explanation("http://head:8265", text)


def test_output_that_cannot_be_written_is_no_lost_connection() -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(_WriteError):
        _Output(gone).take("text", 0)
