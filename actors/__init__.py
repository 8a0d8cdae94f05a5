"""The actors: Ray processes, links, sockets and the handle."""
