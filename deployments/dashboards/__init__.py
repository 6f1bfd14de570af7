"""Grafana dashboards as code: what they show, their JSON, and bringing them to a Grafana."""
