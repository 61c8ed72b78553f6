"""The messages of BOLT 1, 2 and 7 as the BOLTs list them: type, fields in order, TLV records.

A field is its BOLT type and its name; the TLV records are only those that this project reads.
"""

from __future__ import annotations

MESSAGES: dict[str, tuple[int, str]] = {
    "init": (16, "u16:gflen gflen*byte:globalfeatures u16:flen flen*byte:features"),
    "error": (17, "channel_id:channel_id u16:len len*byte:data"),
    "warning": (1, "channel_id:channel_id u16:len len*byte:data"),
    "ping": (18, "u16:num_pong_bytes u16:byteslen byteslen*byte:ignored"),
    "pong": (19, "u16:byteslen byteslen*byte:ignored"),
    "open_channel": (
        32,
        "chain_hash:chain_hash 32*byte:temporary_channel_id u64:funding_satoshis "
        "u64:push_msat u64:dust_limit_satoshis u64:max_htlc_value_in_flight_msat "
        "u64:channel_reserve_satoshis u64:htlc_minimum_msat u32:feerate_per_kw "
        "u16:to_self_delay u16:max_accepted_htlcs point:funding_pubkey "
        "point:revocation_basepoint point:payment_basepoint "
        "point:delayed_payment_basepoint point:htlc_basepoint "
        "point:first_per_commitment_point byte:channel_flags",
    ),
    "accept_channel": (
        33,
        "32*byte:temporary_channel_id u64:dust_limit_satoshis "
        "u64:max_htlc_value_in_flight_msat u64:channel_reserve_satoshis "
        "u64:htlc_minimum_msat u32:minimum_depth u16:to_self_delay u16:max_accepted_htlcs "
        "point:funding_pubkey point:revocation_basepoint point:payment_basepoint "
        "point:delayed_payment_basepoint point:htlc_basepoint "
        "point:first_per_commitment_point",
    ),
    "funding_created": (
        34,
        "32*byte:temporary_channel_id sha256:funding_txid u16:funding_output_index "
        "signature:signature",
    ),
    "funding_signed": (35, "channel_id:channel_id signature:signature"),
    "channel_ready": (36, "channel_id:channel_id point:second_per_commitment_point"),
    "shutdown": (38, "channel_id:channel_id u16:len len*byte:scriptpubkey"),
    "closing_signed": (39, "channel_id:channel_id u64:fee_satoshis signature:signature"),
    "update_add_htlc": (
        128,
        "channel_id:channel_id u64:id u64:amount_msat sha256:payment_hash u32:cltv_expiry "
        "1366*byte:onion_routing_packet",
    ),
    "update_fulfill_htlc": (130, "channel_id:channel_id u64:id 32*byte:payment_preimage"),
    "update_fail_htlc": (131, "channel_id:channel_id u64:id u16:len len*byte:reason"),
    "update_fail_malformed_htlc": (
        135,
        "channel_id:channel_id u64:id sha256:sha256_of_onion u16:failure_code",
    ),
    "commitment_signed": (
        132,
        "channel_id:channel_id signature:signature u16:num_htlcs "
        "num_htlcs*signature:htlc_signature",
    ),
    "revoke_and_ack": (
        133,
        "channel_id:channel_id 32*byte:per_commitment_secret point:next_per_commitment_point",
    ),
    "update_fee": (134, "channel_id:channel_id u32:feerate_per_kw"),
    "channel_reestablish": (
        136,
        "channel_id:channel_id u64:next_commitment_number u64:next_revocation_number "
        "32*byte:your_last_per_commitment_secret point:my_current_per_commitment_point",
    ),
    "announcement_signatures": (
        259,
        "channel_id:channel_id short_channel_id:short_channel_id signature:node_signature "
        "signature:bitcoin_signature",
    ),
    "channel_announcement": (
        256,
        "signature:node_signature_1 signature:node_signature_2 "
        "signature:bitcoin_signature_1 signature:bitcoin_signature_2 u16:len "
        "len*byte:features chain_hash:chain_hash short_channel_id:short_channel_id "
        "point:node_id_1 point:node_id_2 point:bitcoin_key_1 point:bitcoin_key_2",
    ),
    "node_announcement": (
        257,
        "signature:signature u16:flen flen*byte:features u32:timestamp point:node_id "
        "3*byte:rgb_color 32*byte:alias u16:addrlen addrlen*byte:addresses",
    ),
    "channel_update": (
        258,
        "signature:signature chain_hash:chain_hash short_channel_id:short_channel_id "
        "u32:timestamp byte:message_flags byte:channel_flags u16:cltv_expiry_delta "
        "u64:htlc_minimum_msat u32:fee_base_msat u32:fee_proportional_millionths "
        "u64:htlc_maximum_msat",
    ),
    "query_short_channel_ids": (
        261,
        "chain_hash:chain_hash u16:len len*byte:encoded_short_ids",
    ),
    "reply_short_channel_ids_end": (262, "chain_hash:chain_hash byte:full_information"),
    "query_channel_range": (
        263,
        "chain_hash:chain_hash u32:first_blocknum u32:number_of_blocks",
    ),
    "reply_channel_range": (
        264,
        "chain_hash:chain_hash u32:first_blocknum u32:number_of_blocks byte:sync_complete "
        "u16:len len*byte:encoded_short_ids",
    ),
    "gossip_timestamp_filter": (
        265,
        "chain_hash:chain_hash u32:first_timestamp u32:timestamp_range",
    ),
}
