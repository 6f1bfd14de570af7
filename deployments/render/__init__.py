"""From a cluster's config to what Ray Serve, KubeRay and Helm take. Here, not in infra, because the command line uses it."""
