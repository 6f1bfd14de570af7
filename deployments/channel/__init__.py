"""The direct channel between replicas and ingresses: tokens one way, cancellations the other."""
