"""How the parts talk: messages, routes, codec, signatures, clients, ports."""
