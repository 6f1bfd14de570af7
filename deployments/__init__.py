"""The actors: Ray Serve deployments around engines, and the command line that starts them."""
