"""BOLT 4 "`payload` format": the TLVs that a hop finds in its layer of the onion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from channels.bolt import wire
from channels.bolt.onion_failures import Failure, FailureCode
from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from channels.units import BlockHeight, Msat, ShortChannelId

AMT_TO_FORWARD = 2
OUTGOING_CLTV_VALUE = 4
SHORT_CHANNEL_ID = 6
PAYMENT_DATA = 8
ENCRYPTED_RECIPIENT_DATA = 10
CURRENT_PATH_KEY = 12
PAYMENT_METADATA = 16
TOTAL_AMOUNT_MSAT = 18
KEYSEND_PREIMAGE = 5482373484
"""Not in the BOLTs: the preimage of a payment without an invoice (bLIP 3)."""

# Codecs of bytes and of integers stand side by side, so their type says no more than "Any".
_RECORDS: dict[int, tuple[tuple[str, wire.Codec[Any]], ...]] = {
    AMT_TO_FORWARD: (("amt_to_forward", wire.TU64),),
    OUTGOING_CLTV_VALUE: (("outgoing_cltv_value", wire.TU32),),
    SHORT_CHANNEL_ID: (("short_channel_id", wire.SHORT_CHANNEL_ID),),
    PAYMENT_DATA: (("payment_secret", wire.HASH), ("total_msat", wire.TU64)),
    ENCRYPTED_RECIPIENT_DATA: (("encrypted_recipient_data", wire.REST),),
    CURRENT_PATH_KEY: (("current_path_key", wire.POINT),),
    PAYMENT_METADATA: (("payment_metadata", wire.REST),),
    TOTAL_AMOUNT_MSAT: (("total_amount_msat", wire.TU64),),
    KEYSEND_PREIMAGE: (("keysend_preimage", wire.HASH),),
}

FIRST_CUSTOM_TYPE = 65536
"""BOLT 1: types from here on are for anybody's own use."""


class HtlcRefused(OdaError):
    """An HTLC that must be failed with `failure`, wrapped by `create_error`.

    The sender may be at fault, not the peer, so this is no RemoteProtocolError.
    """

    def __init__(self, failure: Failure, sentence: str) -> None:
        super().__init__(failure.name.replace("_", "-"), sentence)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class HopPayload:
    """The fields of a payload by the BOLT's names; None when absent."""

    amt_to_forward: Msat | None = None
    outgoing_cltv_value: int | None = None
    short_channel_id: ShortChannelId | None = None
    payment_secret: bytes | None = field(default=None, repr=False)
    total_msat: Msat | None = None
    encrypted_recipient_data: bytes | None = None
    current_path_key: bytes | None = None
    payment_metadata: bytes | None = None
    total_amount_msat: Msat | None = None
    keysend_preimage: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FinalPayload:
    """What the sender of a payment tells its receiver."""

    amt_to_forward: Msat
    outgoing_cltv_value: int
    payment_secret: bytes = field(repr=False)
    total_msat: Msat
    payment_metadata: bytes | None


@dataclass(frozen=True, slots=True)
class ForwardPayload:
    """What the sender of a payment tells a node on the way."""

    amt_to_forward: Msat
    outgoing_cltv_value: int
    short_channel_id: ShortChannelId


def final_payload(
    amt_to_forward: Msat,
    outgoing_cltv_value: int,
    payment_secret: bytes | None,
    total_msat: Msat,
    payment_metadata: bytes | None = None,
    custom: Mapping[int, bytes] | None = None,
) -> bytes:
    """The TLV stream for the receiver, who has named the secret and the metadata.

    The secret is None where there was no invoice to name one (keysend).
    `custom` are records of types from 65536 on. Raises LocalProtocolError("onion-payload").
    """
    if payment_secret is not None and len(payment_secret) != 32:
        raise LocalProtocolError("onion-payload", "A payment secret has 32 bytes.")
    if any(number < FIRST_CUSTOM_TYPE for number in custom or ()):
        raise LocalProtocolError("onion-payload", "Types of custom records begin at 65536.")
    records = {
        AMT_TO_FORWARD: wire.tu64(amt_to_forward),
        OUTGOING_CLTV_VALUE: wire.tu32(outgoing_cltv_value),
        **(custom or {}),
    }
    if payment_secret is not None:
        records[PAYMENT_DATA] = payment_secret + wire.tu64(total_msat)
    if payment_metadata is not None:
        records[PAYMENT_METADATA] = payment_metadata
    return wire.encode_tlvs(records)


def forward_payload(
    amt_to_forward: Msat, outgoing_cltv_value: int, short_channel_id: ShortChannelId
) -> bytes:
    """The TLV stream for a node that forwards over the channel `short_channel_id`."""
    return wire.encode_tlvs(
        {
            AMT_TO_FORWARD: wire.tu64(amt_to_forward),
            OUTGOING_CLTV_VALUE: wire.tu32(outgoing_cltv_value),
            SHORT_CHANNEL_ID: wire.u64(short_channel_id),
        }
    )


def _invalid(tlv_type: int, sentence: str) -> HtlcRefused:
    # BOLT 4: type and offset may be given; 0 stands for "not known", which no payload uses.
    failure = Failure.of(FailureCode.INVALID_ONION_PAYLOAD, type=tlv_type, offset=0)
    return HtlcRefused(failure, sentence)


def parse_payload(data: bytes) -> HopPayload:
    """Read the TLV stream of `Peeled.payload`.

    Raises HtlcRefused with invalid_onion_payload; unknown odd records are left out.
    """
    try:
        records = wire.decode_tlvs(data, _RECORDS)
    except RemoteProtocolError as error:
        raise _invalid(0, f"The payload of an onion is malformed: {error}") from error
    fields: dict[str, Any] = {}
    for tlv_type, value in records.items():
        reader = wire.Reader(value)
        try:
            for name, codec in _RECORDS[tlv_type]:
                fields[name] = codec.read(reader)
        except RemoteProtocolError as error:
            raise _invalid(
                tlv_type, f"Record {tlv_type} of an onion's payload is malformed: {error}"
            ) from error
        if not reader.at_end():
            raise _invalid(tlv_type, f"Record {tlv_type} of an onion's payload is too long.")
    return HopPayload(**fields)


def _amount_and_expiry(payload: HopPayload) -> tuple[Msat, int]:
    # Blinded routes are not offered (BOLT 9 bit 24), so nothing of them may come.
    for tlv_type, value in (
        (ENCRYPTED_RECIPIENT_DATA, payload.encrypted_recipient_data),
        (CURRENT_PATH_KEY, payload.current_path_key),
    ):
        if value is not None:
            raise _invalid(tlv_type, "The onion follows a blinded route, which is not supported.")
    if payload.amt_to_forward is None:
        raise _invalid(AMT_TO_FORWARD, "The onion does not say how much to forward.")
    if payload.outgoing_cltv_value is None:
        raise _invalid(OUTGOING_CLTV_VALUE, "The onion does not say how long its HTLC lasts.")
    return payload.amt_to_forward, payload.outgoing_cltv_value


def check_forward(payload: HopPayload, packet: bytes) -> ForwardPayload:
    """The payload of a node that is not the last (BOLT 4 "Requirements", the reader).

    `packet` is the onion it was peeled from. Raises HtlcRefused. Fee, expiry and outgoing channel
    are for the forwarding node to check.
    """
    if payload.current_path_key is not None:
        # BOLT 4 "Failure Messages": every erring node that is not final answers so.
        raise HtlcRefused(
            Failure.of(
                FailureCode.INVALID_ONION_BLINDING, sha256_of_onion=hashlib.sha256(packet).digest()
            ),
            "The onion begins a blinded route, which is not supported.",
        )
    amount, expiry = _amount_and_expiry(payload)
    if payload.short_channel_id is None:
        raise _invalid(SHORT_CHANNEL_ID, "The onion does not say where to forward to.")
    return ForwardPayload(amount, expiry, payload.short_channel_id)


def check_final(
    payload: HopPayload, amount_msat: Msat, cltv_expiry: int, height: BlockHeight
) -> FinalPayload:
    """The payload of the last node, against its HTLC and the best known block.

    Raises HtlcRefused. Left for the node: whether it knows the payment hash and the secret
    belongs to it, whether `total_msat` is enough and all of it is here, and whether
    `cltv_expiry` leaves enough blocks.
    """
    amt_to_forward, outgoing_cltv_value = _amount_and_expiry(payload)
    if payload.payment_secret is None or payload.total_msat is None:
        # BOLT 4, final node: the secret is required of every payment here.
        raise HtlcRefused(
            Failure.of(
                FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS,
                htlc_msat=amount_msat,
                height=height,
            ),
            "The payment comes without the secret of its invoice.",
        )
    if cltv_expiry < outgoing_cltv_value:
        raise HtlcRefused(
            Failure.of(FailureCode.FINAL_INCORRECT_CLTV_EXPIRY, cltv_expiry=cltv_expiry),
            "The HTLC expires before the block that its sender promised.",
        )
    if amount_msat < amt_to_forward:
        raise HtlcRefused(
            Failure.of(FailureCode.FINAL_INCORRECT_HTLC_AMOUNT, incoming_htlc_amt=amount_msat),
            "The HTLC brings less than its sender promised.",
        )
    return FinalPayload(
        amt_to_forward,
        outgoing_cltv_value,
        payload.payment_secret,
        payload.total_msat,
        payload.payment_metadata,
    )
