"""The query messages of BOLT 7's extended-queries.json: encoding, class, some of their fields."""

from __future__ import annotations

from typing import Any

QUERIES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "01070f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206000186a0000005dc",
        "QueryChannelRange",
        {"first_blocknum": 100000, "number_of_blocks": 1500},
    ),
    (
        "01070f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206000088b800000064"
        "010103",
        "QueryChannelRange",
        {"first_blocknum": 35000, "number_of_blocks": 100},
    ),
    (
        "01080f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206000b8a06000005dc"
        "01001900000000000000008e0000000000003c69000000000045a6c4",
        "ReplyChannelRange",
        {"first_blocknum": 756230, "number_of_blocks": 1500, "sync_complete": 1},
    ),
    (
        "01080f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206000006400000006e"
        "01001601789c636000833e08659309a65878be010010a9023a",
        "ReplyChannelRange",
        {"first_blocknum": 1600, "number_of_blocks": 110, "sync_complete": 1},
    ),
    (
        "01080f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e22060001ddde000005dc"
        "01001900000000000000304300000000000778d6000000000046e1c1011900000282c1000e77c5000778"
        "ad00490ab00000b57800955bff031800000457000008ae00000d050000115c000015b300001a0a",
        "ReplyChannelRange",
        {"first_blocknum": 122334, "number_of_blocks": 1500, "sync_complete": 1},
    ),
    (
        "01080f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e22060001ddde000005dc"
        "01001801789c63600001036730c55e710d4cbb3d3c080017c303b1012201789c63606a3ac8c0577e9481"
        "bd622d8327d7060686ad150c53a3ff0300554707db031800000457000008ae00000d050000115c000015"
        "b300001a0a",
        "ReplyChannelRange",
        {"first_blocknum": 122334, "number_of_blocks": 1500, "sync_complete": 1},
    ),
    (
        "01050f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e22060019000000000000"
        "00008e0000000000003c69000000000045a6c4",
        "QueryShortChannelIds",
        {},
    ),
    (
        "01050f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206001801789c636000"
        "01c12b608a69e73e30edbaec0800203b040e",
        "QueryShortChannelIds",
        {},
    ),
    (
        "01050f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e22060019000000000000"
        "002fc80000000000003cc4000000000045a6c4010c01789c6364620100000e0008",
        "QueryShortChannelIds",
        {},
    ),
    (
        "01050f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206001801789c636000"
        "01f30a30c5b0cd144cb92e3b020017c6034a010c01789c6364620100000e0008",
        "QueryShortChannelIds",
        {},
    ),
]
