"""The head process of a cluster: it starts Ray and Serve, watches them, and takes everything down with it."""
