"""The types that every Lightning message is made of: integers, BigSize, points and TLVs.

Source: BOLT 1, "Fundamental Types", "Type-Length-Value Format" and appendix A. All integers are
big-endian. Reading raises RemoteProtocolError, because what is read comes from a peer; writing
raises LocalProtocolError, because what is written is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from channels.bolt.keys import is_public_key
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import FeeratePerKw, Msat, Sat, ShortChannelId

MAX_MESSAGE = 65535
"""The most bytes that one message may have, its type included (BOLT 1)."""

MAX_SAT = Sat(0x000775F05A074000)
MAX_MSAT = Msat(0x1D24B2DFAC520000)
"""The upper bounds of amounts (BOLT 1): 21 million bitcoin."""

T = TypeVar("T")


class Reader:
    """Reads fields one after the other; RemoteProtocolError("truncated-message") when too few."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise RemoteProtocolError(
                "truncated-message",
                f"A field of {length} bytes was due but only "
                f"{len(self._data) - self._position} are left; the message is malformed.",
            )
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def bigsize(self) -> int:
        first = self.u8()
        if first < 0xFD:
            return first
        length = 2 << (first - 0xFD)
        value = int.from_bytes(self.take(length), "big")
        # BOLT 1 appendix A: a longer form than the value needs is not canonical.
        if value < (0xFD if length == 2 else 1 << (4 * length)):
            raise RemoteProtocolError(
                "bigsize-not-minimal",
                f"The BigSize {value} was written in {1 + length} bytes; fewer would do.",
            )
        return value

    def tu32(self) -> int:
        return self._truncated(4)

    def tu64(self) -> int:
        return self._truncated(8)

    def _truncated(self, most: int) -> int:
        """A truncated integer: it takes all that is left (BOLT 1: the final value of a TLV)."""
        data = self.rest()
        if len(data) > most or data[:1] == b"\0":
            raise RemoteProtocolError(
                "truncated-integer-not-minimal",
                f"A truncated integer of at most {most} bytes without leading zeros was due.",
            )
        return int.from_bytes(data, "big")

    def point(self) -> bytes:
        return check_point(self.take(33))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._position)

    def at_end(self) -> bool:
        return self._position == len(self._data)


def check_point(point: bytes) -> bytes:
    """The same 33 bytes, or RemoteProtocolError("invalid-point") if they are not on the curve."""
    if not is_public_key(point):
        raise RemoteProtocolError(
            "invalid-point", "A compressed secp256k1 point of 33 bytes was due, but it is not one."
        )
    return point


def _integer(n: int, length: int) -> bytes:
    try:
        return n.to_bytes(length, "big")
    except OverflowError as error:
        raise LocalProtocolError(
            "integer-out-of-range", f"{n} does not fit into {length} unsigned bytes."
        ) from error


def u8(n: int) -> bytes:
    return _integer(n, 1)


def u16(n: int) -> bytes:
    return _integer(n, 2)


def u32(n: int) -> bytes:
    return _integer(n, 4)


def u64(n: int) -> bytes:
    return _integer(n, 8)


def tu32(n: int) -> bytes:
    return u32(n).lstrip(b"\0")


def tu64(n: int) -> bytes:
    return u64(n).lstrip(b"\0")


def bigsize(n: int) -> bytes:
    if n < 0xFD:
        return u8(n)
    if n <= 0xFFFF:
        return b"\xfd" + u16(n)
    if n <= 0xFFFFFFFF:
        return b"\xfe" + u32(n)
    return b"\xff" + u64(n)


def encode_tlvs(records: Mapping[int, bytes]) -> bytes:
    """A tlv_stream from values by type, in the order that BOLT 1 wants."""
    return b"".join(
        bigsize(number) + bigsize(len(value)) + value for number, value in sorted(records.items())
    )


def decode_tlvs(data: bytes, known: Container[int]) -> dict[int, bytes]:
    """The values of the known types of a tlv_stream.

    Raises RemoteProtocolError when the stream is malformed, its types do not strictly increase,
    or an even type is unknown (BOLT 1). Unknown odd types are left out.
    """
    reader = Reader(data)
    records: dict[int, bytes] = {}
    previous = -1
    while not reader.at_end():
        number = reader.bigsize()
        if number <= previous:
            raise RemoteProtocolError(
                "tlv-out-of-order", f"TLV type {number} came after type {previous}."
            )
        previous = number
        value = reader.take(reader.bigsize())
        if number in known:
            records[number] = value
        elif number % 2 == 0:
            raise RemoteProtocolError(
                "unknown-even-tlv", f"TLV type {number} is even and must be understood; it is not."
            )
    return records


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How one field is read and written."""

    read: Callable[[Reader], T]
    write: Callable[[T], bytes]

    def decode(self, value: bytes) -> T:
        """The field that fills a whole TLV value."""
        reader = Reader(value)
        decoded = self.read(reader)
        # BOLT 1: a known record's length is exactly what its encoding needs.
        if not reader.at_end():
            raise RemoteProtocolError(
                "tlv-too-long", f"A TLV value of {len(value)} bytes has more than it needs."
            )
        return decoded


def fixed(length: int) -> Codec[bytes]:
    def write(value: bytes) -> bytes:
        if len(value) != length:
            raise LocalProtocolError(
                "field-length", f"A field has {length} bytes; {len(value)} were given."
            )
        return value

    return Codec(lambda reader: reader.take(length), write)


def _at_most(most: int) -> Callable[[Reader], int]:
    def read(reader: Reader) -> int:
        value = reader.u64()
        # BOLT 1: amounts MUST NOT be above 21 million bitcoin.
        if value > most:
            raise RemoteProtocolError(
                "amount-too-large", f"The amount {value} is more than there are bitcoin."
            )
        return value

    return read


def array(item: Codec[T]) -> Codec[tuple[T, ...]]:
    """Items behind a u16 that counts them."""

    def read(reader: Reader) -> tuple[T, ...]:
        return tuple(item.read(reader) for _ in range(reader.u16()))

    def write(items: tuple[T, ...]) -> bytes:
        return u16(len(items)) + b"".join(map(item.write, items))

    return Codec(read, write)


def until_end(item: Codec[T]) -> Codec[tuple[T, ...]]:
    """Items up to the end of a TLV value."""

    def read(reader: Reader) -> tuple[T, ...]:
        items = []
        while not reader.at_end():
            items.append(item.read(reader))
        return tuple(items)

    return Codec(read, lambda items: b"".join(map(item.write, items)))


U8 = Codec(Reader.u8, u8)
U16 = Codec(Reader.u16, u16)
U32 = Codec(Reader.u32, u32)
U64 = Codec(Reader.u64, u64)
BIGSIZE = Codec(Reader.bigsize, bigsize)
TU32 = Codec(Reader.tu32, tu32)
TU64 = Codec(Reader.tu64, tu64)
HASH = fixed(32)
SIGNATURE = fixed(64)
POINT = Codec(Reader.point, fixed(33).write)
REST = Codec(Reader.rest, bytes)
VARIABLE = Codec(lambda reader: reader.take(reader.u16()), lambda data: u16(len(data)) + data)
_sat = _at_most(MAX_SAT)
_msat = _at_most(MAX_MSAT)
SAT = Codec(lambda reader: Sat(_sat(reader)), u64)
MSAT = Codec(lambda reader: Msat(_msat(reader)), u64)
UNBOUNDED_MSAT = Codec(lambda reader: Msat(reader.u64()), u64)
FEERATE = Codec(lambda reader: FeeratePerKw(reader.u32()), u32)
SHORT_CHANNEL_ID = Codec(lambda reader: ShortChannelId(reader.u64()), u64)
