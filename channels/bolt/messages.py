"""The messages of BOLT 1, BOLT 2 and BOLT 7, and their encoding.

A message is a frozen dataclass with the field names of its BOLT. Beside each field stands the
codec that reads and writes it; `message` gathers them into the one table behind `encode` and
`decode`. A TLV record is an optional field named as the BOLT names its type, `None` when absent.
Hashes and ids are 32 bytes, points 33 (compressed, checked to be on the curve), signatures 64
(compact). Lengths and counts that the wire carries are those of the field they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_type_hints

from channels.bolt import wire
from channels.bolt.wire import Codec, Reader
from channels.errors import LocalProtocolError
from channels.units import FeeratePerKw, Msat, Sat, ShortChannelId

Hash = Annotated[bytes, wire.HASH]
Point = Annotated[bytes, wire.POINT]
Signature = Annotated[bytes, wire.SIGNATURE]
Variable = Annotated[bytes, wire.VARIABLE]
Rest = Annotated[bytes, wire.REST]
U8 = Annotated[int, wire.U8]
U16 = Annotated[int, wire.U16]
U32 = Annotated[int, wire.U32]
U64 = Annotated[int, wire.U64]
SatField = Annotated[Sat, wire.SAT]
MsatField = Annotated[Msat, wire.MSAT]
# Peers write "no limit" as 2^64 - 1 here, and gossip is third parties' words: bounding either
# would cost us the connection to an honest peer.
UnboundedMsat = Annotated[Msat, wire.UNBOUNDED_MSAT]
Feerate = Annotated[FeeratePerKw, wire.FEERATE]
ShortChannelIdField = Annotated[ShortChannelId, wire.SHORT_CHANNEL_ID]

ONION_ROUTING_PACKET = 1366
"""Bytes of an onion_routing_packet in update_add_htlc (BOLT 4)."""


@dataclass(frozen=True, slots=True)
class Tlv:
    """Marks a field that is a TLV record of this type."""

    type: int
    codec: Codec[Any]


@dataclass(frozen=True, slots=True)
class FeeRange:
    """closing_signed's fee_range (BOLT 2)."""

    min_fee_satoshis: Sat
    max_fee_satoshis: Sat


FEE_RANGE = Codec(
    lambda reader: FeeRange(wire.SAT.read(reader), wire.SAT.read(reader)),
    lambda fee_range: (
        wire.SAT.write(fee_range.min_fee_satoshis) + wire.SAT.write(fee_range.max_fee_satoshis)
    ),
)


class Message:
    """The base of all messages. `type` is the message's number on the wire."""

    __slots__ = ()
    type: ClassVar[int]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that is not in the table, as it came."""

    type: int
    payload: bytes

    @property
    def must_understand(self) -> bool:
        """BOLT 1: it's ok to be odd; an even unknown type closes the connection."""
        return self.type % 2 == 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A message's fields in the order of the wire, which is the order of the dataclass."""

    message: type[Message]
    fields: tuple[tuple[str, Codec[Any]], ...]
    tlvs: dict[int, tuple[str, Codec[Any]]]


CODECS: dict[int, Layout] = {}
"""The codec table, by message type."""

_M = TypeVar("_M", bound=Message)


@dataclass_transform(frozen_default=True)
def message(number: int) -> Callable[[type[_M]], type[_M]]:
    """Make a class a frozen dataclass and enter it into the codec table."""

    def register(cls: type[_M]) -> type[_M]:
        cls = dataclass(frozen=True, slots=True)(cls)
        cls.type = number
        hints = get_type_hints(cls, include_extras=True)
        hints.pop("type")
        plain: list[tuple[str, Codec[Any]]] = []
        tlvs: dict[int, tuple[str, Codec[Any]]] = {}
        for name, hint in hints.items():
            (how,) = hint.__metadata__
            if isinstance(how, Tlv):
                tlvs[how.type] = name, how.codec
            else:
                plain.append((name, how))
        CODECS[number] = Layout(cls, tuple(plain), tlvs)
        return cls

    return register


def encode(message: Message) -> bytes:
    """The message's type and payload; LocalProtocolError when a field does not fit its type."""
    layout = CODECS[message.type]
    parts = [wire.u16(message.type)]
    parts += [codec.write(getattr(message, name)) for name, codec in layout.fields]
    records = {
        number: codec.write(value)
        for number, (name, codec) in layout.tlvs.items()
        if (value := getattr(message, name)) is not None
    }
    data = b"".join(parts) + wire.encode_tlvs(records)
    if len(data) > wire.MAX_MESSAGE:
        raise LocalProtocolError(
            "message-too-long",
            f"A message has at most {wire.MAX_MESSAGE} bytes; this one has {len(data)}.",
        )
    return data


def decode(data: bytes) -> Message | Unknown:
    """The message in `data`, which is a type and its payload; only RemoteProtocolError is raised.

    A message of unknown type comes back as `Unknown`: what an even one means is the caller's
    decision. Extensions are checked as TLV streams (BOLT 1) on every message but the signed ones
    of BOLT 7, which keep theirs in `extension`, because their signatures cover it.
    """
    reader = Reader(data)
    number = reader.u16()
    layout = CODECS.get(number)
    if layout is None:
        return Unknown(number, reader.rest())
    values = {name: codec.read(reader) for name, codec in layout.fields}
    if not reader.at_end():
        for tlv_type, value in wire.decode_tlvs(reader.rest(), layout.tlvs).items():
            name, codec = layout.tlvs[tlv_type]
            values[name] = codec.decode(value)
    return layout.message(**values)


# BOLT 1: setup and control


@message(16)
class Init(Message):
    globalfeatures: Variable
    features: Variable
    networks: Annotated[tuple[bytes, ...] | None, Tlv(1, wire.until_end(wire.HASH))] = None
    remote_addr: Annotated[bytes | None, Tlv(3, wire.REST)] = None


@message(17)
class Error(Message):
    channel_id: Hash
    data: Variable


@message(1)
class Warning_(Message):
    channel_id: Hash
    data: Variable


@message(18)
class Ping(Message):
    num_pong_bytes: U16
    ignored: Variable = b""


@message(19)
class Pong(Message):
    ignored: Variable = b""


# BOLT 2: channel establishment and close


@message(32)
class OpenChannel(Message):
    chain_hash: Hash
    temporary_channel_id: Hash
    funding_satoshis: SatField
    push_msat: MsatField
    dust_limit_satoshis: SatField
    max_htlc_value_in_flight_msat: UnboundedMsat
    channel_reserve_satoshis: SatField
    htlc_minimum_msat: MsatField
    feerate_per_kw: Feerate
    to_self_delay: U16
    max_accepted_htlcs: U16
    funding_pubkey: Point
    revocation_basepoint: Point
    payment_basepoint: Point
    delayed_payment_basepoint: Point
    htlc_basepoint: Point
    first_per_commitment_point: Point
    channel_flags: U8
    upfront_shutdown_script: Annotated[bytes | None, Tlv(0, wire.REST)] = None
    channel_type: Annotated[bytes | None, Tlv(1, wire.REST)] = None


@message(33)
class AcceptChannel(Message):
    temporary_channel_id: Hash
    dust_limit_satoshis: SatField
    max_htlc_value_in_flight_msat: UnboundedMsat
    channel_reserve_satoshis: SatField
    htlc_minimum_msat: MsatField
    minimum_depth: U32
    to_self_delay: U16
    max_accepted_htlcs: U16
    funding_pubkey: Point
    revocation_basepoint: Point
    payment_basepoint: Point
    delayed_payment_basepoint: Point
    htlc_basepoint: Point
    first_per_commitment_point: Point
    upfront_shutdown_script: Annotated[bytes | None, Tlv(0, wire.REST)] = None
    channel_type: Annotated[bytes | None, Tlv(1, wire.REST)] = None


@message(34)
class FundingCreated(Message):
    temporary_channel_id: Hash
    funding_txid: Hash
    funding_output_index: U16
    signature: Signature


@message(35)
class FundingSigned(Message):
    channel_id: Hash
    signature: Signature


@message(36)
class ChannelReady(Message):
    channel_id: Hash
    second_per_commitment_point: Point
    short_channel_id: Annotated[ShortChannelId | None, Tlv(1, wire.SHORT_CHANNEL_ID)] = None


@message(38)
class Shutdown(Message):
    channel_id: Hash
    scriptpubkey: Variable


@message(39)
class ClosingSigned(Message):
    channel_id: Hash
    fee_satoshis: SatField
    signature: Signature
    fee_range: Annotated[FeeRange | None, Tlv(1, FEE_RANGE)] = None


# BOLT 2: normal operation


@message(128)
class UpdateAddHtlc(Message):
    channel_id: Hash
    id: U64
    amount_msat: MsatField
    payment_hash: Hash
    cltv_expiry: U32
    onion_routing_packet: Annotated[bytes, wire.fixed(ONION_ROUTING_PACKET)]
    blinded_path: Annotated[bytes | None, Tlv(0, wire.POINT)] = None


@message(130)
class UpdateFulfillHtlc(Message):
    channel_id: Hash
    id: U64
    payment_preimage: Hash


@message(131)
class UpdateFailHtlc(Message):
    channel_id: Hash
    id: U64
    reason: Variable


@message(135)
class UpdateFailMalformedHtlc(Message):
    channel_id: Hash
    id: U64
    sha256_of_onion: Hash
    failure_code: U16


@message(132)
class CommitmentSigned(Message):
    channel_id: Hash
    signature: Signature
    htlc_signature: Annotated[tuple[bytes, ...], wire.array(wire.SIGNATURE)] = ()


@message(133)
class RevokeAndAck(Message):
    channel_id: Hash
    per_commitment_secret: Hash
    next_per_commitment_point: Point


@message(134)
class UpdateFee(Message):
    channel_id: Hash
    feerate_per_kw: Feerate


@message(136)
class ChannelReestablish(Message):
    channel_id: Hash
    next_commitment_number: U64
    next_revocation_number: U64
    your_last_per_commitment_secret: Hash
    my_current_per_commitment_point: Point


# BOLT 7: gossip. A signature over an announcement or update covers its extension: it is kept.


@message(259)
class AnnouncementSignatures(Message):
    channel_id: Hash
    short_channel_id: ShortChannelIdField
    node_signature: Signature
    bitcoin_signature: Signature


@message(256)
class ChannelAnnouncement(Message):
    node_signature_1: Signature
    node_signature_2: Signature
    bitcoin_signature_1: Signature
    bitcoin_signature_2: Signature
    features: Variable
    chain_hash: Hash
    short_channel_id: ShortChannelIdField
    node_id_1: Point
    node_id_2: Point
    bitcoin_key_1: Point
    bitcoin_key_2: Point
    extension: Rest = b""


@message(257)
class NodeAnnouncement(Message):
    signature: Signature
    features: Variable
    timestamp: U32
    node_id: Point
    rgb_color: Annotated[bytes, wire.fixed(3)]
    alias: Annotated[bytes, wire.fixed(32)]
    addresses: Variable
    extension: Rest = b""


@message(258)
class ChannelUpdate(Message):
    signature: Signature
    chain_hash: Hash
    short_channel_id: ShortChannelIdField
    timestamp: U32
    message_flags: U8
    channel_flags: U8
    cltv_expiry_delta: U16
    htlc_minimum_msat: UnboundedMsat
    fee_base_msat: U32
    fee_proportional_millionths: U32
    htlc_maximum_msat: UnboundedMsat
    extension: Rest = b""


@message(261)
class QueryShortChannelIds(Message):
    chain_hash: Hash
    encoded_short_ids: Variable
    query_flags: Annotated[bytes | None, Tlv(1, wire.REST)] = None


@message(262)
class ReplyShortChannelIdsEnd(Message):
    chain_hash: Hash
    full_information: U8


@message(263)
class QueryChannelRange(Message):
    chain_hash: Hash
    first_blocknum: U32
    number_of_blocks: U32
    query_option: Annotated[int | None, Tlv(1, wire.BIGSIZE)] = None


@message(264)
class ReplyChannelRange(Message):
    chain_hash: Hash
    first_blocknum: U32
    number_of_blocks: U32
    sync_complete: U8
    encoded_short_ids: Variable
    timestamps_tlv: Annotated[bytes | None, Tlv(1, wire.REST)] = None
    checksums_tlv: Annotated[bytes | None, Tlv(3, wire.REST)] = None


@message(265)
class GossipTimestampFilter(Message):
    chain_hash: Hash
    first_timestamp: U32
    timestamp_range: U32
