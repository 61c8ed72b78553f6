"""Test vectors of BOLT 1: appendix A (BigSize), B (TLV streams) and C (message extension)."""

from __future__ import annotations

# Appendix A: value, encoding. Both ways.
BIGSIZE = [
    (0, "00"),
    (252, "fc"),
    (253, "fd00fd"),
    (65535, "fdffff"),
    (65536, "fe00010000"),
    (4294967295, "feffffffff"),
    (4294967296, "ff0000000100000000"),
    (18446744073709551615, "ffffffffffffffffff"),
]

# Appendix A, decoding alone: encoding, what is wrong with it.
BIGSIZE_MALFORMED = [
    ("fd00fc", "two byte not canonical"),
    ("fe0000ffff", "four byte not canonical"),
    ("ff00000000ffffffff", "eight byte not canonical"),
    ("fd00", "two byte short read"),
    ("feffff", "four byte short read"),
    ("ffffffffff", "eight byte short read"),
    ("", "one byte no read"),
    ("fd", "two byte no read"),
    ("fe", "four byte no read"),
    ("ff", "eight byte no read"),
]

# Appendix B: invalid in any namespace.
TLV_INVALID_ANYWHERE = [
    ("fd", "type truncated"),
    ("fd01", "type truncated"),
    ("fd000100", "not minimally encoded type"),
    ("fd0101", "missing length"),
    ("0ffd", "(length truncated)"),
    ("0ffd26", "(length truncated)"),
    ("0ffd2602", "missing value"),
    ("0ffd000100", "not minimally encoded length"),
    ("0ffd0201" + "00" * 258, "value truncated"),
]

# Appendix B: unknown even types in either namespace.
TLV_UNKNOWN_EVEN = [
    ("1200", "unknown even type."),
    ("fd010200", "unknown even type."),
    ("fe0100000200", "unknown even type."),
    ("ff010000000000000200", "unknown even type."),
]

# Appendix B: invalid in namespace n1.
TLV_INVALID_N1 = [
    ("0109ffffffffffffffffff", "greater than encoding length for n1s tlv1."),
    ("010100", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("01020001", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("0103000100", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("010400010000", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("01050001000000", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("0106000100000000", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("010700010000000000", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("01080001000000000000", "encoding for n1s tlv1s amount_msat is not minimal"),
    ("020701010101010101", "less than encoding length for n1s tlv2."),
    ("0209010101010101010101", "greater than encoding length for n1s tlv2."),
    (
        "0321023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb",
        "less than encoding length for n1s tlv3.",
    ),
    (
        "0329023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb0000000000000001",
        "less than encoding length for n1s tlv3.",
    ),
    (
        "0330023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb00000000000000"
        "0100000000000001",
        "less than encoding length for n1s tlv3.",
    ),
    (
        "0331043da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb00000000000000"
        "010000000000000002",
        "n1s node_id is not a valid point.",
    ),
    (
        "0332023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb00000000000000"
        "01000000000000000001",
        "greater than encoding length for n1s tlv3.",
    ),
    ("fd00fe00", "less than encoding length for n1s tlv4."),
    ("fd00fe0101", "less than encoding length for n1s tlv4."),
    ("fd00fe03010101", "greater than encoding length for n1s tlv4."),
    ("0000", "unknown even field for n1s namespace."),
]

# Appendix B: valid in either namespace, and ignored.
TLV_IGNORED = [
    ("", "empty message"),
    ("2100", "Unknown odd type."),
    ("fd020100", "Unknown odd type."),
    ("fd00fd00", "Unknown odd type."),
    ("fd00ff00", "Unknown odd type."),
    ("fe0200000100", "Unknown odd type."),
    ("ff020000000000000100", "Unknown odd type."),
]

# Appendix B: valid in namespace n1.
TLV_N1 = [
    ("0100", "tlv1 amount_msat=0"),
    ("010101", "tlv1 amount_msat=1"),
    ("01020100", "tlv1 amount_msat=256"),
    ("0103010000", "tlv1 amount_msat=65536"),
    ("010401000000", "tlv1 amount_msat=16777216"),
    ("01050100000000", "tlv1 amount_msat=4294967296"),
    ("0106010000000000", "tlv1 amount_msat=1099511627776"),
    ("010701000000000000", "tlv1 amount_msat=281474976710656"),
    ("01080100000000000000", "tlv1 amount_msat=72057594037927936"),
    ("02080000000000000226", "tlv2 scid=0x0x550"),
    (
        "0331023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb00000000000000"
        "010000000000000002",
        "tlv3 node_id=023da092f6980e58d2c037173180e9a465476026ee50f96695963e8efe436f54eb "
        "amount_msat_1=1 amount_msat_2=2",
    ),
    ("fd00fe020226", "tlv4 cltv_delta=550"),
]

# Appendix B: streams that are invalid in namespace n1.
TLV_STREAM_INVALID_N1 = [
    ("0208000000000000022601012a", "valid TLV records but invalid ordering"),
    ("0208000000000000023102080000000000000451", "duplicate TLV type"),
    ("1f000f012a", "valid (ignored) TLV records but invalid ordering"),
    ("1f001f012a", "duplicate TLV type (ignored)"),
]

# Appendix B: streams that are invalid in namespace n2.
TLV_STREAM_INVALID_N2 = [
    ("ffffffffffffffffff000000", "valid TLV records but invalid ordering"),
]

# Appendix C: init messages with an extension.
INIT_VALID = [
    "001000000000",
    "001000000000c9012acb0104",
]
INIT_INVALID = [
    ("00100000000001", "truncated"),
    ("001000000000ca012a", "unknown even type"),
    ("001000000000c90101c90102", "duplicate type"),
]
