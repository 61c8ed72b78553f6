"""Bech32 and Bech32m text, and the segwit addresses made of it (BIP 173, BIP 350).

A "group" is a number of 5 bits; a string of groups is `bytes` whose every value is below 32.
"""

from __future__ import annotations

from channels.errors import LocalProtocolError, UserError

ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BECH32 = 1
BECH32M = 0x2BC830A3

MAX_ADDRESS_LENGTH = 90
"""BIP 173 "Bech32": beyond this its checksum no longer promises to find errors."""

_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_FEEDBACK = []
for _top in range(32):
    _sum = 0
    for _bit, _value in enumerate(_GENERATOR):
        if _top >> _bit & 1:
            _sum ^= _value
    _FEEDBACK.append(_sum)


def _polymod(groups: bytes) -> int:
    checksum = 1
    for group in groups:
        checksum = (checksum & 0x1FFFFFF) << 5 ^ group ^ _FEEDBACK[checksum >> 25]
    return checksum


def _expand(hrp: str) -> bytes:
    codes = hrp.encode("ascii")
    return bytes(code >> 5 for code in codes) + b"\0" + bytes(code & 31 for code in codes)


def to_groups(data: bytes) -> bytes:
    """Bytes as groups, the last one filled up with 0 bits."""
    size = -(-len(data) * 8 // 5)
    number = int.from_bytes(data, "big") << (size * 5 - len(data) * 8)
    return bytes(number >> 5 * at & 31 for at in range(size - 1, -1, -1))


def from_groups(groups: bytes) -> bytes:
    """The whole bytes in groups; up to 7 bits that remain at the end are left out."""
    number = bits = 0
    data = bytearray()
    for group in groups:
        number = (number << 5 | group) & 0xFFF
        bits += 5
        if bits >= 8:
            bits -= 8
            data.append(number >> bits & 0xFF)
    return bytes(data)


def to_characters(groups: bytes) -> str:
    return "".join(ALPHABET[group] for group in groups)


def from_characters(text: str) -> bytes:
    """The reverse of `to_characters`. Raises UserError("bech32-character")."""
    try:
        return bytes(_VALUES[character] for character in text)
    except KeyError as error:
        raise UserError(
            "bech32-character",
            f"The text contains the character {error.args[0]!r}, which bech32 does not use; "
            "copy it again.",
        ) from None


def encode(hrp: str, groups: bytes, constant: int = BECH32) -> str:
    """Text of a human-readable part in lower case and groups; no limit of length."""
    checksum = _polymod(_expand(hrp) + groups + bytes(6)) ^ constant
    tail = bytes(checksum >> 5 * (5 - at) & 31 for at in range(6))
    return hrp + "1" + to_characters(groups + tail)


def decode(text: str, max_length: int = MAX_ADDRESS_LENGTH) -> tuple[str, bytes, int]:
    """Human-readable part in lower case, groups without checksum, and BECH32 or BECH32M.

    Raises UserError with a reason that begins with "bech32-".
    """
    if len(text) > max_length:
        raise UserError(
            "bech32-length", f"The text has {len(text)} characters; at most {max_length} are used."
        )
    if not all("!" <= character <= "~" for character in text):
        raise UserError(
            "bech32-character", "The text contains a character bech32 does not use; copy it again."
        )
    if text != text.lower() and text != text.upper():
        raise UserError("bech32-mixed-case", "The text mixes upper and lower case; use one.")
    hrp, separator, data = text.lower().rpartition("1")
    if not separator or not hrp or len(data) < 6:
        raise UserError("bech32-separator", "The text is cut short or is not bech32; copy it all.")
    groups = from_characters(data)
    constant = _polymod(_expand(hrp) + groups)
    if constant not in (BECH32, BECH32M):
        raise UserError("bech32-checksum", "The text has a typing error; copy it again.")
    return hrp, groups[:-6], constant


def is_witness_program(version: int, program: bytes) -> bool:
    """BIP 141 "Witness program": versions 0 to 16, 2 to 40 bytes; 20 or 32 for version 0."""
    if version == 0:
        return len(program) in (20, 32)
    return 1 <= version <= 16 and 2 <= len(program) <= 40


def encode_segwit_address(hrp: str, version: int, program: bytes) -> str:
    """An address: `hrp` is bc, tb or bcrt. Raises LocalProtocolError("witness-program")."""
    if not is_witness_program(version, program):
        raise LocalProtocolError(
            "witness-program", "These are not the version and program of a segwit output."
        )
    # BIP 350: version 0 keeps the old checksum.
    constant = BECH32 if version == 0 else BECH32M
    return encode(hrp, bytes([version]) + to_groups(program), constant)


def decode_segwit_address(hrp: str, address: str) -> tuple[int, bytes]:
    """Witness version and program of an address of the network with this `hrp`.

    Raises UserError: "wrong-network", "segwit-address", or what `decode` raises.
    """
    found, groups, constant = decode(address)
    if found != hrp:
        raise UserError(
            "wrong-network", f"The address begins with {found!r}; this network uses {hrp!r}."
        )
    version, rest = (groups[0], groups[1:]) if groups else (17, b"")
    program = from_groups(rest)
    if (
        not is_witness_program(version, program)
        # BIP 350: the checksum belongs to the version.
        or constant != (BECH32 if version == 0 else BECH32M)
        # BIP 173 "Segwit address format": padding is at most 4 bits, all 0.
        or to_groups(program) != rest
    ):
        raise UserError("segwit-address", "The text is not an address of a segwit output.")
    return version, program
