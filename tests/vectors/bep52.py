"""Pieces roots (BEP 52) as libtorrent 2.1.1 writes them into a v2 torrent's file tree.

The file of n bytes is bytes(i * 7 % 251 for i in range(n)).
"""

PIECES_ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    16384: "de211248dff7bc4def1192a5c96710e55692e2672b7ebb7df864c325bacc7e49",
    16385: "7e40fa9dda2684d438e1b3d5ce6ecd00317d850c5d652a56e0ca13e6188f2d7e",
    49153: "9ae44c252641c76f5966dd6f854aefd99193e57d18e0ca1114ddf8ecdb3b3bef",
    163841: "637856e823daacab5ec0697c0fa38fcf4d9da3c4bc61cdf57af93dffa1e992e7",
    300000: "e87f797ca88c7ee38f20cd6f5dd98f03e69ce475229f7237ed9ac6af166eb5a5",
}
