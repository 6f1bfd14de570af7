"""The ingress: the process that reads the socket, and the life of a request in it."""
