"""The one place with sockets: names are looked up, connections made, bytes moved."""
