"""Test vectors of BOLT 8, appendix A: both sides of the handshake, then messages."""

from __future__ import annotations

RESPONDER_PUB = "028d7500dd4c12685d1f568b4c2b5048e8534b873319f3a8daa612b469132ec7f7"
INITIATOR_KEY = "1111111111111111111111111111111111111111111111111111111111111111"
INITIATOR_PUB = "034f355bdcb7cc0af728ef3cceb9615d90684bb5b2ca5f859ab0f0b704075871aa"
INITIATOR_EPHEMERAL = "1212121212121212121212121212121212121212121212121212121212121212"
RESPONDER_KEY = "2121212121212121212121212121212121212121212121212121212121212121"
RESPONDER_EPHEMERAL = "2222222222222222222222222222222222222222222222222222222222222222"

ACT_ONE = (
    "00036360e856310ce5d294e8be33fc807077dc56ac80d95d9cd4ddbd21325eff73f70df608655115"
    "1f58b8afe6c195782c6a"
)
ACT_TWO = (
    "0002466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f276e2470b93aac"
    "583c9ef6eafca3f730ae"
)
ACT_THREE = (
    "00b9e3a702e93e3a9948c2ed6e5fd7590a6e1c3a0344cfc9d5b57357049aa22355361aa02e55a8fc"
    "28fef5bd6d71ad0c38228dc68b1c466263b47fdf31e560e139ba"
)
# The initiator's sk and rk, which are the responder's rk and sk.
SENDING_KEY = "969ab31b4d288cedf6218839b27a3e2140827047f2c0f01bf5c04435d43511a9"
RECEIVING_KEY = "bb9020b8965f4df047e07f955f3c4b88418984aadc5cdb35096b9ea8fa5c3442"

# Name, act two as it arrives, the reason of ours that answers to the vector's error.
INITIATOR_FAILURES = [
    (
        "act2 short read test",
        "0002466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f276e2470b93aac"
        "583c9ef6eafca3f730",
        "act-two-length",
    ),
    (
        "act2 bad version test",
        "0102466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f276e2470b93aac"
        "583c9ef6eafca3f730ae",
        "act-two-version",
    ),
    (
        "act2 bad key serialization test",
        "0004466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f276e2470b93aac"
        "583c9ef6eafca3f730ae",
        "act-two-key",
    ),
    (
        "act2 bad MAC test",
        "0002466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f276e2470b93aac"
        "583c9ef6eafca3f730af",
        "act-two-mac",
    ),
]

# Name, act one, act three if it comes to that, the reason.
RESPONDER_FAILURES = [
    (
        "act1 short read test",
        "00036360e856310ce5d294e8be33fc807077dc56ac80d95d9cd4ddbd21325eff73f70df608655115"
        "1f58b8afe6c195782c",
        None,
        "act-one-length",
    ),
    (
        "act1 bad version test",
        "01036360e856310ce5d294e8be33fc807077dc56ac80d95d9cd4ddbd21325eff73f70df608655115"
        "1f58b8afe6c195782c6a",
        None,
        "act-one-version",
    ),
    (
        "act1 bad key serialization test",
        "00046360e856310ce5d294e8be33fc807077dc56ac80d95d9cd4ddbd21325eff73f70df608655115"
        "1f58b8afe6c195782c6a",
        None,
        "act-one-key",
    ),
    (
        "act1 bad MAC test",
        "00036360e856310ce5d294e8be33fc807077dc56ac80d95d9cd4ddbd21325eff73f70df608655115"
        "1f58b8afe6c195782c6b",
        None,
        "act-one-mac",
    ),
    (
        "act3 bad version test",
        ACT_ONE,
        "01b9e3a702e93e3a9948c2ed6e5fd7590a6e1c3a0344cfc9d5b57357049aa22355361aa02e55a8fc"
        "28fef5bd6d71ad0c38228dc68b1c466263b47fdf31e560e139ba",
        "act-three-version",
    ),
    (
        "act3 short read test",
        ACT_ONE,
        "00b9e3a702e93e3a9948c2ed6e5fd7590a6e1c3a0344cfc9d5b57357049aa22355361aa02e55a8fc"
        "28fef5bd6d71ad0c38228dc68b1c466263b47fdf31e560e139",
        "act-three-length",
    ),
    (
        "act3 bad MAC for ciphertext test",
        ACT_ONE,
        "00c9e3a702e93e3a9948c2ed6e5fd7590a6e1c3a0344cfc9d5b57357049aa22355361aa02e55a8fc"
        "28fef5bd6d71ad0c38228dc68b1c466263b47fdf31e560e139ba",
        "act-three-ciphertext",
    ),
    (
        "act3 bad rs test",
        ACT_ONE,
        "00bfe3a702e93e3a9948c2ed6e5fd7590a6e1c3a0344cfc9d5b57357049aa2235536ad09a8ee3518"
        "70c2bb7f78b754a26c6cef79a98d25139c856d7efd252c2ae73c",
        "act-three-key",
    ),
    (
        "act3 bad MAC test",
        ACT_ONE,
        "00b9e3a702e93e3a9948c2ed6e5fd7590a6e1c3a0344cfc9d5b57357049aa22355361aa02e55a8fc"
        "28fef5bd6d71ad0c38228dc68b1c466263b47fdf31e560e139bb",
        "act-three-mac",
    ),
]

MESSAGE = b"hello"
MESSAGE_CHAINING_KEY = "919219dbb2920afa8db80f9a51787a840bcf111ed8d588caf9ab4be716e42b01"
# What the message is sealed as, by how many went before it.
SEALED = {
    0: "cf2b30ddf0cf3f80e7c35a6e6730b59fe802473180f396d88a8fb0db8cbcf25d2f214cf9ea1d95",
    1: "72887022101f0b6753e0c7de21657d35a4cb2a1f5cde2650528bbc8f837d0f0d7ad833b1a256a1",
    500: "178cb9d7387190fa34db9c2d50027d21793c9bc2d40b1e14dcf30ebeeeb220f48364f7a4c68bf8",
    501: "1b186c57d44eb6de4c057c49940d79bb838a145cb528d6e8fd26dbe50a60ca2c104b56b60e45bd",
    1000: "4a2f3cc3b5e78ddb83dcb426d9863d9d9a723b0337c89dd0b005d89f8d3c05c52b76b29b740f09",
    1001: "2ecd8c8a5629d0d02ab457a0fdd0f7b90a192cd46be5ecb6ca570bfc5e268338b1a16cf4ef2d36",
}
