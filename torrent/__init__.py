"""Models and data over BitTorrent v2: what has an infohash, and the swarm that carries it."""
