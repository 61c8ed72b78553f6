"""Witness scripts of the outputs of commitment and HTLC transactions (BOLT 3).

"local" is the owner of the commitment transaction and "remote" the other side, as in BOLT 3.
The witness that spends each branch stands beside it; the script itself comes last in every
witness. All keys are the derived ones of one commitment.
"""

from __future__ import annotations

from channels.bolt.transactions import hash160, push, ripemd160, script_number


def to_local_script(revocation_pubkey: bytes, to_self_delay: int, local_delayed: bytes) -> bytes:
    """`to_local` and the output of HTLC transactions.

    Local, with an nSequence of to_self_delay: <local_delayedsig> <>
    Remote, when revoked: <revocation_sig> 1
    """
    return b"".join(
        (
            b"\x63",  # OP_IF
            push(revocation_pubkey),
            b"\x67",  # OP_ELSE
            script_number(to_self_delay),
            b"\xb2\x75",  # OP_CHECKSEQUENCEVERIFY OP_DROP
            push(local_delayed),
            b"\x68\xac",  # OP_ENDIF OP_CHECKSIG
        )
    )


def to_remote_script(remote_pubkey: bytes) -> bytes:
    """`to_remote` with option_anchors; without, the output is a plain p2wpkh.

    Remote, with an nSequence of 1: <remote_sig>
    """
    # OP_CHECKSIGVERIFY 1 OP_CHECKSEQUENCEVERIFY
    return push(remote_pubkey) + b"\xad\x51\xb2"


def anchor_script(funding_pubkey: bytes) -> bytes:
    """`to_local_anchor` or `to_remote_anchor`, by whose funding key it is.

    The owner of the key: <sig>
    Anybody, with an nSequence of 16: <>
    """
    # OP_CHECKSIG OP_IFDUP OP_NOTIF OP_16 OP_CHECKSEQUENCEVERIFY OP_ENDIF
    return push(funding_pubkey) + b"\xac\x73\x64\x60\xb2\x68"


def _htlc_start(revocation_pubkey: bytes, remote_htlc: bytes) -> bytes:
    """Up to the test for a preimage of 32 bytes, the same in both kinds of HTLC."""
    return b"".join(
        (
            b"\x76\xa9",  # OP_DUP OP_HASH160
            push(hash160(revocation_pubkey)),
            b"\x87\x63\xac\x67",  # OP_EQUAL OP_IF OP_CHECKSIG OP_ELSE
            push(remote_htlc),
            b"\x7c\x82\x01\x20\x87",  # OP_SWAP OP_SIZE 32 OP_EQUAL
        )
    )


def _htlc_end(anchors: bool) -> bytes:
    # OP_ENDIF, with option_anchors 1 OP_CHECKSEQUENCEVERIFY OP_DROP, OP_ENDIF
    return b"\x68\x51\xb2\x75\x68" if anchors else b"\x68\x68"


def offered_htlc_script(
    revocation_pubkey: bytes,
    local_htlc: bytes,
    remote_htlc: bytes,
    payment_hash: bytes,
    *,
    anchors: bool,
) -> bytes:
    """An HTLC that local offered.

    HTLC-timeout transaction: <> <remotehtlcsig> <localhtlcsig> <>
    Remote, with option_anchors an nSequence of 1: <remotehtlcsig> <payment_preimage>
    Remote, when revoked: <revocation_sig> <revocationpubkey>
    """
    return b"".join(
        (
            _htlc_start(revocation_pubkey, remote_htlc),
            b"\x64\x75\x52\x7c",  # OP_NOTIF OP_DROP 2 OP_SWAP
            push(local_htlc),
            b"\x52\xae\x67\xa9",  # 2 OP_CHECKMULTISIG OP_ELSE OP_HASH160
            push(ripemd160(payment_hash)),
            b"\x88\xac",  # OP_EQUALVERIFY OP_CHECKSIG
            _htlc_end(anchors),
        )
    )


def received_htlc_script(
    revocation_pubkey: bytes,
    local_htlc: bytes,
    remote_htlc: bytes,
    payment_hash: bytes,
    cltv_expiry: int,
    *,
    anchors: bool,
) -> bytes:
    """An HTLC that local received.

    HTLC-success transaction: <> <remotehtlcsig> <localhtlcsig> <payment_preimage>
    Remote, with an nLockTime of cltv_expiry and with option_anchors an nSequence of 1:
    <remotehtlcsig> <>
    Remote, when revoked: <revocation_sig> <revocationpubkey>
    """
    return b"".join(
        (
            _htlc_start(revocation_pubkey, remote_htlc),
            b"\x63\xa9",  # OP_IF OP_HASH160
            push(ripemd160(payment_hash)),
            b"\x88\x52\x7c",  # OP_EQUALVERIFY 2 OP_SWAP
            push(local_htlc),
            b"\x52\xae\x67\x75",  # 2 OP_CHECKMULTISIG OP_ELSE OP_DROP
            script_number(cltv_expiry),
            b"\xb1\x75\xac",  # OP_CHECKLOCKTIMEVERIFY OP_DROP OP_CHECKSIG
            _htlc_end(anchors),
        )
    )
