"""`oda open`, `chat`, `sessions` and `close`, as a person types them."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from channels import lightning_answers as answers
from channels.bolt import keys
from channels.lightning import LightningError, PaymentFailed
from channels.settings import load_settings
from channels.terminal import ExitCode
from client import cli
from client.checking import Checking
from client.gateway import serving as gateway_serving
from client.market import market
from client.settings import load_client_settings
from client.telling import looking
from tests.client.fakes import Shop, UserNode
from tests.client.small_chain import SmallChain
from tests.provider.fakes import MODEL
from tests.provider.payees import PayeeWorld

NODE = keys.public_key(b"\x11" * 32).hex()
OTHER = "02" + "cd" * 32


class House:
    """A provider on a thread of its own, a user's node, and the command line."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.shop = self.call(lambda: _made(path))
        self.node = UserNode(self.shop.node)

    def call(self, make: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(30)

    def stop(self) -> None:
        self.call(self.shop.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def go_away(self) -> None:
        """The provider does not answer any more."""
        self.call(self.shop.client.close)

    def oda(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as left:
            code = int(str(left.code))
        out, err = self._capsys.readouterr()
        return code, out, err

    def document(self, *arguments: str) -> tuple[int, Any]:
        code, out, _ = self.oda(*arguments, "--json")
        return code, json.loads(out)

    def fails(self, *arguments: str) -> tuple[int, str]:
        """The same with and without --json: one sentence, one reason, one code."""
        code, _, err = self.oda(*arguments)
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("oda: ")
        again, document = self.document(*arguments)
        assert again == code
        return code, document["error"]["reason"]


async def _made(path: Path) -> Shop:
    shop = Shop(path)
    shop.payees = PayeeWorld("trainer", "last", "accepting")
    await shop.start()
    return shop


@pytest.fixture
def house(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[House]:
    for name in list(os.environ):
        if name.startswith("ODA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ODA_DATA", str(tmp_path / "data"))
    rpc_file = tmp_path / "lightning-rpc"
    rpc_file.touch()
    monkeypatch.setenv("ODA_LIGHTNING_RPC_FILE", str(rpc_file))
    (tmp_path / "shop").mkdir()
    made = House(tmp_path / "shop", capsys)
    monkeypatch.setenv("ODA_CLIENT_PROVIDER", made.shop.url)
    monkeypatch.setattr("client.sdk.Lightning", lambda rpc: made.node)
    monkeypatch.setattr("channels.lightning.Lightning", lambda rpc: made.node)
    monkeypatch.setattr("client.session.REFUND_SECONDS", 2.0)
    yield made
    made.stop()


# The whole way -----------------------------------------------------------------------------------


def test_the_whole_way(house: House) -> None:
    code, opened = house.document("open", house.shop.url, "--amount", "50000")
    assert code == ExitCode.OK
    assert opened["opening"]["fee_sat"] == 305
    assert opened["opening"]["push_sat"] == 546
    assert opened["usable"]["provider_reserve_sat"] == 546
    assert house.node.funded == [
        {
            "node_id": NODE,
            "amount": 50_000,
            "announce": False,
            "push_msat": 546_000,
            "reserve": 546,
        }
    ]
    code, out, err = house.oda("chat", "abc", "--max-tokens", "100", "--seed", "7")
    assert code == ExitCode.OK
    assert len(out) == 101
    assert "3 + 100 tokens · 25.150 sat spent" in err

    code, answer = house.document("chat", "abc", "--max-tokens", "100", "--seed", "7")
    assert answer["text"] == out.strip("\n")
    assert answer["finish_reason"] == "length"
    assert answer["cost"]["spent_msat"] == 25_150

    code, rows = house.document("sessions")
    assert [(row["model"], row["state"], row["spent_msat"]) for row in rows] == [
        (MODEL, "open", 50_300)
    ]
    assert "letters" in house.oda("sessions")[1]
    code, closed = house.document("close")
    [refund] = closed["refunds"]
    assert refund["spent_msat"] == 50_300
    assert refund["received_msat"] == refund["paid_msat"] - 50_300
    assert house.document("sessions") == (ExitCode.OK, [])
    assert house.document("sessions", "--all")[1][0]["refund_status"] == "succeeded"


def test_closing_the_channel_too(house: House) -> None:
    house.oda("open", house.shop.url, "--amount", "50000")
    code, closed = house.document("close", "--channel")
    assert code == ExitCode.OK
    assert closed["channels"][0]["type"] == "mutual"
    assert closed["channels"][0]["ours_msat"] == (50_000 - 546) * 1000
    assert closed["onchain_sat"] == 1_000_000 - 50_305
    assert house.fails("close", "--channel") == (ExitCode.NOT_FOUND, "no-channel")


def test_a_forced_close_tells_what_comes_back_and_when(house: House) -> None:
    house.oda("open", house.shop.url, "--amount", "50000")
    house.node.agrees = False
    code, closed = house.document("close", "--force")
    assert code == ExitCode.OK
    [channel] = closed["channels"]
    assert channel["type"] == "unilateral"
    assert channel["txids"] == ["bb" * 32]
    assert channel["claims"] == [
        {
            "kind": "DELAYED_OUTPUT_TO_US",
            "amount_msat": 40_000_000,
            "height": 107,
            "in_blocks": 6,
            "confirmed": False,
        }
    ]
    # Once it is closing, the same command tells again.
    code, out, _ = house.oda("close", "--force")
    assert code == ExitCode.OK
    assert "40000 sat from block 107, in 6 blocks" in out
    assert house.fails("close", "--channel") == (ExitCode.NOT_FOUND, "no-channel")


def test_what_lightningd_goes_on_listing_is_named_as_it_closed(house: House) -> None:
    """It lists a closed channel for a hundred blocks, and has no `oda-listcloses`."""
    house.oda("open", house.shop.url, "--amount", "50000")
    [one] = house.node.channels
    for way, kind in (("CLOSINGD_COMPLETE", "mutual"), ("AWAITING_UNILATERAL", "unilateral")):
        changes = [answers.StateChange("CHANNELD_NORMAL", way), answers.StateChange(way, "ONCHAIN")]
        house.node.channels[:] = [
            msgspec.structs.replace(one, state="ONCHAIN", state_changes=changes)
        ]
        code, closed = house.document("close", "--force")
        assert (code, closed["channels"][0]["type"]) == (ExitCode.OK, kind)


def test_a_forced_close_does_not_need_the_provider(house: House) -> None:
    house.oda("open", house.shop.url, "--amount", "50000")
    house.oda("chat", "abc", "--max-tokens", "10")
    house.go_away()
    assert house.fails("close", "--channel")[0] == ExitCode.UNREACHABLE
    code, closed = house.document("close", "--force")
    assert code == ExitCode.OK
    assert closed["refunds"] == []
    assert list(closed["unsettled"]) == ["1"]
    assert closed["channels"][0]["type"] == "mutual"


def test_ctrl_c_stops_the_paying_and_says_what_is_left(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.display import Display

    shown = Display.show

    def show(self: Display, event: Any) -> None:
        shown(self, event)
        if self.cost is not None and self.cost.output_tokens == 50:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs between two instructions of this thread

    monkeypatch.setattr(Display, "show", show)
    code, out, err = house.oda("chat", "abc", "--max-tokens", "4000")
    assert code == ExitCode.INTERRUPTED
    assert 50 <= len(out.strip()) < 200
    assert "are left in the session" in " ".join(err.split())
    attempts = len(house.node.attempts)
    code, answer = house.document("chat", "abc", "--max-tokens", "4000")
    assert (code, answer["finish_reason"]) == (ExitCode.INTERRUPTED, "interrupted")
    code, closed = house.document("close")
    [refund] = closed["refunds"]
    assert refund["received_msat"] == refund["paid_msat"] - refund["spent_msat"]
    assert len(house.node.attempts) >= attempts


# What bad input gets -----------------------------------------------------------------------------


def test_a_dead_or_unknown_provider(house: House) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    unreachable = (ExitCode.UNREACHABLE, "provider-unreachable")
    assert house.fails("open", dead) == unreachable
    assert house.fails("chat", "abc", "--provider", dead) == unreachable
    assert house.fails("open", "nowhere") == (ExitCode.USAGE, "bad-provider-url")
    assert house.fails("open", "http://192.0.2.1") == (ExitCode.USAGE, "insecure-provider")
    assert house.fails("open", house.shop.url, "--node", "elsewhere") == (
        ExitCode.USAGE,
        "no-node-address",
    )
    assert house.fails("open", house.shop.url, "--node", f"{NODE}@127.0.0.1:1") == (
        ExitCode.UNREACHABLE,
        "peer-unreachable",
    )


def test_amounts_that_make_no_channel(house: House) -> None:
    opening = ("open", house.shop.url, "--amount")
    assert house.fails(*opening, "545") == (ExitCode.USAGE, "amount-too-small")
    assert house.fails(*opening, "-1") == (ExitCode.USAGE, "amount-too-small")
    assert house.fails(*opening, "16777216") == (ExitCode.USAGE, "amount-too-large")
    assert house.fails(*opening, "1000001") == (ExitCode.NOT_ENOUGH_FUNDS, "not-enough-funds")
    house.node.refuses = LightningError(301, "The wallet can spend 3 sat.")
    assert house.fails(*opening, "900000") == (ExitCode.NOT_ENOUGH_FUNDS, "not-enough-funds")
    house.node.refuses = LightningError(300, "The embedded node opens at most 100000 sat.")
    assert house.fails(*opening, "900000") == (ExitCode.USAGE, "amount-too-large")
    house.node.refuses = LightningError(-1, "The peer said no.")
    assert house.fails(*opening, "900000") == (ExitCode.REFUSED, "channel-refused")
    house.node.refuses = None
    assert house.oda(*opening, "50000")[0] == ExitCode.OK
    assert house.fails(*opening, "50000") == (ExitCode.IN_USE, "channel-exists")
    assert len(house.node.funded) == 1


def test_no_funds_in_the_channel(house: House) -> None:
    house.node.outcomes = [PaymentFailed("No channel has enough to send.", 205)] * 2
    assert house.fails("chat", "abc") == (ExitCode.PAYMENT_FAILED, "payment-failed")


def test_no_node(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("ODA_DATA", str(house.shop.path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(house.shop.path))
    code, _, err = house.oda("chat", "abc", "--provider", house.shop.url)
    assert code == ExitCode.UNREACHABLE
    assert "oda regtest up" in err
    assert "oda lightning start" in err
    code, _, err = house.oda("open", house.shop.url)
    assert code == ExitCode.UNREACHABLE
    assert "oda lightning start" in err


def test_wrong_network(house: House) -> None:
    house.node.network = "bitcoin"
    assert house.fails("chat", "abc") == (ExitCode.USAGE, "wrong-network")
    opening = ("open", house.shop.url)
    assert house.fails(*opening) == (ExitCode.USAGE, "wrong-network")


def test_an_unknown_model(house: House) -> None:
    assert house.fails("chat", "abc", "--model", "gpt") == (ExitCode.NOT_FOUND, "model-not-found")


def test_requests_that_are_refused_unpaid(house: House) -> None:
    assert house.fails("chat", "abc", "--max-tokens", "5000")[0] == ExitCode.REFUSED
    assert house.fails("chat", "x" * (1 << 20)) == (ExitCode.USAGE, "body-too-large")
    assert house.fails("chat", "abc", "--max-tokens", "0") == (ExitCode.USAGE, "usage")
    assert not house.node.attempts


def test_a_session_cap(house: House) -> None:
    asking = ("chat", "abc", "--max-tokens", "900", "--max-session-sat", "9")
    code, out, err = house.oda(*asking)
    assert code == ExitCode.NOT_ENOUGH_FUNDS
    # What was paid for was delivered, and the figures are shown before the sentence.
    assert len(out.strip()) == 31
    assert "7.900 sat spent" in err.splitlines()[0]
    assert err.splitlines()[1].startswith("oda: ")
    assert house.document(*asking)[1]["error"]["reason"] == "session-cap-reached"


def test_sessions_that_are_not_there(house: House) -> None:
    assert house.oda("sessions")[:2] == (ExitCode.OK, "No session is open.\n")
    assert house.fails("close") == (ExitCode.NOT_FOUND, "not-found")
    assert house.fails("close", "9") == (ExitCode.NOT_FOUND, "not-found")
    house.oda("chat", "abc", "--max-tokens", "1")
    assert house.oda("close", "1")[0] == ExitCode.OK
    # A closed session can be closed again, which looks for its refund.
    assert house.document("close", "1")[1]["refunds"][0]["status"] == "succeeded"


def test_a_provider_that_is_another_node_now(house: House) -> None:
    house.oda("open", house.shop.url)
    opening = ("open", house.shop.url, "--node", f"{OTHER}@127.0.0.1:9735")
    assert house.fails(*opening) == (ExitCode.USAGE, "provider-changed")


def test_the_runner_of_typer_sees_the_same(house: House) -> None:
    result = CliRunner().invoke(cli.build_app(), ["sessions", "--json"])
    assert (result.exit_code, result.stdout) == (0, "[]\n")


# Providers and receipts --------------------------------------------------------------------------


def test_providers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODA_CLIENT_PROVIDERS", "http://127.0.0.1:1")
    code, document = house.document("providers")
    assert code == ExitCode.OK
    [entry] = document["providers"]
    assert (entry["url"], entry["model"], entry["score"]) == (house.shop.url, MODEL, 1000)
    [silent] = document["silent"]
    assert (silent["url"], silent["reason"]) == ("http://127.0.0.1:1", "provider-unreachable")
    code, out, err = house.oda("providers")
    assert MODEL in out
    assert "127.0.0.1:1 does not answer" in err
    # Without --provider the one that answers is asked, and the other one is passed over.
    code, document = house.document("chat", "abc", "--max-tokens", "5", "--seed", "7")
    assert code == ExitCode.OK
    assert (len(document["text"]), document["switched"]) == (5, [])


def test_a_receipt_is_saved_and_needs_the_chain_to_be_verified(
    house: House, tmp_path: Path
) -> None:
    house.document("chat", "abc", "--max-tokens", "50", "--seed", "7")
    assert house.fails("receipt", "save", "1", str(tmp_path / "r"))[1] == "lightning/session-open"
    house.document("close", "1")
    code, document = house.document("receipt", "save", "1", str(tmp_path / "receipt.json"))
    assert code == ExitCode.OK
    saved = tmp_path / "receipt.json"
    assert document["bytes"] == saved.stat().st_size
    statement = json.loads(saved.read_bytes())["statement"]
    assert sum(period["spent_msat"] for period in statement["periods"]) == 3 * 50 + 50 * 250
    assert house.fails("receipt", "verify", str(saved))[1] == "no-chain"
    assert house.fails("receipt", "verify", "--session", "1")[1] == "no-chain"
    forged = saved.read_text().replace('"closed":', '"closed":1')
    (tmp_path / "forged.json").write_text(forged)
    code, reason = house.fails("receipt", "verify", str(tmp_path / "forged.json"))
    assert (code, reason) == (ExitCode.REFUSED, "statement-not-signed")
    (tmp_path / "garbage").write_text("{}")
    assert house.fails("receipt", "verify", str(tmp_path / "garbage"))[1] == "bad-receipt"
    assert house.fails("receipt", "verify", str(tmp_path / "nothing"))[1] == "unreadable"
    assert house.fails("receipt", "verify")[1] == "not-found"


class Village(SmallChain):
    """A sidechain with payees next door, and a clock that can be moved."""

    ahead = 0

    def announced(self) -> list[str]:
        return []

    def clock(self) -> float:
        return time.time() + self.ahead

    async def reach(self, endpoint: str) -> bool:
        return True


@pytest.fixture
def village(house: House, monkeypatch: pytest.MonkeyPatch) -> Village:
    assert house.shop.payees is not None
    made = Village(house.shop.payees)

    @asynccontextmanager
    async def following(*_: object) -> AsyncIterator[Village]:
        yield made

    monkeypatch.setattr("client.market.following", following)
    checking = functools.partial(Checking, clock=made.clock, reach=made.reach)
    monkeypatch.setattr("client.market.Checking", checking)
    monkeypatch.setenv("ODA_CLIENT_CHAIN", "127.0.0.1:1")
    return made


CHAT = ("chat", "abc", "--max-tokens", "100", "--seed", "7")


def test_who_does_not_pay_is_told_once_and_asked_last(
    house: House, village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    house.oda(*CHAT)
    code, closed = house.document("close")
    assert (code, closed["receipts"]) == (ExitCode.OK, [])
    [row] = house.document("receipt", "list")[1]
    assert (row["session"], row["state"], row["provider"]) == (1, "carried", house.shop.url)
    assert sum(row["owing_msat"].values()) == 1258 + 252
    assert "carried" in house.oda("sessions", "--all")[1]

    village.ahead = 1200
    _, answer = house.document(*CHAT)
    [news] = answer["receipts"]
    assert (news["session"], news["state"], news["reason"]) == (1, "unpaid", "shares-unpaid")
    assert house.document(*CHAT)[1]["receipts"] == []
    [entry] = house.document("providers")[1]["providers"]
    assert entry["owes_shares"] is True
    assert entry["score"] < 1000
    assert "does not pay its shares" in house.oda("providers")[1]
    code, rows = house.document("receipt", "check", "1")
    assert (code, rows[0]["state"]) == (ExitCode.REFUSED, "unpaid")
    assert house.document("sessions", "--all")[1][-1]["receipt"] == "unpaid"


def test_who_does_not_pay_is_told_in_plain_words(house: House, village: Village) -> None:
    house.oda(*CHAT)
    house.oda("close")
    village.ahead = 1200
    code, out, err = house.oda(*CHAT)
    assert code == ExitCode.OK
    assert len(out.strip()) == 100
    told = " ".join(err.split())
    assert f"Session 1 with {house.shop.url}: 1258 msat were not paid to those who made" in told
    assert "Session 1" not in house.oda(*CHAT)[2]


def test_a_provider_that_pays_is_said_to(house: House, village: Village) -> None:
    house.oda("chat", "abc", "--max-tokens", "1000", "--seed", "7", "--max-session-sat", "900")
    house.shop.clock.ahead += 700
    village.world.clock.ahead += 700
    assert house.shop.provider.desk is not None
    house.call(house.shop.provider.desk.settlement.tick)
    house.oda("close")
    code, rows = house.document("receipt", "check")
    assert (code, [row["state"] for row in rows]) == (ExitCode.OK, ["paid"])
    assert "Everybody who is owed was paid" in house.oda("receipt", "list")[1]


def test_without_the_chain_it_is_said_what_to_set(house: House) -> None:
    house.oda(*CHAT)
    house.oda("close")
    code, out, _ = house.oda("receipt", "list")
    assert code == ExitCode.OK
    assert "unchecked" in out
    assert "client.chain" in out
    assert house.fails("receipt", "check") == (ExitCode.USAGE, "no-chain")
    assert house.document(*CHAT)[1]["receipts"] == []


def test_receipts_of_sessions_that_are_not_there(house: House, village: Village) -> None:
    assert house.document("receipt", "list") == (ExitCode.OK, [])
    assert house.fails("receipt", "check", "7") == (ExitCode.NOT_FOUND, "not-found")


async def test_what_runs_for_long_says_it_too(house: House, village: Village) -> None:
    await asyncio.to_thread(house.oda, *CHAT)
    await asyncio.to_thread(house.oda, "close")
    village.ahead = 1200
    said: list[str] = []
    heard = asyncio.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        heard.set()

    async with market(load_settings(), load_client_settings()) as fair, looking(fair, say):
        await heard.wait()
    assert len(said) == 1
    assert "were not paid to those who made the model" in said[0]


# Gateway -----------------------------------------------------------------------------------------


def test_a_gateway_that_can_not_start(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_serving, "Lightning", lambda rpc: house.node)
    assert house.fails("gateway", "--host", "192.0.2.1") == (ExitCode.USAGE, "not-loopback")
    assert house.fails("gateway", "--idle-seconds", "-1") == (ExitCode.USAGE, "usage")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert house.fails("gateway", "--port", port) == (ExitCode.IN_USE, "port-in-use")
    house.node.network = "signet"
    assert house.fails("gateway", "--port", "0") == (ExitCode.USAGE, "wrong-network")


def test_a_gateway_without_a_node(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ODA_LIGHTNING_RPC_FILE", str(tmp_path / "nothing"))
    assert house.fails("gateway") == (ExitCode.UNREACHABLE, "lightning-unreachable")
