"""One sentence, the right exit code, exactly one document."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from channels import terminal
from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError, UserError
from channels.terminal import ExitCode


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("not-enough-funds", "."), ExitCode.NOT_ENOUGH_FUNDS),
        (OdaError("payment-unknown", "."), ExitCode.PAYMENT_UNKNOWN),
        (UserError("something-else", "."), ExitCode.USAGE),
        (RemoteProtocolError("bad-mac", "."), ExitCode.REFUSED),
        (LocalProtocolError("closed", "."), ExitCode.UNEXPECTED),
        (ValueError("."), ExitCode.UNEXPECTED),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (asyncio.CancelledError(), ExitCode.INTERRUPTED),
    ],
)
def test_exit_codes(error: BaseException, code: ExitCode) -> None:
    assert terminal.exit_code(error) is code


def test_the_numbers_are_stable() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130]


def test_an_error_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code = terminal.report(UserError("not-found", "There is no such channel."), as_json=False)
    assert code is ExitCode.NOT_FOUND
    assert capsys.readouterr() == ("", "oda: There is no such channel.\n")


def test_an_error_is_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.report(UserError("not-found", "There is no such channel."), as_json=True)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out) == {
        "error": {"reason": "not-found", "message": "There is no such channel."}
    }


def test_a_bug_shows_its_traceback_only_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ODA_DEBUG", raising=False)
    assert terminal.report(KeyError("x"), as_json=False) is ExitCode.UNEXPECTED
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "ODA_DEBUG=1" in shown
    monkeypatch.setenv("ODA_DEBUG", "1")
    try:
        raise KeyError("x")
    except KeyError as error:
        terminal.report(error, as_json=False)
    assert "Traceback" in capsys.readouterr().err


def test_documents(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"path": Path("/x"), "code": ExitCode.OK})
    assert capsys.readouterr().out == '{"path":"/x","code":0}\n'
    with pytest.raises(TypeError, match="object has no place"):
        terminal.print_json({"x": object()})


def test_json_is_an_option_only_before_the_dashes() -> None:
    assert terminal.wants_json(["chat", "--json", "hello"])
    assert not terminal.wants_json(["chat", "--", "--json"])


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress("Working") as show:
        show(1, 2, "still")
    assert capsys.readouterr() == ("", "")
